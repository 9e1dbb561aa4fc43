package balance

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// app is one app of one configuration.
type app struct {
	spec    App
	policy  string
	choices []choice
	last    *choice // the fallback pool, nil where there is none
	table   *table  // nil: no affinity is kept
	most    int     // clients in table
	asks    bool    // it matters who the client is
	// detours are the words for each choice, and the fallback after them,
	// where it was not the first.
	detours []atomic.Pointer[detour]
}

// choice is a pool of an app, with the reasons for picking it made once.
type choice struct {
	name   string
	pool   *pool // nil: not defined
	weight uint64
	hash   uint64
	chosen string
	affine string
}

// byNet reports whether clients of one net count as one.
func (a *app) byNet() bool { return a.spec.Affinity.By == affinityNet }

// newApp builds the app that follows old, which may be nil.
func newApp(spec App, pools map[string]*pool, old *app) *app {
	a := &app{spec: spec, policy: either(spec.Steering, byFailover), most: spec.Affinity.Max}
	if a.most == 0 {
		a.most = DefaultAffinity
	}
	a.choices = make([]choice, 0, len(spec.Pools))
	for _, c := range spec.Pools[:min(len(spec.Pools), MaxPools)] { // outcome has a bit for each
		a.choices = append(a.choices, a.newChoice(c, pools))
	}
	if spec.Fallback != "" {
		last := a.newChoice(Choice{Pool: spec.Fallback}, pools)
		last.chosen += ", the fallback whose health is ignored"
		a.last = &last
	}
	a.detours = make([]atomic.Pointer[detour], len(a.choices)+1)
	a.asks = a.policy == byHash || spec.Affinity.By != ""
	for _, ch := range append(a.choices[:len(a.choices):len(a.choices)], a.newChoice(Choice{Pool: spec.Fallback}, pools)) {
		a.asks = a.asks || ch.pool != nil && (ch.pool.policy == byHash || ch.pool.spec.Shedding.By == shedHash)
	}
	switch {
	case spec.Affinity.By == "" || a.hashed():
	case old != nil && old.table != nil && old.spec.Affinity.By == spec.Affinity.By:
		a.table = old.table
	default:
		a.table = newTable()
	}
	return a
}

// hashed reports whether the ring alone gives clients the affinity that they
// are to have, so that no table is needed: one of addresses over a single pool,
// from which a client goes back when its endpoint does.
func (a *app) hashed() bool {
	f := a.spec.Affinity
	return len(a.choices) == 1 && a.last == nil && a.choices[0].pool != nil && a.choices[0].pool.policy == byHash &&
		f.By == affinityIP && f.Failover != failoverSticky
}

func (a *app) newChoice(c Choice, pools map[string]*pool) choice {
	out := choice{name: c.Pool, pool: pools[c.Pool], weight: uint64(max(c.Weight, 0)), hash: hashName(c.Pool)}
	if out.pool == nil {
		return out
	}
	out.chosen = fmt.Sprintf("pool %q by %s", c.Pool, out.pool.policy)
	out.affine = fmt.Sprintf("pool %q by affinity of its %s", c.Pool, strings.ReplaceAll(a.spec.Affinity.By, "_", " "))
	if a.policy != byFailover && len(a.spec.Pools) > 1 {
		out.chosen += fmt.Sprintf(", one of %d pools by %s", len(a.spec.Pools), a.policy)
	}
	return out
}

// The answers of a pool.
type answer int

const (
	took   answer = iota // here is an endpoint
	passed               // no endpoint is usable by this flow
	shed                 // this flow is turned away
	full                 // all are at MaxConnections, or others wait for them
)

// ask wants an endpoint of the pool for a new flow.
func (p *pool) ask(c *client, now int64, tried func(Endpoint) bool) (*slot, answer) {
	v := p.view(ordinary, now)
	if !v.serving {
		return nil, passed
	}
	if p.sheds(c, tried) {
		p.shared.shed.Add(1)
		return nil, shed
	}
	if p.shared.queue.waiting.Load() > 0 {
		return nil, full
	}
	if i := v.choose(p, c.hash, now, tried); i >= 0 {
		return &v.slots[i], took
	}
	for i := range v.slots {
		if s := &v.slots[i]; s.max > 0 && (tried == nil || !tried(s.ep.id)) {
			return nil, full
		}
	}
	return nil, passed
}

