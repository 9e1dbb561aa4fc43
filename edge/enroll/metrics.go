package enroll

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Counts is what the registry has counted since New, and what there is now.
type Counts struct {
	Enrollments map[string]uint64  // by result: one of the Result values or a wire.Code
	Tokens      map[TokenState]int // gauges: all states are there
	Syncs       uint64             // that were answered with a grant
	SyncsHeld   int                // gauge: those that wait for news
	WorkHeld    int                // gauge: requests for work that wait for news
	Reports     map[string]uint64  // results of checks and names, by what became of them: one of the Report values
}

// Results of an enrolment that was not refused.
const (
	ResultPending   = "pending"   // a new registration
	ResultRepeated  = "repeated"  // the same token and key again
	ResultConfirmed = "confirmed" // the key has synced
)

// What became of a result that a connector reported.
const (
	ReportTaken   = "taken"
	ReportForeign = "foreign" // of what was not the connector's to check or to resolve: ignored
	ReportStale   = "stale"   // of a revision that the connector was not given, as after a restart: ignored
)

type metrics struct {
	syncs atomic.Uint64
	held  atomic.Int64

	worksHeld             atomic.Int64
	worksRefused          atomic.Uint64 // requests for work that came too soon
	taken, foreign, stale atomic.Uint64 // results

	tooManyOfPeer, tooMany atomic.Uint64 // connections that were aborted for a newer one

	mu          sync.Mutex
	enrollments map[string]uint64 // by result
}

func (m *metrics) init() {
	m.enrollments = map[string]uint64{ResultPending: 0, ResultRepeated: 0, ResultConfirmed: 0}
}

func (m *metrics) enrolled(result string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.enrollments[result]++
}

// Counts returns the counters; the maps are the caller's.
func (r *Registry) Counts() Counts {
	counts := Counts{
		Tokens:    map[TokenState]int{TokenActive: 0, TokenSpent: 0, TokenExpired: 0, TokenRevoked: 0},
		Syncs:     r.metrics.syncs.Load(),
		SyncsHeld: int(r.metrics.held.Load()),
		WorkHeld:  int(r.metrics.worksHeld.Load()),
		Reports: map[string]uint64{
			ReportTaken: r.metrics.taken.Load(), ReportForeign: r.metrics.foreign.Load(), ReportStale: r.metrics.stale.Load(),
		},
	}
	r.metrics.mu.Lock()
	counts.Enrollments = maps.Clone(r.metrics.enrollments)
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

// Drops reports the connections that were aborted because a newer one would
// have been too many, of its peer or in all, and the requests for work that came
// too soon after one another.
func (r *Registry) Drops(yield func(where, why string, n uint64)) {
	yield("enroll", "connections_of_peer", r.metrics.tooManyOfPeer.Load())
	yield("enroll", "connections", r.metrics.tooMany.Load())
	yield("enroll", "work_too_often", r.metrics.worksRefused.Load())
}
