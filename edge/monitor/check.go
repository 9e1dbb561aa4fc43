package monitor

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// check watches one endpoint in one way, on one goroutine, for all the
// targets that ask for the same.
type check struct {
	id     identity
	ctx    context.Context // ends the check
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended

	// The check whose place this one takes once inForce is closed, nil for
	// none. Only the goroutine reads them.
	replaces *check
	inForce  <-chan struct{}

	target  atomic.Pointer[Target]  // the name that OnChange uses
	verdict atomic.Pointer[verdict] // written by run alone, once it has begun
	settled chan struct{}           // closed once a check has ended
	wake    chan struct{}           // capacity 1: a check is wanted now
}

func newCheck(id identity, target Target, first verdict) *check {
	c := &check{id: id, done: make(chan struct{}), settled: make(chan struct{}), wake: make(chan struct{}, 1)}
	c.target.Store(&target)
	c.verdict.Store(&first)
	if !first.checked.IsZero() {
		close(c.settled)
	}
	return c
}

// hurry asks for a check now. One that is running is followed by another.
func (c *check) hurry() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// takeOver waits until the change that brought c is in force, and goes on from
// where the check that c replaces ended. So the two never report one change
// twice. It returns false if c has to end.
func (c *check) takeOver() bool {
	if c.replaces == nil {
		return true
	}
	select {
	case <-c.inForce:
	case <-c.ctx.Done():
		select {
		case <-c.inForce: // what follows c asks for the verdict yet
		default:
			return false
		}
	}
	if c.replaces.ctx.Err() != nil { // else it goes on for another target
		<-c.replaces.done
	}
	from := c.replaces.verdict.Load().inherited()
	c.verdict.Store(&from)
	c.replaces = nil
	return true
}

// run checks until c.ctx ends. A check that is cut short says nothing about
// the endpoint, and is dropped.
func (c *check) run(deps Deps, places chan struct{}) {
	if !c.takeOver() {
		return
	}
	ctx := c.ctx
	timer := time.NewTimer(startDelay(c.id.spec.Interval))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-c.wake:
		}
		select {
		case <-ctx.Done():
			return
		case places <- struct{}{}:
		}
		rtt, err := c.once(ctx, deps.Dial)
		<-places
		if ctx.Err() != nil {
			return
		}
		c.record(time.Now(), rtt, err, deps.OnChange)
		timer.Reset(c.pause())
	}
}

// once makes one check. The connection is aborted, not closed: a close would
// leave a TIME_WAIT behind at each end and at the connector, for each check.
func (c *check) once(ctx context.Context, dial DialFunc) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, c.id.spec.Timeout)
	defer cancel()
	start := time.Now()
	conn, err := dial(ctx, c.id.network, c.id.addr)
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	netx.Abort(conn)
	if took > c.id.spec.Timeout {
		return 0, netx.ErrTimedOut
	}
	return took, nil
}

// record takes in the outcome of a check and tells of a change.
func (c *check) record(at time.Time, rtt time.Duration, err error, onChange func(Change)) {
	before := c.verdict.Load()
	after := judge(*before, c.id.spec, at, rtt, err)
	c.verdict.Store(&after)
	if before.checked.IsZero() {
		close(c.settled)
	}
	if before.state != after.state && onChange != nil {
		onChange(Change{Target: *c.target.Load(), From: before.state, To: after.state,
			Why: after.lastWord(), At: at})
	}
}

// unknownPause: while no connector serves the network a check costs nothing,
// since the dial fails on the spot, and the first one after the connector's
// return brings the endpoint back.
const unknownPause = time.Second

func (c *check) pause() time.Duration {
	if c.verdict.Load().state == StateUnknown {
		return pause(min(c.id.spec.Interval, unknownPause))
	}
	return pause(c.id.spec.Interval)
}
