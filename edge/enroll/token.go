package enroll

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// Bounds of TokenRequest.TTL.
const (
	MinTTL     = time.Minute
	MaxTTL     = 366 * 24 * time.Hour
	DefaultTTL = time.Hour
)

// maxActiveTokens is how many tokens may be active. Each costs the tunnel one
// peer or wire.ReusableKeys of them.
const maxActiveTokens = 10_000

// TokenRequest asks for a token.
type TokenRequest struct {
	Network   string
	Routes    []netip.Prefix
	Name      string        // that its connector gets; empty: the one that the connector asks for
	TTL       time.Duration // 0: DefaultTTL
	Reusable  bool
	Ephemeral bool        // implies Reusable; its connectors are forgotten after 10 minutes of absence
	Edges     []wire.Edge // others that the token is good for too, once they have imported its record
}

// Created is a token that was just made. It is the only thing of this package
// that holds a secret.
type Created struct {
	Token  TokenInfo
	Text   string // the token itself
	Record string // for ImportToken of the request's other edges; empty where there are none. It enrols nobody
}

// TokenState is one of the Token values.
type TokenState string

const (
	TokenActive  TokenState = "active"
	TokenSpent   TokenState = "spent" // its one use is over
	TokenExpired TokenState = "expired"
	TokenRevoked TokenState = "revoked"
)

// TokenInfo is what is known of a token. Its secret is not.
type TokenInfo struct {
	ID        string
	Name      string
	Network   string
	Routes    []netip.Prefix
	State     TokenState
	Reusable  bool
	Ephemeral bool
	Imported  bool          // made by another edge
	Edges     []wgtypes.Key // public keys of all that it is good for
	Created   time.Time
	Expires   time.Time
	Ended     time.Time // when State was entered; zero while it is active
	Forgotten time.Time // when an ended one is forgotten; zero while it is active

	Used       int       // connectors that were confirmed
	Pending    int       // registrations whose key has not synced yet
	LastUsed   time.Time // zero: never
	Connectors []string  // those that came by it, were confirmed and are still there; sorted
	SpentBy    string    // the connector that spent a single-use token
}

// token is one that this edge knows. Changes replace rec and pending with both
// locks held.
type token struct {
	rec     tokenRecord
	pending map[string]*connector // by name
	guests  bool                  // its bootstrap keys are in the tunnel; guarded by changing
}

// state tells how the token is at that time, and since when if it has ended.
func (t tokenRecord) state(now time.Time) (TokenState, time.Time) {
	switch {
	case !t.Revoked.IsZero():
		return TokenRevoked, t.Revoked
	case !t.Spent.IsZero():
		return TokenSpent, t.Spent
	case !now.Before(t.Expires):
		return TokenExpired, t.Expires
	}
	return TokenActive, time.Time{}
}

// CreateToken makes a token and opens this edge to its bootstrap keys.
func (r *Registry) CreateToken(req TokenRequest) (Created, error) {
	req.Reusable = req.Reusable || req.Ephemeral
	req.TTL = cmp.Or(req.TTL, DefaultTTL)
	r.changing.Lock()
	defer r.changing.Unlock()
	now := r.now().UTC()
	if err := r.checkTokenRequest(req, now); err != nil {
		return Created{}, err
	}
	edges := append([]wire.Edge{{PublicKey: wire.Key{Key: r.self}, URLs: r.spec.Advertise}}, req.Edges...)
	made := wire.NewToken(req.Reusable, edges)
	text, err := made.Text()
	if err != nil {
		return Created{}, fail(BadRequest, "creating a token: %w", err)
	}
	t := &token{rec: tokenRecord{terms: terms{
		ID: made.ID.String(), Name: req.Name, Network: req.Network, Routes: slices.Clone(req.Routes),
		Created: now, Expires: now.Add(req.TTL), Reusable: req.Reusable, Ephemeral: req.Ephemeral,
		Preshared: wire.Key{Key: made.PresharedKey()},
	}}}
	for _, e := range edges {
		t.rec.Edges = append(t.rec.Edges, e.PublicKey)
	}
	for _, private := range made.Bootstrap() {
		t.rec.Bootstrap = append(t.rec.Bootstrap, wire.Key{Key: private.PublicKey()})
	}
	created := Created{Text: text}
	if len(req.Edges) > 0 {
		created.Record = writeRecord(t.rec.terms)
	}
	if err := r.admit(t, "creating a token"); err != nil {
		return Created{}, err
	}
	created.Token = r.tokenInfo(t, now)
	return created, nil
}

