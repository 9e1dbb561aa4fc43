package load

import (
	"context"
	"time"
)

// schedule gives the worker `index` of `workers` its intended starts: those
// of an open loop at a rate, or "at once" for a closed loop.
type schedule struct {
	start    time.Time
	interval time.Duration // between two operations of this worker; 0: closed loop
	next     int64
	alarm    *alarm // of an open loop
}

// newSchedules makes a schedule for each worker, which ends with ctx, and a
// function to call when the workers have ended.
func newSchedules(ctx context.Context, s Spec, start time.Time) (workers []*schedule, closeAll func(), err error) {
	closeAll = func() {
		for _, w := range workers {
			if w.alarm != nil {
				w.alarm.close()
			}
		}
	}
	for i := range s.Streams {
		w := &schedule{start: start}
		workers = append(workers, w)
		if s.Rate == 0 {
			continue
		}
		each := float64(time.Second) / s.Rate
		w.start = start.Add(time.Duration(each * float64(i)))
		w.interval = max(1, time.Duration(each*float64(s.Streams)))
		if w.alarm, err = newAlarm(ctx); err != nil {
			closeAll()
			return nil, nil, err
		}
	}
	return workers, closeAll, nil
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
		if !s.alarm.sleepUntil(due) {
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
