// Package balance is the Director: it decides which endpoint of which pool
// carries a flow.
//
// An app names its pools. Pick leads a client that has an endpoint back to it,
// or steers between the app's pools, asks the one chosen to steer between its
// endpoints, and returns the choice with the reason in words. What it returns
// is a reservation, and counts as a connection until its owner ends it.
//
// An endpoint is usable while its health says so, no operator drains it and
// the flow has not tried it already: a dial that fails before any byte has
// moved is answered by picking again with that endpoint marked as tried.
//
// Pick decides in memory: it never dials, waits or logs. Flows choose from
// views of the pools that are immutable and rebuilt when something changes;
// what changes by time alone is noticed by the flow that comes after, so the
// room has no goroutine. Only Acquire waits, in a bounded queue.
package balance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Health tells whether an endpoint may be picked. It is called from many
// goroutines at once, under locks of this room, so it answers from memory and
// calls nothing of a Director. An endpoint of which nothing is known yet is
// not up. why says why it is not.
//
// It is never asked about a pool without a monitor: that counts as up.
type Health interface {
	Up(network string, addr netip.AddrPort, monitor string) (up bool, why string)
}

// Knower is a Health that tells endpoints that are down from those of which
// nothing is known yet. Of another Health all that are not up are down.
type Knower interface {
	Known(network string, addr netip.AddrPort, monitor string) bool
}

// Deps is what a Director needs from its neighbours.
type Deps struct {
	Health  Health           // required where a pool has a monitor
	OnEvent func(Event)      // nil: nobody listens. No lock is held; it must not block
	Now     func() time.Time // nil: time.Now
}

// Request is what a flow asks.
type Request struct {
	App    string              // App.Name
	Client netip.Addr          // for affinity, hash and shedding
	Tried  func(Endpoint) bool // endpoints that this flow must not get again; nil: none
	// Passed tells of pools from which this flow must not get anything more,
	// the fallback among them; nil: none.
	Passed func(pool string) bool
}

// Pick is a choice, and a reservation: it counts as a connection of its
// endpoint until it ends, in exactly one of Failed, Canceled and Release. A
// connect that succeeds is told by Connected, before Release. The zero Pick
// reserves nothing, and ending it does nothing.
type Pick struct {
	Pool     string
	Endpoint Endpoint

	pool *pool
	ep   *endpoint
	app  *app // whose affinity Connected binds
	key  [16]byte
	bind binding
}

// Connected tells that the connect succeeded, and how long it took; 0 where
// that says nothing of the endpoint. The client's affinity is for the endpoint
// from now on. Whether the endpoint is well is Answered's to tell.
func (p Pick) Connected(rtt time.Duration) {
	if p.ep != nil {
		p.connected(rtt)
	}
}

// Answered tells that the endpoint is well: it ends its failures in a row. It
// may be told at any time before Failed, Canceled or Release, several times.
func (p Pick) Answered() {
	if p.ep != nil && p.ep.failures.Load() != 0 {
		p.ep.failures.Store(0)
	}
}

// Failed tells that the connect failed, and ends p.
func (p Pick) Failed(err error) {
	if p.ep != nil {
		p.pool.failed(p.ep, err)
		p.ep.release()
	}
}

// Canceled ends p, of which nothing was learnt: the client has gone.
func (p Pick) Canceled() { p.Release() }

// Release ends p: its flow has ended.
func (p Pick) Release() {
	if p.ep != nil {
		p.ep.release()
	}
}

// root is what all Directors that follow each other have in common.
type root struct {
	deps  Deps
	began time.Time

	seq    atomic.Uint64 // of the Director made last
	active atomic.Uint64 // seq of the Director in force
	mu     sync.Mutex
	force  *Director // in force

	telling sync.Mutex // guards events, and:
	busy    bool       // someone delivers
	events  []Event
}

