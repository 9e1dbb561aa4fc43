// Package balance is the Director: it decides which endpoint of which pool
// carries a flow.
//
// An app names its pools in order. Pick goes through them, asks the first pool
// that has a usable endpoint to choose one, and returns it with the reason in
// words. An endpoint is usable while its health says so and the flow has not
// tried it already: a dial that fails before any byte has moved is answered by
// picking again with that endpoint marked as tried.
//
// A Director is immutable but for the positions of its pools. A reload builds
// the next one With the new pools; what did not change keeps its place. Pick
// decides in memory: it never dials, waits or logs.
package balance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// Endpoint is one private place that an app's traffic can go to. Two networks
// may hold the same address, so neither half names an endpoint alone.
type Endpoint struct {
	Network string // virtual network
	Addr    netip.AddrPort
}

// String returns the form of the configuration, "berlin/10.0.0.10:5432".
func (e Endpoint) String() string { return e.Network + "/" + e.Addr.String() }

// Health tells whether an endpoint may be picked. It is called for each flow,
// from many goroutines at once, so it answers from memory. An endpoint of
// which nothing is known yet is not up. why says why it is not.
//
// It is never asked about a pool without a monitor: that counts as up.
type Health interface {
	Up(network string, addr netip.AddrPort, monitor string) (up bool, why string)
}

// Pick is a choice.
type Pick struct {
	Pool     string
	Endpoint Endpoint
}

// Director holds the pools. The zero value is not usable; call New.
type Director struct {
	health Health
	pools  map[string]*pool
}

// pool is one pool at run time. Directors that follow each other share it
// while its Spec stays the same.
type pool struct {
	spec   Spec
	policy policy
	chosen string        // why of an ordinary pick, made once
	next   atomic.Uint32 // index after the endpoint picked last
}

// New builds a Director over specs, which must have passed Validate.
func New(specs []Spec, health Health) *Director {
	return (&Director{health: health}).With(specs)
}

// With builds the Director that follows d after a reload. Pools whose Spec is
// the same go on where they were, and share their position with d for as long
// as flows still use d; a changed pool starts at its first endpoint.
func (d *Director) With(specs []Spec) *Director {
	next := &Director{health: d.health, pools: make(map[string]*pool, len(specs))}
	for _, spec := range specs {
		if old := d.pools[spec.Name]; old != nil && old.spec.equal(spec) {
			next.pools[spec.Name] = old
			continue
		}
		spec.Endpoints = slices.Clone(spec.Endpoints)
		by, _ := parsePolicy(spec.Steering) // Validate refused the unknown ones
		next.pools[spec.Name] = &pool{
			spec:   spec,
			policy: by,
			chosen: fmt.Sprintf("pool %q by %s", spec.Name, by),
		}
	}
	return next
}

// Pick chooses an endpoint from the first of pools that has a usable one.
// tried reports the endpoints that this flow must not get again; nil means
// none. why is the reason of the choice, or says for each pool why it had
// nothing when ok is false. Pick allocates nothing when the first pool serves.
func (d *Director) Pick(pools []string, tried func(Endpoint) bool) (pick Pick, why string, ok bool) {
	for at, name := range pools {
		p := d.pools[name]
		if p == nil {
			continue
		}
		i := p.choose(candidates{pool: p, health: d.health}, tried)
		if i < 0 {
			continue
		}
		why = p.chosen
		if at > 0 {
			why += "; " + d.explain(pools[:at], tried)
		}
		return Pick{Pool: name, Endpoint: p.spec.Endpoints[i]}, why, true
	}
	if len(pools) == 0 {
		return Pick{}, "no pool to pick from", false
	}
	return Pick{}, d.explain(pools, tried), false
}

// explain says why each of pools had nothing to pick.
func (d *Director) explain(pools []string, tried func(Endpoint) bool) string {
	reasons := make([]string, 0, len(pools))
	for _, name := range pools {
		p := d.pools[name]
		if p == nil {
			reasons = append(reasons, fmt.Sprintf("pool %q is not defined", name))
			continue
		}
		reasons = append(reasons, candidates{pool: p, health: d.health}.explain(tried))
	}
	return strings.Join(reasons, "; ")
}

// State is the health of a pool as a whole.
type State string

const (
	StateHealthy     State = "healthy"     // every endpoint is up
	StateDegraded    State = "degraded"    // some endpoints are down
	StateDown        State = "down"        // no endpoint is up
	StateUnmonitored State = "unmonitored" // no monitor: every endpoint counts as up
)

// Status is a pool as an operator sees it.
type Status struct {
	Spec      Spec
	State     State
	Endpoints []EndpointStatus // in the order of Spec.Endpoints
}

// EndpointStatus is one endpoint's part in its pool.
type EndpointStatus struct {
	Endpoint Endpoint
	Up       bool
	Why      string // why it is not up
}

// Pools returns the state of every pool, sorted by name.
func (d *Director) Pools() []Status {
	list := make([]Status, 0, len(d.pools))
	for _, p := range d.pools {
		list = append(list, p.status(d.health))
	}
	slices.SortFunc(list, func(a, b Status) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return list
}

func (p *pool) status(health Health) Status {
	c := candidates{pool: p, health: health}
	s := Status{Spec: p.spec, Endpoints: make([]EndpointStatus, 0, len(p.spec.Endpoints))}
	s.Spec.Endpoints = slices.Clone(p.spec.Endpoints)
	up := 0
	for i, e := range p.spec.Endpoints {
		ok, why := c.up(i)
		if ok {
			up++
		}
		s.Endpoints = append(s.Endpoints, EndpointStatus{Endpoint: e, Up: ok, Why: why})
	}
	switch {
	case p.spec.Monitor == "":
		s.State = StateUnmonitored
	case up == 0:
		s.State = StateDown
	case up < len(p.spec.Endpoints):
		s.State = StateDegraded
	default:
		s.State = StateHealthy
	}
	return s
}
