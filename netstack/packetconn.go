package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
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
	wq := new(waiter.Queue)
	ep, err := n.open(udp.ProtocolNumber, local.Addr().Is4(), wq)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &PacketConn{nic: n, ep: ep, wq: wq, cancel: cancel}
	c.r.init()
	c.w.init()
	tuneMTU(ep)
	n.assign(local.Addr())
	c.entry.Init(c, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	wq.EventRegister(&c.entry)
	if err := ep.Bind(n.fullAddress(local)); err != nil {
		_ = c.Close()
		return nil, connectError(err)
	}
	if at, err := ep.GetLocalAddress(); err == nil {
		c.local = netip.AddrPortFrom(local.Addr(), at.Port)
	}
	if !n.addListener(c) {
		_ = c.Close()
		return nil, ErrAborted
	}
	context.AfterFunc(ctx, func() { _ = c.Close() })
	return c, nil
}

// PacketConn is an unconnected UDP socket on one NIC. Addresses are
// *net.UDPAddr. A datagram that does not fit the buffer is cut off.
type PacketConn struct {
	nic    *NIC
	ep     tcpip.Endpoint
	wq     *waiter.Queue
	entry  waiter.Entry
	local  netip.AddrPort
	cancel context.CancelFunc
	closed atomic.Bool
	r, w   direction
}

// NotifyEvent implements waiter.EventListener.
func (c *PacketConn) NotifyEvent(mask waiter.EventMask) {
	const both = waiter.EventHUp | waiter.EventErr
	if mask&(waiter.ReadableEvents|both) != 0 {
		c.r.signal()
	}
	if mask&(waiter.WritableEvents|both) != 0 {
		c.w.signal()
	}
}

// ReadFrom implements net.PacketConn.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	c.r.op.Lock()
	defer c.r.op.Unlock()
	for {
		if err := c.usable(&c.r); err != nil {
			return 0, nil, c.opError("read", err)
		}
		c.r.clear()
		w := tcpip.SliceWriter(b)
		res, err := c.ep.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: true})
		switch err.(type) {
		case nil, *tcpip.ErrBadBuffer: // the latter: nothing of it fitted
			from := addrPort(res.RemoteAddr.Addr, res.RemoteAddr.Port)
			return res.Count, net.UDPAddrFromAddrPort(from), nil
		case *tcpip.ErrWouldBlock:
			<-c.r.wake
		default:
			return 0, nil, c.opError("read", errnoOf(err))
		}
	}
}

// WriteTo implements net.PacketConn.
func (c *PacketConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, c.opError("write", net.InvalidAddrError("a UDP address is required"))
	}
	at := to.AddrPort()
	remote := c.nic.fullAddress(netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	c.w.op.Lock()
	defer c.w.op.Unlock()
	for {
		if err := c.usable(&c.w); err != nil {
			return 0, c.opError("write", err)
		}
		c.w.clear()
		_, err := c.ep.Write(bytes.NewReader(b), tcpip.WriteOptions{To: &remote})
		switch err.(type) {
		case nil:
			return len(b), nil
		case *tcpip.ErrWouldBlock:
			<-c.w.wake
		default:
			return 0, c.opError("write", errnoOf(err))
		}
	}
}

func (c *PacketConn) usable(d *direction) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	return d.timedOut()
}

// Close implements net.PacketConn.
func (c *PacketConn) Close() error {
	if c.closed.Swap(true) {
		return c.opError("close", net.ErrClosed)
	}
	c.nic.removeListener(c)
	c.cancel()
	c.ep.Close()
	c.r.stop()
	c.w.stop()
	c.r.signal()
	c.w.signal()
	return nil
}

// LocalAddr implements net.PacketConn.
func (c *PacketConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// SetDeadline implements net.PacketConn.
func (c *PacketConn) SetDeadline(t time.Time) error {
	c.r.setDeadline(t)
	c.w.setDeadline(t)
	return nil
}

// SetReadDeadline implements net.PacketConn.
func (c *PacketConn) SetReadDeadline(t time.Time) error {
	c.r.setDeadline(t)
	return nil
}

// SetWriteDeadline implements net.PacketConn.
func (c *PacketConn) SetWriteDeadline(t time.Time) error {
	c.w.setDeadline(t)
	return nil
}

func (c *PacketConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Err: err}
}
