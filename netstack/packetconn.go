package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// ListenPacket opens a UDP socket on this NIC alone. The address becomes one
// of the NIC's own; port 0 takes a free one. It ends with ctx, Close or
// Remove.
func (n *NIC) ListenPacket(ctx context.Context, network string, address netip.AddrPort) (net.PacketConn, error) {
	c, err := n.listenPacket(ctx, network, netip.AddrPortFrom(address.Addr().Unmap(), address.Port()))
	if err != nil {
		return nil, fmt.Errorf("listening on %s %q: %w", network, address, err)
	}
	return c, nil
}

func (n *NIC) listenPacket(ctx context.Context, network string, local netip.AddrPort) (*PacketConn, error) {
	if network != "udp" {
		return nil, net.UnknownNetworkError(network)
	}
	if !local.Addr().IsValid() || local.Addr().IsUnspecified() {
		return nil, errors.New("an address is required")
	}
	if n.stack.cfg.Promiscuous {
		return nil, errors.New("a promiscuous stack hands every datagram to its forwarder")
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &PacketConn{nic: n, cancel: cancel}
	c.in.init(&n.unread)
	if err := n.addSocket(c, local); err != nil {
		cancel()
		return nil, err
	}
	n.assign(local.Addr())
	if !n.addListener(c) {
		_ = c.Close()
		return nil, ErrAborted
	}
	context.AfterFunc(ctx, func() { _ = c.Close() })
	return c, nil
}

// addSocket enters c under local, or under a free port where that has none.
func (n *NIC) addSocket(c *PacketConn, local netip.AddrPort) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	first, last := int(local.Port()), int(local.Port())
	if first == 0 {
		first, last = firstPort, lastPort
	}
	for port := first; port <= last; port++ {
		at := netip.AddrPortFrom(local.Addr(), uint16(port))
		if _, taken := n.sockets[at]; taken {
			continue
		}
		if n.sockets == nil {
			n.sockets = make(map[netip.AddrPort]*PacketConn)
		}
		n.sockets[at], c.local = c, at
		return nil
	}
	return syscall.EADDRINUSE
}

func (n *NIC) socketAt(local netip.AddrPort) *PacketConn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sockets[local]
}

func (n *NIC) removeSocket(c *PacketConn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sockets[c.local] == c {
		delete(n.sockets, c.local)
	}
}

// PacketConn is an unconnected UDP socket on one NIC. Addresses are
// *net.UDPAddr. A datagram that does not fit the buffer is cut off.
type PacketConn struct {
	nic     *NIC
	local   netip.AddrPort
	cancel  context.CancelFunc
	writeBy atomic.Pointer[time.Time]
	in      inbox
}

// ReadFrom implements net.PacketConn.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	a, err := c.in.take()
	if err != nil {
		return 0, nil, c.opError("read", err)
	}
	n := copy(b, a.payload)
	a.owner.DecRef()
	return n, net.UDPAddrFromAddrPort(a.src), nil
}

// WriteTo implements net.PacketConn.
func (c *PacketConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, c.opError("write", net.InvalidAddrError("a UDP address is required"))
	}
	at := to.AddrPort()
	remote := netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if family(remote.Addr()) != family(c.local.Addr()) || !isHost(remote.Addr()) {
		return 0, c.opError("write", syscall.EHOSTUNREACH)
	}
	if err := c.in.ended(); err != nil {
		return 0, c.opError("write", err)
	}
	if by := c.writeBy.Load(); by != nil && !time.Now().Before(*by) {
		return 0, c.opError("write", os.ErrDeadlineExceeded)
	}
	list := outgoing.Get().(*stack.PacketBufferList)
	defer outgoing.Put(list)
	if !c.nic.appendUDP(list, c.local, remote, b) {
		return 0, c.opError("write", syscall.EMSGSIZE)
	}
	c.nic.writeList(list)
	return len(b), nil
}

// Close implements net.PacketConn.
func (c *PacketConn) Close() error {
	if _, closed := c.in.end(net.ErrClosed); closed {
		return c.opError("close", net.ErrClosed)
	}
	c.nic.removeListener(c)
	c.nic.removeSocket(c)
	c.cancel()
	return nil
}

// LocalAddr implements net.PacketConn.
func (c *PacketConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// SetDeadline implements net.PacketConn.
func (c *PacketConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.PacketConn.
func (c *PacketConn) SetReadDeadline(t time.Time) error {
	c.in.setReadDeadline(t)
	return nil
}

// SetWriteDeadline implements net.PacketConn, as that of a UDPConn.
func (c *PacketConn) SetWriteDeadline(t time.Time) error {
	if t.IsZero() {
		c.writeBy.Store(nil)
	} else {
		c.writeBy.Store(&t)
	}
	return nil
}

func (c *PacketConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Err: err}
}
