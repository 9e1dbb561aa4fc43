package ingress

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

const (
	// sessionQueue is what one session holds unread, in bytes: fifteen of the
	// largest datagrams, or 512 of a common size: 120 ms of a flow of 5 MB/s.
	sessionQueue = 1 << 20
	// datagramOverhead is what a datagram costs beside its payload, so that
	// empty ones are bounded too.
	datagramOverhead = 64
	// smallDatagram is the size up to which a datagram of a running session
	// goes into a pooled buffer instead of one of its own.
	smallDatagram = 2 << 10
	// keptQueue is how many entries an empty queue keeps, so that a session
	// that is read as fast as it is written to allocates nothing.
	keptQueue = 8
)

// smallBuffer is what a small datagram lies in.
type smallBuffer [smallDatagram]byte

var smallBuffers = sync.Pool{New: func() any { return new(smallBuffer) }}

// DecRef implements netx.Lender.
func (b *smallBuffer) DecRef() { smallBuffers.Put(b) }

var (
	_ netx.ReadWaiter  = (*session)(nil)
	_ netx.BatchReader = (*session)(nil)
	_ netx.BatchWriter = (*session)(nil)
)

// session is one client's datagrams at one listener: a datagram conn. It
// holds what has arrived and was not read, and nothing else.
type session struct {
	l     *udpListener
	key   sessionKey
	local netip.AddrPort
	reply []byte // control message that fixes the source of replies; nil: the socket does

	// live is set by the first read: somebody serves the session.
	live atomic.Bool

	mu      sync.Mutex
	changed sync.Cond
	queue   []datagram
	head    int // of queue: what is before it was read
	held    int // bytes in queue, as they count against the bounds
	closed  bool
	readBy  time.Time
	wake    *time.Timer // at readBy
}

// datagram is one that waits to be read.
type datagram struct {
	data   []byte
	pooled *smallBuffer // what data lies in, where it came from the pool
	cost   int          // what it counts against the bounds
}

func newSession(l *udpListener, k sessionKey, local netip.AddrPort, reply []byte) *session {
	se := &session{l: l, key: k, local: local, reply: reply}
	se.changed.L = &se.mu
	return se
}

// put queues a copy of b, or drops it and says why. first says that it is the
// only one in the queue, so that somebody may wait for it: the caller wakes
// them. open is false where the session is closed.
func (se *session) put(b []byte) (why string, first, open bool) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.closed {
		return "", false, false
	}
	d := datagram{cost: len(b) + datagramOverhead}
	most := int64(maxQueued)
	live := se.live.Load()
	small := live && len(b) <= smallDatagram
	if small {
		d.cost = smallDatagram
	}
	if !live {
		// A flood of sessions that nobody serves yet leaves half of the room
		// to those that are served.
		most /= 2
	}
	if se.held+d.cost > sessionQueue {
		return DropSessionFull, false, true
	}
	if se.l.s.queued.Add(int64(d.cost)) > most {
		se.l.s.queued.Add(-int64(d.cost))
		return DropQueueFull, false, true
	}
	if small {
		d.pooled = smallBuffers.Get().(*smallBuffer)
		d.data = d.pooled[:copy(d.pooled[:], b)]
	} else {
		d.data = append(make([]byte, 0, len(b)), b...)
	}
	if se.head > 0 && len(se.queue) == cap(se.queue) {
		// Room before the head is used first: a queue that never runs empty
		// must not grow for ever.
		n := copy(se.queue, se.queue[se.head:])
		clear(se.queue[n:])
		se.queue, se.head = se.queue[:n], 0
	}
	se.queue = append(se.queue, d)
	se.held += d.cost
	return "", len(se.queue)-se.head == 1, true
}

// popLocked takes the oldest datagram out of the queue, and what it counted
// for out of the bounds. Its memory is the caller's.
func (se *session) popLocked() datagram {
	d := se.queue[se.head]
	se.queue[se.head] = datagram{}
	if se.head++; se.head == len(se.queue) {
		se.queue, se.head = se.queue[:0], 0
		if cap(se.queue) > keptQueue {
			se.queue = nil
		}
	}
	se.held -= d.cost
	se.l.s.queued.Add(-int64(d.cost))
	return d
}

