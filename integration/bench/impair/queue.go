package impair

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// queueLimit bounds the packets under way in one direction: 25 MB of full
// packets, 10 Gbit/s for 20 ms. What comes on top is dropped at the tail, as
// by any router.
const queueLimit = 1 << 14

// Queue is one direction of the cable: packets go in with the time at which
// they came, and come out at the time at which they are due. It is not safe
// for concurrent use. Make it with NewQueue.
type Queue struct {
	spec Spec
	lots *rand.Rand
	held packets
	next uint64 // the sequence number of the next packet

	// What became of packets so far.
	Lost, Late, Overflowed uint64
}

// NewQueue makes an empty queue whose lots are drawn from seed.
func NewQueue(spec Spec, seed uint64) *Queue {
	return &Queue{spec: spec, lots: rand.New(rand.NewPCG(seed, 0))}
}

// Push takes a packet that came at now, and reports whether it is kept: a
// packet that is lost stays the caller's.
func (q *Queue) Push(now time.Time, packet []byte) bool {
	// Both lots are drawn for each packet, so that the fate of the n-th does
	// not depend on the fates before it.
	lost, late := q.lots.Float64() < q.spec.Loss, q.lots.Float64() < q.spec.Reorder
	switch {
	case lost:
		q.Lost++
		return false
	case len(q.held) >= queueLimit:
		q.Overflowed++
		return false
	}
	due := now.Add(q.spec.Delay / 2)
	if late {
		q.Late++
		due = due.Add(reorderBy)
	}
	heap.Push(&q.held, held{due, q.next, packet})
	q.next++
	return true
}

// Pop returns the first packet that is due at now, if there is one.
func (q *Queue) Pop(now time.Time) (packet []byte, ok bool) {
	if len(q.held) == 0 || q.held[0].due.After(now) {
		return nil, false
	}
	return heap.Pop(&q.held).(held).packet, true
}

// Due is when the next packet is due, if there is one.
func (q *Queue) Due() (at time.Time, ok bool) {
	if len(q.held) == 0 {
		return time.Time{}, false
	}
	return q.held[0].due, true
}

// held is a packet under way.
type held struct {
	due    time.Time
	seq    uint64 // packets due at the same time leave in the order they came
	packet []byte
}

// packets is a heap, the first due on top.
type packets []held

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	if !p[i].due.Equal(p[j].due) {
		return p[i].due.Before(p[j].due)
	}
	return p[i].seq < p[j].seq
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)   { *p = append(*p, x.(held)) }
func (p *packets) Pop() any {
	last := (*p)[len(*p)-1]
	(*p)[len(*p)-1] = held{}
	*p = (*p)[:len(*p)-1]
	return last
}
