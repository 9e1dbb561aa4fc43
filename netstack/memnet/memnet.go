// Package memnet is a network in memory: the fake that stands in for the
// kernel's sockets and for a virtual network in tests. Its conns do what real
// ones do (half-close, reset, deadlines, bounded buffers, datagrams that keep
// their boundaries) and pass the same suite; its dials fail as they are told
// to. It uses no descriptor and no goroutine, so it also works under
// testing/synctest, where time is fake.
//
//	n := memnet.New()
//	ln, err := n.Listen("tcp", netip.MustParseAddrPort("10.0.0.10:5432"))
//	c, err := n.DialContext(ctx, "tcp", netip.MustParseAddrPort("10.0.0.10:5432"))
//
// It is for tests: it must never carry a real flow.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/warrenmesh/warren/netstack/netx"
)

// ErrSilence, given to FailDial, makes a dial wait until its context is done:
// a host that drops what it is sent.
var ErrSilence = errors.New("nothing answers")

// backlog is how many dialled conns wait for Accept before a dial blocks.
const backlog = 128

// firstPort is where the ports begin that are given out on request.
const firstPort = 32768

// Net is one network. Make it with New. Its methods may be called from any
// goroutine.
type Net struct {
	mu        sync.Mutex
	nextPort  uint16
	listeners map[netip.AddrPort]*listener
	packets   map[netip.AddrPort]*PacketConn
	failures  map[netip.AddrPort]error
}

// New returns a network on which nobody listens. Dials come from 192.0.2.1
// and 2001:db8::1 (documentation, RFC 5737 and RFC 3849).
func New() *Net {
	return &Net{
		nextPort:  firstPort,
		listeners: map[netip.AddrPort]*listener{},
		packets:   map[netip.AddrPort]*PacketConn{},
		failures:  map[netip.AddrPort]error{},
	}
}

// FailDial makes dials of address, TCP and UDP, fail with err: one of the
// netx.Err values, or ErrSilence. A nil err mends it.
func (n *Net) FailDial(address netip.AddrPort, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		delete(n.failures, address)
		return
	}
	n.failures[address] = err
}

// Listen accepts streams at address; network is "tcp". Port 0 picks a free
// one.
func (n *Net) Listen(network string, address netip.AddrPort) (net.Listener, error) {
	if network != "tcp" {
		return nil, fmt.Errorf("listening on %q: network %q has no listeners", address, network)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	address = n.withPortLocked(address)
	if _, taken := n.listeners[address]; taken {
		return nil, fmt.Errorf("listening on %q: address already in use", address)
	}
	l := &listener{net: n, address: address, queue: make(chan *Conn, backlog), closed: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

// ListenPacket receives datagrams at address. Port 0 picks a free one.
func (n *Net) ListenPacket(address netip.AddrPort) (*PacketConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	address = n.withPortLocked(address)
	if _, taken := n.packets[address]; taken {
		return nil, fmt.Errorf("listening on %q: address already in use", address)
	}
	p := &PacketConn{net: n, local: address}
	p.queue.init()
	n.packets[address] = p
	return p, nil
}

// DialContext connects to address; network is "tcp" or "udp". The conn is a
// *Conn or a *UDPConn.
func (n *Net) DialContext(ctx context.Context, network string, address netip.AddrPort) (net.Conn, error) {
	c, err := n.dial(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("dialling %q: %w", address, err)
	}
	return c, nil
}

func (n *Net) dial(ctx context.Context, network string, address netip.AddrPort) (net.Conn, error) {
	if network != "tcp" && network != "udp" {
		return nil, net.UnknownNetworkError(network)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	failure := n.failures[address]
	l := n.listeners[address]
	local := n.withPortLocked(netip.AddrPortFrom(dialSource(address.Addr()), 0))
	n.mu.Unlock()

	if network == "udp" {
		p, err := n.ListenPacket(local)
		if err != nil {
			return nil, err
		}
		return p.connect(address), nil
	}
	switch {
	case failure == ErrSilence:
		<-ctx.Done()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, netx.ErrTimedOut
		}
		return nil, ctx.Err()
	case failure != nil:
		return nil, failure
	case l == nil:
		return nil, netx.ErrRefused
	}
	near, far := pair(local, address)
	select {
	case l.queue <- far:
		return near, nil
	case <-l.closed:
		return nil, netx.ErrRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func dialSource(to netip.Addr) netip.Addr {
	if to.Is4() {
		return netip.AddrFrom4([4]byte{192, 0, 2, 1})
	}
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
}

func (n *Net) withPortLocked(address netip.AddrPort) netip.AddrPort {
	for address.Port() == 0 {
		try := netip.AddrPortFrom(address.Addr(), n.nextPort)
		if n.nextPort++; n.nextPort == 0 {
			n.nextPort = firstPort
		}
		if n.listeners[try] == nil && n.packets[try] == nil {
			return try
		}
	}
	return address
}

// listener is a net.Listener of a Net.
type listener struct {
	net     *Net
	address netip.AddrPort
	queue   chan *Conn
	once    sync.Once
	closed  chan struct{}
}

// Accept waits for the next dial.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Close refuses further dials and resets what was not accepted yet.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		delete(l.net.listeners, l.address)
		l.net.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.queue:
				c.Abort()
			default:
				return
			}
		}
	})
	return nil
}

// Addr returns the address, with the port that was picked.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.address) }
