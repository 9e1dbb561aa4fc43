package balance

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// shared is what all configurations of one pool have in common.
type shared struct {
	name  string
	root  *root
	conns atomic.Int64
	shed  atomic.Uint64
	rtt   average
	queue queue
	// changes counts what makes views of the pool stale.
	changes atomic.Uint64
	// active is the pool of the configuration in force: its view of things
	// is what events tell. nil: the configuration in force has no such pool.
	active atomic.Pointer[pool]

	mu    sync.Mutex // guards the health of the endpoints, and:
	state State
	why   string
	since int64
}

// pool is one pool of one configuration. Directors that follow each other
// share it while its Spec stays the same.
type pool struct {
	spec    Spec
	policy  string
	shared  *shared
	members []*endpoint // beside spec.Endpoints
	index   map[*endpoint]int
	enabled int   // members that the configuration does not disable
	whole   *ring // of all members; nil unless the policy is hash
	// departed are endpoints that the pool had of late. A name whose answers
	// take turns brings them back, and what is known of them with them.
	departed []*endpoint
	returned []*endpoint // members that were departed
	shedding string      // what a flow is told that is shed
	cursor   atomic.Uint64
	// views: what new flows see, and what they see where health is ignored.
	views [2]atomic.Pointer[view]

	// Guarded by shared.mu:
	verdicts []verdict // of the monitor, beside members
	asked    int64     // when all of them were asked for
	tally    tally     // of the members' states, while the pool is in force
}

// The indexes of pool.views.
const (
	ordinary = iota
	fallback
)

// verdict is what Health said.
type verdict struct {
	up, known bool
	why       string
}

// newPool builds the pool that follows old, which may be nil.
func newPool(r *root, spec Spec, old *pool) *pool {
	p := &pool{
		spec: spec, policy: either(spec.Steering, byRoundRobin),
		members:  make([]*endpoint, len(spec.Endpoints)),
		index:    make(map[*endpoint]int, len(spec.Endpoints)),
		verdicts: make([]verdict, len(spec.Endpoints)),
		asked:    never,
		shedding: fmt.Sprintf("pool %q sheds %d %% of its flows", spec.Name, spec.Shedding.Percent),
	}
	known := map[Endpoint]*endpoint{}
	var ring *ring
	if old != nil {
		p.shared, ring = old.shared, old.whole
		for _, e := range slices.Concat(old.departed, old.members) {
			known[e.id] = e
		}
	} else {
		p.shared = &shared{name: spec.Name, root: r}
	}
	for i, m := range spec.Endpoints {
		e := known[m.Endpoint]
		if e == nil {
			e = &endpoint{id: m.Endpoint, in: p.shared}
		}
		p.members[i], p.index[e] = e, i
		if !m.Disabled {
			p.enabled++
		}
	}
	if old != nil {
		p.remember(old)
	}
	if p.policy == byHash && len(spec.Endpoints) > 1 {
		p.whole = newRing(spec.Endpoints, ring)
	}
	return p
}

// maxDeparted bounds pool.departed.
const maxDeparted = 1000

// remember fills in which endpoints have departed, and which have returned.
// Those that old had are remembered until the next change, the others for as
// long as something depends on it.
func (p *pool) remember(old *pool) {
	s := p.shared
	now := s.root.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var idle []*endpoint
	keep := func(e *endpoint, last bool) {
		if _, stays := p.index[e]; stays || !e.id.Addr.IsValid() {
			return
		}
		if e.conns.Load() > 0 || e.clients.Load() > 0 || e.draining || e.ejectedUntil > now {
			p.departed = append(p.departed, e)
		} else if last {
			idle = append(idle, e)
		}
	}
	for _, e := range old.members {
		keep(e, true)
	}
	for _, e := range old.departed {
		if _, back := p.index[e]; back {
			p.returned = append(p.returned, e)
		}
		keep(e, false)
	}
	p.departed = append(p.departed, idle...)
	p.departed = slices.Clip(p.departed[:min(len(p.departed), maxDeparted)])
}

// minimum is how many usable endpoints the pool must have.
func (p *pool) minimum() int { return max(p.spec.MinimumHealthy, 1) }

// view returns what flows see of the pool now.
func (p *pool) view(kind int, now int64) *view {
	v := p.views[kind].Load()
	if v != nil && v.changes == p.shared.changes.Load() && now < v.until.Load() {
		return v
	}
	return p.renew(kind, v, now)
}

// renew rebuilds a view that is stale. Whoever comes while another rebuilds it
// goes on with the old one.
func (p *pool) renew(kind int, old *view, now int64) *view {
	s := p.shared
	if old == nil {
		s.mu.Lock()
	} else if !s.mu.TryLock() {
		return old
	}
	v := p.views[kind].Load()
	if v == nil || v.changes != s.changes.Load() || now >= v.until.Load() {
		v = p.buildLocked(kind, v, now)
		p.views[kind].Store(v)
	}
	s.mu.Unlock()
	p.published(v)
	return v
}

// refresh rebuilds the view at once, because something has changed. change,
// if not nil, is made under the pool's lock before.
func (p *pool) refresh(change func(now int64)) {
	s := p.shared
	now := s.root.now()
	s.mu.Lock()
	if change != nil {
		change(now)
	}
	s.changes.Add(1)
	v := p.buildLocked(ordinary, p.views[ordinary].Load(), now)
	p.views[ordinary].Store(v)
	s.mu.Unlock()
	p.published(v)
}

