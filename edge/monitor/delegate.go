package monitor

import (
	"errors"
	"slices"
	"time"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/netstack/netx"
)

// Tasks are the checks that connectors run, in the order of their IDs: those
// of what is watched, and those that an open Pending brings. It reads memory
// only, and may be called from OnChange and OnTasks.
func (m *Monitor) Tasks() []Task {
	tasks := *m.tasks.Load()
	list := make([]Task, 0, len(tasks))
	for id, c := range tasks {
		list = append(list, Task{ID: id, Network: c.id.network, Addr: c.id.addr, Spec: &c.plan.spec})
	}
	slices.SortFunc(list, func(a, b Task) int { return int(int64(a.ID - b.ID)) })
	return list
}

// Reported takes in the result of a task that the connector by has run. It
// counts as a check of the edge's own does; that of a task which is no more is
// dropped, and so is one that comes sooner after another than half the interval:
// a connector that tells much at once must not turn an endpoint over and over.
// OnChange is called before it returns.
func (m *Monitor) Reported(by string, id uint64, r check.Result) {
	c := (*m.tasks.Load())[id]
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.live {
		return
	}
	c.heard = time.Now()
	if !c.took.IsZero() && c.heard.Sub(c.took) < c.plan.spec.Interval/2 {
		return
	}
	c.took = c.heard
	c.record(c.heard, by, r)
}

// Unserved says that no live connector has the task: what was known of the
// endpoint is known no longer, and the next report settles it.
func (m *Monitor) Unserved(id uint64) {
	c := (*m.tasks.Load())[id]
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live {
		c.lost(time.Now(), netx.ErrNoRoute)
		c.settle()
	}
}

// tellTasks calls OnTasks if the set of tasks has changed.
func (m *Monitor) tellTasks(changed bool) {
	if changed && m.deps.OnTasks != nil {
		m.deps.OnTasks()
	}
}

// delegateLocked publishes the delegated checks anew, and begins to watch over
// them with the first.
func (m *Monitor) delegateLocked() {
	tasks := make(map[uint64]*watch)
	add := func(c *watch) {
		if c.delegated() {
			tasks[c.task] = c
		}
	}
	for _, c := range m.checks {
		add(c)
	}
	if m.pending != nil {
		for _, c := range m.pending.added {
			add(c)
		}
	}
	m.tasks.Store(&tasks)
	if len(tasks) > 0 && !m.sweeping {
		m.sweeping = true
		m.wg.Go(m.sweep)
	}
	select {
	case m.sweeps <- struct{}{}:
	default:
	}
}

// begin takes over, and lets reports count from then on.
func (c *watch) begin() {
	c.takeOver()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taking = false
	if c.ended {
		close(c.done)
		return
	}
	c.live, c.heard = true, time.Now()
}

// lost makes the endpoint unknown, because of cause. The caller holds c.mu.
func (c *watch) lost(at time.Time, cause error) {
	c.took = time.Time{}
	before := c.verdict.Load()
	if before.state == StateUnknown && before.why == cause.Error() {
		return
	}
	c.publish(before.forget(at, cause.Error()), cause.Error(), at)
}

// errNotReported is why a delegated check is unknown that nobody reports on.
var errNotReported = errors.New("connector has not reported")

// silence is how long a connector may be silent about a check: three
// intervals, and the longest that one check may take.
func (s *Spec) silence() time.Duration {
	return 3*s.Interval + time.Duration(1+s.Retries)*s.Timeout
}

// minSweep bounds how often the sweeper looks, and so how late it may be.
const minSweep = 100 * time.Millisecond

// sweep finds the delegated checks that nobody has reported on for long, all
// on one goroutine.
func (m *Monitor) sweep() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.sweeps:
		case <-timer.C:
		}
		if next := m.sweepOnce(time.Now()); next > 0 {
			timer.Reset(max(next, minSweep))
		} else {
			timer.Stop()
		}
	}
}

// sweepOnce returns the time until the next check may turn out to be silent; 0
// if nothing is delegated.
func (m *Monitor) sweepOnce(now time.Time) (next time.Duration) {
	for _, c := range *m.tasks.Load() {
		left := c.sweep(now)
		if next == 0 || left < next {
			next = left
		}
	}
	return next
}

// sweep returns how much longer the connector may be silent.
func (c *watch) sweep(now time.Time) time.Duration {
	most := c.plan.spec.silence()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.live {
		return most
	}
	if left := most - now.Sub(c.heard); left > 0 {
		return left
	}
	if why := c.verdict.Load().why; why != netx.ErrNoRoute.Error() { // that says more
		c.lost(now, errNotReported)
	}
	return most
}
