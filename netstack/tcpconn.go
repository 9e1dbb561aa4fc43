package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/warrenmesh/warren/netstack/link"
	"github.com/warrenmesh/warren/netstack/netx"
)

// TCPConn is one TCP connection of a Stack. It is a net.Conn, and a
// netx.HalfCloser, Aborter, ReadWaiter and FailureReporter. It holds no buffer of its own:
// bytes are copied once, between the caller's slice and gVisor's segments.
//
// A reset from the peer reads as syscall.ECONNRESET, on every later call too.
// Close with unread input sends a RST, as the kernel's sockets do; otherwise
// what was written is still delivered.
type TCPConn struct {
	nic   *NIC
	ep    tcpip.Endpoint
	wq    *waiter.Queue
	key   flowKey
	lent  bool // key.local is an address that the NIC has for such flows alone
	entry waiter.Entry
	r, w  direction

	in  tcpip.SliceWriter // the slice being read into; guarded by r.op
	out bytes.Reader      // the slice being written; guarded by w.op

	place *link.Place // where the link has such: asked before each write; guarded by w.op

	ack delayedACK

	closed   atomic.Bool // Close or Abort was called by the owner
	finished atomic.Bool // CloseWrite was called
	mu       sync.Mutex  // guards what follows
	failed   error       // the first failure; sticky, since gVisor tells it once
	told     error       // what an ICMP error said, for the dial that waits
}

var (
	_ net.Conn        = (*TCPConn)(nil)
	_ netx.HalfCloser = (*TCPConn)(nil)
	_ netx.Aborter    = (*TCPConn)(nil)
	_ netx.ReadWaiter = (*TCPConn)(nil)

	_ netx.FailureReporter = (*TCPConn)(nil)
	_ endpoint             = (*TCPConn)(nil)
)

// newTCPConn wraps an endpoint whose events are notified to wq. The caller
// sets key and calls watch.
func newTCPConn(n *NIC, ep tcpip.Endpoint, wq *waiter.Queue) *TCPConn {
	c := &TCPConn{nic: n, ep: ep, wq: wq}
	c.r.init()
	c.w.init()
	return c
}

// watch begins to listen to the endpoint's events.
func (c *TCPConn) watch() {
	c.entry.Init(c, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventRdHUp|waiter.EventHUp|waiter.EventErr)
	c.wq.EventRegister(&c.entry)
}

// NotifyEvent implements waiter.EventListener. It runs under the endpoint's
// lock, so it only signals.
func (c *TCPConn) NotifyEvent(mask waiter.EventMask) {
	const both = waiter.EventHUp | waiter.EventErr
	if mask&(waiter.ReadableEvents|waiter.EventRdHUp|both) != 0 {
		c.r.signal()
	}
	if mask&(waiter.WritableEvents|both) != 0 {
		c.w.signal()
	}
	if mask&waiter.EventHUp != 0 {
		c.forgetIfOver()
	}
}

// forgetIfOver takes the flow out of the NIC's index once the endpoint has
// nothing left to send or to wait for.
func (c *TCPConn) forgetIfOver() {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateClose, tcp.StateError:
		c.forget()
	}
}

// Read implements net.Conn.
func (c *TCPConn) Read(b []byte) (int, error) {
	deepen()
	c.r.op.Lock()
	defer c.r.op.Unlock()
	for {
		if err := c.usable(&c.r); err != nil {
			return 0, c.opError("read", err)
		}
		if len(b) == 0 {
			return 0, nil
		}
		c.r.clear()
		c.in = b
		res, err := c.ep.Read(&c.in, tcpip.ReadOptions{})
		c.in = nil
		switch err.(type) {
		case nil:
			c.ep.ModerateRecvBuf(res.Count)
			return res.Count, nil
		case *tcpip.ErrWouldBlock:
			c.opened()
			<-c.r.wake
		case *tcpip.ErrClosedForReceive:
			if err := c.failure(nil); err != nil {
				return 0, c.opError("read", err)
			}
			return 0, io.EOF
		default:
			return 0, c.opError("read", c.failure(err))
		}
	}
}

// WaitReadable implements netx.ReadWaiter.
func (c *TCPConn) WaitReadable() error {
	c.r.op.Lock()
	defer c.r.op.Unlock()
	for {
		if err := c.usable(&c.r); err != nil {
			return c.opError("read", err)
		}
		c.r.clear()
		if c.ep.Readiness(waiter.ReadableEvents)&waiter.ReadableEvents != 0 {
			return nil
		}
		c.opened()
		<-c.r.wake
	}
}

// Write implements net.Conn. Writes do not mix: each is sent whole before the
// next begins.
func (c *TCPConn) Write(b []byte) (int, error) {
	deepen()
	c.w.op.Lock()
	defer c.w.op.Unlock()
	defer c.wrote()
	total := 0
	for {
		if err := c.usable(&c.w); err != nil {
			return total, c.opError("write", err)
		}
		if total == len(b) {
			return total, nil
		}
		c.w.clear()
		if !c.mayWrite(len(b) - total) {
			<-c.w.wake
			continue
		}
		c.out.Reset(b[total:])
		n, err := c.ep.Write(&c.out, tcpip.WriteOptions{})
		total += int(n)
		c.place.Done()
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-c.w.wake
		case *tcpip.ErrClosedForSend:
			if err := c.failure(nil); err != nil {
				return total, c.opError("write", err)
			}
			return total, c.opError("write", syscall.EPIPE)
		default:
			return total, c.opError("write", c.failure(err))
		}
	}
}

