package monitor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Pending is a change of what is watched that is prepared and not yet in
// force: its new checks run already and Up answers for them, what was watched
// before is still watched. It ends with Commit or Rollback.
type Pending struct {
	m      *Monitor
	view   map[Target]*watch
	checks map[identity]*watch
	plans  map[settings]*plan
	added  []*watch

	inForce chan struct{} // closed by Commit
	ended   bool          // guarded by m.mu
}

// Prepare begins the checks of targets that are not watched yet. Specs must
// have passed Validate; every target's Monitor must be among them. On error
// nothing has changed. Only one Pending may be open at a time.
//
// A target whose monitor has other settings now is a new check that starts
// from the old one's state, so that a reload puts nothing out of service.
func (m *Monitor) Prepare(specs []Spec, targets []Target) (*Pending, error) {
	named, err := readPlans(specs, targets)
	if err != nil {
		return nil, err
	}
	p, err := m.prepare(named, targets)
	if err != nil {
		return nil, err
	}
	m.tellTasks(p.delegates())
	return p, nil
}

// readPlans makes a plan of each monitor that a target names.
func readPlans(specs []Spec, targets []Target) (map[string]*plan, error) {
	defined := make(map[string]Spec, len(specs))
	for _, s := range specs {
		defined[s.Name] = s
	}
	named := make(map[string]*plan, len(specs))
	for _, t := range targets {
		spec, ok := defined[t.Monitor]
		switch {
		case !ok:
			return nil, fmt.Errorf("watching %s: no such monitor; define it", t)
		case !t.Addr.IsValid() || t.Network == "":
			return nil, fmt.Errorf("watching %s: the network or the address is missing", t)
		case named[t.Monitor] != nil:
			continue
		}
		plan, err := newPlan(spec)
		if err != nil {
			return nil, fmt.Errorf("watching %s: %w", t, err)
		}
		named[t.Monitor] = plan
	}
	return named, nil
}

func (m *Monitor) prepare(named map[string]*plan, targets []Target) (*Pending, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return nil, errors.New("changing what is watched: the monitor has stopped")
	}
	if m.pending != nil {
		return nil, errors.New("changing what is watched: another change is under way")
	}
	p := &Pending{
		m:      m,
		view:   make(map[Target]*watch, len(targets)),
		checks: make(map[identity]*watch, len(targets)),
		plans:  make(map[settings]*plan, len(named)),

		inForce: make(chan struct{}),
	}
	m.pending = p
	now := time.Now()
	for _, t := range targets {
		p.addLocked(t, named[t.Monitor], now)
	}
	m.coming.Store(&p.view)
	m.delegateLocked()
	return p, nil
}

// addLocked puts t into the view, with the check that it shares, goes on with
// or starts.
func (p *Pending) addLocked(t Target, plan *plan, now time.Time) {
	plan = p.sharedLocked(plan)
	id := identity{network: t.Network, addr: t.Addr, settings: plan.settings}
	if c := p.checks[id]; c != nil {
		p.view[t] = c
		return
	}
	if c := p.m.checks[id]; c != nil {
		p.checks[id], p.view[t] = c, c
		return
	}
	var c *watch
	if old := (*p.m.view.Load())[t]; old != nil && !old.verdict.Load().checked.IsZero() {
		c = newWatch(id, plan, t, old.verdict.Load().inherited())
		c.replaces, c.inForce = old, p.inForce
	} else {
		c = newWatch(id, plan, t, first(now))
	}
	p.checks[id], p.view[t] = c, c
	p.added = append(p.added, c)
	p.m.startLocked(c)
}

// sharedLocked is the plan with the same settings that is in use already, or
// else plan.
func (p *Pending) sharedLocked(plan *plan) *plan {
	if known := p.plans[plan.settings]; known != nil {
		return known
	}
	if known := p.m.plans[plan.settings]; known != nil {
		plan = known
	}
	p.plans[plan.settings] = plan
	return plan
}

// delegates reports whether the change brings checks that connectors run.
func (p *Pending) delegates() bool {
	return slices.ContainsFunc(p.added, (*watch).delegated)
}

// Settle waits until every check of the change has told something, so that a
// config that brings new endpoints need not begin with none of them up. It
// returns how many have not when ctx ends.
func (p *Pending) Settle(ctx context.Context) (unsettled int) {
	for _, c := range p.checks {
		select {
		case <-c.settled:
			continue
		default:
		}
		select {
		case <-c.settled:
		case <-ctx.Done():
			unsettled++
		}
	}
	return unsettled
}

// Commit puts the change in force and ends the checks that nothing asks for
// any more.
func (p *Pending) Commit() {
	p.m.tellTasks(p.commit())
}

// commit is Commit, and reports whether that ended checks that connectors run.
func (p *Pending) commit() (tasksEnded bool) {
	m := p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.ended {
		return false
	}
	p.ended, m.pending = true, nil
	names := make(map[*watch]Target, len(p.checks))
	for t, c := range p.view {
		if named, ok := names[c]; !ok || t.Monitor < named.Monitor {
			names[c] = t
		}
	}
	for c, t := range names {
		c.target.Store(&t)
	}
	for id, c := range m.checks {
		if p.checks[id] == nil {
			c.end()
			tasksEnded = tasksEnded || c.delegated()
		}
	}
	m.checks, m.plans = p.checks, p.plans
	m.forgetSharesLocked()
	m.delegateLocked()
	m.view.Store(&p.view)
	m.coming.Store(nil)
	close(p.inForce)
	return tasksEnded
}

// Rollback ends the checks that the change began; what was watched before
// goes on. After Commit it does nothing, so that it may be deferred.
func (p *Pending) Rollback() {
	p.m.tellTasks(p.rollback())
}

// rollback is Rollback, and reports whether that ended checks that connectors
// run.
func (p *Pending) rollback() (tasksEnded bool) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.ended {
		return false
	}
	p.ended, p.m.pending = true, nil
	p.m.coming.Store(nil)
	p.m.delegateLocked()
	for _, c := range p.added {
		c.end()
	}
	return p.delegates()
}