// news takes in what Health has to tell of member i. An event tells of it at
// once. The view is made anew at once if the pool's state changes or a flow waits
// for the endpoint, and else by the flow that comes next, once it is old enough.
func (p *pool) news(i int) {
	s := p.shared
	now := s.root.now()
	s.mu.Lock()
	was := p.verdicts[i]
	p.askLocked(i, i+1)
	if p.verdicts[i] == was {
		s.mu.Unlock()
		return
	}
	v := p.views[ordinary].Load()
	if v != nil && p.deferLocked(i, v.built+int64(newsEvery), now) {
		s.mu.Unlock()
		s.root.flush()
		return
	}
	s.mu.Unlock()
	p.refresh(nil)
}

// deferLocked notes the new verdict on member i, and lets the views know of it
// from due on. It reports whether they need not know now.
func (p *pool) deferLocked(i int, due, now int64) bool {
	s, e, m := p.shared, p.members[i], &p.spec.Endpoints[i]
	if s.active.Load() != p || e.state == "" {
		return false
	}
	was := e.state
	state, why, _ := p.judgeLocked(i, now, &due)
	p.noteLocked(e, state, why, now)
	p.tally.add(was, m.Weight, -1)
	p.tally.add(state, m.Weight, 1)
	if p.stateBy(p.tally) != s.state || state == StateUp && s.queue.waiting.Load() > 0 {
		return false
	}
	for kind := range p.views {
		if v := p.views[kind].Load(); v != nil {
			v.until.Store(min(v.until.Load(), due))
		}
	}
	return true
}

// published tells the world of a new view: events, and flows that wait.
func (p *pool) published(v *view) {
	s := p.shared
	if s.queue.waiting.Load() > 0 && s.active.Load() == p {
		if v.serving {
			s.pump()
		} else {
			s.queue.disperse()
		}
	}
	s.root.flush()
}

// askLocked asks Health for the members in from..to.
func (p *pool) askLocked(from, to int) {
	if p.spec.Monitor == "" {
		return
	}
	h := p.shared.root.deps.Health
	knows, _ := h.(Knower)
	for i := from; i < to; i++ {
		e := &p.spec.Endpoints[i]
		if !e.Addr.Addr().IsValid() {
			continue
		}
		v := verdict{known: true}
		v.up, v.why = h.Up(e.Network, e.Addr, p.spec.Monitor)
		if !v.up && knows != nil {
			v.known = knows.Known(e.Network, e.Addr, p.spec.Monitor)
		}
		p.verdicts[i] = v
	}
}

// judgeLocked says what state member i is in, and whether clients with affinity to
// it may have it. until is brought forward to when that may change.
func (p *pool) judgeLocked(i int, now int64, until *int64) (state State, why string, affine bool) {
	m, e := &p.spec.Endpoints[i], p.members[i]
	well, state, why := true, StateUp, ""
	if !m.Addr.Addr().IsValid() {
		well, state, why = false, StateUnknown, fmt.Sprintf("the name %q has no address yet", m.Host)
	} else if v := p.verdicts[i]; p.spec.Monitor != "" && !v.up {
		well, state, why = false, StateDown, v.why
		if !v.known {
			state = StateUnknown
		}
	}
	if e.ejectedUntil > now {
		*until = min(*until, e.ejectedUntil)
		if well {
			well, state, why = false, StateEjected, e.ejectedWhy
		}
	}
	switch {
	case m.Disabled:
		return StateDisabled, "disabled in the configuration", false
	case e.draining && now < e.keepUntil:
		*until = min(*until, e.keepUntil)
		return StateDraining, "drained by an operator; its clients stay for now", well
	case e.draining:
		return StateDraining, "drained by an operator", false
	}
	return state, why, well
}

// rampLocked returns which of slowSteps steps of its slow start member i has
// reached: slowSteps when it is over.
func (p *pool) rampLocked(e *endpoint, now int64, until *int64) int {
	slow := int64(p.spec.SlowStart)
	if e.rampFrom == 0 || slow <= 0 {
		return slowSteps
	}
	step := (now - e.rampFrom) * slowSteps / slow
	if step >= slowSteps {
		e.rampFrom = 0
		return slowSteps
	}
	*until = min(*until, e.rampFrom+(step+1)*slow/slowSteps+1)
	return int(max(step, 0)) + 1
}

// noteLocked keeps the new state of an endpoint, and tells of the change.
func (p *pool) noteLocked(e *endpoint, state State, why string, now int64) {
	was := e.state
	e.why = why
	if was == state {
		return
	}
	e.state, e.since = state, now
	if was == "" {
		return
	}
	e.rampFrom = 0
	if state == StateUp && was != StateUnknown {
		e.rampFrom = now
	}
	if !e.id.Addr.IsValid() {
		return // the pool tells of it
	}
	p.shared.root.tell(Event{Kind: KindEndpoint, Pool: p.spec.Name, Endpoint: e.id, From: was, To: state, Why: why})
}

// notePoolLocked does the same for the pool.
func (p *pool) notePoolLocked(v *view, now int64) {
	s := p.shared
	was := s.state
	s.why = v.why
	if was == v.state {
		return
	}
	s.state, s.since = v.state, now
	if was != "" {
		s.root.tell(Event{Kind: KindPool, Pool: p.spec.Name, From: was, To: v.state, Why: v.why})
	}
}

// member finds an endpoint of the pool.
func (p *pool) member(e Endpoint) int {
	for i := range p.spec.Endpoints {
		if p.spec.Endpoints[i].Endpoint == e {
			return i
		}
	}
	return -1
}
