// Package balance is the Director: it decides which endpoint of which pool
// carries a flow.
//
// An app names its pools. Pick chooses one that has a usable endpoint, asks it
// to choose one, and returns it with the reason in words. An endpoint is usable
// while its health says so and the flow has not tried it already: a dial that
// fails before any byte has moved is answered by picking again with that
// endpoint marked as tried.
//
// Pick decides in memory: it never dials, waits or logs.
package balance

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Health tells whether an endpoint may be picked. It is called from many
// goroutines at once, and answers from memory. An endpoint of which nothing is
// known yet is not up. why says why it is not.
//
// It is never asked about a pool without a monitor: that counts as up.
type Health interface {
	Up(network string, addr netip.AddrPort, monitor string) (up bool, why string)
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
}

// Pick is a choice, and a reservation: it counts as a connection of its
// endpoint until it ends, in exactly one of Failed, Canceled and Release. A
// connect that succeeds is told by Connected, before Release.
type Pick struct {
	Pool     string
	Endpoint Endpoint
	Host     string // name that the endpoint's address came from, if any
}

// Connected tells that the connect succeeded, and how long it took.
func (p Pick) Connected(rtt time.Duration) {}

// Failed tells that the connect failed, and ends p.
func (p Pick) Failed(err error) {}

// Canceled ends p, of which nothing was learnt: the client has gone.
func (p Pick) Canceled() {}

// Release ends p: its flow has ended.
func (p Pick) Release() {}

// Director holds the pools. The zero value is not usable; call New.
type Director struct {
	deps  Deps
	pools map[string]*pool
	apps  map[string]App
}

type pool struct {
	spec Spec
	next atomic.Uint32
}

// New builds a Director over pools and apps, which must have passed Validate.
func New(pools []Spec, apps []App, deps Deps) *Director {
	return (&Director{deps: deps}).With(pools, apps)
}

// With builds the Director that follows d after a reload. What d knows of
// endpoints that stay survives: their connections, connect times, ejections
// and drains, and the affinity of clients to them.
func (d *Director) With(pools []Spec, apps []App) *Director {
	next := &Director{deps: d.deps, pools: make(map[string]*pool, len(pools)), apps: make(map[string]App, len(apps))}
	for _, spec := range pools {
		if old := d.pools[spec.Name]; old != nil && old.spec.equal(spec) {
			next.pools[spec.Name] = old
			continue
		}
		spec.Endpoints = slices.Clone(spec.Endpoints)
		next.pools[spec.Name] = &pool{spec: spec}
	}
	for _, a := range apps {
		next.apps[a.Name] = a
	}
	return next
}

// Pick chooses an endpoint for a flow of r.App. why is the reason of the
// choice, or says for each pool why it had nothing when ok is false. Pick
// allocates nothing when the first pool serves.
func (d *Director) Pick(r Request) (pick Pick, why string, ok bool) {
	var reasons []string
	for _, c := range d.apps[r.App].Pools {
		p := d.pools[c.Pool]
		if p == nil {
			reasons = append(reasons, fmt.Sprintf("pool %q is not defined", c.Pool))
			continue
		}
		n := len(p.spec.Endpoints)
		from, reason := int(p.next.Load()), "all tried"
		for step := range n {
			i := (from + step) % n
			m := p.spec.Endpoints[i]
			if r.Tried != nil && r.Tried(m.Endpoint) {
				continue
			}
			if up, down := d.up(p, m.Endpoint); !up {
				reason = "down: " + down
				continue
			}
			p.next.Store(uint32((i + 1) % n))
			reasons = append([]string{fmt.Sprintf("pool %q by %s", c.Pool, byRoundRobin)}, reasons...)
			return Pick{Pool: c.Pool, Endpoint: m.Endpoint, Host: m.Host}, strings.Join(reasons, "; "), true
		}
		reasons = append(reasons, fmt.Sprintf("pool %q has no healthy endpoint: %s", c.Pool, reason))
	}
	if len(reasons) == 0 {
		return Pick{}, "no pool to pick from", false
	}
	return Pick{}, strings.Join(reasons, "; "), false
}

func (d *Director) up(p *pool, e Endpoint) (bool, string) {
	if p.spec.Monitor == "" {
		return true, ""
	}
	return d.deps.Health.Up(e.Network, e.Addr, p.spec.Monitor)
}

// Acquire is Pick for a flow that may wait: where all usable endpoints are at
// MaxConnections it waits in the pool's queue, behind those that came before,
// until one is free, the queue's time is over, or ctx is done.
func (d *Director) Acquire(ctx context.Context, r Request) (Pick, string, bool) { return d.Pick(r) }

// HealthChanged tells that Health has news of an endpoint.
func (d *Director) HealthChanged(network string, addr netip.AddrPort, monitor string) {}

// Drain keeps new flows from an endpoint of a pool, until Undrain. Clients
// with affinity to it stay for keep.
func (d *Director) Drain(pool string, e Endpoint, keep time.Duration) error { return nil }

// Undrain puts a drained endpoint back into service.
func (d *Director) Undrain(pool string, e Endpoint) error { return nil }

// Pools returns the state of every pool, sorted by name.
func (d *Director) Pools() []Status {
	all := make([]Status, 0, len(d.pools))
	for _, p := range d.pools {
		s := Status{Spec: p.spec, State: StateHealthy}
		s.Spec.Endpoints = slices.Clone(p.spec.Endpoints)
		for _, m := range p.spec.Endpoints {
			up, why := d.up(p, m.Endpoint)
			if up {
				s.Usable++
			}
			s.Endpoints = append(s.Endpoints, EndpointStatus{Endpoint: m.Endpoint, Host: m.Host, Up: up, Why: why, Weight: m.Weight})
		}
		switch {
		case p.spec.Monitor == "":
			s.State = StateUnmonitored
		case s.Usable == 0:
			s.State = StateDown
		case s.Usable < len(s.Endpoints):
			s.State = StateDegraded
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return all
}
