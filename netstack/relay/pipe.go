package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// pipe is one direction of a stream.
//
//	running ⇄ parked          waiting for input without a goroutine
//	   │
//	   ├──→ watched ──→ done  src has ended and may still abort
//	   └──────────────→ done
//
// Its goroutine alone leaves running. parked and watched are left by whoever
// swaps the state first: what wakes the direction, or what ends the stream.
type pipe struct {
	s        *Stream
	src, dst net.Conn
	count    *atomic.Uint64 // may be nil
	moved    atomic.Int64
	state    atomic.Int32
	writing  atomic.Bool // a write to dst is under way, or may be

	// Guarded by s.mu.
	ended  bool        // src's end was passed on
	asked  bool        // to park: src's read deadline has passed
	stays  bool        // it cannot be parked
	polled bool        // watched by the tick
	late   bool        // watched by the tick until that comes, and then by the poller
	seen   int64       // moved at the last tick
	notice netx.Notice // of src while parked, where src is no kernel socket
	fd     int32       // of src while it is at the poller, else -1
}

const (
	running = iota
	parked
	watched
	done
)

func (p *pipe) init(s *Stream, src, dst net.Conn, count *atomic.Uint64) {
	p.s, p.src, p.dst, p.count, p.fd = s, src, dst, count, -1
	_, kernel := src.(*net.TCPConn)
	_, notifies := src.(netx.ReadNotifier)
	p.stays = s.poller == nil || !kernel && !notifies
}

func (p *pipe) from() Side {
	if p == &p.s.there {
		return SideA
	}
	return SideB
}

func (p *pipe) to() Side { return p.s.other(p).from() }

// run is the direction's goroutine.
func (p *pipe) run() {
	deepen()
	m := movers.Get().(*mover)
	m.open(p.src, p.dst, p.s.moved)
	over := p.carry(m)
	m.forget()
	movers.Put(m)
	if over {
		p.state.Store(done)
		p.s.leave()
	}
}

// carry moves bytes until the direction is over, or parked: then it returns
// false, and the pipe is another goroutine's.
func (p *pipe) carry(m *mover) (over bool) {
	if p.unpark() {
		return p.lookOut(m)
	}
	for {
		buf, n, err := m.read()
		if n > 0 && !p.write(m, buf[:n]) {
			streamBuffers.Put(buf)
			return true
		}
		if buf != nil {
			streamBuffers.Put(buf)
		}
		switch {
		case err == nil:
		case err == io.EOF:
			return p.end(m)
		case errors.Is(err, os.ErrDeadlineExceeded) && p.wasAsked():
			if p.park(parked) {
				return false
			}
		default:
			p.s.cut(EndFailed, p.from(), named("reading", err))
			return true
		}
	}
}

// write delivers b to dst and reports whether the direction goes on.
func (p *pipe) write(m *mover, b []byte) bool {
	p.s.moved()
	p.writing.Store(true)
	if !p.s.armed.Load() {
		p.s.arm()
	}
	n, err := m.write(b)
	p.writing.Store(false)
	p.moved.Store(p.moved.Load() + int64(n))
	if p.count != nil {
		p.count.Add(uint64(n))
	}
	if err != nil {
		p.s.cut(EndFailed, p.to(), named("writing", err))
		return false
	}
	p.s.moved()
	return true
}

// end passes the end of src on to dst. Until the other direction has ended
// too, src may still abort, and nobody reads from it.
func (p *pipe) end(m *mover) (over bool) {
	half, ok := p.dst.(netx.HalfCloser)
	if !ok {
		p.s.close()
		return true
	}
	if err := half.CloseWrite(); err != nil {
		p.s.cut(EndFailed, p.to(), named("closing for writing", err))
		return true
	}
	if p.s.endDirection(p) {
		return true
	}
	if m.in.raw != nil && p.stays {
		return p.lookOut(m)
	}
	// Most flows are over soon: a look-out would cost them three system calls.
	p.s.mu.Lock()
	p.late = m.in.raw != nil
	p.s.mu.Unlock()
	return !p.park(watched)
}

