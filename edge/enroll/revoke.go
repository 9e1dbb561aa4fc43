package enroll

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// What ended is told so for a while: spent, expired and revoked tokens, and
// revoked connectors. Each costs the tunnel a guest, 35 KB as measured.
const (
	tellFor       = 7 * 24 * time.Hour
	maxGuestsTold = 1_000 // keys of ended tokens, and as many denied ones
)

// maxDenials is how many denied keys are kept; the oldest that edge.toml does
// not declare go first. Whoever has such a key needs a token to come back.
const maxDenials = 100_000

// denial is a key that is refused for ever.
type denial struct {
	rec denialRecord
}

// Revoke cuts a connector off, for good: its flows are aborted, and its key is
// denied.
func (r *Registry) Revoke(name string) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	doing := fmt.Sprintf("revoking connector %q", name)
	c, err := r.named(doing, name)
	if err != nil {
		return err
	}
	now := r.now().UTC()
	var denied []*denial
	var writes []write
	for _, key := range c.rec.keys() {
		d := &denial{rec: denialRecord{Key: wire.Key{Key: key}, Name: name, Network: c.rec.Network, When: now}}
		denied, writes = append(denied, d), append(writes, d.rec.write())
	}
	if !c.declared {
		writes = append(writes, write{kindConnector, name, nil})
	}
	forgotten := r.oldestDenials(len(denied))
	for _, d := range forgotten {
		writes = append(writes, write{kindDenial, denialID(d.rec.Key.Key), nil})
	}
	if err := r.commit(doing, writes...); err != nil {
		return err
	}
	r.mu.Lock()
	for _, d := range forgotten {
		delete(r.denials, d.rec.Key.Key)
	}
	for _, d := range denied {
		r.denials[d.rec.Key.Key] = d
	}
	r.dropLocked(c)
	r.mu.Unlock()
	r.cutOff(c, denied, now)
	r.log.Info("connector revoked", "connector", name, "network", c.rec.Network, "key", abbreviate(c.rec.Key.Key), "declared", c.declared)
	return nil
}

// cutOff takes a denied connector out of its network and leaves its keys as
// guests that are told.
func (r *Registry) cutOff(c *connector, denied []*denial, now time.Time) {
	kept := false
	if !c.asleep {
		err := r.peers.Demote(c.rec.Name, wire.ControlPort)
		if kept = err == nil; !kept {
			r.log.Error("a revoked connector is cut off, but not told so at once: "+err.Error(), "connector", c.rec.Name)
			r.peers.RemoveConnector(c.rec.Name)
		}
	}
	for _, d := range denied {
		switch {
		case !kept:
			r.addDenialGuest(d)
		case len(denied) > 1: // the tunnel knows which of the two it has kept
			_ = r.peers.AddGuest(d.guest())
		}
	}
	r.trimDenialGuests(now, denied)
}

// guest is how a denied key reaches the control port, to be told.
func (d *denial) guest() Guest {
	return Guest{Name: "revoked " + d.rec.Name, PublicKey: d.rec.Key.Key, Port: wire.ControlPort}
}

func (r *Registry) addDenialGuest(d *denial) {
	if err := r.peers.AddGuest(d.guest()); err != nil {
		r.log.Error("a revoked connector cannot be told so: "+err.Error(), "connector", d.rec.Name)
	}
}

// trimDenialGuests ends the guests that have been told for long enough, and the
// oldest beyond maxGuestsTold. It returns those that stay.
func (r *Registry) trimDenialGuests(now time.Time, more []*denial) []*denial {
	r.guestDenials = append(r.guestDenials, more...)
	slices.SortStableFunc(r.guestDenials, func(a, b *denial) int { return a.rec.When.Compare(b.rec.When) })
	first := max(0, len(r.guestDenials)-maxGuestsTold)
	for first < len(r.guestDenials) && now.Sub(r.guestDenials[first].rec.When) >= tellFor {
		first++
	}
	for _, d := range r.guestDenials[:first] {
		r.peers.RemoveGuest(d.rec.Key.Key)
	}
	r.guestDenials = slices.Clone(r.guestDenials[first:])
	return r.guestDenials
}

