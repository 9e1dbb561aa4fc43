package netstack

import (
	"bytes"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/warrenmesh/warren/netstack/netx"
)

// UDPConn is one UDP flow of a Stack: connected, so that only the peer's
// datagrams arrive. One Write is one datagram of at most 65,507 bytes (it
// travels in fragments where the path is smaller), one Read returns one and
// drops what does not fit. What an ICMP error says is returned by one Read,
// after the datagrams that came before it; the conn remains usable.
//
// When a dialled flow that sent anything ends, its peer is told that nobody
// listens any more (port unreachable), so that it does not keep its side, and
// what stands behind it, for an idle time of its own. An accepted flow ends in
// silence: the peer's next datagram begins another.
type UDPConn struct {
	nic     *NIC
	ep      tcpip.Endpoint
	wq      *waiter.Queue
	key     flowKey
	dialled bool
	entry   waiter.Entry
	r, w    direction

	in  tcpip.SliceWriter // the slice being read into; guarded by r.op
	out bytes.Reader      // the datagram being written; guarded by w.op

	sent   atomic.Bool // a datagram may have left
	closed atomic.Bool
	mu     sync.Mutex // guards what follows
	failed error      // ErrAborted once the NIC has gone
	told   error      // what an ICMP error said and no Read has returned yet
}

var (
	_ net.Conn        = (*UDPConn)(nil)
	_ netx.ReadWaiter = (*UDPConn)(nil)
	_ endpoint        = (*UDPConn)(nil)
)

func newUDPConn(n *NIC, ep tcpip.Endpoint, wq *waiter.Queue) *UDPConn {
	c := &UDPConn{nic: n, ep: ep, wq: wq}
	c.r.init()
	c.w.init()
	return c
}

// watch begins to listen to the endpoint's events.
func (c *UDPConn) watch() {
	c.entry.Init(c, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	c.wq.EventRegister(&c.entry)
}

// NotifyEvent implements waiter.EventListener.
func (c *UDPConn) NotifyEvent(mask waiter.EventMask) {
	const both = waiter.EventHUp | waiter.EventErr
	if mask&(waiter.ReadableEvents|both) != 0 {
		c.r.signal()
	}
	if mask&(waiter.WritableEvents|both) != 0 {
		c.w.signal()
	}
}

// Read implements net.Conn.
func (c *UDPConn) Read(b []byte) (int, error) {
	c.r.op.Lock()
	defer c.r.op.Unlock()
	for {
		if err := c.usable(&c.r); err != nil {
			return 0, c.opError("read", err)
		}
		c.r.clear()
		c.in = b
		res, err := c.ep.Read(&c.in, tcpip.ReadOptions{NeedRemoteAddr: true})
		c.in = nil
		switch err.(type) {
		case nil, *tcpip.ErrBadBuffer: // the latter: nothing of it fitted
			// One that came between bind and connect may be anyone's.
			if addrPort(res.RemoteAddr.Addr, res.RemoteAddr.Port) == c.key.remote {
				return res.Count, nil
			}
			c.nic.stack.drops.Add(whyStranger, 1)
		case *tcpip.ErrWouldBlock:
			if told := c.takeTold(); told != nil {
				return 0, c.opError("read", told)
			}
			<-c.r.wake
		default:
			return 0, c.opError("read", errnoOf(err))
		}
	}
}

// whyStranger: a datagram for a local port from someone else than the peer.
const whyStranger = "udp_stranger"

func (c *UDPConn) takeTold() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	told := c.told
	c.told = nil
	return told
}

// WaitReadable implements netx.ReadWaiter.
func (c *UDPConn) WaitReadable() error {
	c.r.op.Lock()
	defer c.r.op.Unlock()
	for {
		if err := c.usable(&c.r); err != nil {
			return c.opError("read", err)
		}
		c.r.clear()
		c.mu.Lock()
		told := c.told
		c.mu.Unlock()
		if told != nil || c.ep.Readiness(waiter.ReadableEvents)&waiter.ReadableEvents != 0 {
			return nil
		}
		<-c.r.wake
	}
}

// Write implements net.Conn. It waits while the link has no room.
func (c *UDPConn) Write(b []byte) (int, error) {
	c.w.op.Lock()
	defer c.w.op.Unlock()
	defer c.out.Reset(nil)
	for {
		if err := c.usable(&c.w); err != nil {
			return 0, c.opError("write", err)
		}
		c.w.clear()
		if !c.sent.Load() {
			c.sent.Store(true)
		}
		c.out.Reset(b)
		_, err := c.ep.Write(&c.out, tcpip.WriteOptions{})
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

func (c *UDPConn) usable(d *direction) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	c.mu.Lock()
	failed := c.failed
	c.mu.Unlock()
	if failed != nil {
		return failed
	}
	return d.timedOut()
}

// Unreachable tells the flow's peer what has become of its datagrams: an ICMP
// port unreachable for netx.ErrRefused, net unreachable for ErrTimedOut, host
// unreachable for everything else. The conn stays open.
func (c *UDPConn) Unreachable(cause error) {
	c.nic.writeUnreachable(syntheticUDP(c.key), cause)
}

// writeUnreachable answers the quoted packet with an ICMP error.
func (n *NIC) writeUnreachable(quoted []byte, cause error) {
	b := unreachablePacket(quoted, cause)
	// An error means that the NIC is gone, and with it whoever would hear it.
	_ = n.stack.gv.WriteRawPacket(n.id, networkProtocol(quoted[0]>>4 == 4), buffer.MakeWithData(b))
}

// Close implements net.Conn.
func (c *UDPConn) Close() error {
	if c.closed.Swap(true) {
		return c.opError("close", net.ErrClosed)
	}
	c.end()
	return nil
}

// Abort is Close: UDP has nothing to abort.
func (c *UDPConn) Abort() { _ = c.Close() }

// abort implements endpoint.
func (c *UDPConn) abort(cause error) {
	c.mu.Lock()
	c.failed = cause
	c.mu.Unlock()
	c.end()
}

func (c *UDPConn) end() {
	c.ep.Close()
	c.farewell()
	c.r.stop()
	c.w.stop()
	c.r.signal()
	c.w.signal()
	c.nic.index.remove(c.key, c)
}

// farewell ends the peer's side of a dialled flow. Nothing repeats it where it
// is lost: the peer's idle time is there for that. It does not wait, since a
// link drops ICMP that it has no room for.
func (c *UDPConn) farewell() {
	if c.dialled && c.sent.Swap(false) {
		c.Unreachable(netx.ErrRefused)
	}
}

// unreachable implements endpoint.
func (c *UDPConn) unreachable(err error) {
	c.mu.Lock()
	c.told = err
	c.mu.Unlock()
	c.r.signal()
}

// pathMTU implements endpoint: UDP fragments by what the link says.
func (c *UDPConn) pathMTU(int) {}

// SetDeadline implements net.Conn.
func (c *UDPConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *UDPConn) SetReadDeadline(t time.Time) error {
	if c.closed.Load() {
		return c.opError("set", net.ErrClosed)
	}
	c.r.setDeadline(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *UDPConn) SetWriteDeadline(t time.Time) error {
	if c.closed.Load() {
		return c.opError("set", net.ErrClosed)
	}
	c.w.setDeadline(t)
	return nil
}

// LocalAddr is our side of the flow, a *net.UDPAddr.
func (c *UDPConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.key.local) }

// RemoteAddr is the peer's side, a *net.UDPAddr.
func (c *UDPConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.key.remote) }

// NIC is the NIC that the flow goes through.
func (c *UDPConn) NIC() *NIC { return c.nic }

func (c *UDPConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
