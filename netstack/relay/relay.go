// Package relay moves payload between two conns: Copy for streams, Datagrams
// for conns that keep message boundaries. Nothing else in Warren copies a
// flow's bytes.
//
// A caller hands both conns over and gets the Result when both are closed: it
// waits for it, or has Start call it back. While a flow waits for input it
// holds no buffer, provided that its conns are kernel sockets or implement
// netx.ReadWaiter; and a stream no goroutine either, provided that there is a
// Poller, and that they are kernel sockets or implement netx.ReadNotifier.
//
// The package must never make a truncated stream look like a finished one:
// only the end of the stream itself (EOF) is passed on as an end, anything
// else aborts both sides.
package relay

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Side names one of the two conns of a flow.
type Side int

const (
	SideNone Side = iota // neither
	SideA                // the first conn: the client, at the edge
	SideB                // the second conn: the private side, at the edge
)

// String returns "a", "b" or "none".
func (s Side) String() string {
	switch s {
	case SideA:
		return "a"
	case SideB:
		return "b"
	}
	return "none"
}

// End says in which way a flow ended.
type End int

const (
	EndOrderly  End = iota // both directions ended, everything was delivered
	EndIdle                // no byte went either way for Options.Idle
	EndCanceled            // the context was cancelled
	EndFailed              // one side failed; Result.Side says which, Result.Err how
)

// String returns the end in one word.
func (e End) String() string {
	switch e {
	case EndOrderly:
		return "orderly"
	case EndIdle:
		return "idle"
	case EndCanceled:
		return "canceled"
	case EndFailed:
		return "failed"
	}
	return "unknown"
}

// Result is how a flow ended and what it carried.
type Result struct {
	AToB, BToA int64 // payload bytes that the receiving conn accepted
	End        End
	Side       Side  // whose failure it was (EndFailed), or who closed (Datagrams, EndOrderly), else SideNone
	Err        error // nil for EndOrderly; wraps the netx.Err value that the failure amounts to, if any
}

// Options are the terms of one flow. The zero value works: no idle timeout,
// nothing counted but the Result.
type Options struct {
	// Idle ends a flow in which no byte went either way for so long; zero
	// means never.
	Idle time.Duration
	// AToB and BToA, where given, are added to as bytes are delivered, so that
	// another goroutine can read them while the flow runs.
	AToB, BToA *atomic.Uint64
	// OnDrop, where given, is called for each datagram that could not be
	// delivered, with the reason: one of the Drop constants. Both directions
	// call it, perhaps at once. Copy never calls it.
	OnDrop func(why string)
	// Meter, where given, tells of the flow while it runs. Copy ignores it.
	Meter *Meter
	// Poller, where given, wakes the directions of a stream that wait for
	// input, so that they hold no goroutine meanwhile. Datagrams ignores it.
	Poller *Poller

	tick time.Duration // in the place of tickEvery, where not zero
}

// Why a datagram was not delivered.
const (
	DropTooBig   = "datagram_too_big" // the receiving side cannot carry its size
	DropNoBuffer = "no_buffer"        // the receiving side's queue is full
)

// Meter tells others than the relay how long a flow of datagrams has been
// idle. It is of one flow; the zero value is ready for it.
type Meter struct{ s atomic.Pointer[session] }

// Idle is the time since the last datagram, or since the flow began where none
// came yet; zero before it began. It may be called from any goroutine.
func (m *Meter) Idle() time.Duration {
	s := m.s.Load()
	if s == nil {
		return 0
	}
	return time.Since(s.start) - time.Duration(s.last.Load())
}

// session is what both kinds of flow share: two conns, how the flow ended,
// and the clock that ends an idle one.
type session struct {
	a, b  net.Conn
	idle  time.Duration
	start time.Time
	last  atomic.Int64 // of the last byte moved: nanoseconds since start
	meter bool         // somebody else than the watchdog wants to know last

	mu       sync.Mutex
	ended    bool
	result   Result
	watchdog *time.Timer // nil where nothing is to be watched
}

func (s *session) init(a, b net.Conn, idle time.Duration) {
	s.a, s.b, s.idle, s.start = a, b, idle, time.Now()
	// What was left over from a handshake must not cut the flow.
	_ = a.SetDeadline(time.Time{})
	_ = b.SetDeadline(time.Time{})
}

func newSession(a, b net.Conn, idle time.Duration) *session {
	s := new(session)
	s.init(a, b, idle)
	if idle > 0 {
		s.mu.Lock()
		s.watchdog = time.AfterFunc(idle, s.checkIdle)
		s.mu.Unlock()
	}
	return s
}

// moved notes that bytes went through just now.
func (s *session) moved() {
	if s.idle > 0 || s.meter {
		s.last.Store(int64(time.Since(s.start)))
	}
}

// checkIdle runs when the idle timeout may have passed: it ends the flow, or
// sleeps for what is left.
func (s *session) checkIdle() {
	quiet := time.Since(s.start) - time.Duration(s.last.Load())
	if quiet >= s.idle {
		s.cut(EndIdle, SideNone, fmt.Errorf("idle for %v", s.idle))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.watchdog.Reset(s.idle - quiet)
	}
}

// settleLocked notes how the flow ended and reports whether this call was the
// first to say so: what fails afterwards fails because the flow is over. The
// caller holds mu until it has closed or aborted both conns, so that nobody
// closes in order what is about to be aborted.
func (s *session) settleLocked(end End, side Side, err error) bool {
	if s.ended {
		return false
	}
	s.ended = true
	s.result.End, s.result.Side, s.result.Err = end, side, err
	if s.watchdog != nil {
		s.watchdog.Stop()
	}
	return true
}

// cut ends the flow before its time and aborts both conns, which wakes both
// directions.
func (s *session) cut(end End, side Side, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settleLocked(end, side, err) {
		s.abortLocked()
	}
}

// close ends the flow in order.
func (s *session) close(side Side) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settleLocked(EndOrderly, side, nil) {
		s.closeLocked()
	}
}

func (s *session) abortLocked() {
	netx.Abort(s.a)
	netx.Abort(s.b)
}

func (s *session) closeLocked() {
	_ = s.a.Close()
	_ = s.b.Close()
}

// named says what failed, in the terms of netx where those have a word for it.
func named(doing string, err error) error {
	if known := netx.Classify(err); known != nil {
		err = known
	}
	return fmt.Errorf("%s: %w", doing, err)
}