// admit stores a new token and opens this edge to it.
func (r *Registry) admit(t *token, doing string) error {
	if err := r.commit(doing, t.rec.write()); err != nil {
		return err
	}
	if err := r.addGuests(t); err != nil {
		r.takeBack(doing, write{kindToken, t.rec.ID, nil})
		return fail(Unavailable, "%s: %w", doing, err)
	}
	r.mu.Lock()
	r.addToken(t)
	r.mu.Unlock()
	r.log.Info("token created", "token", t.rec.ID, "name", t.rec.Name, "network", t.rec.Network, "routes", t.rec.Routes,
		"expires", t.rec.Expires, "reusable", t.rec.Reusable, "ephemeral", t.rec.Ephemeral, "imported", t.rec.Imported)
	return nil
}

// addToken enters t. The caller holds both locks, or is New.
func (r *Registry) addToken(t *token) {
	t.pending = make(map[string]*connector)
	r.tokens[t.rec.ID] = t
	for _, key := range t.rec.Bootstrap {
		r.bootstraps[key.Key] = t
	}
}

// addGuests lets joiners with the token reach the enrolment port. All of its
// keys are in the tunnel then, or none.
func (r *Registry) addGuests(t *token) error {
	for i, key := range t.rec.Bootstrap {
		err := r.peers.AddGuest(Guest{
			Name: "token " + t.rec.ID, PublicKey: key.Key, PresharedKey: t.rec.Preshared.Key, Port: wire.EnrollPort,
		})
		if err != nil {
			for _, added := range t.rec.Bootstrap[:i] {
				r.peers.RemoveGuest(added.Key)
			}
			return err
		}
	}
	t.guests = true
	return nil
}

// removeGuests ends that.
func (r *Registry) removeGuests(t *token) {
	if !t.guests {
		return
	}
	t.guests = false
	for _, key := range t.rec.Bootstrap {
		r.peers.RemoveGuest(key.Key)
	}
}

// checkTokenRequest says what is wrong with a request.
func (r *Registry) checkTokenRequest(req TokenRequest, now time.Time) error {
	if len(r.spec.Advertise) == 0 {
		return fail(Refused, `creating a token: [wireguard] advertise is empty: connectors would not know where to call: set it to this edge's public "host:port", and reload`)
	}
	if req.TTL < MinTTL || req.TTL > MaxTTL {
		return fail(BadRequest, "creating a token for %s: use 1 minute to %d days", req.TTL, MaxTTL/(24*time.Hour))
	}
	if err := r.checkEdges(req.Edges); err != nil {
		return err
	}
	return r.checkTerms("creating a token", terms{
		Name: req.Name, Network: req.Network, Routes: req.Routes, Reusable: req.Reusable,
	}, now)
}

// checkEdges refuses other edges that are not others.
func (r *Registry) checkEdges(others []wire.Edge) error {
	seen := map[wire.Key]bool{{Key: r.self}: true}
	for _, e := range others {
		switch {
		case e.PublicKey.Key == r.self:
			return fail(BadRequest, "creating a token: the other edges name this one too: it is in every token, leave it out")
		case seen[e.PublicKey]:
			return fail(BadRequest, "creating a token: edge %s is there twice: give all its addresses in one", e.PublicKey)
		}
		seen[e.PublicKey] = true
	}
	return nil
}

