package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// window is the time that counts.
type window struct{ from, to time.Time }

// windowAfter is the window that follows a warm-up beginning now.
func windowAfter(warmup, duration time.Duration) window {
	from := time.Now().Add(warmup)
	return window{from, from.Add(duration)}
}

func (w window) holds(t time.Time) bool { return !t.Before(w.from) && t.Before(w.to) }

func (w window) seconds() float64 { return w.to.Sub(w.from).Seconds() }

// meter calls s.Began and s.Ended at the two ends of w and measures the
// processor time between. Its result is ready once wait returns.
type meter struct {
	cpu  float64
	done sync.WaitGroup
}

// startMeter starts a meter, which ends with the window or with ctx.
func startMeter(ctx context.Context, s Spec, w window) *meter {
	m := &meter{}
	m.done.Go(func() {
		if !sleepUntil(ctx, w.from) {
			return
		}
		before := processorTime()
		s.Began()
		ok := sleepUntil(ctx, w.to)
		m.cpu = (processorTime() - before).Seconds()
		if ok {
			s.Ended()
		}
	})
	return m
}

func (m *meter) wait() float64 { m.done.Wait(); return m.cpu }

// processorTime is what this process has spent so far, in user and kernel.
func processorTime() time.Duration {
	var usage unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// progress finds the longest time in a window in which nothing was done.
type progress struct {
	window  window
	last    atomic.Int64 // nanoseconds after the window's start
	longest atomic.Int64
}

// done notes progress at t.
func (p *progress) done(t time.Time) {
	if !p.window.holds(t) {
		return
	}
	now := int64(t.Sub(p.window.from))
	gap := now - p.last.Swap(now)
	for {
		longest := p.longest.Load()
		if gap <= longest || p.longest.CompareAndSwap(longest, gap) {
			return
		}
	}
}

// stall is the longest gap, the one up to the window's end included.
func (p *progress) stall() time.Duration {
	rest := int64(p.window.to.Sub(p.window.from)) - p.last.Load()
	return time.Duration(max(p.longest.Load(), rest))
}

// coarse is how early a timer of the Go runtime ends a long sleep. The runtime
// waits in whole milliseconds where nothing else runs, which is too coarse for
// thousands of operations a second; the rest is slept in the kernel.
const coarse = 2 * time.Millisecond

// sleepUntil sleeps until t and reports whether ctx still lives. It may be
// late for a context that ends by 2 ms.
func sleepUntil(ctx context.Context, t time.Time) bool {
	if d := time.Until(t) - coarse; d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		d := time.Until(t)
		if d <= 0 {
			return true
		}
		rest := unix.NsecToTimespec(int64(d))
		unix.Nanosleep(&rest, nil) // a signal ends it early: look again
	}
	return false
}

// schedule gives the worker `index` of `workers` its intended starts: those
// of an open loop at a rate, or "at once" for a closed loop.
type schedule struct {
	start    time.Time
	interval time.Duration // between two operations of this worker; 0: closed loop
	next     int64
}

func newSchedule(s Spec, start time.Time, index int) schedule {
	if s.Rate == 0 {
		return schedule{start: start}
	}
	each := float64(time.Second) / s.Rate
	return schedule{
		start:    start.Add(time.Duration(each * float64(index))),
		interval: max(1, time.Duration(each*float64(s.Streams))),
	}
}

// wait sleeps until the next operation is due and returns the moment from
// which its latency counts. Where the worker comes late because the last
// operation took long, that is the moment at which it was due, so that nothing
// is omitted for its being slow; where it slept, the moment at which it woke,
// so that the generator's own timer is not charged to the contender.
func (s *schedule) wait(ctx context.Context, to time.Time) (time.Time, bool) {
	now := time.Now()
	due := now
	if s.interval > 0 {
		due = s.start.Add(time.Duration(s.next) * s.interval)
		s.next++
	}
	if !due.Before(to) || !now.Before(to) {
		return due, false
	}
	if due.After(now) {
		if !sleepUntil(ctx, due) {
			return due, false
		}
		return time.Now(), true
	}
	return due, ctx.Err() == nil
}

// unsent counts the operations due in the window that were never begun, the
// one that wait refused last included.
func (s *schedule) unsent(w window) uint64 {
	if s.interval == 0 {
		return 0
	}
	// index of the first operation that is due at t or later
	first := func(t time.Time) int64 {
		return int64((max(0, t.Sub(s.start)) + s.interval - 1) / s.interval)
	}
	return uint64(max(0, first(w.to)-max(first(w.from), s.next-1)))
}
