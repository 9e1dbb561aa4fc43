package balance

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// never is a time before all others on the root's clock.
const never = math.MinInt64 / 2

// recheck is how long a view of a monitored pool holds at most: should news of
// Health be lost, it is noticed then.
const recheck = time.Second

// newsEvery is how often news of Health rebuild a view: those that come sooner
// after others wait for as long. When the connector of 5,000 endpoints is gone
// they come one by one, and each view costs a look at all of them.
const newsEvery = 10 * time.Millisecond

// slowSteps is how many steps a slow start has.
const slowSteps = 20

// view is a pool at one moment: which endpoints new flows may get, and the
// tables that make choosing one quick. It is immutable but for tables that are
// made when they are first needed.
type view struct {
	changes uint64       // shared.changes that it has seen
	built   int64        // when
	until   atomic.Int64 // when it must be rebuilt even so
	state   State
	why     string
	usable  int
	serving bool   // the pool may be picked from
	refusal string // why not, as Pick says it
	members []standing
	*tables
}

// standing is a member of the pool, as a view has it.
type standing struct {
	state  State
	why    string
	affine bool  // clients with affinity to it may have it
	slot   int32 // its place in slots; -1: it gets no new flows
}

// slot is an endpoint that new flows may get.
type slot struct {
	ep     *endpoint
	weight uint64 // effective, in units of the view
	max    int64  // connections; 0: no limit
	member int
}

// tables are what steering needs. Views share them while the slots stay.
type tables struct {
	slots []slot
	unit  uint64 // weight units of one configured weight
	total uint64 // weight of all slots
	turns *turns // round_robin
	odds  *odds  // random, least_connections, latency

	// hash:
	places []int32  // of the members in slots; -1: none
	limits []uint16 // of the members: ranks below which their points count
	asked  atomic.Uint32
	mu     sync.Mutex
	hashed atomic.Pointer[ring] // of the slots alone; nil: not made yet
}

// buildLocked judges every member and makes the view that follows old.
func (p *pool) buildLocked(kind int, old *view, now int64) *view {
	s := p.shared
	v := &view{changes: s.changes.Load(), built: now, members: make([]standing, len(p.members))}
	until := int64(math.MaxInt64)
	var count tally
	if p.spec.Monitor != "" {
		if now-p.asked >= int64(recheck) || s.active.Load() != p {
			p.askLocked(0, len(p.members))
			p.asked = now
		}
		until = p.asked + int64(recheck)
	}
	active := kind == ordinary && s.active.Load() == p
	fresh := &tables{slots: make([]slot, 0, len(p.members)), unit: 1}
	ramping := false
	for i, e := range p.members {
		m, at := &p.spec.Endpoints[i], &v.members[i]
		at.state, at.why, at.affine = p.judgeLocked(i, now, &until)
		count.add(at.state, m.Weight, 1)
		at.slot = -1
		if active {
			p.noteLocked(e, at.state, at.why, now)
		}
		usable := at.state == StateUp
		if kind == fallback {
			usable = at.state != StateDisabled && at.state != StateDraining && m.Addr.IsValid()
		}
		if !usable || m.Weight <= 0 || p.spec.Disabled {
			continue
		}
		step := p.rampLocked(e, now, &until)
		ramping = ramping || step < slowSteps
		at.slot = int32(len(fresh.slots))
		fresh.slots = append(fresh.slots, slot{
			ep: e, weight: uint64(m.Weight * step), max: int64(m.MaxConnections), member: i,
		})
	}
	v.usable = len(fresh.slots)
	fresh.scale(ramping)
	v.until.Store(until)
	v.serving = v.usable >= p.minimum() || kind == fallback && v.usable > 0
	if kind == ordinary {
		v.summarize(p, count)
	}
	if active {
		p.tally = count
		p.notePoolLocked(v, now)
	}
	if old != nil && old.unit == fresh.unit && slices.Equal(old.slots, fresh.slots) {
		v.tables = old.tables
		return v
	}
	fresh.prepare(p)
	v.tables = fresh
	return v
}

// scale leaves the weights in steps of a slow start where there is one.
func (t *tables) scale(ramping bool) {
	if ramping {
		t.unit = slowSteps
		return
	}
	for i := range t.slots {
		t.slots[i].weight /= slowSteps
	}
}

// tally counts the members of a pool by what they make of its state.
type tally struct{ usable, out, unknown int }

// add counts by more members that are in a state.
func (t *tally) add(state State, weight, by int) {
	switch state {
	case StateUp:
		if weight > 0 {
			t.usable += by
		}
	case StateDisabled, StateDraining:
	case StateUnknown:
		t.unknown += by
		t.out += by
	default:
		t.out += by
	}
}