// sheds decides whether the pool turns the client's flow away. One that has
// tried an endpoint of the pool was let in, and is not asked again.
func (p *pool) sheds(c *client, tried func(Endpoint) bool) bool {
	percent := uint64(p.spec.Shedding.Percent)
	switch {
	case percent == 0 || tried != nil && slices.ContainsFunc(p.members, func(e *endpoint) bool { return tried(e.id) }):
		return false
	case p.spec.Shedding.By == shedHash:
		return mix(c.hash^0x5bd1e9955bd1e995)%100 < percent
	}
	return rand.Uint64N(100) < percent
}

// reserved makes the Pick of a slot that was taken.
func (p *pool) reserved(s *slot) Pick {
	return Pick{Pool: p.spec.Name, Endpoint: s.ep.id, pool: p, ep: s.ep}
}

// next returns the pool to ask next, of those not in done; -1 after the last.
// Pools with a share come by the app's policy, then the others in order.
func (a *app) next(done uint64, c *client, now int64) int {
	first := bits.TrailingZeros64(^done)
	if first >= len(a.choices) {
		return -1
	}
	if a.policy == byFailover || len(a.choices) == 1 {
		return first
	}
	best := -1
	var total uint64
	var score float64
	for i := range a.choices {
		ch := &a.choices[i]
		if done&(1<<i) != 0 || ch.pool == nil || ch.weight == 0 || !ch.pool.view(ordinary, now).serving {
			continue
		}
		better := false
		var this float64 // the lowest wins
		switch a.policy {
		case byRandom: // one of the total so far, each with its share
			total += ch.weight
			better = rand.Uint64N(total) < ch.weight
		case byLatency:
			this = float64(ch.pool.shared.rtt.score(now))
		case byLeast:
			this = float64(max(ch.pool.shared.conns.Load(), 0)+1) / float64(ch.weight)
		case byHash:
			this = -rendezvous(c.hash, ch.hash, int(ch.weight))
		}
		if best < 0 || better || a.policy != byRandom && this < score {
			best, score = i, this
		}
	}
	if best < 0 {
		return first
	}
	return best
}

// outcome is what asking the pools of an app came to.
type outcome struct {
	pick Pick
	from *choice
	at   int // its place in app.detours
	why  string
	ok   bool
	done uint64 // choices that were asked in vain
	shed uint64 // of them, those that shed the flow
	over uint64 // of them, those that were passed over
	full *pool  // the first of them that is full and has a queue
	busy bool   // one of them is full
}

// pick asks the client's own endpoint, then the pools, then the fallback, but
// for pools that are over.
func (a *app) pick(c *client, now int64, tried func(Endpoint) bool, over func(string) bool) (o outcome) {
	if over != nil {
		for i := range a.choices {
			if over(a.choices[i].name) {
				o.over |= 1 << i
			}
		}
		o.done = o.over
	}
	bind := bindNone
	if a.table != nil && c.valid {
		if o.from, bind = a.affine(c, now, tried, &o); o.from != nil {
			o.why, o.ok, o.done = o.from.affine, true, 0
			return o
		}
	}
	for {
		i := a.next(o.done, c, now)
		if i < 0 {
			break
		}
		ch := &a.choices[i]
		if ch.pool != nil {
			s, got := ch.pool.ask(c, now, tried)
			if got == took {
				if rtt := &ch.pool.shared.rtt; a.policy == byLatency && rtt.score(now) == 0 {
					rtt.try(now)
				}
				o.pick, o.from, o.at, o.why, o.ok = ch.pool.reserved(s), ch, i, ch.chosen, true
				if bind != bindNone {
					o.pick.app, o.pick.key, o.pick.bind = a, c.key, bind
				}
				return o
			}
			if got == shed {
				o.shed |= 1 << i
			}
			if got == full {
				o.busy = true
				if o.full == nil && ch.pool.spec.Queue.Length > 0 {
					o.full = ch.pool
				}
			}
		}
		o.done |= 1 << i
	}
	if a.last != nil && a.last.pool != nil && !o.busy && (over == nil || !over(a.last.name)) {
		p := a.last.pool
		v := p.view(fallback, now)
		if i := v.choose(p, c.hash, now, tried); i >= 0 {
			o.pick, o.from, o.at, o.why, o.ok = p.reserved(&v.slots[i]), a.last, len(a.choices), a.last.chosen, true
		}
	}
	return o
}