// mayWrite reports whether the link has room for what n bytes more make the
// endpoint send; where not, w is woken when it has. An endpoint that is over
// may, and will say so.
func (c *TCPConn) mayWrite(n int) bool {
	if c.place == nil {
		l, ok := c.nic.link.(interface {
			Place(local, remote netip.AddrPort, wake func()) *link.Place
		})
		if !ok {
			return true
		}
		c.place = l.Place(c.key.local, c.key.remote, c.w.signal)
	}
	if c.place.Ask(n) {
		return true
	}
	state := tcp.EndpointState(c.ep.State())
	return state == tcp.StateError || state == tcp.StateClose
}

// wrote ends a Write.
func (c *TCPConn) wrote() {
	c.out.Reset(nil)
	c.place.Done()
}

// usable returns why an operation in direction d must not begin or go on.
func (c *TCPConn) usable(d *direction) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	if err := d.timedOut(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(c.failed, ErrAborted) {
		return c.failed // what still waits to be read was thrown away with the endpoint
	}
	return nil
}

// failure returns how the connection failed, or nil if it did not. gVisor
// tells a failure to one caller only and the end of the stream to the rest,
// who must not take it for an orderly end: so it is kept. e is what the
// caller was told, nil for the end.
func (c *TCPConn) failure(e tcpip.Error) error {
	over := tcp.EndpointState(c.ep.State()) == tcp.StateError
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		switch {
		case c.closed.Load():
			c.failed = net.ErrClosed
		case e != nil:
			c.failed = errnoOf(e)
		case over: // another caller was told and has not noted it yet
			return syscall.ECONNRESET
		}
	}
	return c.failed
}

// Failure implements netx.FailureReporter.
func (c *TCPConn) Failure() error {
	if c.closed.Load() {
		return nil
	}
	return c.failure(nil)
}

// CloseWrite sends the FIN once what was written is sent; reading goes on.
// Calling it again does nothing.
func (c *TCPConn) CloseWrite() error {
	if c.closed.Load() {
		return c.opError("close", net.ErrClosed)
	}
	if c.finished.Load() {
		return nil
	}
	deepen()
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		if failed := c.failure(nil); failed != nil {
			return c.opError("close", failed)
		}
		return c.opError("close", errnoOf(err))
	}
	c.finished.Store(true)
	return nil
}

// Close implements net.Conn. What was written is still delivered.
func (c *TCPConn) Close() error {
	if c.closed.Swap(true) {
		return c.opError("close", net.ErrClosed)
	}
	c.ep.Close()
	c.release()
	return nil
}

// Abort implements netx.Aborter: it sends a RST and drops what is unsent. The
// end of our handshake goes first: the other end takes the connection, however
// short, and not a dial that was given up.
func (c *TCPConn) Abort() {
	if c.closed.Swap(true) {
		return
	}
	c.opened()
	c.ep.Abort()
	c.release()
}

// abort implements endpoint.
func (c *TCPConn) abort(cause error) {
	c.mu.Lock()
	if c.failed == nil {
		c.failed = cause
	}
	c.mu.Unlock()
	c.ep.Abort()
	c.release()
}

// release wakes who waits and frees what can be freed now.
func (c *TCPConn) release() {
	c.r.stop()
	c.w.stop()
	c.r.signal()
	c.w.signal()
	c.forgetIfOver()
}

// unreachable implements endpoint. It ends a dial; an established connection
// takes it for the soft error that it is (RFC 1122 section 4.2.3.9).
func (c *TCPConn) unreachable(err error) {
	c.mu.Lock()
	c.told = err
	c.mu.Unlock()
	c.w.signal()
}

// minPathMTU is the smallest packet size that is believed (RFC 791: every
// host takes 576 bytes).
const minPathMTU = 576

// pathMTU implements endpoint.
func (c *TCPConn) pathMTU(mtu int) {
	headers := ip4HeaderLen
	if c.key.remote.Addr().Is6() {
		headers = ip6HeaderLen
	}
	if te, ok := c.ep.(stack.TransportEndpoint); ok {
		te.HandleError(packetTooBig{mtu: uint32(max(mtu, minPathMTU) - headers)}, nil)
	}
}

// SetDeadline implements net.Conn.
func (c *TCPConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *TCPConn) SetReadDeadline(t time.Time) error {
	if c.closed.Load() {
		return c.opError("set", net.ErrClosed)
	}
	c.r.setDeadline(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *TCPConn) SetWriteDeadline(t time.Time) error {
	if c.closed.Load() {
		return c.opError("set", net.ErrClosed)
	}
	c.w.setDeadline(t)
	return nil
}

// LocalAddr is our side of the connection, a *net.TCPAddr.
func (c *TCPConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.key.local) }

// RemoteAddr is the peer's side, a *net.TCPAddr.
func (c *TCPConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.key.remote) }

// NIC is the NIC that the connection goes through.
func (c *TCPConn) NIC() *NIC { return c.nic }

func (c *TCPConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// packetTooBig tells a TCP endpoint how large the payload of its packets may
// be, without the IP header.
type packetTooBig struct {
	tcpip.SockErrorCause // nil: never asked for, since nobody reads error queues
	mtu                  uint32
}

func (packetTooBig) Kind() stack.TransportErrorKind { return stack.PacketTooBigTransportError }
func (e packetTooBig) Info() uint32                 { return e.mtu }
