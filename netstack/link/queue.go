package link

import "gvisor.dev/gvisor/pkg/tcpip/stack"

// queue holds the packets that wait, and says which is next: deficit round
// robin between flows, new flows before old ones (RFC 8290 section 4, without
// CoDel: nothing is dropped here). Within a flow the order is kept. Each
// packet takes O(1), amortised, and no memory but the tables'. The zero value
// is empty.
//
// A flow that comes is new: it goes first, but only with what fits its credit,
// then takes its turn among the old. One that has sent all it had stays in the
// list of the old, without a packet, for a round (section 4.2), so that no flow
// is new all the time. Packets here are of any size up to 64 KiB, and flows
// many, so that there are four differences to the RFC:
//
//   - The RFC lets a new flow with any deficit send a packet of any size. 128
//     bulk streams in a queue of 1 MiB come with one GSO packet each, go, and
//     are new again: a small packet would wait for all of them, as in a FIFO.
//     So a packet larger than the credit is nothing new.
//   - A new flow that has gone, and is still waiting for its round to end, is
//     new again for what is left of its credit: a ping may so have more than
//     one packet in a round of 128 streams, which is 2 MiB.
//   - A flow that owes (it sent a GSO packet for its 16 KiB) is not forgotten
//     before it has sat out what it owes; it would owe nothing as a new one.
//   - Flows have an entry of their own, not one of 1,024 queues by a hash. A
//     stream of ever new flows then could starve the old for ever: so new flows
//     lead by at most maxLead, and have half beyond it.
type queue struct {
	*tables       // nil while empty
	fresh   list  // flows that are new
	old     list  // and those that are not
	active  int   // flows in both
	idle    int   // those of old that have no packet
	shared  int32 // the flow of those that have none, or 0
	lead    int   // bytes that new flows have sent while old ones waited, less what these sent

	count, bytes int // of all packets
	waiting      waiting
}

const (
	// quantum is what a flow may send a round, bytes. Over time all that want
	// send as much, whatever it is. With a quarter of a GSO packet a round is a
	// quarter as long for who sends less than that: of 128 streams 32 send one.
	quantum = 16 << 10
	// credit is what a new flow may send before others, bytes: a ping, a
	// request, an acknowledgement, a handshake. Each flow of a hundred bulk
	// streams that paces itself may be new too, so not much more.
	credit  = 4 << 10
	maxLead = 64 << 10

	// maxFlows bounds the flows; the packets of further ones share one.
	maxFlows   = 1024
	sharedFlow = 0 // its key
	// maxIdle bounds the new flows that are remembered when they run empty; the
	// old are bounded by maxFlows.
	maxIdle = 256
)

func (q *queue) len() int { return q.count }

// home returns the flow to which a packet goes, 0 where it is not there yet,
// and its key. While a packet waits in the shared flow, all whose flow is not
// there go to it: they might otherwise overtake their own.
func (q *queue) home(key uint64) (int32, uint64) {
	if q.tables == nil {
		return 0, key
	}
	i := q.find(key)
	if i == 0 && (q.active >= maxFlows || q.shared != 0 && q.flows[q.shared].first != 0) {
		return q.shared, sharedFlow
	}
	return i, key
}

// sparse reports whether a packet of that flow and size is small and the only
// one of its flow.
func (q *queue) sparse(key uint64, size int) bool {
	if size > credit {
		return false
	}
	i, _ := q.home(key)
	return i == 0 || q.flows[i].first == 0
}

// push appends pkt to its flow and returns its node.
func (q *queue) push(key uint64, pkt *stack.PacketBuffer) int32 {
	if q.tables == nil {
		q.tables = tablesPool.Get().(*tables)
	}
	size := pkt.Size()
	i, key := q.home(key)
	switch {
	case i == 0:
		i = q.open(key)
	case q.flows[i].first == 0 && !q.flows[i].fresh:
		q.idle--
		if f := &q.flows[i]; size <= int(f.deficit) {
			q.old.remove(q.tables, i)
			q.fresh.append(q.tables, i)
			f.fresh = true
		}
	}
	n := q.addNode(node{pkt: pkt, size: int32(size)})
	f := &q.flows[i]
	if f.first == 0 {
		f.first = n
	} else {
		q.nodes[f.last].next = n
	}
	f.last = n
	q.count++
	q.bytes += size
	return n
}

// open makes a flow, which is new.
func (q *queue) open(key uint64) int32 {
	i := q.addFlow(key)
	f := &q.flows[i]
	f.deficit, f.fresh = credit, true
	q.fresh.append(q.tables, i)
	q.active++
	if key == sharedFlow {
		q.shared = i
	}
	return i
}

// forget removes a flow that is in no list.
func (q *queue) forget(i int32) {
	if i == q.shared {
		q.shared = 0
	}
	q.removeFlow(i)
	q.active--
}

// pop removes the next packet; the queue must not be empty. Its writer waits no
// longer.
func (q *queue) pop() *stack.PacketBuffer {
	i := q.next()
	f := &q.flows[i]
	n := q.takeNode(f.first)
	f.first = n.next
	f.deficit -= n.size
	switch {
	case !f.fresh:
		q.lead = max(0, q.lead-int(n.size))
		if f.first == 0 {
			q.idle++
			f.deficit = min(f.deficit, credit)
		}
	case q.old.first != 0:
		q.lead += int(n.size)
	}
	if n.writer != nil {
		q.waiting.end(n.writer)
	}
	q.count--
	q.bytes -= int(n.size)
	if q.count == 0 {
		q.reset()
	}
	return n.pkt
}

// next returns the flow whose turn it is.
func (q *queue) next() int32 {
	for {
		i := q.old.first
		if i == 0 || q.fresh.first != 0 && q.lead < maxLead {
			i = q.fresh.first
			f := &q.flows[i]
			if f.first != 0 && q.nodes[f.first].size <= f.deficit {
				return i
			}
			q.fresh.remove(q.tables, i)
			q.settle(i)
			continue
		}
		f := &q.flows[i]
		if f.first != 0 && f.deficit > 0 {
			return i
		}
		q.old.remove(q.tables, i)
		if f.first == 0 && f.deficit > 0 {
			q.idle--
			q.forget(i)
			continue
		}
		f.deficit += quantum
		q.old.append(q.tables, i)
	}
}

// settle moves a flow, which is in no list, to the old ones.
func (q *queue) settle(i int32) {
	f := &q.flows[i]
	f.fresh = false
	switch {
	case f.first != 0:
		f.deficit += quantum
	case q.idle >= maxIdle:
		q.forget(i)
		return
	default:
		q.idle++
	}
	q.old.append(q.tables, i)
}

// reset forgets all flows and gives the tables back; no packet is left.
func (q *queue) reset() {
	for _, l := range [...]*list{&q.fresh, &q.old} {
		for i := l.first; i != 0; {
			next := q.flows[i].next
			q.removeFlow(i)
			i = next
		}
	}
	q.tables.release()
	*q = queue{}
}