// stateBy is the state of the pool as a whole.
func (p *pool) stateBy(t tally) State {
	switch {
	case p.spec.Disabled:
		return StateDisabled
	case t.usable == 0 && t.unknown > 0 && t.unknown == p.enabled:
		return StateUnknown
	case t.usable == 0:
		return StateDown
	case t.usable < p.minimum():
		return StateCritical
	case t.out > 0:
		return StateDegraded
	case p.spec.Monitor == "":
		return StateUnmonitored
	}
	return StateHealthy
}

// summarize says what state the pool as a whole is in, and why.
func (v *view) summarize(p *pool, t tally) {
	words, name := "", p.spec.Name
	switch v.state = p.stateBy(t); v.state {
	case StateHealthy, StateUnmonitored:
		return
	case StateDisabled:
		v.why, v.refusal = "disabled in the configuration", fmt.Sprintf("pool %q is disabled", name)
		return
	}
	words, _ = v.census(p, nil)
	v.why = fmt.Sprintf("%d of %d endpoints usable", v.usable, len(p.members))
	if v.state == StateCritical {
		v.why += fmt.Sprintf(", %d needed", p.minimum())
	}
	if words != "" {
		v.why += ": " + words
	}
	switch {
	case v.serving:
	case len(p.members) == 0:
		v.refusal = fmt.Sprintf("pool %q has no endpoint", name)
	case v.state == StateCritical:
		v.refusal = fmt.Sprintf("pool %q is critical: %s", name, v.why)
	default:
		v.refusal = fmt.Sprintf("pool %q has no healthy endpoint: %s", name, words)
	}
}

// census counts in words why members get no new flow, with the reason that the
// first in the list gives for being down. left tells that some are usable, but
// not by this flow.
func (v *view) census(p *pool, tried func(Endpoint) bool) (words string, left bool) {
	var parts []string
	var used, full, idle int
	n := map[State]int{}
	first := map[State]string{}
	for i := range v.members {
		m := &v.members[i]
		switch {
		case m.state != StateUp:
			if n[m.state]++; n[m.state] == 1 && m.why != "" && m.state != StateDisabled && m.state != StateDraining {
				first[m.state] = fmt.Sprintf(" (%s: %s)", p.spec.Endpoints[i].place(), m.why)
			}
		case tried != nil && tried(p.members[i].id):
			used++
		case p.spec.Endpoints[i].Weight <= 0:
			idle++
		case p.full(i):
			full++
		}
	}
	add := func(k int, what string) {
		if k > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", k, what))
		}
	}
	add(used, "tried")
	add(full, "full")
	add(idle, "with weight 0")
	for _, s := range []State{StateDown, StateUnknown, StateEjected, StateDraining, StateDisabled} {
		add(n[s], string(s)+first[s])
	}
	return strings.Join(parts, ", "), used+full > 0
}

// full reports whether member i is at its MaxConnections.
func (p *pool) full(i int) bool {
	most := int64(p.spec.Endpoints[i].MaxConnections)
	return most > 0 && p.members[i].conns.Load() >= most
}

// explain says why the pool has nothing for a flow.
func (p *pool) explain(now int64, tried func(Endpoint) bool, shed bool) string {
	if shed {
		return p.shedding
	}
	v := p.view(ordinary, now)
	if !v.serving {
		return v.refusal
	}
	words, left := v.census(p, tried)
	name := p.spec.Name
	switch {
	case left:
		return fmt.Sprintf("pool %q has no endpoint left: %s", name, words)
	case p.shared.queue.waiting.Load() > 0:
		return fmt.Sprintf("pool %q has flows that wait", name)
	}
	return fmt.Sprintf("pool %q had no endpoint free", name)
}

// prepare makes the tables of a policy.
func (t *tables) prepare(p *pool) {
	for i := range t.slots {
		t.total += t.slots[i].weight
	}
	switch p.policy {
	case byRoundRobin:
		t.turns = newTurns(t.slots)
	case byRandom, byLeast, byLatency:
		t.odds = newOdds(t.slots)
	case byHash:
		t.places, t.limits = make([]int32, len(p.members)), make([]uint16, len(p.members))
		for i := range t.places {
			t.places[i] = -1
		}
		for i := range t.slots {
			s := &t.slots[i]
			t.places[s.member] = int32(i)
			t.limits[s.member] = uint16(s.weight << rankBits / (uint64(p.spec.Endpoints[s.member].Weight) * t.unit))
		}
	}
}

// ringOf returns the ring of the slots. It is made once the tables have lasted
// for a while, or when it is needed: that takes a millisecond or two, and news
// may come more often. Until then it is nil, and the ring of all does.
func (t *tables) ringOf(p *pool, needed bool) *ring {
	if r := t.hashed.Load(); r != nil {
		return r
	}
	if t.asked.Add(1) < ringAfter && !needed {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.hashed.Load(); r != nil {
		return r
	}
	r := p.whole.only(t.limits)
	t.hashed.Store(r)
	return r
}
