package tunnel

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/shim"
)

// Ping sends one ICMP echo request to dst through the connector that Pick
// chooses, and waits for the reply of whoever has the address in its network.
// It returns how long that took, and through whom. It wakes a network at rest.
//
// A connector of ours asks the host itself, and answers once that has. A
// WireGuard router of another make forwards the request: it is plain ICMP.
//
// Errors wrap those of netx: ErrNoRoute where no live connector serves dst (the
// Peer is nil then), or the connector dies or loses the route before the answer
// is there (another may serve it); ErrUnreachable where the connector's guard,
// a router, or the connector's want of a right to ping says no; ErrTimedOut
// where ctx's deadline passed, or the connector waited in vain. An end of ctx
// before its deadline is its cause.
func (n *Network) Ping(ctx context.Context, dst netip.Addr) (rtt time.Duration, p *Peer, err error) {
	dst = dst.Unmap()
	p = n.Pick(dst)
	if p == nil {
		return 0, nil, fmt.Errorf("pinging %q in network %q: %w", dst, n.name, netx.ErrNoRoute)
	}
	rtt, err = p.ping(ctx, dst)
	if err != nil {
		return 0, p, fmt.Errorf("pinging %q in network %q through %q: %w", dst, n.name, p.name, err)
	}
	return rtt, p, nil
}

// ping pings through p, and gives up when p dies.
func (p *Peer) ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	nic, err := p.enter()
	if err != nil {
		return 0, err
	}
	defer p.leave()
	here := p.here.Load()
	if here == nil || here.Err() != nil { // it has just come: watch does not know yet
		return nic.Ping(ctx, dst)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(here, func() { cancel(errLost) })()
	return nic.Ping(ctx, dst)
}

// ICMP types of an echo (RFC 792, RFC 4443 section 4).
const (
	icmp4EchoReply   = 0
	icmp4EchoRequest = 8
	icmp6EchoRequest = 128
	icmp6EchoReply   = 129
)

// isEchoRequest and isEchoReply tell an echo by its type, in a whole packet
// that carried has let through to them.
func isEchoRequest(in shim.Inner) bool { return hasICMPType(in, icmp4EchoRequest, icmp6EchoRequest) }
func isEchoReply(in shim.Inner) bool   { return hasICMPType(in, icmp4EchoReply, icmp6EchoReply) }

func hasICMPType(in shim.Inner, type4, type6 byte) bool {
	if len(in.Payload) == 0 {
		return false
	}
	switch in.Proto {
	case protoICMP4:
		return in.Src.Is4() && in.Payload[0] == type4
	case protoICMP6:
		return in.Src.Is6() && in.Payload[0] == type6
	}
	return false
}
