package balance

import (
	"sync"
	"sync/atomic"
	"time"
)

// endpoint is what is known of one endpoint of one pool. The Directors of all
// configurations that have it share it, and the flows that it has.
type endpoint struct {
	id    Endpoint
	in    *shared
	conns atomic.Int64
	picks atomic.Uint64
	lost  atomic.Uint64 // picks whose connect failed
	// failures in a row; changed under in.mu but for the reset by Answered.
	failures atomic.Int32
	clients  atomic.Int32 // that affinity leads here, of all apps
	rtt      average

	condition // guarded by in.mu
}

// condition is the slow-changing part of an endpoint. Times are on the root's
// clock.
type condition struct {
	state        State // "": not judged yet
	why          string
	since        int64
	rampFrom     int64 // when it came back up; 0: it has its whole share
	ejections    int   // that have followed each other
	ejectedUntil int64
	ejectedWhy   string
	draining     bool
	keepUntil    int64 // when clients with affinity must leave too
	lastErr      string
	lastErrAt    int64
}

// reserve counts a new connection, unless there are limit already (0: no
// limit). It never exceeds the limit, not even for a moment.
func (e *endpoint) reserve(limit int64) bool {
	if limit <= 0 {
		e.conns.Add(1)
	} else {
		for {
			n := e.conns.Load()
			if n >= limit {
				return false
			}
			if e.conns.CompareAndSwap(n, n+1) {
				break
			}
		}
	}
	e.in.conns.Add(1)
	e.picks.Add(1)
	return true
}

// release ends a connection, and lets the next flow that waits have its place.
func (e *endpoint) release() {
	e.conns.Add(-1)
	e.in.conns.Add(-1)
	if e.in.queue.waiting.Load() > 0 {
		e.in.pump()
	}
}

// Tuning of average. An eighth a sample is TCP's own for its round trips
// (RFC 6298, section 2.3).
const (
	averageShare = 8
	outlierTimes = 3                // a sample is an outlier beyond so many times the average …
	outlierSlack = time.Millisecond // … and so much more
	staleAfter   = time.Minute      // an average is old when nothing was measured for so long
	probeAfter   = 10 * time.Second // a trial that did not report is forgotten
)

// average is a moving average of connect times that one outlier does not move.
type average struct {
	value atomic.Int64 // nanoseconds; 0: nothing measured
	at    atomic.Int64 // when it was measured last
	trial atomic.Int64 // when a flow was last sent to measure

	mu     sync.Mutex
	count  int // samples so far, up to averageShare
	streak int // outliers in a row
}

func (a *average) add(rtt time.Duration, now int64) {
	sample := max(int64(rtt), 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at.Store(now)
	v := a.value.Load()
	if v == 0 {
		a.count = 1
		a.value.Store(sample)
		return
	}
	if sample > outlierTimes*v+int64(outlierSlack) {
		if a.streak++; a.streak == 1 {
			return
		}
	} else {
		a.streak = 0
	}
	a.count = min(a.count+1, averageShare) // the first samples weigh alike
	a.value.Store(max(v+(sample-v)/int64(a.count), 1))
}

// score is what latency steering compares: the average, 0 for what is to be
// tried now because nothing recent is known of it, and the worst for what is
// being tried.
func (a *average) score(now int64) int64 {
	v := a.value.Load()
	if v != 0 && now-a.at.Load() < int64(staleAfter) {
		return v
	}
	if a.due(now) {
		return 0
	}
	if v != 0 {
		return v
	}
	return 1<<63 - 1
}

// due reports whether no trial is under way.
func (a *average) due(now int64) bool {
	trial := a.trial.Load()
	return trial == 0 || now-trial >= int64(probeAfter)
}

// try notes a trial.
func (a *average) try(now int64) { a.trial.Store(now) }
