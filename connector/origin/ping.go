package origin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Pinger sends an ICMP echo request to dst and waits for the reply, until ctx
// ends. It returns the round trip.
type Pinger interface {
	Ping(ctx context.Context, dst netip.Addr) (time.Duration, error)
}

// MaxPings is how many pings a Dialer has under way at most: each holds a
// socket.
const MaxPings = 2048

// pingDataLen is how much data an echo request of ours carries: what ping(8)
// sends, random so that replies to others' requests are not taken for ours.
const pingDataLen = 56

var (
	// ErrPingForbidden: this machine does not let the connector ping.
	ErrPingForbidden = errors.New("the connector may not ping: let its group do it (sysctl net.ipv4.ping_group_range=\"0 2147483647\", which is for IPv6 too), or give it CAP_NET_RAW")
	// ErrTooManyPings: MaxPings are under way.
	ErrTooManyPings = fmt.Errorf("%d pings are under way already", MaxPings)
)

// Ping sends an ICMP echo request to dst, a host of the private side, and
// returns how long the reply took. Aliases do not matter: they serve ports, not
// hosts. As with DialContext it is the caller's duty to ask the Guard first,
// with AllowPing.
//
// It needs no privilege where sysctl net.ipv4.ping_group_range has one of the
// process's groups; else CAP_NET_RAW, or the error is ErrPingForbidden. The
// ping ends after the Spec's timeout. An error names dst and wraps
// netx.ErrTimedOut for silence, and else netx.ErrUnreachable, with the cause;
// only an end of ctx is neither.
func (d *Dialer) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	dst = dst.Unmap()
	rtt, err := d.ping(ctx, dst)
	if err == nil {
		return rtt, nil
	}
	class := classify(ctx, err)
	if class == netx.ErrRefused {
		class = netx.ErrUnreachable // a ping has no port that could be refused
	}
	return 0, &Error{What: fmt.Sprintf("pinging %q", dst), Class: class, Err: reason(err)}
}

func (d *Dialer) ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	if !dst.IsValid() || dst.Zone() != "" || dst.IsUnspecified() || dst.IsMulticast() {
		return 0, errors.New("the address of one host is required")
	}
	if d.pings.Add(1) > MaxPings {
		d.pings.Add(-1)
		return 0, ErrTooManyPings
	}
	defer d.pings.Add(-1)
	return d.pinger.Ping(ctx, dst)
}

// kernelPinger pings with a socket for each ping, which is connected: so the
// kernel tells what routers say.
type kernelPinger struct{}

// pingSocket is a socket for one ping.
type pingSocket interface {
	net.Conn
	// receive reads one ICMP message, without an IP header, and who sent it.
	receive(b []byte) (n int, from netip.Addr, err error)
	// ident says which identifier the reply has, where the kernel has seen to
	// it that no other arrives: any is ours then.
	ident() (id uint16, checked bool)
}

func (kernelPinger) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	return pingThrough(ctx, dst, openPing)
}

// pingThrough pings dst through a socket that open makes.
func pingThrough(ctx context.Context, dst netip.Addr, open func(netip.Addr) (pingSocket, error)) (time.Duration, error) {
	s, err := open(dst)
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Close() }()
	if at, ok := ctx.Deadline(); ok {
		if err := s.SetReadDeadline(at); err != nil {
			return 0, err
		}
	}
	// Of reading alone: a write does not wait. Set last, so that nothing undoes it.
	defer context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })()
	p := newPing(dst, s)
	request, err := p.request()
	if err != nil {
		return 0, err
	}
	sent := time.Now()
	if _, err := s.Write(request); err != nil {
		return 0, err
	}
	for b := make([]byte, 1500); ; {
		n, from, err := s.receive(b)
		switch {
		case err == nil && p.answeredBy(b[:n], from):
			return time.Since(sent), nil
		case err == nil:
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, context.DeadlineExceeded // a moment before the context says so
		default:
			return 0, err
		}
	}
}

// ping is one echo request, and what its reply has to be.
type ping struct {
	dst     netip.Addr
	id, seq uint16
	anyID   bool // the kernel has chosen the identifier, and checks it
	data    [pingDataLen]byte
}

func newPing(dst netip.Addr, s pingSocket) *ping {
	p := &ping{dst: dst, seq: uint16(rand.Uint32())}
	p.id, p.anyID = s.ident()
	for i := range p.data {
		p.data[i] = byte(rand.Uint32())
	}
	return p
}

// request is the ICMP message. The kernel computes ICMPv6's checksum.
func (p *ping) request() ([]byte, error) {
	m := icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &icmp.Echo{ID: int(p.id), Seq: int(p.seq), Data: p.data[:]}}
	if p.dst.Is4() {
		m.Type = ipv4.ICMPTypeEcho
	}
	return m.Marshal(nil)
}

// answeredBy reports whether b, an ICMP message that came from there, is the
// reply.
func (p *ping) answeredBy(b []byte, from netip.Addr) bool {
	proto, want := protoICMP6, icmp.Type(ipv6.ICMPTypeEchoReply)
	if p.dst.Is4() {
		proto, want = protoICMP4, ipv4.ICMPTypeEchoReply
	}
	if from.Unmap().WithZone("") != p.dst {
		return false
	}
	m, err := icmp.ParseMessage(proto, b)
	if err != nil || m.Type != want || m.Code != 0 {
		return false
	}
	e, ok := m.Body.(*icmp.Echo)
	return ok && (p.anyID || e.ID == int(p.id)) && e.Seq == int(p.seq) && string(e.Data) == string(p.data[:])
}

// IANA protocol numbers.
const (
	protoICMP4 = 1
	protoICMP6 = 58
)

// openPing opens a socket that may ping dst: one that needs no privilege where
// the machine allows it, a raw one where it allows that.
func openPing(dst netip.Addr) (pingSocket, error) {
	s, err := openUnprivileged(dst)
	if err == nil || !forbidden(err) {
		return s, err
	}
	s, err = openRaw(dst)
	if err != nil && forbidden(err) {
		return nil, ErrPingForbidden
	}
	return s, err
}

// forbidden reports whether a socket of that kind cannot be had here. What
// happens to a socket that is there, a firewall's EPERM say, is another matter.
func forbidden(err error) bool {
	if errors.Is(err, errUnsupported) {
		return true
	}
	var call *os.SyscallError
	if !errors.As(err, &call) || call.Syscall != "socket" {
		return false
	}
	switch call.Err {
	case syscall.EACCES, syscall.EPERM, syscall.EPROTONOSUPPORT, syscall.ESOCKTNOSUPPORT:
		return true
	}
	return false
}

// errUnsupported: this system has no such socket that we know of.
var errUnsupported = errors.New("not supported")

// rawPing is a raw socket, whose replies are everybody's from that host.
type rawPing struct {
	*net.IPConn
	id uint16
}

func openRaw(dst netip.Addr) (pingSocket, error) {
	network := "ip6:ipv6-icmp"
	if dst.Is4() {
		network = "ip4:icmp"
	}
	conn, err := net.DialIP(network, nil, &net.IPAddr{IP: dst.AsSlice()})
	if err != nil {
		return nil, err
	}
	hearErrors(conn, dst)
	return rawPing{conn, uint16(rand.Uint32())}, nil
}

func (s rawPing) ident() (uint16, bool) { return s.id, false }

func (s rawPing) receive(b []byte) (int, netip.Addr, error) {
	n, from, err := s.ReadFromIP(b) // takes an IPv4 header off
	if err != nil {
		return 0, netip.Addr{}, err
	}
	addr, _ := netip.AddrFromSlice(from.IP)
	return n, addr, nil
}
