package enroll

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// ConnectorState is one of the Connector values.
type ConnectorState string

const (
	ConnectorPending  ConnectorState = "pending"  // its key has not synced yet
	ConnectorEnrolled ConnectorState = "enrolled" // or declared
	ConnectorAsleep   ConnectorState = "asleep"   // its network has gone, or the tunnel did not take it: see Why
	ConnectorRevoked  ConnectorState = "revoked"  // declared, but its key is denied
)

// Stages of a change of a connector's key.
const (
	RotationAsked      = "asked"      // the grant tells the connector to make a new key
	RotationRegistered = "registered" // the new key is known, and has not synced yet
)

// Connector is what is known of a connector; the tunnel knows the rest.
type Connector struct {
	Name      string
	Network   string
	Routes    []netip.Prefix
	State     ConnectorState
	Why       string // of one that is not in the tunnel
	PublicKey wgtypes.Key
	NextKey   wgtypes.Key // zero: none is registered
	Declared  bool        // by edge.toml; else by a token
	Token     string      // id of the token that it came by
	Ephemeral bool

	PendingUntil time.Time // of a pending one
	Enrolled     time.Time // when its first key synced; zero for a declared one
	KeySince     time.Time // when its present key was registered; zero for a declared one
	Rotation     string    // RotationAsked, RotationRegistered or empty
	Draining     bool      // by an operator

	Revision                 uint64 // of its grant
	MaxTCPFlows, MaxUDPFlows int

	Working  bool      // there is work for it: see Deps.Work
	LastWork time.Time // when it last asked for it; zero: not since this edge started

	LastSync    time.Time     // zero: none since this edge started
	Report      wire.Report   // of LastSync
	ClockOffset time.Duration // its clock less this edge's, to half a round trip; 0 where it told no time
}

// connector is one that is enrolled, or declared and not denied.
type connector struct {
	// Changes write these with both locks held.
	rec        connectorRecord
	declared   bool
	asleep     bool   // not in the tunnel,
	why        string // because
	draining   bool
	working    bool // there is work for it
	grant      wire.Grant
	revision   uint64
	registered time.Time // since when a pending one may sync

	missed time.Time // since when sweeps miss an ephemeral one, also those before a restart; guarded by changing alone

	// Syncs write these, with mu alone.
	syncs    seat
	lastSync time.Time
	report   wire.Report
	offset   time.Duration
	clock    clockState
	duty
}

// addConnector enters c. The caller holds both locks, or is New.
func (r *Registry) addConnector(c *connector) {
	r.connectors[c.rec.Name] = c
	for _, key := range c.rec.keys() {
		r.byKey[key] = c
	}
	if t := r.tokens[c.rec.Token]; t != nil && c.rec.Pending {
		t.pending[c.rec.Name] = c
	}
}

// dropLocked takes c out of memory and wakes its polls, which then find it
// gone.
func (r *Registry) dropLocked(c *connector) {
	delete(r.connectors, c.rec.Name)
	for _, key := range c.rec.keys() {
		delete(r.byKey, key)
	}
	if t := r.tokens[c.rec.Token]; t != nil {
		delete(t.pending, c.rec.Name)
	}
	c.syncs.wakeLocked()
	c.works.wakeLocked()
}

// replace gives c another record, of the same name. The caller holds changing.
func (r *Registry) replace(c *connector, rec connectorRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range c.rec.keys() {
		delete(r.byKey, key)
	}
	c.rec = rec
	for _, key := range rec.keys() {
		r.byKey[key] = c
	}
	if t := r.tokens[rec.Token]; t != nil && !rec.Pending {
		delete(t.pending, rec.Name)
	}
}

// named returns the connector of that name, or why doing that with it cannot
// be. The caller holds changing.
func (r *Registry) named(doing, name string) (*connector, error) {
	if c := r.connectors[name]; c != nil {
		return c, nil
	}
	for _, d := range r.spec.Declared {
		if at := r.denials[d.PublicKey]; d.Name == name && at != nil {
			return nil, fail(Refused, "%s: it was revoked on %s: give it a new key, in edge.toml too", doing, date(at.rec.When))
		}
	}
	if when, ok := r.revoked(name); ok {
		return nil, fail(Refused, "%s: it was revoked on %s: enrol it anew, with a new key and a new token", doing, date(when))
	}
	return nil, fail(NotFound, "%s: there is none of that name: %s", doing, list("this edge has", slices.Sorted(maps.Keys(r.connectors))))
}

// revoked tells when the latest connector of that name was revoked. The caller
// holds changing.
func (r *Registry) revoked(name string) (when time.Time, ok bool) {
	for _, d := range r.denials {
		if d.rec.Name == name && (!ok || d.rec.When.After(when)) {
			when, ok = d.rec.When, true
		}
	}
	return when, ok
}

// list names the first few of names.
func list(these string, names []string) string {
	const few = 8
	if len(names) == 0 {
		return these + " none"
	}
	more := ""
	if len(names) > few {
		names, more = names[:few], ", …"
	}
	return these + " " + strings.Join(names, ", ") + more
}

// Connectors returns the enrolled and the declared connectors, sorted by
// network and name.
func (r *Registry) Connectors() []Connector {
	r.mu.Lock()
	all := make([]Connector, 0, len(r.connectors))
	for _, c := range r.connectors {
		all = append(all, c.infoLocked())
	}
	for _, d := range r.spec.Declared {
		if at := r.denials[d.PublicKey]; at != nil {
			all = append(all, Connector{
				Name: d.Name, Network: d.Network, Routes: slices.Clone(d.Routes), PublicKey: d.PublicKey, Declared: true,
				State: ConnectorRevoked, Why: "its key was revoked on " + date(at.rec.When) + ": give it a new key, or remove it from edge.toml",
			})
		}
	}
	r.mu.Unlock()
	slices.SortFunc(all, func(a, b Connector) int {
		if by := strings.Compare(a.Network, b.Network); by != 0 {
			return by
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all
}

func (c *connector) infoLocked() Connector {
	info := Connector{
		Name: c.rec.Name, Network: c.rec.Network, Routes: slices.Clone(c.rec.Routes),
		State: ConnectorEnrolled, Why: c.why, PublicKey: c.rec.Key.Key, NextKey: c.rec.Next.Key,
		Declared: c.declared, Token: c.rec.Token, Ephemeral: c.rec.Ephemeral,
		Enrolled: c.rec.Enrolled, KeySince: c.rec.KeySince, Draining: c.draining,
		Revision: c.revision, MaxTCPFlows: c.grant.MaxTCPFlows, MaxUDPFlows: c.grant.MaxUDPFlows,
		Working: c.working, LastWork: c.asked,
		LastSync: c.lastSync, Report: c.report, ClockOffset: c.offset,
	}
	info.Report.Errors = slices.Clone(c.report.Errors)
	switch {
	case info.NextKey != (wgtypes.Key{}):
		info.Rotation = RotationRegistered
	case c.grant.Rotate:
		info.Rotation = RotationAsked
	}
	switch {
	case c.rec.Pending:
		info.State, info.PendingUntil = ConnectorPending, c.registered.Add(wire.ConfirmWithin)
	case c.asleep:
		info.State = ConnectorAsleep
	}
	return info
}
