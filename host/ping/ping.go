// Package ping sends ICMP echo requests from this machine, through the kernel's
// own sockets, and hears of each what routers say of it.
//
// It judges no address: whoever calls it does.
package ping

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// ErrForbidden: this machine does not let the process ping.
var ErrForbidden = errors.New("this process may not ping: let its group do it (sysctl net.ipv4.ping_group_range=\"0 2147483647\", which is for IPv6 too), or give it CAP_NET_RAW")

// dataLen is how much data an echo request of ours carries: what ping(8) sends,
// random so that replies to others' requests are not taken for ours.
const dataLen = 56

// Send sends an ICMP echo request to dst and waits for the reply, until ctx
// ends. It returns the round trip.
//
// It needs no privilege where sysctl net.ipv4.ping_group_range has one of the
// process's groups; else CAP_NET_RAW, or the error is ErrForbidden. Each ping
// has a connected socket to itself: so the kernel tells what routers say, as
// syscall.EHOSTUNREACH. Silence ends with ctx's error.
func Send(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	return sendThrough(ctx, dst.Unmap(), open)
}

// socket is a socket for one ping.
type socket interface {
	net.Conn
	// receive reads one ICMP message, without an IP header, and who sent it.
	receive(b []byte) (n int, from netip.Addr, err error)
	// ident says which identifier the reply has, where the kernel has seen to
	// it that no other arrives: any is ours then.
	ident() (id uint16, checked bool)
}

// sendThrough pings dst through a socket that open makes.
func sendThrough(ctx context.Context, dst netip.Addr, open func(netip.Addr) (socket, error)) (time.Duration, error) {
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
	data    [dataLen]byte
}

func newPing(dst netip.Addr, s socket) *ping {
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

// open opens a socket that may ping dst: one that needs no privilege where
// the machine allows it, a raw one where it allows that.
func open(dst netip.Addr) (socket, error) {
	s, err := openUnprivileged(dst)
	if err == nil || !forbidden(err) {
		return s, err
	}
	s, err = openRaw(dst)
	if err != nil && forbidden(err) {
		return nil, ErrForbidden
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

func openRaw(dst netip.Addr) (socket, error) {
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