// release gives a datagram's memory back.
func (d *datagram) release() {
	if d.pooled != nil {
		smallBuffers.Put(d.pooled)
	}
}

// Read returns one datagram; what does not fit b is lost.
func (se *session) Read(b []byte) (int, error) {
	se.live.Store(true)
	se.mu.Lock()
	defer se.mu.Unlock()
	if err := se.waitLocked(); err != nil {
		return 0, se.named("read", err)
	}
	d := se.popLocked()
	n := copy(b, d.data)
	d.release()
	return n, nil
}

// ReadBatch implements netx.BatchReader.
func (se *session) ReadBatch(b *netx.Batch) error {
	se.live.Store(true)
	se.mu.Lock()
	defer se.mu.Unlock()
	if err := se.waitLocked(); err != nil {
		return se.named("read", err)
	}
	for b.Room() > 0 && se.head < len(se.queue) {
		d := se.popLocked()
		if d.pooled == nil {
			b.Add(d.data, nil)
			continue
		}
		b.Add(d.data, d.pooled)
	}
	return nil
}

// WaitReadable returns nil once a datagram waits.
func (se *session) WaitReadable() error {
	se.live.Store(true)
	se.mu.Lock()
	defer se.mu.Unlock()
	if err := se.waitLocked(); err != nil {
		return se.named("read", err)
	}
	return nil
}

func (se *session) waitLocked() error {
	for {
		switch {
		case se.closed:
			return net.ErrClosed
		case !se.readBy.IsZero() && !time.Now().Before(se.readBy):
			return os.ErrDeadlineExceeded
		case se.head < len(se.queue):
			return nil
		}
		se.changed.Wait()
	}
}

// Write sends b to the client as one datagram, from the address that it spoke
// to.
func (se *session) Write(b []byte) (int, error) {
	if _, err := se.WriteBatch([][]byte{b}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// WriteBatch implements netx.BatchWriter.
func (se *session) WriteBatch(datagrams [][]byte) (int, error) {
	se.mu.Lock()
	closed := se.closed
	se.mu.Unlock()
	if closed {
		return 0, se.named("write", net.ErrClosed)
	}
	return se.l.send(datagrams, se.reply, se.key.client)
}

// Close ends the session: the client's next datagram begins another. Calls
// under way return net.ErrClosed.
func (se *session) Close() error {
	se.mu.Lock()
	if se.closed {
		se.mu.Unlock()
		return nil
	}
	se.closed = true
	for se.head < len(se.queue) {
		d := se.popLocked()
		d.release()
	}
	se.queue, se.head = nil, 0
	if se.wake != nil {
		se.wake.Stop()
	}
	se.changed.Broadcast()
	se.mu.Unlock()
	se.l.remove(se)
	return nil
}

// LocalAddr returns the *net.UDPAddr that the client spoke to.
func (se *session) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(se.local) }

// RemoteAddr returns the client's *net.UDPAddr.
func (se *session) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(se.key.client) }

// SetDeadline sets the read deadline: a write does not wait for the client.
func (se *session) SetDeadline(t time.Time) error { return se.SetReadDeadline(t) }

// SetWriteDeadline does nothing: a write does not wait for the client.
func (se *session) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline bounds Read and WaitReadable, also those under way.
func (se *session) SetReadDeadline(t time.Time) error {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.closed {
		return se.named("set", net.ErrClosed)
	}
	if se.wake != nil {
		se.wake.Stop()
		se.wake = nil
	}
	se.readBy = t
	if left := time.Until(t); !t.IsZero() && left > 0 {
		se.wake = time.AfterFunc(left, func() {
			se.mu.Lock()
			defer se.mu.Unlock()
			se.changed.Broadcast()
		})
	}
	se.changed.Broadcast()
	return nil
}

func (se *session) named(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: se.LocalAddr(), Addr: se.RemoteAddr(), Err: err}
}
