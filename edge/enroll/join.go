package enroll

import (
	"fmt"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// maxPending is how many registrations of one reusable token may wait for
// their keys at a time: a fleet that starts at once, each of which needs a
// moment.
const maxPending = 256

// enroll answers a joiner that came with a bootstrap key. A registration is
// stored before it is answered; the same token and key get the same answer.
func (r *Registry) enroll(bootstrap wgtypes.Key, req wire.EnrollRequest) (wire.EnrollAnswer, *wire.Refusal) {
	r.changing.Lock()
	defer r.changing.Unlock()
	now := r.now().UTC()
	t := r.bootstraps[bootstrap]
	if t == nil {
		return wire.EnrollAnswer{}, wire.Refuse(wire.CodeNotAllowed, "this edge has no token with that key: make a new one with `warren token create`")
	}
	if refusal := r.checkJoin(t, req); refusal != nil {
		return wire.EnrollAnswer{}, refusal
	}
	if c := r.byKey[req.PublicKey.Key]; c != nil && !c.declared && c.rec.Token == t.rec.ID {
		r.mu.Lock()
		c.registered = now // its time to confirm begins anew
		r.mu.Unlock()
		c.missed = time.Time{} // it is about to call
		r.metrics.enrolled(ResultRepeated)
		return r.answer(c, now), nil
	}
	if refusal := r.checkNew(t, req, now); refusal != nil {
		return wire.EnrollAnswer{}, refusal
	}
	name, gone := r.choose(t, req, now)
	c := &connector{registered: now, rec: connectorRecord{
		Name: name, Network: t.rec.Network, Routes: t.rec.Routes, Key: req.PublicKey, KeySince: now,
		Token: t.rec.ID, Ephemeral: t.rec.Ephemeral, Hostname: clean(req.Hostname, wire.MaxName), Pending: true,
	}}
	if err := r.join(c, gone); err != nil {
		return wire.EnrollAnswer{}, r.unavailable(err)
	}
	r.log.Info("connector registered", "connector", name, "network", c.rec.Network, "token", t.rec.ID,
		"key", abbreviate(c.rec.Key.Key), "hostname", c.rec.Hostname, "version", clean(req.Version, wire.MaxName))
	r.metrics.enrolled(ResultPending)
	return r.answer(c, now), nil
}

// join stores c and gives it its place in the tunnel, that of gone if there is
// one.
func (r *Registry) join(c, gone *connector) error {
	doing := fmt.Sprintf("registering connector %q", c.rec.Name)
	if err := r.commit(doing, c.rec.write()); err != nil {
		return err
	}
	if gone != nil {
		r.peers.RemoveConnector(gone.rec.Name)
	}
	if err := r.peers.AddConnector(c.rec.member()); err != nil {
		before := write{kindConnector, c.rec.Name, nil}
		if gone != nil {
			before = gone.rec.write()
			r.wake(gone)
		}
		r.takeBack(doing, before)
		return fail(Unavailable, "%s: %w", doing, err)
	}
	r.mu.Lock()
	if gone != nil {
		r.dropLocked(gone)
	}
	r.addConnector(c)
	r.mu.Unlock()
	if gone != nil {
		r.log.Info("connector forgotten", "connector", gone.rec.Name, "network", gone.rec.Network,
			"key", abbreviate(gone.rec.Key.Key), "why", "another came in its place")
	}
	r.refresh(c)
	return nil
}

// checkJoin refuses what no repetition helps.
func (r *Registry) checkJoin(t *token, req wire.EnrollRequest) *wire.Refusal {
	if !t.rec.Revoked.IsZero() {
		return wire.Refuse(wire.CodeRevoked, "the token was revoked on %s: make a new one with `warren token create`", date(t.rec.Revoked))
	}
	if req.PublicKey.Key == (wgtypes.Key{}) {
		return wire.Refuse(wire.CodeBadRequest, "the request has no public key")
	}
	if req.Name != "" {
		if err := checkName(clean(req.Name, maxName+1)); err != nil {
			return wire.Refuse(wire.CodeBadRequest, "%v", err)
		}
	}
	network, ok := r.networks[t.rec.Network]
	switch {
	case !ok:
		return wire.Refuse(wire.CodeNotAllowed, "the token is for network %q, which this edge no longer has: add it to edge.toml, or make a new token", t.rec.Network)
	case !network.Enroll && r.byKey[req.PublicKey.Key] == nil:
		return wire.Refuse(wire.CodeNotAllowed, "the token is for network %q, which lets no token in any more: set enroll = true in edge.toml", t.rec.Network)
	}
	return nil
}

// checkNew refuses a key that cannot be registered.
func (r *Registry) checkNew(t *token, req wire.EnrollRequest, now time.Time) *wire.Refusal {
	switch state, ended := t.rec.state(now); state {
	case TokenSpent:
		by := t.rec.SpentBy
		return wire.Refuse(wire.CodeSpent, "the token was used on %s by connector %q on host %q (key %s): make a new one with `warren token create`",
			date(ended), by.Name, by.Hostname, abbreviate(by.Key.Key))
	case TokenExpired:
		return wire.Refuse(wire.CodeExpired, "the token expired on %s: make a new one with `warren token create`", date(ended))
	}
	if c := r.byKey[req.PublicKey.Key]; c != nil && c.rec.Pending {
		// Not for good: its answer may have been lost before anybody saved it.
		return wire.Refuse(wire.CodeBusy, "the key %s is being confirmed with another token: ask again after %s",
			abbreviate(req.PublicKey.Key), date(c.registered.Add(wire.ConfirmWithin)))
	}
	if c := r.byKey[req.PublicKey.Key]; c != nil && !c.declared {
		// It may be that connector, which has lost all but its key.
		return wire.Refuse(wire.CodeKnownKey, "the key %s is that of connector %q: if that is this one, revoke it (`warren connector revoke`); then remove the state directory here, for a key of its own, and start again",
			abbreviate(req.PublicKey.Key), c.rec.Name)
	}
	if why := r.knownAs(req.PublicKey.Key); why != "" {
		return wire.Refuse(wire.CodeKnownKey, "the key %s is known already: it is %s: give this connector a key of its own (remove its state directory)", abbreviate(req.PublicKey.Key), why)
	}
	if !t.rec.Reusable {
		for _, other := range t.pending {
			return wire.Refuse(wire.CodeBusy, "another connector with the key %s is being confirmed with this token: ask again after %s",
				abbreviate(other.rec.Key.Key), date(other.registered.Add(wire.ConfirmWithin)))
		}
	}
	if len(t.pending) >= maxPending {
		return wire.Refuse(wire.CodeBusy, "%d connectors with this token are being confirmed: ask again", len(t.pending))
	}
	if len(r.connectors) >= maxConnectors {
		return wire.Refuse(wire.CodeUnavailable, "this edge has %d connectors, the most that it takes: revoke some", len(r.connectors))
	}
	return nil
}

// knownAs says whose a key is; empty: nobody's. The caller holds changing.
func (r *Registry) knownAs(key wgtypes.Key) string {
	if key == r.self {
		return "this edge's own"
	}
	if c := r.byKey[key]; c != nil {
		return fmt.Sprintf("that of connector %q", c.rec.Name)
	}
	if t := r.bootstraps[key]; t != nil {
		return "one of token " + t.rec.ID
	}
	if d := r.denials[key]; d != nil {
		return fmt.Sprintf("that of connector %q, which was revoked on %s", d.rec.Name, date(d.rec.When))
	}
	if r.reserved.keys[key] {
		return "declared in edge.toml"
	}
	return ""
}

// answer is what a registered connector is told.
func (r *Registry) answer(c *connector, now time.Time) wire.EnrollAnswer {
	return wire.EnrollAnswer{Name: c.rec.Name, Network: c.rec.Network, Ephemeral: c.rec.Ephemeral, Edges: r.edges, Time: now}
}

// confirm makes a pending connector an enrolled one: its key has synced.
func (r *Registry) confirm(key wgtypes.Key) *wire.Refusal {
	r.changing.Lock()
	defer r.changing.Unlock()
	c := r.byKey[key]
	if c == nil || !c.rec.Pending {
		return nil // whatever came between, the caller finds out
	}
	now := r.now().UTC()
	rec := c.rec
	rec.Pending, rec.Enrolled = false, now
	writes := []write{rec.write()}
	t := r.tokens[rec.Token]
	var used tokenRecord
	if t != nil {
		used = t.rec
		used.Used++
		used.LastUsed = now
		if !used.Reusable {
			used.Spent, used.SpentBy = now, spender{Name: rec.Name, Hostname: rec.Hostname, Key: rec.Key}
		}
		writes = append(writes, used.write())
	}
	if err := r.commit(fmt.Sprintf("confirming connector %q", rec.Name), writes...); err != nil {
		return r.unavailable(err)
	}
	r.replace(c, rec)
	r.WorkChanged(rec.Name)
	r.metrics.enrolled(ResultConfirmed)
	r.log.Info("connector confirmed", "connector", rec.Name, "network", rec.Network, "token", rec.Token, "key", abbreviate(key))
	if t != nil {
		r.mu.Lock()
		t.rec = used
		r.mu.Unlock()
		if !used.Reusable {
			r.log.Info("token spent", "token", used.ID, "connector", rec.Name)
			r.trimTokenGuests(now)
		}
	}
	return nil
}
