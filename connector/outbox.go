package connector

import (
	"slices"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

const (
	// soon is how long a result waits for others to be sent with, which says
	// what the one before it said: a fifth of the check's interval, within
	// these.
	soonest = workEvery
	latest  = 5 * time.Second
	// urgentRun is how many results after a change are sent at once: an edge
	// believes a change once it has heard of it a few times.
	urgentRun = 3
	// maxWaiting bounds the results that wait for an edge that is slow to take
	// them. The oldest go.
	maxWaiting = 2 * wire.MaxChecks
)

// outbox is what the edge is to be told of work. The zero value is closed: it
// takes nothing, for nobody listens. It is guarded by its worker's mu.
type outbox struct {
	open    bool
	results []wire.CheckResult
	names   []wire.Found
	due     time.Time     // when something wants to be sent; zero: nothing does
	earlier chan struct{} // capacity 1: due has changed
}

// result adds a result that may wait for d.
func (o *outbox) result(r wire.CheckResult, d time.Duration) {
	if !o.open {
		return
	}
	if len(o.results) == maxWaiting {
		o.results = slices.Delete(o.results, 0, maxWaiting/10)
	}
	o.results = append(o.results, r)
	o.want(d)
}

// name adds what a name resolved to, in place of what it did before.
func (o *outbox) name(f wire.Found, d time.Duration) {
	if !o.open {
		return
	}
	o.names = slices.DeleteFunc(o.names, func(old wire.Found) bool { return old.Host == f.Host })
	o.names = append(o.names, f)
	o.want(d)
}

func (o *outbox) want(d time.Duration) {
	due := time.Now().Add(d)
	if !o.due.IsZero() && !due.Before(o.due) {
		return
	}
	o.due = due
	select {
	case o.earlier <- struct{}{}:
	default:
	}
}

// take returns what one request holds, oldest first, and leaves the rest.
func (o *outbox) take() (results []wire.CheckResult, names []wire.Found) {
	n, m := min(len(o.results), wire.MaxResults), min(len(o.names), wire.MaxFound)
	results, names = slices.Clone(o.results[:n]), slices.Clone(o.names[:m])
	o.results, o.names = slices.Delete(o.results, 0, n), slices.Delete(o.names, 0, m)
	if len(o.results)+len(o.names) == 0 {
		o.due = time.Time{}
	}
	return results, names
}

// close forgets everything, and takes no more.
func (o *outbox) close() {
	o.open, o.results, o.names, o.due = false, nil, nil, time.Time{}
}

// wait is how long a result of a check with that interval may wait, the run-th
// in a row that says the same.
func wait(run int, interval time.Duration) time.Duration {
	if run <= urgentRun {
		return 0
	}
	return min(max(interval/5, soonest), latest)
}
