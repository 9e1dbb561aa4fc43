package netstack

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

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
	key     flowKey
	dialled bool
	sent    atomic.Bool // a datagram may have left
	writeBy atomic.Pointer[time.Time]
	in      inbox
}

var (
	_ net.Conn         = (*UDPConn)(nil)
	_ netx.ReadWaiter  = (*UDPConn)(nil)
	_ netx.BatchReader = (*UDPConn)(nil)
	_ netx.BatchWriter = (*UDPConn)(nil)
	_ endpoint         = (*UDPConn)(nil)
)

func newUDPConn(n *NIC) *UDPConn {
	c := &UDPConn{nic: n}
	c.in.init(&n.unread)
	return c
}

// dialUDP opens a flow. Nothing is sent.
func (n *NIC) dialUDP(remote netip.AddrPort) (*UDPConn, error) {
	c := newUDPConn(n)
	c.dialled = true
	if err := n.index.claim(protoUDP, remote, c, &c.key); err != nil {
		return nil, err
	}
	return c, nil
}

// Read implements net.Conn.
func (c *UDPConn) Read(b []byte) (int, error) {
	a, err := c.in.take()
	if err != nil {
		return 0, c.opError("read", err)
	}
	n := copy(b, a.payload)
	a.owner.DecRef()
	return n, nil
}

// WaitReadable implements netx.ReadWaiter.
func (c *UDPConn) WaitReadable() error {
	if err := c.in.wait(); err != nil {
		return c.opError("read", err)
	}
	return nil
}

// ReadBatch implements netx.BatchReader: it lends the packets that arrived.
func (c *UDPConn) ReadBatch(b *netx.Batch) error {
	if err := c.in.takeBatch(b); err != nil {
		return c.opError("read", err)
	}
	return nil
}

// outgoing holds the packets of a write until the link has taken them.
var outgoing = sync.Pool{New: func() any { return new(stack.PacketBufferList) }}

// Write implements net.Conn. It waits while the link has no room.
func (c *UDPConn) Write(b []byte) (int, error) {
	if err := c.writable(); err != nil {
		return 0, c.opError("write", err)
	}
	list := outgoing.Get().(*stack.PacketBufferList)
	defer outgoing.Put(list)
	if !c.nic.appendUDP(list, c.key.local, c.key.remote, b) {
		return 0, c.opError("write", syscall.EMSGSIZE)
	}
	c.flush(list)
	return len(b), nil
}

// WriteBatch implements netx.BatchWriter.
func (c *UDPConn) WriteBatch(datagrams [][]byte) (int, error) {
	if err := c.writable(); err != nil {
		return 0, c.opError("write", err)
	}
	list := outgoing.Get().(*stack.PacketBufferList)
	defer outgoing.Put(list)
	for i, d := range datagrams {
		if !c.nic.appendUDP(list, c.key.local, c.key.remote, d) {
			c.flush(list)
			return i, c.opError("write", syscall.EMSGSIZE)
		}
		if list.Len() >= netx.BatchSize {
			c.flush(list)
		}
	}
	c.flush(list)
	return len(datagrams), nil
}

// flush hands the packets to the link and empties list.
func (c *UDPConn) flush(list *stack.PacketBufferList) {
	if list.Len() == 0 {
		return
	}
	if !c.sent.Load() {
		c.sent.Store(true)
	}
	c.nic.writeList(list)
}

// writeList gives the link packets, waits until it has taken them (it counts
// what it drops), and empties list.
func (n *NIC) writeList(list *stack.PacketBufferList) {
	_, _ = n.link.WritePackets(*list)
	list.Reset()
}

// appendUDP builds the packets of one datagram, or reports false where it is
// larger than a datagram can be.
func (n *NIC) appendUDP(list *stack.PacketBufferList, src, dst netip.AddrPort, b []byte) bool {
	o := udpOut{src: src, dst: dst, payload: b, mtu: int(n.link.MTU())}
	if !o.fits() {
		return false
	}
	ids := &n.wholeIDs
	if o.fragmented() {
		ids = &n.fragmentIDs
	}
	for o.id&0xffff == 0 {
		o.id = ids.Add(1)
	}
	o.appendTo(list)
	return true
}

// writable says why the conn takes no datagram, nil where it does.
func (c *UDPConn) writable() error {
	if err := c.in.ended(); err != nil {
		return err
	}
	if by := c.writeBy.Load(); by != nil && !time.Now().Before(*by) {
		return os.ErrDeadlineExceeded
	}
	return nil
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
	first, closed := c.in.end(net.ErrClosed)
	if closed {
		return c.opError("close", net.ErrClosed)
	}
	c.finish(first)
	return nil
}

// Abort is Close: UDP has nothing to abort.
func (c *UDPConn) Abort() { _ = c.Close() }

// abort implements endpoint.
func (c *UDPConn) abort(cause error) {
	first, _ := c.in.end(cause)
	c.finish(first)
}

// finish takes the flow out of the index, if this is how it ended.
func (c *UDPConn) finish(first bool) {
	if !first {
		return
	}
	c.farewell()
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
func (c *UDPConn) unreachable(err error) { c.in.tell(err) }

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
	if c.in.ended() == net.ErrClosed {
		return c.opError("set", net.ErrClosed)
	}
	c.in.setReadDeadline(t)
	return nil
}

// SetWriteDeadline implements net.Conn: a Write that begins later fails. One
// that waits for room goes on until the link has some, or ends.
func (c *UDPConn) SetWriteDeadline(t time.Time) error {
	if c.in.ended() == net.ErrClosed {
		return c.opError("set", net.ErrClosed)
	}
	if t.IsZero() {
		c.writeBy.Store(nil)
	} else {
		c.writeBy.Store(&t)
	}
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
