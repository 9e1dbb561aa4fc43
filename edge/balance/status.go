package balance

import (
	"slices"
	"time"
)

// State is the state of a pool or of an endpoint.
type State string

// The states of an endpoint. Only StateUp gets new flows; clients with
// affinity stay with StateDraining as well, for as long as Drain said.
const (
	StateUp       State = "up"
	StateDown     State = "down"     // its monitor says so
	StateUnknown  State = "unknown"  // its monitor has no verdict yet; of a pool: of none of its endpoints. Counts as down
	StateEjected  State = "ejected"  // flows failed to connect to it; for a time
	StateDraining State = "draining" // an operator takes it out of service
	StateDisabled State = "disabled" // the configuration says so; of a pool too
)

// The states of a pool, besides StateDown (no endpoint is usable),
// StateUnknown and StateDisabled.
const (
	StateHealthy     State = "healthy"     // every endpoint is up, but disabled and draining ones
	StateDegraded    State = "degraded"    // some endpoints are not
	StateCritical    State = "critical"    // fewer are than MinimumHealthy: the pool is passed over
	StateUnmonitored State = "unmonitored" // no monitor: every endpoint counts as up
)

// Event is one change of state. Each change is told once, those of one pool in
// their order. The first state of what a reload brings is not told.
type Event struct {
	Time     time.Time
	Kind     string // "pool" or "endpoint"
	Pool     string
	Endpoint Endpoint // zero for a pool
	From, To State
	Why      string
}

// The kinds of an Event.
const (
	KindPool     = "pool"
	KindEndpoint = "endpoint"
)

// Status is a pool as an operator sees it.
type Status struct {
	Spec  Spec
	State State
	Why   string    // why it is not healthy
	Since time.Time // when the state began, as far as was noticed

	Usable      int           // endpoints that get new flows
	Connections int           // of all endpoints, those of former configurations too
	Queued      int           // flows that wait for an endpoint
	Shed        uint64        // flows turned away by Shedding
	RTT         time.Duration // moving average of the time to connect; 0: nothing measured

	Endpoints []EndpointStatus // in the order of Spec.Endpoints
}

// EndpointStatus is one endpoint's part in its pool.
type EndpointStatus struct {
	Endpoint Endpoint
	Host     string // name that the address came from, if any
	State    State
	Up       bool      // State is StateUp
	Why      string    // why it is not up
	Since    time.Time // when the state began, as far as was noticed

	Weight          int     // of the configuration
	EffectiveWeight float64 // what steering uses now: less during a slow start, 0 where there are no new flows
	MaxConnections  int     // of the configuration; 0: no bound
	Connections     int
	Picks           uint64        // flows that it was picked for
	Failures        uint64        // of them, those whose connect failed
	RTT             time.Duration // moving average of the time to connect; 0: nothing measured
	LastError       string        // of the last connect that failed
	LastErrorAt     time.Time
	EjectedUntil    time.Time // zero: it is not ejected
	DrainingUntil   time.Time // when affine clients must leave too; zero: it is not draining
}

// status describes the pool as it is now.
func (p *pool) status(now int64) Status {
	v := p.view(ordinary, now)
	h := p.shared
	s := Status{
		Spec: p.spec, State: v.state, Why: v.why, Usable: v.usable,
		Connections: int(h.conns.Load()), Queued: int(h.queue.waiting.Load()), Shed: h.shed.Load(),
		RTT: time.Duration(h.rtt.value.Load()), Endpoints: make([]EndpointStatus, 0, len(p.members)),
	}
	s.Spec.Endpoints = slices.Clone(p.spec.Endpoints)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state == v.state {
		s.Since = h.root.at(h.since)
	}
	for i, e := range p.members {
		m, at := &p.spec.Endpoints[i], &v.members[i]
		out := EndpointStatus{
			Endpoint: e.id, Host: m.Host, State: at.state, Up: at.state == StateUp, Why: at.why,
			Weight: m.Weight, MaxConnections: m.MaxConnections, Connections: int(e.conns.Load()),
			Picks: e.picks.Load(), Failures: e.lost.Load(), RTT: time.Duration(e.rtt.value.Load()),
			LastError: e.lastErr, LastErrorAt: h.root.at(e.lastErrAt),
		}
		if at.slot >= 0 {
			out.EffectiveWeight = float64(v.slots[at.slot].weight) / float64(v.unit)
		}
		if e.state == at.state {
			out.Since = h.root.at(e.since)
		}
		if e.ejectedUntil > now {
			out.EjectedUntil = h.root.at(e.ejectedUntil)
		}
		if e.draining {
			out.DrainingUntil = h.root.at(e.keepUntil)
		}
		s.Endpoints = append(s.Endpoints, out)
	}
	return s
}
