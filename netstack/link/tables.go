package link

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// tables hold the packets and the flows of a queue that is not empty. What
// refers to one is its index; 0 is none. They grow by doubling and are shared
// by all links of the process: an empty queue has none.
type tables struct {
	nodes    []node
	flows    []flow
	buckets  []int32 // of flows, by the low bits of their keys; a power of two
	freeNode int32
	freeFlow int32
}

// node is one packet of a flow.
type node struct {
	pkt    *stack.PacketBuffer
	writer *writer // who waits until pkt has room, or nil
	size   int32
	next   int32
}

// flow is one flow, with its place in one of the queue's lists.
type flow struct {
	key         uint64
	first, last int32 // its packets; first is 0 where it has none
	next, prev  int32 // in its list
	chain       int32 // the next of its bucket
	deficit     int32 // bytes that it may send before others have a turn
	fresh       bool  // it is in the list of new flows
}

// keepNodes is how large tables may be to be kept: what they need for more was
// a burst.
const keepNodes = 4096

var tablesPool = sync.Pool{New: func() any {
	return &tables{nodes: make([]node, 1, 32), flows: make([]flow, 1, 16), buckets: make([]int32, 16)}
}}

// release gives back tables that hold no packet and no flow.
func (t *tables) release() {
	if cap(t.nodes) > keepNodes {
		return
	}
	t.nodes, t.flows, t.freeNode, t.freeFlow = t.nodes[:1], t.flows[:1], 0, 0
	tablesPool.Put(t)
}

// addNode returns a node that holds n.
func (t *tables) addNode(n node) int32 {
	i := t.freeNode
	if i == 0 {
		t.nodes = append(t.nodes, n)
		return int32(len(t.nodes) - 1)
	}
	t.freeNode = t.nodes[i].next
	t.nodes[i] = n
	return i
}

// takeNode removes node i and returns what it held.
func (t *tables) takeNode(i int32) node {
	n := t.nodes[i]
	t.nodes[i] = node{next: t.freeNode}
	t.freeNode = i
	return n
}

// find returns the flow of that key, or 0.
func (t *tables) find(key uint64) int32 {
	i := t.buckets[key&uint64(len(t.buckets)-1)]
	for i != 0 && t.flows[i].key != key {
		i = t.flows[i].chain
	}
	return i
}

// addFlow returns a flow of that key, which must not be there.
func (t *tables) addFlow(key uint64) int32 {
	i := t.freeFlow
	if i == 0 {
		t.flows = append(t.flows, flow{})
		i = int32(len(t.flows) - 1)
		if len(t.flows) > len(t.buckets) {
			t.rehash()
		}
	} else {
		t.freeFlow = t.flows[i].next
	}
	b := &t.buckets[key&uint64(len(t.buckets)-1)]
	t.flows[i] = flow{key: key, chain: *b}
	*b = i
	return i
}

// removeFlow forgets flow i.
func (t *tables) removeFlow(i int32) {
	f := &t.flows[i]
	at := &t.buckets[f.key&uint64(len(t.buckets)-1)]
	for *at != i {
		at = &t.flows[*at].chain
	}
	*at = f.chain
	*f = flow{next: t.freeFlow}
	t.freeFlow = i
}

// rehash doubles the buckets. It is called where no flow is free, and the last
// has no key yet.
func (t *tables) rehash() {
	t.buckets = make([]int32, 2*len(t.buckets))
	for i := 1; i < len(t.flows)-1; i++ {
		f := &t.flows[i]
		b := &t.buckets[f.key&uint64(len(t.buckets)-1)]
		f.chain, *b = *b, int32(i)
	}
}

// list is a list of flows, linked through them.
type list struct{ first, last int32 }

func (l *list) append(t *tables, i int32) {
	f := &t.flows[i]
	f.next, f.prev = 0, l.last
	if l.last == 0 {
		l.first = i
	} else {
		t.flows[l.last].next = i
	}
	l.last = i
}

func (l *list) remove(t *tables, i int32) {
	f := &t.flows[i]
	if f.prev == 0 {
		l.first = f.next
	} else {
		t.flows[f.prev].next = f.next
	}
	if f.next == 0 {
		l.last = f.prev
	} else {
		t.flows[f.next].prev = f.prev
	}
}
