package link

import "gvisor.dev/gvisor/pkg/tcpip/stack"

// queue is a first-in-first-out ring of packets that grows by doubling and
// gives its memory back when it falls empty, so that thousands of idle NICs
// hold none. The zero value is empty.
type queue struct {
	ring  []*stack.PacketBuffer // length is zero or a power of two
	head  int                   // index of the oldest
	count int
	bytes int
}

// keepRing is the largest ring that an empty queue keeps.
const keepRing = 16

func (q *queue) len() int { return q.count }

func (q *queue) push(pkt *stack.PacketBuffer) {
	if q.count == len(q.ring) {
		q.grow()
	}
	q.ring[(q.head+q.count)&(len(q.ring)-1)] = pkt
	q.count++
	q.bytes += pkt.Size()
}

func (q *queue) grow() {
	ring := make([]*stack.PacketBuffer, max(keepRing, 2*len(q.ring)))
	n := copy(ring, q.ring[q.head:])
	copy(ring[n:], q.ring[:q.head])
	q.ring, q.head = ring, 0
}

// pop removes the oldest packet; the queue must not be empty.
func (q *queue) pop() *stack.PacketBuffer {
	pkt := q.ring[q.head]
	q.ring[q.head] = nil
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.count--
	q.bytes -= pkt.Size()
	if q.count == 0 {
		q.head = 0
		if len(q.ring) > keepRing {
			q.ring = nil
		}
	}
	return pkt
}
