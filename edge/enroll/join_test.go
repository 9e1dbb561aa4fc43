package enroll

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

func TestEnrolment(t *testing.T) {
	w := newWorld(t)
	created, token := w.token(func(r *TokenRequest) { r.Name = "berlin-1" })
	key := newKey()
	answer, refusal := w.register(token, key, "asked")
	if refusal != nil {
		t.Fatal(refusal)
	}
	if answer.Name != "berlin-1" || answer.Network != "berlin" || answer.Ephemeral || !answer.Time.Equal(w.clock.Now()) ||
		len(answer.Edges) != 1 || answer.Edges[0].PublicKey.Key != w.self || answer.Edges[0].URLs[0] != "fra1.example.net:51820" {
		t.Errorf("answered %+v", answer)
	}
	w.check()
	c := w.connector("berlin-1")
	if c.State != ConnectorPending || !c.PendingUntil.Equal(w.clock.Now().Add(wire.ConfirmWithin)) || c.Token != created.Token.ID || c.PublicKey != key {
		t.Errorf("pending as %+v", c)
	}
	if list := w.Tokens(); list[0].State != TokenActive || list[0].Pending != 1 || list[0].Used != 0 {
		t.Errorf("the token is %+v", list[0])
	}
	w.clock.pass(time.Second)
	grant, refusal := w.poll(key)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if g := grant.Grant; g.Name != "berlin-1" || g.Network != "berlin" || len(g.Routes) != 1 || g.Rotate || g.Drain || grant.Revision == 0 {
		t.Errorf("granted %+v", grant)
	}
	c = w.connector("berlin-1")
	if c.State != ConnectorEnrolled || !c.Enrolled.Equal(w.clock.Now()) || !c.KeySince.Equal(w.clock.Now().Add(-time.Second)) || c.Report.Hostname != "db7" || !c.LastSync.Equal(w.clock.Now()) {
		t.Errorf("enrolled as %+v", c)
	}
	if list := w.Tokens(); list[0].State != TokenSpent || list[0].SpentBy != "berlin-1" || list[0].Used != 1 || list[0].Connectors[0] != "berlin-1" || !list[0].LastUsed.Equal(w.clock.Now()) {
		t.Errorf("the token is %+v", list[0])
	}
	w.check()
}

