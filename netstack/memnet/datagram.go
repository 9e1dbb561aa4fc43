package memnet

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

const (
	// maxDatagram is the largest payload that a UDP datagram over IPv4 has
	// room for (65,535 less two headers).
	maxDatagram = 65507
	// queueBytes is what a socket holds unread before it drops.
	queueBytes = 1 << 20
)

// PacketConn is a socket that receives datagrams from anybody: a
// net.PacketConn whose addresses are *net.UDPAddr.
type PacketConn struct {
	net   *Net
	local netip.AddrPort
	queue queue
}

// UDPConn is a socket connected to one address: a net.Conn and a
// netx.ReadWaiter. It takes datagrams from that address alone, and fails with
// netx.ErrRefused once after it sent to a port where nobody listens.
type UDPConn struct {
	socket *PacketConn
	remote netip.AddrPort
}

// DatagramPipe returns two sockets that are connected to each other.
func DatagramPipe() (a, b *UDPConn) {
	n := New()
	at := netip.MustParseAddrPort("192.0.2.2:2")
	far, err := n.ListenPacket(at)
	if err != nil {
		panic(err) // the network is empty: cannot be
	}
	c, err := n.DialContext(context.Background(), "udp", at)
	if err != nil {
		panic(err)
	}
	near := c.(*UDPConn)
	return near, far.connect(near.socket.local)
}

// datagram is one message and who sent it.
type datagram struct {
	from netip.AddrPort
	data []byte
}

// queue is what a socket has received and nobody has read.
type queue struct {
	mu      sync.Mutex
	changed sync.Cond
	waiting []datagram
	bytes   int
	failed  error // told once: what became of a datagram that was sent
	closed  bool
	only    netip.AddrPort // where valid: datagrams of others are not taken
	readBy  deadline
}

func (q *queue) init() { q.changed.L = &q.mu }

func (q *queue) put(d datagram) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.only.IsValid() && d.from != q.only {
		return
	}
	if q.closed || q.bytes+len(d.data) > queueBytes {
		return // as a full socket buffer does
	}
	q.waiting = append(q.waiting, d)
	q.bytes += len(d.data)
	q.changed.Broadcast()
}

func (q *queue) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.failed = err
	q.changed.Broadcast()
}

func (q *queue) take() (datagram, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.waitLocked(); err != nil {
		return datagram{}, err
	}
	if err := q.failed; err != nil {
		q.failed = nil
		return datagram{}, err
	}
	d := q.waiting[0]
	q.waiting = q.waiting[1:]
	q.bytes -= len(d.data)
	return d, nil
}

func (q *queue) wait() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waitLocked()
}

func (q *queue) waitLocked() error {
	for {
		switch {
		case q.closed:
			return net.ErrClosed
		case q.readBy.passed():
			return os.ErrDeadlineExceeded
		case q.failed != nil, len(q.waiting) > 0:
			return nil
		}
		q.changed.Wait()
	}
}

// connect makes p's socket one that speaks with remote alone.
func (p *PacketConn) connect(remote netip.AddrPort) *UDPConn {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	p.queue.only = remote
	return &UDPConn{socket: p, remote: remote}
}

// ReadFrom returns one datagram and its sender; what does not fit b is lost.
func (p *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	d, err := p.queue.take()
	if err != nil {
		return 0, nil, p.named("read", err)
	}
	return copy(b, d.data), net.UDPAddrFromAddrPort(d.from), nil
}

// WriteTo sends b to address, a *net.UDPAddr, as one datagram.
func (p *PacketConn) WriteTo(b []byte, address net.Addr) (int, error) {
	to, ok := address.(*net.UDPAddr)
	if !ok {
		return 0, p.named("write", &net.AddrError{Err: "not a UDP address", Addr: address.String()})
	}
	// A socket that is not connected never hears of a refusal.
	if err := p.send(b, to.AddrPort(), nil); err != nil {
		return 0, err
	}
	return len(b), nil
}

// send delivers b and tells told, which may be nil, what went wrong on the way.
func (p *PacketConn) send(b []byte, to netip.AddrPort, told *queue) error {
	p.queue.mu.Lock()
	closed := p.queue.closed
	p.queue.mu.Unlock()
	if closed {
		return p.named("write", net.ErrClosed)
	}
	if len(b) > maxDatagram {
		return p.named("write", syscall.EMSGSIZE)
	}
	p.net.mu.Lock()
	failure := p.net.failures[to]
	receiver := p.net.packets[to]
	p.net.mu.Unlock()
	if failure == nil && receiver == nil {
		failure = netx.ErrRefused
	}
	switch {
	case failure == nil:
		receiver.queue.put(datagram{from: p.local, data: append([]byte(nil), b...)})
	case failure != ErrSilence && told != nil:
		told.fail(failure)
	}
	return nil
}

// Close frees the address; calls under way return net.ErrClosed.
func (p *PacketConn) Close() error {
	p.net.mu.Lock()
	if p.net.packets[p.local] == p {
		delete(p.net.packets, p.local)
	}
	p.net.mu.Unlock()
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	p.queue.closed, p.queue.waiting = true, nil
	p.queue.readBy.stop()
	p.queue.changed.Broadcast()
	return nil
}

// LocalAddr returns a *net.UDPAddr.
func (p *PacketConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(p.local) }

// SetDeadline sets the read deadline: a write never waits.
func (p *PacketConn) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// SetWriteDeadline does nothing: a write never waits.
func (p *PacketConn) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline bounds ReadFrom, also one under way.
func (p *PacketConn) SetReadDeadline(t time.Time) error {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	p.queue.readBy.setLocked(t, &p.queue.mu, &p.queue.changed)
	return nil
}

func (p *PacketConn) named(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: p.LocalAddr(), Err: err}
}

// Read returns one datagram; what does not fit b is lost.
func (c *UDPConn) Read(b []byte) (int, error) {
	d, err := c.socket.queue.take()
	if err != nil {
		return 0, c.socket.named("read", err)
	}
	return copy(b, d.data), nil
}

// Write sends b as one datagram. It never waits: a receiver whose queue is
// full loses it.
func (c *UDPConn) Write(b []byte) (int, error) {
	q := &c.socket.queue
	q.mu.Lock()
	err := q.failed
	q.failed = nil
	q.mu.Unlock()
	if err != nil {
		return 0, c.socket.named("write", err)
	}
	if err := c.socket.send(b, c.remote, q); err != nil {
		return 0, err
	}
	return len(b), nil
}

// WaitReadable returns nil once a datagram, or an error, waits.
func (c *UDPConn) WaitReadable() error {
	if err := c.socket.queue.wait(); err != nil {
		return c.socket.named("read", err)
	}
	return nil
}

// Close frees the address; calls under way return net.ErrClosed.
func (c *UDPConn) Close() error { return c.socket.Close() }

// LocalAddr returns a *net.UDPAddr.
func (c *UDPConn) LocalAddr() net.Addr { return c.socket.LocalAddr() }

// RemoteAddr returns a *net.UDPAddr.
func (c *UDPConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.remote) }

// SetDeadline sets the read deadline: a write never waits.
func (c *UDPConn) SetDeadline(t time.Time) error { return c.socket.SetReadDeadline(t) }

// SetReadDeadline bounds Read and WaitReadable, also those under way.
func (c *UDPConn) SetReadDeadline(t time.Time) error { return c.socket.SetReadDeadline(t) }

// SetWriteDeadline does nothing: a write never waits.
func (c *UDPConn) SetWriteDeadline(time.Time) error { return nil }
