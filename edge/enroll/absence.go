package enroll

import "time"

const (
	// absence is how long an ephemeral connector may be away.
	absence = 10 * time.Minute
	// brief is how long it may be silent before that is an absence at all:
	// until then its name is its own, for it lives on behind a loss of some
	// seconds, and an edge that has restarted waits for all of its connectors.
	// Who comes in its place sooner gets a name with -2, as with other tokens;
	// but the name of one that said farewell is free at once.
	brief = 30 * time.Second
	// callIn is how long after its start an edge forgets nobody, so that those
	// can call who could not while it was down. A connector tries that again
	// every 30 seconds at the latest.
	callIn = time.Minute
)

// miss looks for a sweep whether the tunnel hears an ephemeral connector, and
// keeps since when it does not. It counts from the first sweep that misses it,
// not from the last that heard it: between the two this process may have been
// stopped. It reports whether that is too long.
func (r *Registry) miss(c *connector, now time.Time) (gone bool) {
	state, _ := r.peers.State(c.rec.Name)
	switch {
	case state.Alive:
		c.missed = time.Time{}
	case c.missed.IsZero():
		c.missed = now
	}
	return !c.missed.IsZero() && now.Sub(c.missed) >= absence && now.Sub(r.started) >= callIn
}

// noteAbsence gives the record that c needs in the store, for its absence to go
// on over a restart, if that is another: once it is absent, and once it is
// back.
func (c *connector) noteAbsence(now time.Time) (rec connectorRecord, changed bool) {
	rec = c.rec
	rec.AbsentSince = time.Time{}
	if !c.missed.IsZero() && now.Sub(c.missed) >= brief {
		rec.AbsentSince = c.missed
	}
	return rec, !rec.AbsentSince.Equal(c.rec.AbsentSince)
}

// replaceable reports whether a joiner with t takes the place of c: one of the
// same ephemeral token that said farewell, or is absent and would have been
// heard by this process by now.
func (r *Registry) replaceable(c *connector, t *token, now time.Time) bool {
	if c.declared || c.rec.Pending || !c.rec.Ephemeral || c.rec.Token != t.rec.ID {
		return false
	}
	switch state, _ := r.peers.State(c.rec.Name); {
	case state.Left:
		return true
	case state.Alive, c.missed.IsZero():
		return false
	}
	return now.Sub(c.missed) >= brief && now.Sub(r.started) >= brief
}
