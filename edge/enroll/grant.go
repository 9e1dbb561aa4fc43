package enroll

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

// grantOf is what c may do and is wanted to do. The caller holds changing.
func (r *Registry) grantOf(c *connector) wire.Grant {
	network := r.networks[c.rec.Network]
	return wire.Grant{
		Name: c.rec.Name, Network: c.rec.Network, Routes: c.rec.Routes, Edges: r.edges,
		MaxTCPFlows: network.MaxTCPFlows, MaxUDPFlows: network.MaxUDPFlows,
		Drain: c.draining, Rotate: !c.declared && (c.rec.Rotate || r.aged(c, r.now())),
		Work: c.working && !c.draining,
	}
}

// aged reports whether a connector's key is due for a change.
func (r *Registry) aged(c *connector, now time.Time) bool {
	return r.spec.KeyMaxAge > 0 && now.Sub(c.rec.KeySince) >= r.spec.KeyMaxAge
}

// revisionOf makes the revision of a grant out of its content: a restart keeps
// it, and a change that was taken back before the connector saw it is none. Its
// 53 bits are what any reader of JSON keeps of a number; 0 is the connector's
// way to say that it has no grant.
func revisionOf(g wire.Grant) uint64 {
	text, err := json.Marshal(g)
	if err != nil {
		panic(fmt.Sprintf("encoding a grant: %v", err)) // of plain types alone
	}
	sum := sha256.Sum256(text)
	return max(1, binary.BigEndian.Uint64(sum[:])>>(64-53))
}

// refresh brings c's grant up to date and wakes its sync if it changed. The
// caller holds changing, not mu.
func (r *Registry) refresh(c *connector) {
	grant := r.grantOf(c)
	revision := revisionOf(grant)
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.revision == revision {
		return
	}
	c.grant, c.revision = grant, revision
	c.syncs.wakeLocked()
}

// Grant gives an enrolled connector other routes. Flows that they do not cover
// are aborted.
func (r *Registry) Grant(name string, routes []netip.Prefix) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	doing := fmt.Sprintf("granting routes to connector %q", name)
	c, err := r.named(doing, name)
	if err != nil {
		return err
	}
	if c.declared {
		return fail(Refused, "%s: it is declared in edge.toml: change its routes there and run `warren edge reload`", doing)
	}
	if err := checkRoutes(doing, routes, r.spec.CheckRoutes); err != nil {
		return err
	}
	before, rec := c.rec, c.rec
	rec.Routes = slices.Clone(routes)
	if err := r.commit(doing, rec.write()); err != nil {
		return err
	}
	if !c.asleep {
		if err := r.peers.SetRoutes(name, slices.Clone(routes)); err != nil {
			r.takeBack(doing, before.write())
			return fail(Refused, "%s: %w", doing, err)
		}
	}
	r.replace(c, rec)
	r.refresh(c)
	r.log.Info("connector granted routes", "connector", name, "network", rec.Network, "routes", routes)
	return nil
}

// Drain gives a connector no new flows and tells it to leave once its flows
// have ended, or takes that back. It lasts as long as the process.
func (r *Registry) Drain(name string, off bool) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	doing := fmt.Sprintf("draining connector %q", name)
	c, err := r.named(doing, name)
	if err != nil {
		return err
	}
	if c.rec.Pending {
		return fail(Refused, "%s: it is not confirmed yet", doing)
	}
	r.mu.Lock()
	changed := c.draining == off
	c.draining = !off
	r.mu.Unlock()
	r.peers.SetHeld(name, !off)
	r.refresh(c)
	if changed {
		r.log.Info("connector drained", "connector", name, "network", c.rec.Network, "off", off)
	}
	return nil
}

// ask sets the grants of those whose key is due, at a sweep.
func (r *Registry) ask(now time.Time) {
	for _, c := range r.connectors {
		if !c.declared && !c.grant.Rotate && !c.rec.Pending && r.aged(c, now) {
			r.refresh(c)
			r.log.Info("connector asked for a new key", "connector", c.rec.Name, "network", c.rec.Network, "key_since", c.rec.KeySince)
		}
	}
}
