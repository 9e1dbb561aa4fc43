package netstack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Bounds of what datagram conns hold unread, in bytes of memory.
const (
	// inboxBytes bounds one conn: 15 of the largest datagrams, or 400 that
	// fill a packet of 1,400 bytes.
	inboxBytes = 1 << 20

	// unreadBytes bounds all conns of a NIC together.
	unreadBytes = 64 << 20

	// arrivedOverhead is what a datagram takes beside the chunk that it lies in.
	arrivedOverhead = 512

	// keptInbox is how many entries an empty inbox keeps, so that a conn that
	// is read as fast as it is written to allocates nothing.
	keptInbox = 16
)

// Why a datagram was not put into an inbox.
const (
	whyInboxFull  = "udp_inbox_full"  // the flow holds enough unread datagrams
	whyUnreadFull = "udp_unread_full" // the NIC's flows together do
)

// errInboxClosed is put's answer once the conn has ended: the datagram is for
// somebody else.
var errInboxClosed = errors.New("inbox closed")

// arrived is a datagram that waits to be read. Its payload lies in what owner
// lends.
type arrived struct {
	payload []byte
	src     netip.AddrPort
	owner   netx.Lender
	cost    int
}

// smallBuffer is what a datagram is copied into that came as bytes.
type smallBuffer [2 << 10]byte

var smallBuffers = sync.Pool{New: func() any { return new(smallBuffer) }}

// DecRef implements netx.Lender.
func (b *smallBuffer) DecRef() { smallBuffers.Put(b) }

// inbox is what has arrived for a datagram conn and was not read, and who
// waits for it.
type inbox struct {
	unread *atomic.Int64 // of the NIC: bytes that all its inboxes hold

	mu     sync.Mutex // guards what follows
	more   sync.Cond
	queue  []arrived
	head   int   // what is before it was read
	held   int   // bytes, as they count against the bounds
	err    error // the conn has ended: what reads and writes report
	told   error // what an ICMP error said and no read has returned yet
	readBy time.Time
	timer  *time.Timer // at readBy
}

func (x *inbox) init(unread *atomic.Int64) {
	x.unread = unread
	x.more.L = &x.mu
}

// put queues d and takes a reference to its packet, or says why not;
// errInboxClosed where the conn has ended. It never blocks.
func (x *inbox) put(d *datagram, pkt *stack.PacketBuffer) (why string, err error) {
	a := arrived{payload: d.payload, src: d.src, owner: pkt.IncRef(), cost: chunkOf(len(d.ip)) + arrivedOverhead}
	first, why, err := x.push(a)
	if first {
		x.Wake()
	}
	return why, err
}

// putCopy is put for a datagram whose memory is somebody else's, and which fits
// a smallBuffer. first asks the caller to call Wake.
func (x *inbox) putCopy(d *datagram) (first bool, why string, err error) {
	b := smallBuffers.Get().(*smallBuffer)
	n := copy(b[:], d.payload)
	return x.push(arrived{payload: b[:n], src: d.src, owner: b, cost: len(b) + arrivedOverhead})
}

// push queues a, or gives its memory back. first says that nothing waited
// before: somebody may wait for it.
func (x *inbox) push(a arrived) (first bool, why string, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.err != nil:
		err = errInboxClosed
	case x.held+a.cost > inboxBytes:
		why = whyInboxFull
	case x.unread.Add(int64(a.cost)) > unreadBytes:
		x.unread.Add(-int64(a.cost))
		why = whyUnreadFull
	}
	if why != "" || err != nil {
		a.owner.DecRef()
		return false, why, err
	}
	if x.head > 0 && len(x.queue) == cap(x.queue) {
		// Room before the head is used first: a queue that never runs empty
		// must not grow for ever.
		n := copy(x.queue, x.queue[x.head:])
		clear(x.queue[n:])
		x.queue, x.head = x.queue[:n], 0
	}
	x.queue = append(x.queue, a)
	x.held += a.cost
	return len(x.queue)-x.head == 1, "", nil
}

// Wake lets who waits look again. It may be called without a lock.
func (x *inbox) Wake() { x.more.Broadcast() }

// chunkOf is the memory that gVisor takes for n bytes: the next power of two.
func chunkOf(n int) int {
	size := 64
	for size < n {
		size *= 2
	}
	return size
}

// take waits for a datagram and passes it on, with its reference. What an ICMP
// error said comes after the datagrams that came before it.
func (x *inbox) take() (arrived, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.waitLocked(); err != nil {
		return arrived{}, err
	}
	if x.head == len(x.queue) {
		told := x.told
		x.told = nil
		return arrived{}, told
	}
	return x.popLocked(), nil
}

// takeBatch is take for as many as there are and b has room for; it lends them.
func (x *inbox) takeBatch(b *netx.Batch) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.waitLocked(); err != nil {
		return err
	}
	if x.head == len(x.queue) {
		told := x.told
		x.told = nil
		return told
	}
	for b.Room() > 0 && x.head < len(x.queue) {
		a := x.popLocked()
		b.Add(a.payload, a.owner)
	}
	return nil
}

func (x *inbox) popLocked() arrived {
	a := x.queue[x.head]
	x.queue[x.head] = arrived{}
	if x.head++; x.head == len(x.queue) {
		x.queue, x.head = x.queue[:0], 0
		if cap(x.queue) > keptInbox {
			x.queue = nil
		}
	}
	x.held -= a.cost
	x.unread.Add(-int64(a.cost))
	return a
}

// wait returns nil once take would not block.
func (x *inbox) wait() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.waitLocked()
}

func (x *inbox) waitLocked() error {
	for {
		switch {
		case x.err != nil:
			return x.err
		case !x.readBy.IsZero() && !time.Now().Before(x.readBy):
			return os.ErrDeadlineExceeded
		case x.head < len(x.queue) || x.told != nil:
			return nil
		}
		x.more.Wait()
	}
}

// tell keeps what an ICMP error said for a read to return.
func (x *inbox) tell(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.told = err
	x.more.Broadcast()
}

// end lets reads and writes report err from now on and drops what was not
// read. Only net.ErrClosed replaces an earlier reason; end reports whether
// this call was the first, and whether the owner had closed before.
func (x *inbox) end(err error) (first, closed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	first, closed = x.err == nil, errors.Is(x.err, net.ErrClosed)
	if first || err == net.ErrClosed {
		x.err = err
	}
	for x.head < len(x.queue) {
		x.popLocked().owner.DecRef()
	}
	x.queue = nil
	if x.timer != nil {
		x.timer.Stop()
		x.timer = nil
	}
	x.more.Broadcast()
	return first, closed
}

// ended is what the conn ended with, nil while it has not.
func (x *inbox) ended() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// setReadDeadline sets when reads end, those that are waiting too.
func (x *inbox) setReadDeadline(t time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.timer != nil {
		x.timer.Stop()
		x.timer = nil
	}
	x.readBy = t
	if left := time.Until(t); !t.IsZero() && left > 0 && x.err == nil {
		x.timer = time.AfterFunc(left, x.fire)
	}
	x.more.Broadcast()
}

// fire runs when the timer does; the deadline may have moved meanwhile.
func (x *inbox) fire() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.timer == nil || x.readBy.IsZero() {
		return
	}
	if left := time.Until(x.readBy); left > 0 {
		x.timer.Reset(left)
		return
	}
	x.more.Broadcast()
}
