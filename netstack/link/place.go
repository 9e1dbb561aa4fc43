package link

import (
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Who writes to a TCP flow waits for its turn before it gives the data to the
// stack, and not in WritePackets: the stack holds the conn's lock there, and
// what it sends for an acknowledgement that came in it sends on one of the few
// goroutines that handle all that comes in. One that waits for room, because
// some flow's window opened, keeps every other flow's segments waiting with it.
//
// So the stack's own packets have room up to MaxBytes, which is no memory of
// the queue's: their payload is shared with the conn's send buffer, which bounds
// it. And the data behind them is held back while the queue is over its mark.

// A Place is one flow's among those that write to it. Make it with
// Endpoint.Place; it is used by one goroutine at a time.
type Place struct {
	e    *Endpoint
	key  uint64
	wake func()

	state      atomic.Int32 // written with the endpoint's mu held
	size       int          // guarded by it, as what follows
	next, prev *Place
}

// States of a Place. Only its user takes it out of idle.
const (
	placeIdle    = iota
	placeWaits   // in the endpoint's places, for size bytes
	placeGranted // size bytes count as granted
)

// Place returns the place of the TCP flow between local and remote. wake is
// called when a turn that Ask refused has come, with a lock of the endpoint
// held: it must neither block nor call the Endpoint.
func (e *Endpoint) Place(local, remote netip.AddrPort, wake func()) *Place {
	return &Place{e: e, key: tcpKey(local, remote), wake: wake}
}

// tcpKey is turnKey of the segments from local to remote.
func tcpKey(local, remote netip.AddrPort) uint64 {
	var tuple [37]byte
	b := append(tuple[:0], local.Addr().AsSlice()...)
	b = append(b, remote.Addr().AsSlice()...)
	b = append(b, byte(header.TCPProtocolNumber))
	for _, port := range []uint16{local.Port(), remote.Port()} {
		b = append(b, byte(port>>8), byte(port))
	}
	return hashed(b)
}

// Ask reports whether its flow may now give the stack size bytes; Done must
// follow when it has. If not, wake will tell when to ask again. A little of a
// flow that has nothing in the queue always may.
func (p *Place) Ask(size int) bool {
	if p.state.Load() == placeGranted {
		return true
	}
	e := p.e
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case p.state.Load() == placeGranted, e.closed, !e.open, e.cfg.Lossy, e.queue.sparse(p.key, size):
	case p.state.Load() == placeWaits:
		return false
	case e.places.first == nil && e.belowMarkLocked():
		e.grantLocked(p, size)
	default:
		p.size = size
		e.places.add(p)
		return false
	}
	return true
}

// Done says that the stack has been given what Ask allowed, or that nothing
// will be: the next have their turn. A nil Place has nothing to do.
func (p *Place) Done() {
	if p == nil || p.state.Load() == placeIdle {
		return
	}
	e := p.e
	e.mu.Lock()
	defer e.mu.Unlock()
	switch p.state.Swap(placeIdle) {
	case placeWaits:
		e.places.remove(p)
	case placeGranted:
		e.granted -= p.size
	}
	e.admitLocked()
}

// belowMarkLocked reports whether who holds data may give it to the stack.
func (e *Endpoint) belowMarkLocked() bool {
	return e.queue.count < e.markPackets && e.queue.bytes+e.granted < e.markBytes
}

func (e *Endpoint) grantLocked(p *Place, size int) {
	p.size = size
	e.granted += size
	p.state.Store(placeGranted)
}

// admitLocked gives turns to those who wait while there is room, the oldest
// first.
func (e *Endpoint) admitLocked() {
	for p := e.places.first; p != nil && e.belowMarkLocked(); p = e.places.first {
		e.places.remove(p)
		e.grantLocked(p, p.size)
		p.wake()
	}
}

// dismissLocked has all go on who wait: nothing is queued any more.
func (e *Endpoint) dismissLocked() {
	for p := e.places.first; p != nil; p = e.places.first {
		e.places.remove(p)
		e.grantLocked(p, p.size)
		p.wake()
	}
}

// places are those who wait, by age.
type places struct{ first, last *Place }

func (l *places) add(p *Place) {
	p.state.Store(placeWaits)
	p.prev = l.last
	if l.last == nil {
		l.first = p
	} else {
		l.last.next = p
	}
	l.last = p
}

func (l *places) remove(p *Place) {
	if p.prev == nil {
		l.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		l.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.next, p.prev = nil, nil
}