// endDirection notes that p's source has ended, and reports whether both have.
func (s *Stream) endDirection(p *pipe) (both bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.ended = true
	if p.asked { // nothing more will be read, but the look-out needs to wait
		p.asked = false
		_ = p.src.SetReadDeadline(time.Time{})
	}
	other := s.other(p)
	if !other.ended || s.ended {
		return s.ended
	}
	if other.dropLocked() {
		s.left.Add(-1) // p is left: never the last
	} else {
		_ = other.src.SetReadDeadline(time.Unix(1, 0)) // it may be looking out
	}
	return true
}

// lookOut waits for the failure of a kernel socket that has said its last
// word, parked where it may be.
func (p *pipe) lookOut(m *mover) (over bool) {
	if p.stays || m.in.raw == nil {
		if err := m.in.waitFailure(); err != nil {
			p.s.cut(EndFailed, p.from(), named("reading", err))
		}
		return true
	}
	if err := m.in.failure(); err != nil {
		p.s.cut(EndFailed, p.from(), named("reading", err))
		return true
	}
	return !p.park(watched)
}

// park gives the goroutine up: something else will wake the direction. It
// returns false where that cannot be.
func (p *pipe) park(as int32) bool {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || as == watched && s.other(p).ended {
		return false
	}
	p.state.Store(as)
	src, kernel := p.src.(*net.TCPConn)
	switch {
	case as == watched && (p.polled || p.late || !kernel):
		p.polled = !p.late
		s.armLocked()
	case !kernel:
		p.notice = p.src.(netx.ReadNotifier).WhenReadable(p.wake)
	case !s.poller.add(p, src, as):
		p.state.Store(running)
		p.stays = true
		return false
	}
	return true
}

// wake lets a parked direction go on. It may be called with a conn's locks
// held, by the poller or by src, also when it is too late.
func (p *pipe) wake() {
	if p.state.CompareAndSwap(parked, running) || p.state.CompareAndSwap(watched, running) {
		go p.run()
	}
}

// unpark is the first act of a goroutine that was woken. It reports whether
// src has ended: the look-out for a failure was woken.
func (p *pipe) unpark() (ended bool) {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	p.withdrawLocked()
	s.armLocked()
	// A socket that was closed and tells of no failure would wake it for ever.
	p.polled = p.ended
	return p.ended
}

func (p *pipe) withdrawLocked() {
	if p.notice != nil {
		p.notice.Stop()
		p.notice = nil
	}
	if p.fd >= 0 {
		p.s.poller.remove(p)
		p.fd = -1
	}
}

// dropLocked ends the direction if it is parked, and reports whether it was.
func (p *pipe) dropLocked() bool {
	if !p.state.CompareAndSwap(parked, done) && !p.state.CompareAndSwap(watched, done) {
		return false
	}
	p.withdrawLocked()
	return true
}

// wasAsked reports whether the tick asked the direction to park, and lets it
// wait for input again.
func (p *pipe) wasAsked() bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if !p.asked {
		return false
	}
	p.asked = false
	_ = p.src.SetReadDeadline(time.Time{})
	return true
}

// stirs reports whether the direction writes, or has moved since it was seen.
func (p *pipe) stirs() bool { return p.writing.Load() || p.moved.Load() != p.seen }

// lookLocked is the tick's look at the direction. It reports whether another
// look must follow, and how src has failed where nobody reads from it.
func (p *pipe) lookLocked() (busy bool, failed error) {
	moved := p.moved.Load()
	still := moved == p.seen
	p.seen = moved
	switch {
	case p.state.Load() == watched:
		if !p.polled && !p.late {
			return false, nil // the poller has it
		}
		if failed = Failure(p.src); failed == nil && p.late {
			p.late = false
			p.polled = !p.s.poller.add(p, p.src.(*net.TCPConn), watched)
			return p.polled, nil
		}
		return true, failed
	case p.state.Load() != running || p.ended:
	case p.writing.Load():
		return true, Failure(p.src)
	case !still:
		return true, nil
	case !p.stays && !p.asked:
		p.asked = true
		_ = p.src.SetReadDeadline(time.Unix(1, 0))
	}
	return false, nil
}
