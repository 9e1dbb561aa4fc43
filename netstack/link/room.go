package link

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Who writes while the queue is full. The packet of a writer that waits is in
// the queue already, where it has its turn by its flow, however many others
// wait; it takes no more memory there than with its writer. The writer, which
// may hold a lock of its conn or be one of gVisor's few goroutines that handle
// what came in, waits until its packet has room or is gone, so that it makes no
// other. Room goes to the writers in the order in which they came, and wakes
// no more of them than it is for.

// writer is one that waits. It is a packet's, see node.
type writer struct {
	cond       sync.Cond // of the endpoint's mu
	node       int32
	size       int
	tcp        bool
	done       bool
	next, prev *writer
}

var writers = sync.Pool{New: func() any { return new(writer) }}

// waiting are the writers that wait, by age, and their packets.
type waiting struct {
	first, last  *writer
	count, bytes int
}

func (l *waiting) add(w *writer) {
	w.prev = l.last
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
	l.count++
	l.bytes += w.size
}

// end wakes w, which waits no longer.
func (l *waiting) end(w *writer) {
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	l.count--
	l.bytes -= w.size
	w.done = true
	w.cond.Signal()
}

// fullLocked reports whether a packet of size bytes has no room. One packet
// always fits an empty queue. Those whose writers wait take up none. beyond says
// that the mark does not count, only the bounds.
func (e *Endpoint) fullLocked(size int, beyond bool) bool {
	maxPackets, maxBytes := e.markPackets, e.markBytes
	if beyond {
		maxPackets, maxBytes = e.cfg.MaxPackets, e.cfg.MaxBytes
	}
	n, bytes := e.queue.count-e.queue.waiting.count, e.queue.bytes-e.queue.waiting.bytes
	return n >= maxPackets || n > 0 && bytes+size > maxBytes
}

// roomLocked reports whether there is room for one of extra packets beyond a
// full queue.
func (e *Endpoint) roomLocked(extra int, tcp bool) bool {
	if !tcp {
		extra += e.markPackets - e.cfg.MaxPackets
	}
	return e.queue.count-e.queue.waiting.count < e.cfg.MaxPackets+extra
}

// waitLocked queues pkt, whose reference it takes, and waits until there is
// room for it or it was read or dropped.
func (e *Endpoint) waitLocked(key uint64, pkt *stack.PacketBuffer, tcp bool) {
	w := writers.Get().(*writer)
	w.cond.L = &e.mu
	w.size, w.tcp = pkt.Size(), tcp
	w.node = e.queue.push(key, pkt)
	e.queue.nodes[w.node].writer = w
	e.queue.waiting.add(w)
	for !w.done {
		w.cond.Wait()
	}
	*w = writer{}
	writers.Put(w)
}

// wakeLocked wakes the writers for whose packets there is room.
func (e *Endpoint) wakeLocked() {
	for w := e.queue.waiting.first; w != nil && !e.fullLocked(w.size, w.tcp); w = e.queue.waiting.first {
		e.queue.nodes[w.node].writer = nil
		e.queue.waiting.end(w)
	}
}
