package enroll

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// oracle is the registry as one would explain it: lists, and no index.
type oracle struct {
	now    time.Time
	tokyo  bool // the network is there; berlin always is
	tokens []*oracleToken
	conns  []*oracleConn

	started time.Time // the registry
	denied  map[wgtypes.Key]bool
}

type oracleToken struct {
	wire.Token
	network        string
	ephemeral      bool
	expires        time.Time
	revoked, spent bool
	ended          time.Time
	forgotten      bool
}

type oracleConn struct {
	name               string
	key, next          wgtypes.Key
	token              *oracleToken
	pending            bool
	registered, missed time.Time
	stored             time.Time // of missed
	dead, rotate       bool
	draining           bool
	routes             string
}

func (o *oracle) there(network string) bool { return network == "berlin" || o.tokyo }

func (o *oracle) of(key wgtypes.Key) *oracleConn {
	for _, c := range o.conns {
		if c.key == key || c.next == key && key != (wgtypes.Key{}) {
			return c
		}
	}
	return nil
}

func (o *oracle) named(name string) *oracleConn {
	for _, c := range o.conns {
		if c.name == name {
			return c
		}
	}
	return nil
}

func (o *oracle) pendingOf(t *oracleToken) int {
	n := 0
	for _, c := range o.conns {
		if c.pending && c.token == t {
			n++
		}
	}
	return n
}

func (o *oracle) drop(gone *oracleConn) {
	o.conns = slices.DeleteFunc(o.conns, func(c *oracleConn) bool { return c == gone })
}

// known reports whether a key cannot be registered.
func (o *oracle) known(key wgtypes.Key) bool {
	for _, t := range o.tokens {
		for _, b := range t.Bootstrap() {
			if b.PublicKey() == key && !t.forgotten {
				return true
			}
		}
	}
	return o.denied[key] || o.of(key) != nil
}

// enroll gives the name, or the code of the refusal. With broken the store
// fails.
func (o *oracle) enroll(t *oracleToken, key wgtypes.Key, name string, broken bool) (string, wire.Code) {
	switch c := o.of(key); {
	case t.forgotten:
		return "", wire.CodeNotAllowed
	case t.revoked:
		return "", wire.CodeRevoked
	case !o.there(t.network):
		return "", wire.CodeNotAllowed
	case c != nil && c.token == t:
		c.registered, c.missed = o.now, time.Time{}
		return c.name, ""
	case t.spent:
		return "", wire.CodeSpent
	case !o.now.Before(t.expires):
		return "", wire.CodeExpired
	case c != nil && c.pending:
		return "", wire.CodeBusy
	case o.known(key):
		return "", wire.CodeKnownKey
	case !t.Reusable && o.pendingOf(t) > 0:
		return "", wire.CodeBusy
	case broken:
		return "", wire.CodeUnavailable
	}
	base := name
	for i := 2; ; i++ {
		c := o.named(name)
		if c != nil && t.ephemeral && c.token == t && !c.pending && o.gone(c) {
			o.drop(c)
			c = nil
		}
		if c == nil {
			break
		}
		name = fmt.Sprintf("%s-%d", base, i)
	}
	o.conns = append(o.conns, &oracleConn{name: name, key: key, token: t, pending: true, registered: o.now, routes: "10.0.0.0/16"})
	return name, ""
}

// gone reports whether an ephemeral connector's name is free.
func (o *oracle) gone(c *oracleConn) bool {
	return c.dead && !c.missed.IsZero() && o.now.Sub(c.missed) >= brief && o.now.Sub(o.started) >= brief
}

func (o *oracle) sync(key wgtypes.Key, broken bool) wire.Code {
	c := o.of(key)
	switch {
	case c == nil && o.denied[key]:
		return wire.CodeRevoked
	case c == nil:
		return wire.CodeUnknown
	case (c.pending || c.next == key) && broken:
		return wire.CodeUnavailable
	case c.pending:
		c.pending = false
		if !c.token.Reusable && !c.token.revoked {
			c.token.spent = true
		}
		c.token.ended = o.now
	case c.next == key:
		c.key, c.next, c.rotate = c.next, wgtypes.Key{}, false
	}
	return ""
}

func (o *oracle) changeKey(key, next wgtypes.Key, broken bool) wire.Code {
	if code := o.sync(key, broken); code != "" {
		return code
	}
	c := o.of(key)
	switch {
	case c.next == next || c.key == next && key == next:
		return ""
	case o.known(next):
		return wire.CodeKnownKey
	case broken:
		return wire.CodeUnavailable
	}
	c.next = next
	return ""
}

