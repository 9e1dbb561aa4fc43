package enroll

import (
	"fmt"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// Rotate asks an enrolled connector for a new key. Where it is not connected it
// is asked once it is.
func (r *Registry) Rotate(name string) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	doing := fmt.Sprintf("asking connector %q for a new key", name)
	c, err := r.named(doing, name)
	if err != nil {
		return err
	}
	switch {
	case c.declared:
		return fail(Refused, "%s: its key is declared in edge.toml: write the new one there and run `warren edge reload`", doing)
	case c.rec.Pending:
		return fail(Refused, "%s: it is not confirmed yet, and has a new one", doing)
	case c.rec.Rotate:
		return nil
	}
	rec := c.rec
	rec.Rotate = true
	if err := r.commit(doing, rec.write()); err != nil {
		return err
	}
	r.replace(c, rec)
	r.refresh(c)
	r.log.Info("connector asked for a new key", "connector", name, "network", rec.Network, "key_since", rec.KeySince)
	return nil
}

// changeKey registers a connector's next key. From then on its packets may come
// from either; its first call from the next one ends the change.
func (r *Registry) changeKey(key wgtypes.Key, req wire.KeyRequest) *wire.Refusal {
	if refusal := r.welcome(key); refusal != nil {
		return refusal
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	next := req.PublicKey.Key
	c := r.byKey[key]
	switch {
	case c == nil:
		return r.stranger(key)
	case next == wgtypes.Key{}:
		return wire.Refuse(wire.CodeBadRequest, "the request has no public key")
	case c.declared:
		return wire.Refuse(wire.CodeNotAllowed, "the key of connector %q is declared in the edge's config, and changes there alone", c.rec.Name)
	case next == c.rec.Next.Key || next == c.rec.Key.Key && key == next:
		return nil // the answer to the first request was lost, or the change is over
	}
	if why := r.knownAs(next); why != "" {
		return wire.Refuse(wire.CodeKnownKey, "the key %s is known already: it is %s: make another", abbreviate(next), why)
	}
	before, rec := c.rec, c.rec
	rec.Next = req.PublicKey
	doing := fmt.Sprintf("registering the next key of connector %q", rec.Name)
	if err := r.commit(doing, rec.write()); err != nil {
		return r.unavailable(err)
	}
	if err := r.peers.AddKey(rec.Name, next); err != nil {
		r.takeBack(doing, before.write())
		return r.unavailable(fmt.Errorf("%s: %w", doing, err))
	}
	r.replace(c, rec)
	r.log.Info("connector registered its next key", "connector", rec.Name, "network", rec.Network,
		"key", abbreviate(rec.Key.Key), "next", abbreviate(next))
	return nil
}

// promote makes a connector's next key its key: it has synced.
func (r *Registry) promote(next wgtypes.Key) *wire.Refusal {
	r.changing.Lock()
	defer r.changing.Unlock()
	c := r.byKey[next]
	if c == nil || c.rec.Next.Key != next {
		return nil // whatever came between, the caller finds out
	}
	old, rec := c.rec.Key.Key, c.rec
	rec.Key, rec.Next, rec.Rotate, rec.KeySince = c.rec.Next, wire.Key{}, false, r.now().UTC()
	if err := r.commit(fmt.Sprintf("changing the key of connector %q", rec.Name), rec.write()); err != nil {
		return r.unavailable(err)
	}
	r.replace(c, rec)
	r.peers.DropKey(rec.Name, old)
	r.refresh(c)
	r.log.Info("connector rotated its key", "connector", rec.Name, "network", rec.Network, "key", abbreviate(next), "old", abbreviate(old))
	return nil
}
