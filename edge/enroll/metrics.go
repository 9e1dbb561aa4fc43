package enroll

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Counts is what the registry has counted since New, and what there is now.
type Counts struct {
	Enrolments map[string]uint64  // by result: one of the Result values or a wire.Code
	Tokens     map[TokenState]int // gauges: all states are there
	Syncs      uint64             // that were answered with a grant
	SyncsHeld  int                // gauge: those that wait for news
}

// Results of an enrolment that was not refused.
const (
	ResultPending   = "pending"   // a new registration
	ResultRepeated  = "repeated"  // the same token and key again
	ResultConfirmed = "confirmed" // the key has synced
)

type metrics struct {
	syncs atomic.Uint64
	held  atomic.Int64

	tooManyOfPeer, tooMany atomic.Uint64 // connections that were closed at once

	mu         sync.Mutex
	enrolments map[string]uint64
}

func (m *metrics) init() {
	m.enrolments = map[string]uint64{ResultPending: 0, ResultRepeated: 0, ResultConfirmed: 0}
}

func (m *metrics) enrolled(result string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.enrolments[result]++
}

// Counts returns the counters; the maps are the caller's.
func (r *Registry) Counts() Counts {
	counts := Counts{
		Tokens:    map[TokenState]int{TokenActive: 0, TokenSpent: 0, TokenExpired: 0, TokenRevoked: 0},
		Syncs:     r.metrics.syncs.Load(),
		SyncsHeld: int(r.metrics.held.Load()),
	}
	r.metrics.mu.Lock()
	counts.Enrolments = maps.Clone(r.metrics.enrolments)
	r.metrics.mu.Unlock()
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tokens {
		state, _ := t.rec.state(now)
		counts.Tokens[state]++
	}
	return counts
}

// Drops reports the connections that were closed at once because there were
// too many.
func (r *Registry) Drops(yield func(where, why string, n uint64)) {
	yield("enroll", "connections_of_peer", r.metrics.tooManyOfPeer.Load())
	yield("enroll", "connections", r.metrics.tooMany.Load())
}
