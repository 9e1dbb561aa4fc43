package enroll

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// Check tells whether spec can be applied: not if it declares a name or a key
// that is enrolled. Until the next Apply, Check or Release nobody enrols with a
// name or a key that spec declares.
func (r *Registry) Check(spec Spec) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	if err := r.checkLocked(spec); err != nil {
		return err
	}
	r.reserved = reserve(&r.spec, &spec)
	return nil
}

// Release gives up what Check has set aside.
func (r *Registry) Release() {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.reserved = reserve(&r.spec)
}

func (r *Registry) checkLocked(spec Spec) error {
	if err := spec.validate(); err != nil {
		return err
	}
	var problems []error
	for _, d := range spec.Declared {
		if c := r.connectors[d.Name]; c != nil && !c.declared {
			problems = append(problems, fmt.Errorf("declaring connector %q: one of that name has enrolled with a token: choose another name, or revoke that one first", d.Name))
		}
		if c := r.byKey[d.PublicKey]; c != nil && !c.declared {
			problems = append(problems, fmt.Errorf("declaring connector %q: its key is that of connector %q, which has enrolled with a token: one of the two is enough", d.Name, c.rec.Name))
		}
		if t := r.bootstraps[d.PublicKey]; t != nil {
			problems = append(problems, fmt.Errorf("declaring connector %q: its key is one of token %s: give it one of its own", d.Name, t.rec.ID))
		}
		if d.PublicKey == r.self {
			problems = append(problems, fmt.Errorf("declaring connector %q: its key is this edge's own: write what the connector prints at its start", d.Name))
		}
	}
	return errors.Join(problems...)
}

// Apply brings spec into force; it is for the time after the tunnel has its
// networks and declared connectors. Enrolled connectors whose network has gone
// are asleep until it comes back. Grants that changed are pushed.
func (r *Registry) Apply(spec Spec) {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.applyLocked(spec)
}

func (r *Registry) applyLocked(spec Spec) {
	networks := make(map[string]Network, len(spec.Networks))
	for _, n := range spec.Networks {
		networks[n.Name] = n
	}
	r.mu.Lock()
	r.spec, r.networks = spec, networks
	r.edges = []wire.Edge{{PublicKey: wire.Key{Key: r.self}, URLs: slices.Clone(spec.Advertise)}}
	r.mu.Unlock()
	r.reserved = reserve(&r.spec)
	r.declare()
	for _, c := range r.connectors {
		_, there := networks[c.rec.Network]
		switch {
		case c.declared:
			if c.draining {
				r.peers.SetHeld(c.rec.Name, true) // it may be new in the tunnel
			}
		case there && c.asleep:
			r.wake(c)
		case !there:
			if !c.asleep {
				r.peers.RemoveConnector(c.rec.Name)
			}
			r.setAsleep(c, true, fmt.Sprintf("edge.toml does not have its network %q", c.rec.Network))
		}
		r.refresh(c)
	}
	r.WorkChanged() // for those that are new
}

// declare makes the declared connectors those of spec. One that keeps its name
// and key keeps what it reported, and its drain.
func (r *Registry) declare() {
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := make(map[wgtypes.Key]Declared, len(r.spec.Declared))
	for _, d := range r.spec.Declared {
		if r.denials[d.PublicKey] == nil {
			wanted[d.PublicKey] = d
		}
	}
	for _, c := range r.connectors {
		if !c.declared {
			continue
		}
		if d, stays := wanted[c.rec.Key.Key]; !stays || d.Name != c.rec.Name {
			r.dropLocked(c)
		}
	}
	for key, d := range wanted {
		rec := connectorRecord{Name: d.Name, Network: d.Network, Routes: slices.Clone(d.Routes), Key: wire.Key{Key: key}}
		if c := r.connectors[d.Name]; c != nil {
			c.rec = rec
			continue
		}
		r.addConnector(&connector{rec: rec, declared: true})
	}
}

// wake puts an enrolled connector into the tunnel, or back.
func (r *Registry) wake(c *connector) {
	if err := r.tryWake(c); err != nil {
		r.log.Error("an enrolled connector cannot be served: "+err.Error(), "connector", c.rec.Name, "network", c.rec.Network)
	}
}

// retry tries again, now and then, those that the tunnel refused. Why it
// refuses them is said where that is news.
func (r *Registry) retry(now time.Time) {
	if now.Sub(r.retried) < retryEvery {
		return
	}
	r.retried = now
	for _, c := range r.connectors {
		if _, there := r.networks[c.rec.Network]; !there || !c.asleep {
			continue
		}
		before := c.why
		switch err := r.tryWake(c); {
		case err == nil:
			r.log.Info("an enrolled connector can be served after all", "connector", c.rec.Name, "network", c.rec.Network)
		case err.Error() != before:
			r.log.Error("an enrolled connector cannot be served: "+err.Error(), "connector", c.rec.Name, "network", c.rec.Network)
		}
	}
}

func (r *Registry) tryWake(c *connector) error {
	if err := r.peers.AddConnector(c.rec.member()); err != nil {
		r.setAsleep(c, true, err.Error())
		return err
	}
	if next := c.rec.Next.Key; next != (wgtypes.Key{}) {
		if err := r.peers.AddKey(c.rec.Name, next); err != nil {
			r.log.Error("a connector cannot go on with its next key: "+err.Error(), "connector", c.rec.Name)
		}
	}
	if c.draining {
		r.peers.SetHeld(c.rec.Name, true)
	}
	r.setAsleep(c, false, "")
	return nil
}

func (r *Registry) setAsleep(c *connector, asleep bool, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.asleep, c.why = asleep, why
}
