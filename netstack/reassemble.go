package netstack

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"

	"github.com/warrenmesh/warren/netstack/drops"
)

// Tuning of reassembly.
const (
	// reassemblyTimeout is short (RFC 791 suggests 15 s): the fragments of a
	// datagram travel through the tunnel together, and what waits in vain
	// could only be completed by a later datagram that has the same id.
	reassemblyTimeout = 5 * time.Second

	// reassemblyBytes bounds what waits at one NIC: 40 of the largest
	// datagrams, with their overhead.
	reassemblyBytes = 4 << 20

	// pieceOverhead is charged for each fragment beside its bytes.
	pieceOverhead = 1 << 10
)

// Why fragments were dropped.
const (
	whyFragment          = "fragment_malformed" // lengths or offsets that cannot be
	whyFragmentOverlap   = "fragment_overlap"   // a datagram whose fragments overlap or disagree (RFC 5722)
	whyReassemblyFull    = "reassembly_full"    // a datagram evicted for a newer one
	whyReassemblyTimeout = "reassembly_timeout" // a datagram that was never completed
)

// fragmentKey names a datagram in fragments (RFC 791 section 3.2, RFC 8200
// section 4.5). The NIC is not in it because each NIC has its own reassembler.
type fragmentKey struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

// reassembler puts together the fragments that arrive at one NIC. gVisor's
// own is shared by all NICs of a stack, and its key has no NIC, so that one
// connector's fragments could complete another's datagrams.
//
// The zero value works once drops is set. It holds nothing while no datagram
// is incomplete.
type reassembler struct {
	drops *drops.Counter

	mu      sync.Mutex // guards what follows
	closed  bool
	partial map[fragmentKey]*partialDatagram
	order   list.List // of *partialDatagram, oldest first
	bytes   int
	timer   *time.Timer
}

type partialDatagram struct {
	key      fragmentKey
	since    time.Time
	at       *list.Element
	header   []byte  // of the first fragment, once it came
	pieces   []piece // by offset, without overlap
	received int
	total    int // 0 until the last fragment came
	charged  int
}

type piece struct {
	off, end int
	data     buffer.Buffer
}

// add takes one fragment and ownership of its data. header is the IP header
// and is looked at only for the first fragment; limit is the largest payload
// that header could announce. When the datagram is complete add returns its
// header and payload, which the caller then owns.
func (r *reassembler) add(key fragmentKey, off int, more bool, header []byte, data buffer.Buffer, limit int) ([]byte, buffer.Buffer, bool) {
	size := int(data.Size())
	if size == 0 || more && size%8 != 0 || off+size > limit {
		data.Release()
		r.drops.Add(whyFragment, 1)
		return nil, buffer.Buffer{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		data.Release()
		r.drops.Add(whyGone, 1)
		return nil, buffer.Buffer{}, false
	}
	p := r.partial[key]
	if p == nil {
		p = r.beginLocked(key)
	}
	switch p.insert(piece{off: off, end: off + size, data: data}, more) {
	case pieceKnown:
		data.Release()
		return nil, buffer.Buffer{}, false
	case pieceConflicts:
		data.Release()
		r.dropLocked(p, whyFragmentOverlap)
		return nil, buffer.Buffer{}, false
	}
	if off == 0 {
		p.header = slices.Clone(header)
	}
	p.charged += size + pieceOverhead
	r.bytes += size + pieceOverhead
	if p.total > 0 && p.received == p.total {
		r.removeLocked(p)
		return p.header, p.join(), true
	}
	for r.bytes > reassemblyBytes {
		r.dropLocked(r.order.Front().Value.(*partialDatagram), whyReassemblyFull)
	}
	return nil, buffer.Buffer{}, false
}

// beginLocked makes room for a datagram that was not known.
func (r *reassembler) beginLocked(key fragmentKey) *partialDatagram {
	if r.partial == nil {
		r.partial = make(map[fragmentKey]*partialDatagram)
	}
	p := &partialDatagram{key: key, since: time.Now()}
	p.at = r.order.PushBack(p)
	r.partial[key] = p
	if r.order.Len() == 1 {
		if r.timer == nil {
			r.timer = time.AfterFunc(reassemblyTimeout, r.expire)
		} else {
			r.timer.Reset(reassemblyTimeout)
		}
	}
	return p
}

// What insert did with a piece.
const (
	pieceTaken = iota
	pieceKnown
	pieceConflicts
)

// insert puts q in its place. Every datagram whose fragments overlap is
// suspect (RFC 5722 section 3), but a copy of a fragment is not.
func (p *partialDatagram) insert(q piece, more bool) int {
	i, _ := slices.BinarySearchFunc(p.pieces, q.off, func(have piece, off int) int { return have.off - off })
	if i < len(p.pieces) && p.pieces[i].off == q.off && p.pieces[i].end == q.end && more == (p.total != q.end) {
		return pieceKnown
	}
	if i > 0 && p.pieces[i-1].end > q.off || i < len(p.pieces) && p.pieces[i].off < q.end {
		return pieceConflicts
	}
	if p.total > 0 && (q.end > p.total || !more) {
		return pieceConflicts
	}
	if !more {
		if n := len(p.pieces); n > 0 && p.pieces[n-1].end > q.end {
			return pieceConflicts
		}
		p.total = q.end
	}
	p.pieces = slices.Insert(p.pieces, i, q)
	p.received += q.end - q.off
	return pieceTaken
}

// join makes one buffer of all pieces without copying them.
func (p *partialDatagram) join() buffer.Buffer {
	var whole buffer.Buffer
	for i := range p.pieces {
		whole.Merge(&p.pieces[i].data)
	}
	p.pieces = nil
	return whole
}

// removeLocked takes p out; the last one out frees the table.
func (r *reassembler) removeLocked(p *partialDatagram) {
	delete(r.partial, p.key)
	r.order.Remove(p.at)
	r.bytes -= p.charged
	if len(r.partial) == 0 {
		r.partial = nil
		r.timer.Stop()
	}
}

// dropLocked takes p out and releases it.
func (r *reassembler) dropLocked(p *partialDatagram, why string) {
	r.removeLocked(p)
	for i := range p.pieces {
		p.pieces[i].data.Release()
	}
	r.drops.Add(why, 1)
}

// expire drops what has waited too long.
func (r *reassembler) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for e := r.order.Front(); e != nil; e = r.order.Front() {
		p := e.Value.(*partialDatagram)
		if left := reassemblyTimeout - time.Since(p.since); left > 0 {
			r.timer.Reset(left)
			return
		}
		r.dropLocked(p, whyReassemblyTimeout)
	}
}

// close drops everything and stops the timer.
func (r *reassembler) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for e := r.order.Front(); e != nil; e = r.order.Front() {
		r.dropLocked(e.Value.(*partialDatagram), whyGone)
	}
}
