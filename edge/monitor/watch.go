package monitor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/netstack/netx"
)

// settings are a Spec's without its Name, to compare.
type settings struct {
	check             string // its Key
	interval, timeout time.Duration
	retries           int
	rise, fall        int
	runBy             string
}

// plan is a Spec that is ready to run; the checks with the same settings share
// it. Immutable.
type plan struct {
	settings settings
	spec     Spec // without its Name
	check    *check.Check
}

// newPlan reads the files that s names.
func newPlan(s Spec) (*plan, error) {
	s = s.WithDefaults()
	s.Name = ""
	var err error
	if s.Check, err = s.Check.Load(); err != nil {
		return nil, err
	}
	ready, err := check.New(s.Check)
	if err != nil {
		return nil, err
	}
	return &plan{check: ready, spec: s, settings: settings{
		check: s.Check.Key(), interval: s.Interval, timeout: s.Timeout,
		retries: s.Retries, rise: s.Rise, fall: s.Fall, runBy: s.RunBy,
	}}, nil
}

// watch is the check of one endpoint in one way, for all the targets that ask
// for the same: on a goroutine of its own, or by a connector.
type watch struct {
	id     identity
	plan   *plan
	task   uint64 // ID of its Task; 0 where the edge checks
	deps   *Deps
	share  chan struct{}   // the places of its network
	places chan struct{}   // those of all
	ctx    context.Context // ends the check
	cancel context.CancelFunc
	done   chan struct{} // closed once the verdict is written no more

	// The check whose place this one takes once inForce is closed, nil for
	// none. Only the goroutine reads them.
	replaces *watch
	inForce  <-chan struct{}

	target  atomic.Pointer[Target]  // the name that OnChange uses
	verdict atomic.Pointer[verdict] // written by run, or under mu
	settled chan struct{}           // closed once something has been told
	wake    chan struct{}           // capacity 1: a check is wanted now

	mu     sync.Mutex // of a delegated check: orders reports, and its end
	taking bool       // its goroutine takes over
	live   bool       // reports count: it has taken over, and has not ended
	ended  bool
	heard  time.Time // when a connector last reported, or could have begun to
	took   time.Time // when a report last counted; zero: the next one does
}

func newWatch(id identity, plan *plan, target Target, first verdict) *watch {
	c := &watch{id: id, plan: plan, done: make(chan struct{}), settled: make(chan struct{}), wake: make(chan struct{}, 1)}
	c.target.Store(&target)
	c.verdict.Store(&first)
	if !first.checked.IsZero() {
		close(c.settled)
	}
	return c
}

// startLocked begins c, which ends with c.end or the Monitor's Stop.
func (m *Monitor) startLocked(c *watch) {
	c.deps, c.share, c.places = &m.deps, m.shareLocked(c.id.network), m.places
	c.ctx, c.cancel = context.WithCancel(m.ctx)
	if c.delegated() {
		m.lastID++
		c.task = m.lastID
		c.heard = time.Now()
		if c.replaces == nil {
			c.live = true
			return
		}
		c.taking = true
		m.wg.Go(c.begin)
		return
	}
	m.wg.Go(func() {
		defer close(c.done)
		defer c.cancel()
		c.run()
	})
}

func (c *watch) delegated() bool { return c.plan.spec.RunBy == RunByConnector }

// end lets c check no more. A goroutine of c's ends soon.
func (c *watch) end() {
	c.cancel()
	if !c.delegated() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.live, c.ended = false, true
	if !c.taking {
		close(c.done)
	}
}

// hurry asks for a check now. One that is running is followed by another.
func (c *watch) hurry() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// takeOver waits until the change that brought c is in force, and goes on from
// where the check that c replaces ended. So the two never report one change
// twice. It returns false if c has to end.
func (c *watch) takeOver() bool {
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
func (c *watch) run() {
	if !c.takeOver() {
		return
	}
	ctx := c.ctx
	timer := time.NewTimer(startDelay(c.plan.spec.Interval))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-c.wake:
		}
		result := c.try(ctx)
		if ctx.Err() != nil {
			return
		}
		c.record(time.Now(), RunByEdge, result)
		timer.Reset(c.pause())
	}
}

// try makes one check, and repeats it while it fails and may be repeated.
func (c *watch) try(ctx context.Context) check.Result {
	for retries := c.plan.spec.Retries; ; retries-- {
		result := c.once(ctx)
		if result.Err == nil || retries <= 0 || ctx.Err() != nil || learntNothing(result.Err) {
			return result
		}
	}
}

func (c *watch) once(ctx context.Context) check.Result {
	place := takePlace(ctx, c.share, c.places)
	if place == nil {
		return check.Result{Err: ctx.Err()}
	}
	defer place.give()
	ctx, cancel := context.WithTimeout(ctx, c.plan.spec.Timeout)
	defer cancel()
	return c.plan.check.Run(ctx, attempt{c, place}, c.id.addr)
}

// errNoPing is a Deps without Ping.
var errNoPing = fmt.Errorf("this edge cannot ping: %w", check.ErrUnable)

// record takes in the outcome of a check, which by ran, and tells of a change.
func (c *watch) record(at time.Time, by string, r check.Result) {
	after := judge(*c.verdict.Load(), c.plan.spec, at, r.RTT, r.Err)
	after.by = by
	if !r.Expires.IsZero() {
		after.expires = r.Expires
	}
	c.publish(after, after.lastWord(), at)
}

// publish makes after known.
func (c *watch) publish(after verdict, why string, at time.Time) {
	before := c.verdict.Swap(&after)
	if !after.checked.IsZero() {
		c.settle()
	}
	if before.state != after.state && c.deps.OnChange != nil {
		c.deps.OnChange(Change{Target: *c.target.Load(), From: before.state, To: after.state, Why: why, At: at})
	}
}

// settle lets nobody wait for c's first word any more. Only who may write the
// verdict calls it.
func (c *watch) settle() {
	select {
	case <-c.settled:
	default:
		close(c.settled)
	}
}

// unknownPause: while no connector serves the network a check costs nothing,
// since the dial fails on the spot, and the first one after the connector's
// return brings the endpoint back.
const unknownPause = time.Second

func (c *watch) pause() time.Duration {
	if c.verdict.Load().state == StateUnknown {
		return pause(min(c.plan.spec.Interval, unknownPause))
	}
	return pause(c.plan.spec.Interval)
}

// learntNothing reports whether a failure says nothing about the endpoint: the
// path is gone, or whoever checks is in trouble itself.
func learntNothing(err error) bool {
	return errors.Is(err, netx.ErrNoRoute) || errors.Is(err, check.ErrUnable) ||
		errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