// now is the time in nanoseconds since shortly before the first Director was
// made.
func (r *root) now() int64 {
	if r.deps.Now == nil {
		return int64(time.Since(r.began))
	}
	return int64(r.deps.Now().Sub(r.began))
}

// at turns a time of now back into one of the calendar.
func (r *root) at(t int64) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return r.began.Add(time.Duration(t))
}

// tell keeps an event for flush. It may be called with locks held.
func (r *root) tell(e Event) {
	if r.deps.OnEvent == nil {
		return
	}
	e.Time = r.at(r.now())
	r.telling.Lock()
	defer r.telling.Unlock()
	r.events = append(r.events, e)
}

// flush delivers events in their order, with no lock held. Whoever finds
// another at it leaves the rest to that one.
func (r *root) flush() {
	if r.deps.OnEvent == nil {
		return
	}
	r.telling.Lock()
	defer r.telling.Unlock()
	if r.busy {
		return
	}
	r.busy = true
	for len(r.events) > 0 {
		due := r.events
		r.events = nil
		r.telling.Unlock()
		for _, e := range due {
			r.deps.OnEvent(e)
		}
		r.telling.Lock()
	}
	r.busy = false
}

// Director holds the pools. The zero value is not usable; call New.
type Director struct {
	root    *root
	seq     uint64
	pools   map[string]*pool
	apps    map[string]*app
	watched map[target][]place
}

// target is what a monitor checks; place is where a pool has it.
type target struct {
	Endpoint
	monitor string
}

type place struct {
	pool *pool
	at   int
}

// New builds a Director over pools and apps, which must have passed Validate.
func New(pools []Spec, apps []App, deps Deps) *Director {
	began := time.Now()
	if deps.Now != nil {
		began = deps.Now()
	}
	r := &root{deps: deps, began: began.Add(-time.Second)} // so that now is never 0, which means no time
	return (&Director{root: r}).With(pools, apps)
}

// With builds the Director that follows d after a reload. What d knows of
// endpoints that stay survives: their connections, connect times, ejections
// and drains, and the affinity of clients to them. Flows of d go on counting.
//
// It changes nothing for d: a Director that is never used leaves no trace. The
// first call of another method puts the new one into force.
func (d *Director) With(pools []Spec, apps []App) *Director {
	next := &Director{
		root: d.root, seq: d.root.seq.Add(1),
		pools: make(map[string]*pool, len(pools)), apps: make(map[string]*app, len(apps)),
		watched: make(map[target][]place),
	}
	for _, spec := range pools {
		old := d.pools[spec.Name]
		p := old
		spec.Endpoints = distinct(spec.Endpoints)
		if old == nil || !old.spec.equal(spec) {
			p = newPool(d.root, spec, old)
		}
		next.pools[spec.Name] = p
		if spec.Monitor == "" {
			continue
		}
		for i, m := range p.spec.Endpoints {
			if !m.Addr.IsValid() {
				continue
			}
			t := target{m.Endpoint, spec.Monitor}
			next.watched[t] = append(next.watched[t], place{p, i})
		}
	}
	for _, spec := range apps {
		spec.Pools = slices.Clone(spec.Pools)
		next.apps[spec.Name] = newApp(spec, next.pools, d.apps[spec.Name])
	}
	return next
}

// distinct returns a copy of the members without those whose address is there
// already: two names may lead to one.
func distinct(members []Member) []Member {
	out := make([]Member, 0, len(members))
	seen := make(map[Endpoint]bool, len(members))
	for _, m := range members {
		if seen[m.Endpoint] && m.Addr.Addr().IsValid() {
			continue
		}
		seen[m.Endpoint] = true
		out = append(out, m)
	}
	return out
}

// Activate puts d into force, in place of the Director that it follows: from
// now on events tell of its pools. Every other method does so too.
func (d *Director) Activate() {
	if d.root.active.Load() >= d.seq {
		return
	}
	for _, p := range d.replace() {
		p.refresh(func(int64) {
			p.asked = never
			for _, e := range p.returned { // what it was when it left is no news
				e.state, e.rampFrom = "", 0
			}
		})
	}
}