// What Connected does to the affinity of a client.
type binding uint8

const (
	bindNone    binding = iota // nothing
	bindHome                   // this is where it goes from now on
	bindStandIn                // this is where it goes while its home is down
)

// affine takes the endpoint that the client has, for o.pick. Where that is not
// to be had the choice is nil, and the binding says what the endpoint that the
// client gets instead becomes to it: nothing, where its own one is only full.
func (a *app) affine(c *client, now int64, tried func(Endpoint) bool, o *outcome) (*choice, binding) {
	home, standIn := a.table.get(c.key, now, a.spec.Affinity.TTL)
	if home == nil {
		return nil, bindHome
	}
	ch, got := a.stay(home, now, tried, o)
	if ch == nil && standIn != nil { // who stood in for an endpoint that is gone is the home now
		a.table.bind(c.key, now, standIn, false, a.most)
		home, standIn = standIn, nil
		ch, got = a.stay(home, now, tried, o)
	}
	switch {
	case got == took:
		if standIn != nil {
			a.table.settle(c.key)
		}
		return ch, bindNone
	case got == full:
		return nil, bindNone
	}
	if standIn != nil {
		if from, got := a.stay(standIn, now, tried, o); got == took {
			return from, bindNone
		}
	}
	if ch == nil || a.spec.Affinity.Failover == failoverSticky {
		return nil, bindHome
	}
	return nil, bindStandIn
}

// stay takes the endpoint for a client with affinity to it. The choice is nil
// where the app has the endpoint no more.
func (a *app) stay(e *endpoint, now int64, tried func(Endpoint) bool, o *outcome) (*choice, answer) {
	for i := range a.choices {
		ch := &a.choices[i]
		p := ch.pool
		if p == nil || p.shared != e.in {
			continue
		}
		at, ok := p.index[e]
		if !ok {
			return nil, passed
		}
		m := &p.spec.Endpoints[at]
		if o.over&(1<<i) != 0 || p.spec.Disabled || !p.view(ordinary, now).members[at].affine || tried != nil && tried(e.id) {
			return ch, passed
		}
		if m.MaxConnections > 0 && p.shared.queue.waiting.Load() > 0 || !e.reserve(int64(m.MaxConnections)) {
			return ch, full
		}
		o.pick = Pick{Pool: p.spec.Name, Endpoint: e.id, pool: p, ep: e}
		return ch, took
	}
	return nil, passed
}

// claim makes a Pick that waited in a queue bind the client, as one that did
// not wait would.
func (a *app) claim(pick *Pick, c client, now int64) {
	if a.table == nil || !c.valid {
		return
	}
	home, _ := a.table.get(c.key, now, a.spec.Affinity.TTL)
	switch {
	case home == nil:
		pick.bind = bindHome
	case home != pick.ep && !a.holds(home, now):
		pick.bind = bindStandIn
		if a.spec.Affinity.Failover == failoverSticky {
			pick.bind = bindHome
		}
	}
	pick.app, pick.key = a, c.key
}

// holds reports whether clients may stay with their home.
func (a *app) holds(home *endpoint, now int64) bool {
	for i := range a.choices {
		if p := a.choices[i].pool; p != nil && p.shared == home.in {
			at, ok := p.index[home]
			return ok && !p.spec.Disabled && p.view(ordinary, now).members[at].affine
		}
	}
	return false
}

// connected binds the client to the endpoint that accepted it.
func (p *Pick) connected(rtt time.Duration) {
	r := p.ep.in.root
	now := r.now()
	if rtt > 0 {
		p.ep.rtt.add(rtt, now)
		p.ep.in.rtt.add(rtt, now)
	}
	if p.bind != bindNone && p.app != nil {
		p.app.table.bind(p.key, now, p.ep, p.bind == bindStandIn, p.app.most)
	}
}
