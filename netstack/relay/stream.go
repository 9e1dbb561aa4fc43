package relay

import (
	"context"
	"fmt"
	"math"
	"net"
	"sync/atomic"
	"time"
)

// tickEvery is tuning. While a stream moves bytes it is looked at so often: a
// side that aborts while the other does not read is noticed within this time,
// and a direction through which nothing went for so long gives its goroutine
// up, where it may. A stream at rest is not looked at.
const tickEvery = time.Second

// Copy moves bytes between the streams a and b, both ways, until both
// directions have ended, and returns how. It owns a and b from the call on
// and has closed both when it returns.
//
//   - The end of one direction (EOF) is passed on with CloseWrite; the other
//     direction goes on until it ends too. A conn without CloseWrite cannot
//     pass it on: there the flow ends with the first direction.
//   - An error of one side, a reset above all, aborts the other.
//   - An idle timeout and a cancelled ctx abort both.
func Copy(ctx context.Context, a, b net.Conn, o Options) Result {
	done := make(chan Result, 1)
	Start(ctx, a, b, o, func(r Result) { done <- r })
	return <-done
}

// Start is Copy for who does not wait: it returns at once, and done is called
// once with the result when both conns are closed, on the last goroutine of
// the stream and as its last act. Start takes the flow over from its caller,
// and hands it back with done.
//
// With Options.Poller a stream has a goroutine only for a direction that moves
// bytes, and next to nothing for a ctx that many streams share.
func Start(ctx context.Context, a, b net.Conn, o Options, done func(Result)) *Stream {
	s := &Stream{poller: o.Poller, every: o.tick, done: done}
	if s.every == 0 {
		s.every = tickEvery
	}
	s.init(a, b, o.Idle)
	s.there.init(s, a, b, o.AToB)
	s.back.init(s, b, a, o.BToA)
	s.left.Store(2)
	s.mu.Lock()
	if s.poller == nil || !s.poller.enter(ctx, s) {
		s.stop = context.AfterFunc(ctx, func() { s.Cut(context.Cause(ctx)) })
	}
	s.armed.Store(true)
	s.watchdog = time.AfterFunc(s.firstTick(), s.tick)
	s.mu.Unlock()
	go s.back.run()
	go s.there.run() // the last is the first to run: who dials has something to say
	return s
}

// Stream is one flow of bytes. Its two directions each run on a goroutine of
// their own, or on none while they are parked; whichever is the last to end
// calls done.
//
// Locks: mu comes before those of the conns. What wakes a parked direction
// may hold a conn's, so it takes no lock.
type Stream struct {
	session
	poller *Poller // nil: directions are not parked
	every  time.Duration
	done   func(Result)
	stop   func() bool // of the context; nil where the poller has it

	crowd *crowd // of the poller, with its neighbours there
	prev  *Stream
	next  *Stream

	there, back pipe
	left        atomic.Int32 // directions that have not ended for good

	// armed: a tick will come within every. Who begins to write sees to it;
	// without it the watchdog, if it is set, is for the idle timeout alone.
	armed atomic.Bool
}

// other is the direction that comes the other way.
func (s *Stream) other(p *pipe) *pipe {
	if p == &s.there {
		return &s.back
	}
	return &s.there
}

// firstTick is when to look at a stream that has just begun.
func (s *Stream) firstTick() time.Duration {
	if s.idle > 0 {
		return min(s.every, s.idle)
	}
	return s.every
}

// arm sees to it that a tick comes within every.
func (s *Stream) arm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armLocked()
}

func (s *Stream) armLocked() {
	if s.ended || s.armed.Load() {
		return
	}
	s.armed.Store(true)
	if s.watchdog == nil {
		s.watchdog = time.AfterFunc(s.every, s.tick)
		return
	}
	s.watchdog.Reset(s.every)
}

// tick is the look at a stream, on the timer's goroutine.
func (s *Stream) tick() {
	side, err := s.look()
	switch {
	case err == nil:
	case side == SideNone:
		s.cut(EndIdle, SideNone, err)
	default:
		s.cut(EndFailed, side, named("reading", err))
	}
}

// look says what is wrong with the stream: it is idle (SideNone), or a side
// from which nobody reads just now has failed. Where nothing is, it asks the
// directions at rest to park, and sees to the next tick.
func (s *Stream) look() (Side, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return SideNone, nil
	}
	left := time.Duration(math.MaxInt64) // of the idle timeout
	if s.idle > 0 {
		quiet := time.Since(s.start) - time.Duration(s.last.Load())
		if quiet >= s.idle {
			return SideNone, fmt.Errorf("idle for %v", s.idle)
		}
		left = s.idle - quiet
	}
	busy := false
	for _, p := range []*pipe{&s.there, &s.back} {
		active, err := p.lookLocked()
		if err != nil {
			return p.from(), err
		}
		busy = busy || active
	}
	if !busy {
		// Who began to write before this store, and so has not armed, is seen
		// after it.
		s.armed.Store(false)
		busy = s.there.stirs() || s.back.stirs()
		s.armed.Store(busy)
	}
	switch {
	case busy:
		s.watchdog.Reset(min(s.every, left))
	case s.idle > 0:
		s.watchdog.Reset(left)
	default:
		s.watchdog = nil // made anew when it is needed
	}
	return SideNone, nil
}

// Cut aborts both conns, if the stream has not ended: then its Result is
// EndCanceled, with cause as its error. It does not wait, and may be called
// from any goroutine, also from within done.
func (s *Stream) Cut(cause error) { s.cut(EndCanceled, SideNone, cause) }

// cut ends the stream before its time and aborts both conns, which ends both
// directions.
func (s *Stream) cut(end End, side Side, err error) {
	s.mu.Lock()
	over := false
	if s.settleLocked(end, side, err) {
		s.abortLocked()
		over = s.unparkLocked()
	}
	s.mu.Unlock()
	if over {
		go s.finish() // a caller that cancels is not to wait for what follows
	}
}

// close ends the stream in order.
func (s *Stream) close() {
	s.mu.Lock()
	over := false
	if s.settleLocked(EndOrderly, SideNone, nil) {
		s.closeLocked()
		over = s.unparkLocked()
	}
	s.mu.Unlock()
	if over {
		go s.finish()
	}
}

// unparkLocked ends what directions are parked, now that the stream is over,
// and reports whether they were the last.
func (s *Stream) unparkLocked() (last bool) {
	for _, p := range []*pipe{&s.there, &s.back} {
		if p.dropLocked() && s.left.Add(-1) == 0 {
			last = true
		}
	}
	return last
}

// leave is the end of one direction.
func (s *Stream) leave() {
	if s.left.Add(-1) == 0 {
		s.finish()
	}
}

// finish runs after both directions have ended.
func (s *Stream) finish() {
	s.mu.Lock()
	if s.settleLocked(EndOrderly, SideNone, nil) {
		s.closeLocked()
	}
	r := s.result
	s.mu.Unlock()
	if s.stop != nil {
		s.stop()
	} else {
		s.poller.leave(s)
	}
	r.AToB, r.BToA = s.there.moved.Load(), s.back.moved.Load()
	s.done(r)
}
