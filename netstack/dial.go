package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/warrenmesh/warren/netstack/netx"
)

var _ netx.Dialer = (*NIC)(nil)

// bindAttempts bounds how often a dial takes another port because something
// outside the index (a listener) has the one it took.
const bindAttempts = 16

// DialContext implements netx.Dialer: it opens a flow through this NIC, from
// one of its sources. network is "tcp" (the conn is a *TCPConn) or "udp" (a
// *UDPConn, at once). A failure wraps netx.ErrRefused when the peer sent a
// RST, ErrUnreachable or ErrTimedOut when an ICMP error said so, ErrTimedOut
// too when ctx's deadline passed, and ErrNoRoute when the NIC was removed.
func (n *NIC) DialContext(ctx context.Context, network string, address netip.AddrPort) (net.Conn, error) {
	remote := netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
	conn, err := n.dial(ctx, network, netip.AddrPort{}, remote)
	if err != nil {
		return nil, fmt.Errorf("dialling %s %q: %w", network, remote, err)
	}
	return conn, nil
}

func (n *NIC) dial(ctx context.Context, network string, from, remote netip.AddrPort) (net.Conn, error) {
	if a := remote.Addr(); !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || remote.Port() == 0 {
		return nil, errors.New("an address and port of one host is required")
	}
	if err := ctx.Err(); err != nil {
		return nil, contextError(ctx)
	}
	var err error
	for range bindAttempts {
		var conn net.Conn
		switch network {
		case "tcp":
			conn, err = n.dialTCP(ctx, from, remote)
		case "udp":
			conn, err = n.dialUDP(remote)
		default:
			return nil, net.UnknownNetworkError(network)
		}
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		from = netip.AddrPort{}
	}
	return nil, err
}

// contextError says why ctx ended; a deadline is a timeout of the dial.
func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", netx.ErrTimedOut, ctx.Err())
	}
	return context.Cause(ctx)
}

// open makes an endpoint that belongs to this NIC alone: bound to it before
// anything else, or it would be registered for all NICs and another
// connector's packets would be taken for its peer's.
func (n *NIC) open(transport tcpip.TransportProtocolNumber, is4 bool, wq *waiter.Queue) (tcpip.Endpoint, error) {
	ep, err := n.stack.gv.NewEndpoint(transport, networkProtocol(is4), wq)
	if err != nil {
		return nil, errnoOf(err)
	}
	if err := ep.SocketOptions().SetBindToDevice(int32(n.id)); err != nil {
		ep.Close()
		return nil, fmt.Errorf("the NIC was removed: %w", netx.ErrNoRoute)
	}
	if !is4 {
		ep.SocketOptions().SetV6Only(true)
	}
	return ep, nil
}

func (n *NIC) dialTCP(ctx context.Context, from, remote netip.AddrPort) (*TCPConn, error) {
	deepen()
	wq := new(waiter.Queue)
	ep, err := n.open(tcp.ProtocolNumber, remote.Addr().Is4(), wq)
	if err != nil {
		return nil, err
	}
	c := newTCPConn(n, ep, wq)
	if err := c.claim(from, remote); err != nil {
		ep.Close()
		return nil, err
	}
	tuneTCP(ep)
	if err := n.bind(ep, c.key.local); err != nil {
		c.forget()
		ep.Close()
		return nil, c.dialError(err)
	}
	n.releasePort(c.key.local)
	c.watch()
	c.ack.opening.Store(true)
	ep.SetOwner(c) // before the first packet
	if err := ep.Connect(n.fullAddress(remote)); err != nil {
		if _, started := err.(*tcpip.ErrConnectStarted); !started {
			c.Abort()
			c.forget()
			return nil, c.dialError(connectError(err))
		}
	}
	if err := c.awaitConnect(ctx); err != nil {
		c.Abort()
		c.forget()
		return nil, err
	}
	return c, nil
}

// bind gives ep its local address and port. The port may be that of another
// flow to another peer.
func (n *NIC) bind(ep tcpip.Endpoint, local netip.AddrPort) error {
	ep.SocketOptions().SetReuseAddress(true)
	if err := ep.Bind(n.fullAddress(local)); err != nil {
		return connectError(err)
	}
	return nil
}

// connectError is errnoOf, with one meaning for "this port is taken": Connect
// says it in another way than Bind.
func connectError(e tcpip.Error) error {
	if _, ok := e.(*tcpip.ErrBadLocalAddress); ok {
		return syscall.EADDRINUSE
	}
	return errnoOf(e)
}

// awaitConnect waits for the handshake.
func (c *TCPConn) awaitConnect(ctx context.Context) error {
	for {
		c.w.clear()
		switch tcp.EndpointState(c.ep.State()) {
		case tcp.StateInitial, tcp.StateBound, tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
			c.mu.Lock()
			told := c.told
			c.mu.Unlock()
			if told != nil {
				return told
			}
		case tcp.StateError, tcp.StateClose:
			return c.dialError(c.handshakeError())
		default:
			return nil
		}
		select {
		case <-c.w.wake:
		case <-ctx.Done():
			return contextError(ctx)
		}
	}
}

// handshakeError reads why the endpoint could not connect.
func (c *TCPConn) handshakeError() error {
	switch err := c.ep.LastError().(type) {
	case nil:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionRefused:
		return netx.ErrRefused
	case *tcpip.ErrTimeout:
		return netx.ErrTimedOut
	default:
		return errnoOf(err)
	}
}

// dialError is err, unless the NIC was removed under the dial.
func (c *TCPConn) dialError(err error) error {
	c.mu.Lock()
	aborted := c.failed
	c.mu.Unlock()
	if aborted != nil || c.nic.ctx.Err() != nil {
		return fmt.Errorf("the NIC was removed: %w", netx.ErrNoRoute)
	}
	return err
}
