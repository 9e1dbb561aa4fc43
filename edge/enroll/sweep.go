package enroll

import (
	"context"
	"slices"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

const (
	sweepEvery = time.Second
	// retryEvery is how often a connector is tried again that the tunnel
	// refused.
	retryEvery = 10 * time.Second
	// maxEndedTokens is how many ended tokens are remembered; beyond that the
	// first to end are forgotten before their time.
	maxEndedTokens = 10_000
)

// Run sweeps each second, and tells connectors of their work, until ctx ends.
func (r *Registry) Run(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			r.Sweep()
		case <-r.stirred.news:
			r.reassign()
		}
	}
}

// Sweep ends what is due: registrations without confirmation, what has been
// told for 7 days, ephemeral connectors that are absent; tries again those that
// the tunnel refused; and asks for keys in place of old ones.
func (r *Registry) Sweep() {
	r.changing.Lock()
	defer r.changing.Unlock()
	now := r.now().UTC()
	gone, noted := r.dueConnectors(now)
	tokens := r.dueTokens(now)
	var writes []write
	for _, rec := range noted {
		writes = append(writes, rec.write())
	}
	for c := range gone {
		writes = append(writes, write{kindConnector, c.rec.Name, nil})
	}
	for _, t := range tokens {
		writes = append(writes, write{kindToken, t.rec.ID, nil})
	}
	if len(writes) > 0 {
		err := r.commit("noting who is absent and what has ended", writes...)
		if err != nil && !r.sweepFailed {
			r.log.Error(err.Error())
		}
		if r.sweepFailed = err != nil; err == nil {
			for c, rec := range noted {
				r.replace(c, rec)
			}
			for c, why := range gone {
				r.forget(c, why)
			}
			for _, t := range tokens {
				r.forgetToken(t)
			}
		}
	}
	r.trimTokenGuests(now)
	r.trimDenialGuests(now, nil)
	r.retry(now)
	r.ask(now)
}

// dueConnectors are those that have to go, and why; and the records of those
// whose absence has begun or ended.
func (r *Registry) dueConnectors(now time.Time) (gone map[*connector]string, noted map[*connector]connectorRecord) {
	gone, noted = make(map[*connector]string), make(map[*connector]connectorRecord)
	for _, c := range r.connectors {
		switch {
		case c.rec.Pending:
			if now.Sub(c.registered) >= wire.ConfirmWithin {
				gone[c] = "its key did not call in time"
			}
		case c.rec.Ephemeral:
			if r.miss(c, now) {
				gone[c] = "it is ephemeral, and was absent for 10 minutes"
			} else if rec, changed := c.noteAbsence(now); changed {
				noted[c] = rec
			}
		}
	}
	return gone, noted
}

// dueTokens are those that nobody needs to be told of any more.
func (r *Registry) dueTokens(now time.Time) []*token {
	var due, ended []*token
	for _, t := range r.tokens {
		_, at := t.rec.state(now)
		switch {
		case at.IsZero():
		case now.Sub(at) >= tellFor:
			due = append(due, t)
		case !t.guests:
			ended = append(ended, t)
		}
	}
	// Without guests nobody can be told: such a token is there for lists alone.
	if excess := len(ended) - maxEndedTokens; excess > 0 {
		slices.SortFunc(ended, func(a, b *token) int {
			_, x := a.rec.state(now)
			_, y := b.rec.state(now)
			return x.Compare(y)
		})
		due = append(due, ended[:excess]...)
	}
	return due
}

// forget ends a connector that the store no longer has.
func (r *Registry) forget(c *connector, why string) {
	r.mu.Lock()
	r.dropLocked(c)
	r.mu.Unlock()
	r.peers.RemoveConnector(c.rec.Name)
	r.log.Info("connector forgotten", "connector", c.rec.Name, "network", c.rec.Network, "key", abbreviate(c.rec.Key.Key), "why", why)
}

// forgetToken ends a token that the store no longer has.
func (r *Registry) forgetToken(t *token) {
	r.removeGuests(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tokens, t.rec.ID)
	for _, key := range t.rec.Bootstrap {
		delete(r.bootstraps, key.Key)
	}
}
