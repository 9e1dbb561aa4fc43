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

// sleepUntil sleeps until t, to a millisecond, and reports whether ctx still
// lives.
func sleepUntil(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