func TestRefusedEnrolments(t *testing.T) {
	for _, c := range []struct {
		name  string
		ask   func(w *world) *wire.Refusal
		code  wire.Code
		words []string
	}{
		{"spent", func(w *world) *wire.Refusal {
			_, token := w.token(func(r *TokenRequest) { r.Name = "berlin-1" })
			_, key := w.enrolled(token, "")
			w.clock.pass(time.Hour)
			_, refusal := w.register(token, newKey(), "")
			wantWords(w.t, refusal.Message, abbreviate(key))
			return refusal
		}, wire.CodeSpent, []string{"the token was used on 2026-11-22 05:13:02 UTC", `connector "berlin-1"`, `host "db7"`, "warren token create"}},
		{"expired", func(w *world) *wire.Refusal {
			_, token := w.token()
			w.clock.pass(time.Hour)
			_, refusal := w.register(token, newKey(), "")
			return refusal
		}, wire.CodeExpired, []string{"the token expired on 2026-11-22 06:13:02 UTC", "warren token create"}},
		{"revoked", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, _ = w.RevokeToken(token.ID.String())
			_, refusal := w.register(token, newKey(), "")
			return refusal
		}, wire.CodeRevoked, []string{"the token was revoked on 2026-11-22 05:13:02 UTC", "warren token create"}},
		{"revoked, though it is the key that has enrolled", func(w *world) *wire.Refusal {
			_, token := w.token(reusable)
			_, key := w.enrolled(token, "")
			_, _ = w.RevokeToken(token.ID.String())
			_, refusal := w.register(token, key, "")
			return refusal
		}, wire.CodeRevoked, nil},
		{"another connector's key", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, key := w.enrolled(token, "berlin-1")
			_, other := w.token()
			_, refusal := w.register(other, key, "")
			return refusal
		}, wire.CodeKnownKey, []string{`connector "berlin-1"`, "a key of its own"}},
		{"a key that is being confirmed with another token", func(w *world) *wire.Refusal {
			_, token := w.token()
			key := newKey()
			if _, refusal := w.register(token, key, "berlin-1"); refusal != nil {
				return refusal
			}
			_, other := w.token()
			_, refusal := w.register(other, key, "")
			w.clock.pass(wire.ConfirmWithin)
			w.Sweep()
			if _, late := w.register(other, key, ""); late != nil {
				w.t.Errorf("refused when the other registration was over: %v", late)
			}
			return refusal
		}, wire.CodeBusy, []string{"2026-11-22 05:14:02 UTC", "ask again"}},
		{"a connector's next key", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, key := w.enrolled(token, "berlin-1")
			next := newKey()
			if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
				return refusal
			}
			_, other := w.token()
			_, refusal := w.register(other, next, "")
			return refusal
		}, wire.CodeKnownKey, []string{`connector "berlin-1"`}},
		{"a declared connector's key", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, refusal := w.register(token, w.spec.Declared[0].PublicKey, "")
			return refusal
		}, wire.CodeKnownKey, []string{`connector "declared"`}},
		{"a key that a reload is about to declare", func(w *world) *wire.Refusal {
			_, token := w.token()
			next := standard()
			next.Declared = []Declared{{Name: "new", Network: "berlin", PublicKey: newKey()}}
			if err := w.Check(next); err != nil {
				w.t.Fatal(err)
			}
			_, refusal := w.register(token, next.Declared[0].PublicKey, "")
			return refusal
		}, wire.CodeKnownKey, []string{"edge.toml"}},
		{"its own bootstrap key", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, refusal := w.register(token, joiner(token, 0), "")
			return refusal
		}, wire.CodeKnownKey, []string{"token"}},
		{"another token's bootstrap key", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, other := w.token(reusable)
			_, refusal := w.register(token, joiner(other, 3), "")
			return refusal
		}, wire.CodeKnownKey, []string{"token"}},
		{"this edge's key", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, refusal := w.register(token, w.self, "")
			return refusal
		}, wire.CodeKnownKey, []string{"this edge's own"}},
		{"a denied key", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, key := w.enrolled(token, "berlin-1")
			_ = w.Revoke("berlin-1")
			_, other := w.token()
			_, refusal := w.register(other, key, "")
			return refusal
		}, wire.CodeKnownKey, []string{`connector "berlin-1"`, "revoked on 2026-11-22 05:13:02 UTC"}},
		{"a denied key, long after", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, key := w.enrolled(token, "berlin-1")
			_ = w.Revoke("berlin-1")
			w.clock.pass(365 * 24 * time.Hour)
			w.Sweep()
			w.restart()
			_, other := w.token()
			_, refusal := w.register(other, key, "")
			return refusal
		}, wire.CodeKnownKey, []string{"revoked on 2026-11-22"}},
		{"another is being confirmed", func(w *world) *wire.Refusal {
			_, token := w.token()
			if _, refusal := w.register(token, newKey(), ""); refusal != nil {
				return refusal
			}
			_, refusal := w.register(token, newKey(), "")
			return refusal
		}, wire.CodeBusy, []string{"2026-11-22 05:14:02 UTC", "ask again"}},
		{"no key", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, refusal := w.register(token, wgtypes.Key{}, "")
			return refusal
		}, wire.CodeBadRequest, []string{"no public key"}},
		{"a bad name", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, refusal := w.register(token, newKey(), "a\x1b[31m")
			return refusal
		}, wire.CodeBadRequest, []string{`"a?[31m"`, "letters"}},
		{"a very long name", func(w *world) *wire.Refusal {
			_, token := w.token()
			_, refusal := w.register(token, newKey(), strings.Repeat("a", 10_000))
			return refusal
		}, wire.CodeBadRequest, []string{"too long"}},
		{"a network that has gone", func(w *world) *wire.Refusal {
			_, token := w.token()
			spec := w.spec
			spec.Networks = spec.Networks[1:]
			w.apply(spec)
			_, refusal := w.register(token, newKey(), "")
			return refusal
		}, wire.CodeNotAllowed, []string{`network "berlin"`, "no longer", "edge.toml"}},
		{"a network that lets none in any more", func(w *world) *wire.Refusal {
			_, token := w.token()
			spec := w.spec
			spec.Networks = []Network{{Name: "berlin"}, {Name: "tokyo"}}
			w.apply(spec)
			_, refusal := w.register(token, newKey(), "")
			return refusal
		}, wire.CodeNotAllowed, []string{`network "berlin"`, "enroll = true"}},
		{"no token's key", func(w *world) *wire.Refusal {
			_, refusal := w.enroll(newKey(), wire.EnrollRequest{PublicKey: wire.Key{Key: newKey()}})
			return refusal
		}, wire.CodeNotAllowed, []string{"no token", "warren token create"}},
		{"too many connectors", func(w *world) *wire.Refusal {
			for i := range maxConnectors {
				name := fmt.Sprint(i)
				w.connectors[name] = &connector{rec: connectorRecord{Name: name}}
			}
			_, token := w.token()
			_, refusal := w.register(token, newKey(), "")
			clear(w.connectors)
			w.byKey = map[wgtypes.Key]*connector{}
			clear(w.tun.members)
			return refusal
		}, wire.CodeUnavailable, []string{"connectors, the most that it takes", "revoke some"}},
		{"too many of one token", func(w *world) *wire.Refusal {
			_, token := w.token(reusable)
			for range maxPending {
				if _, refusal := w.register(token, newKey(), ""); refusal != nil {
					return refusal
				}
			}
			_, refusal := w.register(token, newKey(), "")
			return refusal
		}, wire.CodeBusy, []string{"256 connectors", "ask again"}},
		{"the disk is full", func(w *world) *wire.Refusal {
			_, token := w.token()
			w.store.fail(errors.New("no space left on device"), 0)
			_, refusal := w.register(token, newKey(), "")
			if strings.Contains(refusal.Message, "space") {
				w.t.Error("the joiner is told of this edge's disk")
			}
			wantWords(w.t, "see: "+w.log.String()[strings.Index(w.log.String(), "level=ERROR"):]+".x", "no space left on device")
			return refusal
		}, wire.CodeUnavailable, []string{"ask again"}},
		{"the tunnel takes no more", func(w *world) *wire.Refusal {
			_, token := w.token()
			w.tun.broken = errors.New("too many peers")
			_, refusal := w.register(token, newKey(), "")
			return refusal
		}, wire.CodeUnavailable, []string{"ask again"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, func(s *Spec) {
				s.Declared = []Declared{{Name: "declared", Network: "tokyo", PublicKey: newKey(), Routes: prefixes("10.9.0.0/16")}}
			})
			wantRefusal(t, c.ask(w), c.code, c.words...)
			if c.name != "too many connectors" {
				w.check()
			}
		})
	}
}

