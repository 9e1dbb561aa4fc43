package tunnel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/link"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/shim"
)

// maxOverlayFlows is how many TCP connections one peer may have with our
// overlay address, those included that we closed and that it does not let go;
// further ones are reset. A connector needs two.
const maxOverlayFlows = 64

// Packets that the overlay's stack is given, a second and at once: from one
// peer, and from all. gVisor queues segments without payload and without a
// bound, 3 KB each; at this pace it is done with each before the next comes
// (it takes some 10 µs), whatever the link does, since that never waits.
const (
	overlayRate, overlayBurst       = 512, 512
	overlayRateAll, overlayBurstAll = 16_384, 4_096
)

// overlayStack is the TCP of our overlay address: control and enrolment. Its
// packets are whole overlay packets, without a shim, and no packet of it comes
// near a network's stack.
type overlayStack struct {
	stack *netstack.Stack
	nic   *netstack.NIC
	link  *link.Endpoint
	lane  *lane
}

func (t *Tunnel) newOverlayStack(addr netip.Addr) (*overlayStack, error) {
	st, err := netstack.New(netstack.Config{Small: true, Shared: t.shared})
	if err != nil {
		return nil, fmt.Errorf("making the overlay's stack: %w", err)
	}
	o := &overlayStack{stack: st}
	o.link = link.New(link.Config{MTU: minInnerMTU, Lossy: true, Deferrer: t.deferrer, Ready: func() { t.outbox.ready(o.lane) }})
	o.lane = t.outbox.add(&lane{link: o.link, bare: true})
	o.nic, err = st.AddNIC(netstack.NICConfig{
		Name: "overlay", Link: o.link, Sources: []netip.Addr{addr}, MaxFlowsPerHost: maxOverlayFlows,
	})
	if err != nil {
		t.outbox.remove(o.lane)
		st.Close()
		return nil, fmt.Errorf("making the overlay's stack: %w", err)
	}
	o.link.SetOpen(true)
	t.mu.Lock()
	t.overlays[o] = struct{}{}
	t.mu.Unlock()
	return o, nil
}

// close aborts the stack's flows and ends it.
func (o *overlayStack) close(t *Tunnel) {
	o.stack.Close()
	t.outbox.remove(o.lane)
	t.goneMu.Lock()
	defer t.goneMu.Unlock()
	o.link.Drops(t.goneLinks.Add)
	o.stack.Drops(func(_, why string, n uint64) { t.goneStacks.Add(why, n) })
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.overlays, o)
}

// abort ends the flows with one overlay address, but those to our port but (0:
// all of them).
func (o *overlayStack) abort(with netip.Addr, but uint16) {
	o.nic.AbortFlows(func(local, remote netip.AddrPort) bool {
		return remote.Addr() == with && (but == 0 || local.Port() != but)
	})
}

// ListenOverlay listens for TCP on a port of our overlay address, which only
// those peers reach that may (Config.ControlPort, GuestConfig.Port). The address
// that a conn says it comes from is authenticated: KeyAt tells whose it is.
// The listener ends with ctx, its Close, or the tunnel's.
func (t *Tunnel) ListenOverlay(ctx context.Context, port uint16) (net.Listener, error) {
	self := t.self.Load()
	return self.stack.nic.Listen(ctx, "tcp", netip.AddrPortFrom(self.overlay, port))
}

// DialOverlay opens a TCP connection to a port of an edge's overlay address.
// It ends when that edge dies or is removed, or our key changes. The error
// wraps netx's: ErrNoRoute where no edge has that address or the edge is not
// alive, else as a NIC's DialContext.
func (t *Tunnel) DialOverlay(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	s := t.sessionAt(dst.Addr())
	if s == nil || s.peer == nil || !s.peer.initiate {
		return nil, fmt.Errorf("dialling %q on the overlay: no edge has that address: %w", dst, netx.ErrNoRoute)
	}
	here := s.peer.here.Load()
	if here == nil || here.Err() != nil {
		return nil, fmt.Errorf("dialling %q on the overlay: the edge is not alive: %w", dst, netx.ErrNoRoute)
	}
	return dialWhile(here, ctx, t.self.Load().stack.nic, "tcp", netip.AddrPort{}, dst)
}

// dialWhile dials until ctx ends, or here does: SYNs that nobody hears would
// be sent again until ctx's time is over.
func dialWhile(here *presence, ctx context.Context, nic *netstack.NIC, network string, from, dst netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(here, func() { cancel(errLost) })()
	return nic.DialFrom(ctx, network, from, dst)
}

// overlayTCP decides on a TCP packet of the overlay that s sent to us. What it
// may reach is one port; at a connector, whatever the stack has asked for.
func (t *Tunnel) overlayTCP(s *session, segment []byte, now time.Time) shim.Why {
	if len(segment) < header.TCPMinimumSize {
		return WhyOverlay
	}
	if port := binary.BigEndian.Uint16(segment[header.TCPDstPortOffset:]); !t.reaches(s, port) {
		return WhyOverlay
	}
	if !s.rate.AllowN(now, 1) || !t.overlayRate.AllowN(now, 1) {
		return WhyOverlayRate
	}
	return shim.OK
}

// reaches reports whether s may speak to a port of our overlay address.
func (t *Tunnel) reaches(s *session, port uint16) bool {
	may := t.cfg.ControlPort
	switch {
	case s.guest != nil:
		may = s.guest.port
	case s.peer.initiate:
		return true // nothing listens at a connector: only what it dialled is there
	}
	return port != 0 && port == may
}
