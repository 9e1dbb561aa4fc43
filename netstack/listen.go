package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// backlog is how many connections may wait for Accept, and as many may be half
// open; beyond that gVisor answers with cookies.
const (
	backlog      = 1024
	smallBacklog = 128
)

// Listen listens for TCP on this NIC alone. The address becomes one of the
// NIC's own; port 0 takes a free one. It ends with ctx, Close or Remove.
func (n *NIC) Listen(ctx context.Context, network string, address netip.AddrPort) (net.Listener, error) {
	l, err := n.listen(ctx, network, netip.AddrPortFrom(address.Addr().Unmap(), address.Port()))
	if err != nil {
		return nil, fmt.Errorf("listening on %s %q: %w", network, address, err)
	}
	return l, nil
}

func (n *NIC) listen(ctx context.Context, network string, local netip.AddrPort) (*Listener, error) {
	if network != "tcp" {
		return nil, net.UnknownNetworkError(network)
	}
	if !local.Addr().IsValid() || local.Addr().IsUnspecified() {
		return nil, errors.New("an address is required")
	}
	wq := new(waiter.Queue)
	ep, err := n.open(tcp.ProtocolNumber, local.Addr().Is4(), wq)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &Listener{nic: n, ep: ep, wq: wq, cancel: cancel, wake: make(chan struct{}, 1), done: make(chan struct{})}
	n.assign(local.Addr())
	if err := ep.Bind(n.fullAddress(local)); err != nil {
		_ = l.Close()
		return nil, connectError(err)
	}
	if at, err := ep.GetLocalAddress(); err == nil {
		l.local = netip.AddrPortFrom(local.Addr(), at.Port)
	}
	l.entry.Init(waiter.ChannelNotifier(l.wake), waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr)
	wq.EventRegister(&l.entry)
	waiting := backlog
	if n.stack.cfg.Small {
		waiting = smallBacklog
	}
	if err := ep.Listen(waiting); err != nil {
		_ = l.Close()
		return nil, connectError(err)
	}
	if !n.addListener(l) {
		_ = l.Close()
		return nil, ErrAborted
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	return l, nil
}

// Listener accepts TCP connections on one NIC.
type Listener struct {
	nic    *NIC
	ep     tcpip.Endpoint
	wq     *waiter.Queue
	entry  waiter.Entry
	local  netip.AddrPort
	cancel context.CancelFunc
	wake   chan struct{} // capacity 1

	once sync.Once
	done chan struct{}
}

// Accept implements net.Listener; the conn is a *TCPConn.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		select {
		case <-l.done:
			return nil, l.opError(net.ErrClosed)
		default:
		}
		ep, wq, err := l.ep.Accept(nil)
		switch err.(type) {
		case nil:
			if c := l.accepted(ep, wq); c != nil {
				return c, nil
			}
		case *tcpip.ErrWouldBlock:
			select {
			case <-l.wake:
			case <-l.done:
			}
		default:
			return nil, l.opError(net.ErrClosed)
		}
	}
}

// accepted makes the conn of ep; nil when it is over already.
func (l *Listener) accepted(ep tcpip.Endpoint, wq *waiter.Queue) *TCPConn {
	remote, err := ep.GetRemoteAddress()
	if err != nil {
		ep.Close()
		return nil
	}
	c := newTCPConn(l.nic, ep, wq)
	c.key = flowKey{proto: protoTCP, local: l.local, remote: addrPort(remote.Addr, remote.Port)}
	if !c.adopt() {
		return nil
	}
	// Another goroutine may wait in Accept, and one event may announce two.
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return c
}

// adopt enters an established connection into the index and watches it. It
// reports false, and resets the connection, when the NIC is going or the host
// has too many.
func (c *TCPConn) adopt() bool {
	tuneTCP(c.ep)
	c.watch()
	if !c.nic.index.add(c.key, c) {
		c.Abort()
		return false
	}
	c.forgetIfOver() // it may have ended before it was watched
	return true
}

// Close implements net.Listener. Connections that wait for Accept are reset;
// accepted ones live on.
func (l *Listener) Close() error {
	err := l.opError(net.ErrClosed)
	l.once.Do(func() {
		err = nil
		l.nic.removeListener(l)
		l.cancel()
		close(l.done)
		l.ep.Close()
	})
	return err
}

// Addr implements net.Listener, a *net.TCPAddr.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.local) }

func (l *Listener) opError(err error) error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: err}
}