// A lost reply must burn nothing: whoever asks again with the same token and
// key is told the same, for as long as the token is remembered.
func TestTheSameTokenAndKeyGetTheSameAnswer(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	key := newKey()
	first, refusal := w.register(token, key, "web")
	if refusal != nil {
		t.Fatal(refusal)
	}
	same := func(when string) {
		t.Helper()
		again, refusal := w.register(token, key, "another")
		if refusal != nil || again.Name != first.Name || again.Network != first.Network {
			t.Errorf("%s: %+v, %v; want %+v", when, again, refusal, first)
		}
		w.check()
	}
	same("at once")
	w.restart()
	same("after a restart")
	if _, refusal := w.poll(key); refusal != nil {
		t.Fatal(refusal)
	}
	same("when it is spent")
	w.restart()
	same("when it is spent, after a restart")
	w.clock.pass(2 * time.Hour)
	w.Sweep()
	same("when it has expired")
	next := newKey()
	if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal := w.poll(next); refusal != nil {
		t.Fatal(refusal)
	}
	key = next
	same("with the key that it has changed to")
	if got := w.Counts().Enrollments[ResultRepeated]; got != 3 { // since the last restart
		t.Errorf("%d repetitions counted", got)
	}
	if w.Tokens()[0].Used != 1 {
		t.Error("a repetition counts as a use")
	}
}