// checkTerms says why a token with such terms cannot be, made here or
// elsewhere.
func (r *Registry) checkTerms(doing string, t terms, now time.Time) error {
	network, ok := r.networks[t.Network]
	switch {
	case !ok:
		return fail(Refused, "%s: there is no network %q: %s", doing, t.Network, list("edge.toml has", slices.Sorted(maps.Keys(r.networks))))
	case !network.Enroll:
		return fail(Refused, "%s: network %q lets no token in: set enroll = true in its [[network]], and reload", doing, t.Network)
	}
	if err := checkRoutes(doing, t.Routes, r.spec.CheckRoutes); err != nil {
		return err
	}
	if t.Name != "" {
		if err := checkName(t.Name); err != nil {
			return fail(BadRequest, "%s: %w", doing, err)
		}
		if !t.Reusable && r.taken(t.Name) {
			return fail(Refused, "%s: connector %q is there already: choose another name, or revoke that one first", doing, t.Name)
		}
	}
	active := 0
	for _, other := range r.tokens {
		if state, _ := other.rec.state(now); state == TokenActive {
			active++
		}
	}
	if active >= maxActiveTokens {
		return fail(Refused, "%s: there are %d active ones, the most that an edge takes: revoke some", doing, active)
	}
	return nil
}

// checkRoutes refuses routes that a connector cannot have.
func checkRoutes(doing string, routes []netip.Prefix, allowed func([]netip.Prefix) error) error {
	if len(routes) == 0 {
		return fail(BadRequest, `%s: it needs at least one route, as in "10.0.0.0/16"`, doing)
	}
	if len(routes) > wire.MaxRoutes {
		return fail(BadRequest, "%s: it has %d routes: use %d at most", doing, len(routes), wire.MaxRoutes)
	}
	seen := make(map[netip.Prefix]bool, len(routes))
	for _, p := range routes {
		switch {
		case !p.IsValid() || p.Addr().Is4In6():
			return fail(BadRequest, `%s: route %q is none: write an address and a length, as in "10.0.0.0/16"`, doing, p)
		case p != p.Masked():
			return fail(BadRequest, "%s: route %q has bits set beyond its length: write %q", doing, p, p.Masked())
		case seen[p]:
			return fail(BadRequest, "%s: route %q is there twice", doing, p)
		}
		seen[p] = true
	}
	if allowed != nil {
		if err := allowed(routes); err != nil {
			return fail(Refused, "%s: %w", doing, err)
		}
	}
	return nil
}

// Tokens returns the tokens, the latest first.
func (r *Registry) Tokens() []TokenInfo {
	now := r.now()
	r.mu.Lock()
	all := make([]TokenInfo, 0, len(r.tokens))
	at := make(map[string]int, len(r.tokens))
	for _, t := range r.tokens {
		at[t.rec.ID] = len(all)
		all = append(all, t.infoLocked(now))
	}
	for _, c := range r.connectors {
		if i, ok := at[c.rec.Token]; ok && !c.rec.Pending {
			all[i].Connectors = append(all[i].Connectors, c.rec.Name)
		}
	}
	r.mu.Unlock()
	for i := range all {
		slices.Sort(all[i].Connectors)
	}
	slices.SortFunc(all, func(a, b TokenInfo) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
	})
	return all
}

// tokenInfo describes one token, which need not be known any more.
func (r *Registry) tokenInfo(t *token, now time.Time) TokenInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	info := t.infoLocked(now)
	for _, c := range r.connectors {
		if c.rec.Token == t.rec.ID && !c.rec.Pending {
			info.Connectors = append(info.Connectors, c.rec.Name)
		}
	}
	slices.Sort(info.Connectors)
	return info
}

func (t *token) infoLocked(now time.Time) TokenInfo {
	state, ended := t.rec.state(now)
	info := TokenInfo{
		ID: t.rec.ID, Name: t.rec.Name, Network: t.rec.Network, Routes: slices.Clone(t.rec.Routes),
		State: state, Reusable: t.rec.Reusable, Ephemeral: t.rec.Ephemeral, Imported: t.rec.Imported,
		Created: t.rec.Created, Expires: t.rec.Expires, Ended: ended,
		Used: t.rec.Used, Pending: len(t.pending), LastUsed: t.rec.LastUsed, SpentBy: t.rec.SpentBy.Name,
	}
	for _, key := range t.rec.Edges {
		info.Edges = append(info.Edges, key.Key)
	}
	if !ended.IsZero() {
		info.Forgotten = ended.Add(tellFor)
	}
	return info
}