// oldestDenials are those that have to go before more come.
func (r *Registry) oldestDenials(more int) []*denial {
	excess := len(r.denials) + more - maxDenials
	if excess <= 0 {
		return nil
	}
	var all []*denial
	for key, d := range r.denials {
		if !r.reserved.keys[key] {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b *denial) int { return a.rec.When.Compare(b.rec.When) })
	return all[:min(excess, len(all))]
}

// Denied reports whether the key was revoked, and when.
func (r *Registry) Denied(key wgtypes.Key) (when time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.denials[key]; d != nil {
		return d.rec.When, true
	}
	return time.Time{}, false
}

// RevokeToken ends a token; the connectors that it has enrolled stay, those
// that are pending do not.
func (r *Registry) RevokeToken(idOrName string) (TokenInfo, error) {
	// Neither a name nor an id is so long: it may be a token that was cut.
	if strings.Contains(idOrName, wire.TokenPrefix) || len(idOrName) > maxName {
		return TokenInfo{}, fail(BadRequest, "revoking a token: write the token's ID or name, not the token itself")
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	now := r.now().UTC()
	t, err := r.tokenNamed(idOrName, now)
	if err != nil {
		return TokenInfo{}, err
	}
	rec := t.rec
	rec.Revoked = now
	writes := []write{rec.write()}
	var pending []*connector
	for name, c := range t.pending {
		pending, writes = append(pending, c), append(writes, write{kindConnector, name, nil})
	}
	if err := r.commit(fmt.Sprintf("revoking token %q", idOrName), writes...); err != nil {
		return TokenInfo{}, err
	}
	r.mu.Lock()
	t.rec = rec
	r.mu.Unlock()
	r.log.Info("token revoked", "token", rec.ID, "name", rec.Name, "network", rec.Network)
	for _, c := range pending {
		r.forget(c, "its token was revoked")
	}
	r.trimTokenGuests(now)
	return r.tokenInfo(t, now), nil
}

// tokenNamed finds the active token of that id or name.
func (r *Registry) tokenNamed(idOrName string, now time.Time) (*token, error) {
	var found, ended []*token
	if t := r.tokens[idOrName]; t != nil {
		found = append(found, t)
	} else {
		for _, t := range r.tokens {
			if idOrName != "" && t.rec.Name == idOrName {
				found = append(found, t)
			}
		}
	}
	ended = slices.Clone(found)
	found = slices.DeleteFunc(found, func(t *token) bool { s, _ := t.rec.state(now); return s != TokenActive })
	var ids []string
	for _, t := range found {
		ids = append(ids, t.rec.ID)
	}
	slices.Sort(ids)
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fail(Refused, "revoking token %q: several have that name: name it by its id, %s", idOrName, list("one of", ids))
	case len(ended) > 0:
		state, since := ended[0].rec.state(now)
		return nil, fail(Refused, "revoking token %q: it has ended already: %s on %s", idOrName, state, date(since))
	}
	return nil, fail(NotFound, "revoking token %q: there is none of that name or id: see `warren token list`", idOrName)
}

// trimTokenGuests ends the guests of the tokens that ended longest ago, beyond
// maxGuestsTold.
func (r *Registry) trimTokenGuests(now time.Time) {
	type ending struct {
		*token
		at time.Time
	}
	var told []ending
	guests := 0
	for _, t := range r.tokens {
		if _, at := t.rec.state(now); t.guests && !at.IsZero() {
			told, guests = append(told, ending{t, at}), guests+len(t.rec.Bootstrap)
		}
	}
	if guests <= maxGuestsTold {
		return
	}
	slices.SortFunc(told, func(a, b ending) int { return a.at.Compare(b.at) })
	for _, t := range told {
		if guests <= maxGuestsTold {
			return
		}
		guests -= len(t.rec.Bootstrap)
		r.removeGuests(t.token)
	}
}