func TestARegistrationThatIsNotConfirmedFreesTheToken(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	lost := newKey()
	if _, refusal := w.register(token, lost, "web"); refusal != nil {
		t.Fatal(refusal)
	}
	w.clock.pass(wire.ConfirmWithin - time.Second)
	w.Sweep()
	if _, refusal := w.register(token, lost, "web"); refusal != nil { // its time begins anew
		t.Fatal(refusal)
	}
	w.clock.pass(wire.ConfirmWithin - time.Second)
	w.Sweep()
	w.restart() // again
	w.clock.pass(wire.ConfirmWithin - time.Second)
	w.Sweep()
	_, refusal := w.register(token, newKey(), "web")
	wantRefusal(t, refusal, wire.CodeBusy)
	w.clock.pass(time.Second)
	w.Sweep()
	w.check()
	if _, refusal := w.poll(lost); refusal == nil || refusal.Code != wire.CodeUnknown {
		t.Errorf("the lost one syncs: %v", refusal)
	}
	if answer, _ := w.enrolled(token, "web"); answer.Name != "web" {
		t.Errorf("the name is still taken: %q", answer.Name)
	}
	w.check()
}

func TestNames(t *testing.T) {
	w := newWorld(t, func(s *Spec) {
		s.Declared = []Declared{{Name: "db7", Network: "tokyo", PublicKey: newKey(), Routes: prefixes("10.9.0.0/16")}}
	})
	_, token := w.token(reusable)
	_, named := w.token(reusable, func(r *TokenRequest) { r.Name = "fleet" })
	long := strings.Repeat("x", maxName)
	for _, c := range []struct {
		token          wire.Token
		name, hostname string
		want           string
	}{
		{token, "web", "host", "web"},
		{token, "web", "host", "web-2"},
		{token, "web", "host", "web-3"},
		{token, "web-2", "host", "web-2-2"},
		{token, "", "host.example.com", "host.example.com"},
		{token, "", "db7", "db7-2"}, // declared
		{token, "", "--a b\tc\x00ü!", "a-b-c"},
		{token, "", "", "connector"},
		{token, "", "!!", "connector-2"},
		{named, "web", "host", "fleet"},
		{named, "web", "host", "fleet-2"},
		{token, long, "", long},
		{token, long, "", long[:61] + "-2"},
	} {
		answer, refusal := w.enroll(joiner(c.token, 0), wire.EnrollRequest{PublicKey: wire.Key{Key: newKey()}, Name: c.name, Hostname: c.hostname})
		if refusal != nil || answer.Name != c.want {
			t.Errorf("name %q on host %q: called %q (%v), want %q", c.name, c.hostname, answer.Name, refusal, c.want)
		}
	}
	w.check()
}

func TestTheTokensRoutesAreStoredWithTheConnector(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(func(r *TokenRequest) { r.Routes = prefixes("10.0.0.0/16", "2001:db8::/64") })
	_, key := w.enrolled(token, "web")
	w.restart()
	if m, ok := w.tun.member("web"); !ok || len(m.Routes) != 2 || m.PublicKey != key {
		t.Errorf("after a restart the tunnel has %+v", m)
	}
	w.check()
}

// A connector that has lost its state, but not its key, cannot enrol with
// another token: what the refusal tells to do works, and is told whole.
func TestTheWayOutOfAKnownKey(t *testing.T) {
	for name, revoke := range map[string]bool{"revoked first": true, "not revoked": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			called := strings.Repeat("x", maxName)
			_, token := w.token()
			_, key := w.enrolled(token, called)
			_, other := w.token()
			_, refusal := w.register(other, key, called)
			wantRefusal(t, refusal, wire.CodeKnownKey, abbreviate(key), called, "warren connector revoke", "remove the state directory", "start again")
			if len(refusal.Message) > wire.MaxText {
				t.Errorf("%d bytes, of which a connector shows %d", len(refusal.Message), wire.MaxText)
			}
			want := called[:maxName-2] + "-2"
			if revoke {
				want = called
				if err := w.Revoke(called); err != nil {
					t.Fatal(err)
				}
				_, refusal := w.register(other, key, called)
				wantRefusal(t, refusal, wire.CodeKnownKey, "revoked on", "remove its state directory")
				if len(refusal.Message) > wire.MaxText {
					t.Errorf("%d bytes, of which a connector shows %d", len(refusal.Message), wire.MaxText)
				}
			}
			if answer, _ := w.enrolled(other, called); answer.Name != want { // the same token, another key
				t.Errorf("called %q, want %q", answer.Name, want)
			}
			w.check()
		})
	}
}