func (o *oracle) sweep() {
	for _, c := range slices.Clone(o.conns) {
		switch {
		case c.pending:
			if o.now.Sub(c.registered) >= wire.ConfirmWithin {
				o.drop(c)
			}
		case !c.token.ephemeral:
		case !c.dead && o.there(c.token.network):
			c.missed, c.stored = time.Time{}, time.Time{}
		case c.missed.IsZero():
			c.missed = o.now
			c.stored = time.Time{}
		case o.now.Sub(c.missed) >= absence && o.now.Sub(o.started) >= callIn:
			o.drop(c)
		case o.now.Sub(c.missed) >= brief:
			c.stored = c.missed
		}
	}
}

// String is what snapshots are compared by.
func (o *oracle) String() string {
	var lines []string
	for _, c := range o.conns {
		state := ConnectorEnrolled
		switch {
		case c.pending:
			state = ConnectorPending
		case !o.there(c.token.network):
			state = ConnectorAsleep
		}
		rotation := ""
		switch {
		case c.next != wgtypes.Key{}:
			rotation = RotationRegistered
		case c.rotate:
			rotation = RotationAsked
		}
		lines = append(lines, fmt.Sprintln(c.name, c.token.network, state, c.key, c.next, rotation, c.draining, c.routes))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func (w *world) string() string {
	var lines []string
	for _, c := range w.Connectors() {
		lines = append(lines, fmt.Sprintln(c.Name, c.Network, c.State, c.PublicKey, c.NextKey, c.Rotation, c.Draining, c.Routes[0]))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// play is one run of random operations on both.
type play struct {
	*world
	o    *oracle
	keys []wgtypes.Key
	rand *rand.Rand
	t    *testing.T
}

func (p *play) key() wgtypes.Key { return p.keys[p.rand.IntN(len(p.keys))] }

func (p *play) token() *oracleToken { return p.o.tokens[p.rand.IntN(len(p.o.tokens))] }

func (p *play) name() string {
	if len(p.o.conns) == 0 {
		return "nobody"
	}
	return p.o.conns[p.rand.IntN(len(p.o.conns))].name
}

func (p *play) same(what string, got, want any) {
	p.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		p.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func codeOf(r *wire.Refusal) wire.Code {
	if r == nil {
		return ""
	}
	return r.Code
}

// operator compares how one of the operator's methods ended: good tells
// whether it should work with a store that does.
func (p *play) operator(what string, err error, good, broken bool) (done bool) {
	p.t.Helper()
	var e *Error
	switch {
	case good && broken:
		if !errors.As(err, &e) || e.Kind != Unavailable {
			p.t.Errorf("%s with a broken store: %v", what, err)
		}
	case good != (err == nil):
		p.t.Errorf("%s: %v, want success: %v", what, err, good)
	}
	return good && !broken
}

func (p *play) step() string {
	broken := p.rand.IntN(6) == 0
	p.store.fail(nil, 0)
	if broken {
		p.store.fail(errors.New("no space left on device"), 0)
	}
	defer p.store.fail(nil, 0)
	switch n := p.rand.IntN(100); {
	case n < 5 || len(p.o.tokens) == 0:
		return p.create(broken)
	case n < 30:
		t, key := p.token(), p.key()
		what := fmt.Sprintf("enrol %v with %v", key, t.ID)
		name, code := p.o.enroll(t, key, "web", broken)
		answer, refusal := p.enroll(joiner(t.Token, p.rand.IntN(8)), wire.EnrollRequest{PublicKey: wire.Key{Key: key}, Name: "web"})
		p.same(what, fmt.Sprint(answer.Name, codeOf(refusal)), fmt.Sprint(name, code))
		return what
	case n < 60:
		key := p.key()
		if c := p.o.of(key); c != nil && !p.o.there(c.token.network) {
			return "nothing: it is not in the tunnel"
		}
		want := p.o.sync(key, broken)
		_, refusal := p.poll(key)
		p.same("sync", codeOf(refusal), want)
		return fmt.Sprintf("sync of %v", key)
	case n < 70:
		key, next := p.key(), p.key()
		if c := p.o.of(key); c != nil && !p.o.there(c.token.network) {
			return "nothing: it is not in the tunnel"
		}
		want := p.o.changeKey(key, next, broken)
		p.same("change of key", codeOf(p.Registry.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: next}})), want)
		return fmt.Sprintf("change of key %v to %v", key, next)
	}
	return p.rare(broken)
}

// rare are the operator's actions, and what happens to an edge.
func (p *play) rare(broken bool) string {
	name := p.name()
	c := p.o.named(name)
	switch n := p.rand.IntN(12); n {
	case 0:
		if p.operator("revoke", p.Revoke(name), c != nil, broken) {
			p.o.drop(c)
			p.o.denied[c.key] = true
			if c.next != (wgtypes.Key{}) {
				p.o.denied[c.next] = true
			}
		}
		return "revoke " + name
	case 1:
		routes := fmt.Sprintf("10.%d.0.0/16", p.rand.IntN(200))
		if p.operator("grant", p.Grant(name, prefixes(routes)), c != nil, broken) {
			c.routes = routes
		}
		return "grant " + name
	case 2:
		if p.operator("rotate", p.Rotate(name), c != nil && !c.pending, broken && c != nil && !c.rotate) {
			c.rotate = true
		}
		return "rotate " + name
	case 3:
		off := p.rand.IntN(2) == 0
		if p.operator("drain", p.Drain(name, off), c != nil && !c.pending, false) {
			c.draining = !off
		}
		return "drain " + name
	case 4:
		t := p.token()
		active := !t.revoked && !t.spent && !t.forgotten && p.o.now.Before(t.expires)
		_, err := p.RevokeToken(t.ID.String())
		if p.operator("revoke a token", err, active, broken) {
			t.revoked, t.ended = true, p.o.now
			p.o.conns = slices.DeleteFunc(p.o.conns, func(c *oracleConn) bool { return c.pending && c.token == t })
		}
		return "revoke token " + t.ID.String()
	case 5:
		p.o.tokyo = !p.o.tokyo
		spec := standard()
		if !p.o.tokyo {
			spec.Networks = spec.Networks[:1]
		}
		p.apply(spec)
		p.tell()
		return "reload"
	case 6:
		p.store.fail(nil, 0)
		p.restart()
		for _, c := range p.o.conns {
			c.registered, c.missed, c.draining = p.o.now, c.stored, false
		}
		p.o.started = p.o.now
		p.tell()
		return "restart"
	case 7, 8:
		if c == nil || !p.o.there(c.token.network) {
			return "nothing"
		}
		c.dead = !c.dead
		p.setAlive(name, !c.dead)
		return "alive " + name
	}
	d := time.Duration(p.rand.IntN(8*60)) * time.Second
	p.clock.pass(d)
	p.o.now = p.o.now.Add(d)
	p.store.fail(nil, 0)
	p.Sweep()
	p.o.sweep()
	return "sweep after " + d.String()
}

// tell repeats to a tunnel that has connectors anew who is dead.
func (p *play) tell() {
	for _, c := range p.o.conns {
		if p.o.there(c.token.network) {
			p.setAlive(c.name, !c.dead)
		}
	}
}

func (p *play) create(broken bool) string {
	t := &oracleToken{network: []string{"berlin", "tokyo"}[p.rand.IntN(2)], ephemeral: p.rand.IntN(3) == 0}
	req := TokenRequest{
		Network: t.network, Routes: prefixes("10.0.0.0/16"), Ephemeral: t.ephemeral, Reusable: p.rand.IntN(2) == 0,
		TTL: time.Duration(1+p.rand.IntN(120)) * time.Minute,
	}
	created, err := p.CreateToken(req)
	if !p.operator("create a token", err, p.o.there(t.network), broken) {
		return "no token"
	}
	if t.Token, err = wire.ParseToken(created.Text); err != nil {
		p.t.Fatal(err)
	}
	t.expires = p.o.now.Add(req.TTL)
	p.o.tokens = append(p.o.tokens, t)
	return "create token " + created.Token.ID
}

// Random operations on a few tokens and keys, with a store that fails now and
// then, and restarts at any point: the registry does what the oracle does, and
// memory, tunnel and store agree after each step.
func TestRandomOperationsAgainstAnOracle(t *testing.T) {
	runs := 12
	if testing.Short() {
		runs = 3
	}
	for i := range runs {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			w := newWorld(t)
			p := &play{world: w, t: t, rand: rand.New(rand.NewPCG(seed, 0)), o: &oracle{now: w.clock.Now(), started: w.clock.Now(), tokyo: true, denied: map[wgtypes.Key]bool{}}}
			for range 12 {
				p.keys = append(p.keys, newKey())
			}
			var story []string
			for range 300 {
				story = append(story, p.step())
				p.check()
				if got, want := p.string(), p.o.String(); got != want {
					t.Errorf("there are\n%swant\n%s", got, want)
				}
				if t.Failed() {
					t.Fatalf("seed %d, after\n%s", seed, strings.Join(story[max(0, len(story)-12):], "\n"))
				}
			}
		})
	}
}
