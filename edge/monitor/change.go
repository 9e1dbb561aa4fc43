package monitor

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Pending is a change of what is watched that is prepared and not yet in
// force: its new checks run already and Up answers for them, what was watched
// before is still watched. It ends with Commit or Rollback.
type Pending struct {
	m      *Monitor
	view   map[Target]*check
	checks map[identity]*check
	added  []*check

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
	named := make(map[string]Spec, len(specs))
	for _, s := range specs {
		named[s.Name] = s.WithDefaults()
	}
	for _, t := range targets {
		switch spec, ok := named[t.Monitor]; {
		case !ok:
			return nil, fmt.Errorf("watching %s: no such monitor; define it", t)
		case !t.Addr.IsValid() || t.Network == "":
			return nil, fmt.Errorf("watching %s: the network or the address is missing", t)
		case spec.Type != TypeTCP:
			return nil, fmt.Errorf("watching %s: unknown type %q; use one of: %s", t, spec.Type, TypeTCP)
		}
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return nil, errors.New("changing what is watched: the monitor has stopped")
	}
	if m.pending {
		return nil, errors.New("changing what is watched: another change is under way")
	}
	m.pending = true
	p := &Pending{
		m:      m,
		view:   make(map[Target]*check, len(targets)),
		checks: make(map[identity]*check, len(targets)),

		inForce: make(chan struct{}),
	}
	now := time.Now()
	for _, t := range targets {
		p.addLocked(t, named[t.Monitor], now)
	}
	m.coming.Store(&p.view)
	return p, nil
}

// addLocked puts t into the view, with the check that it shares, goes on with
// or starts.
func (p *Pending) addLocked(t Target, spec Spec, now time.Time) {
	spec.Name = ""
	id := identity{network: t.Network, addr: t.Addr, spec: spec}
	if c := p.checks[id]; c != nil {
		p.view[t] = c
		return
	}
	if c := p.m.checks[id]; c != nil {
		p.checks[id], p.view[t] = c, c
		return
	}
	var c *check
	if old := (*p.m.view.Load())[t]; old != nil && !old.verdict.Load().checked.IsZero() {
		c = newCheck(id, t, old.verdict.Load().inherited())
		c.replaces, c.inForce = old, p.inForce
	} else {
		c = newCheck(id, t, first(now))
	}
	p.checks[id], p.view[t] = c, c
	p.added = append(p.added, c)
	p.m.startLocked(c)
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
	m := p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.ended {
		return
	}
	p.ended, m.pending = true, false
	names := make(map[*check]Target, len(p.checks))
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
			c.cancel()
		}
	}
	m.checks = p.checks
	m.view.Store(&p.view)
	m.coming.Store(nil)
	close(p.inForce)
}

// Rollback ends the checks that the change began; what was watched before
// goes on. After Commit it does nothing, so that it may be deferred.
func (p *Pending) Rollback() {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.ended {
		return
	}
	p.ended, p.m.pending = true, false
	p.m.coming.Store(nil)
	for _, c := range p.added {
		c.cancel()
	}
}