// replace makes d the Director in force and returns the pools that are new.
func (d *Director) replace() (changed []*pool) {
	r := d.root
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active.Load() >= d.seq {
		return nil
	}
	if r.force != nil {
		for name, a := range r.force.apps {
			if next := d.apps[name]; a.table != nil && (next == nil || next.table != a.table) {
				a.table.clear() // of its endpoints, too
			}
		}
		for name, p := range r.force.pools {
			if next := d.pools[name]; next == nil || next.shared != p.shared {
				p.shared.active.CompareAndSwap(p, nil)
			}
		}
	}
	for _, p := range d.pools {
		if p.shared.active.Swap(p) != p {
			changed = append(changed, p)
		}
	}
	r.force = d
	r.active.Store(d.seq)
	return changed
}

// Pick chooses an endpoint for a flow of r.App. why is the reason of the
// choice, or says for each pool why it had nothing when ok is false. Pick
// allocates nothing when the first pool serves.
func (d *Director) Pick(r Request) (pick Pick, why string, ok bool) {
	pick, why, _, ok = d.pick(r)
	return pick, why, ok
}

// pick is Pick, and tells for which pool the flow may wait; nil: for none.
func (d *Director) pick(r Request) (Pick, string, *pool, bool) {
	d.Activate()
	a := d.apps[r.App]
	if a == nil {
		name := strings.Clone(r.App) // else r, and what Tried holds, would leave the stack
		return Pick{}, fmt.Sprintf("app %q is not defined", name), nil, false
	}
	if len(a.choices) == 0 {
		return Pick{}, "no pool to pick from", nil, false
	}
	now := d.root.now()
	var c client
	if a.asks {
		c = newClient(r.Client, a.byNet())
	}
	o := a.pick(&c, now, r.Tried, r.Passed)
	switch {
	case !o.ok:
		return Pick{}, a.explain(&o, now, r.Tried, r.Passed), o.full, false
	case o.done != 0:
		o.why = a.detour(&o, now, r.Tried, r.Passed)
	}
	return o.pick, o.why, nil, true
}

// HealthChanged tells that Health has news of an endpoint.
func (d *Director) HealthChanged(network string, addr netip.AddrPort, monitor string) {
	d.Activate()
	for _, at := range d.watched[target{Endpoint{network, addr}, monitor}] {
		at.pool.news(at.at)
	}
}

// Drain keeps new flows from an endpoint of a pool, until Undrain. Clients
// with affinity to it stay for keep. A reload changes nothing of it.
func (d *Director) Drain(pool string, e Endpoint, keep time.Duration) error {
	return d.drain("draining", pool, e, func(e *endpoint, now int64) {
		e.draining, e.keepUntil = true, now+int64(max(keep, 0))
	})
}

// Undrain puts a drained endpoint back into service.
func (d *Director) Undrain(pool string, e Endpoint) error {
	return d.drain("undraining", pool, e, func(e *endpoint, _ int64) { e.draining = false })
}

func (d *Director) drain(doing, pool string, e Endpoint, change func(e *endpoint, now int64)) error {
	d.Activate()
	p := d.pools[pool]
	if p == nil {
		return fmt.Errorf("%s %q in pool %q: there is no such pool", doing, e, pool)
	}
	i := p.member(e)
	if i < 0 {
		return fmt.Errorf("%s %q in pool %q: the pool has no such endpoint", doing, e, pool)
	}
	p.refresh(func(now int64) { change(p.members[i], now) })
	return nil
}

// Pools returns the state of every pool, sorted by name.
func (d *Director) Pools() []Status {
	d.Activate()
	now := d.root.now()
	all := make([]Status, 0, len(d.pools))
	for _, p := range d.pools {
		all = append(all, p.status(now))
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return all
}
