package enroll

import (
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

func TestCheckRefusesWhatIsEnrolled(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(reusable)
	_, key := w.enrolled(token, "web")
	next := newKey()
	if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
		t.Fatal(refusal)
	}
	pending := newKey()
	if _, refusal := w.register(token, pending, "pending"); refusal != nil {
		t.Fatal(refusal)
	}
	for _, c := range []struct {
		name  string
		d     Declared
		words []string
	}{
		{"its name", Declared{Name: "web", PublicKey: newKey()}, []string{`"web"`, "enrolled with a token", "revoke"}},
		{"a pending one's name", Declared{Name: "pending", PublicKey: newKey()}, []string{`"pending"`}},
		{"its key", Declared{Name: "new", PublicKey: key}, []string{`"new"`, `connector "web"`}},
		{"its next key", Declared{Name: "new", PublicKey: next}, []string{`connector "web"`}},
		{"a pending one's key", Declared{Name: "new", PublicKey: pending}, []string{`connector "pending"`}},
		{"a bootstrap key", Declared{Name: "new", PublicKey: joiner(token, 0)}, []string{"token " + token.ID.String()}},
		{"this edge's key", Declared{Name: "new", PublicKey: w.self}, []string{"this edge's own"}},
		{"no such network", Declared{Name: "new", PublicKey: newKey(), Network: "paris"}, []string{"paris"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := standard()
			if c.d.Network == "" {
				c.d.Network = "berlin"
			}
			spec.Declared = []Declared{c.d}
			err := w.Check(spec)
			if err == nil {
				t.Fatal("not refused")
			}
			wantWords(t, err.Error(), append(c.words, "declaring connector")...)
			w.check()
		})
	}
	spec := standard()
	spec.Declared = []Declared{{Name: "web", Network: "berlin", PublicKey: key}}
	if err := w.Check(spec); err == nil || strings.Count(err.Error(), "declaring") != 2 {
		t.Errorf("all problems at once: %v", err)
	}
}

// Between Check and Apply nobody enrols with what the new config declares.
func TestCheckSetsNamesAside(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(reusable)
	spec := standard()
	spec.Declared = []Declared{{Name: "web", Network: "berlin", PublicKey: newKey(), Routes: prefixes("10.9.0.0/16")}}
	if err := w.Check(spec); err != nil {
		t.Fatal(err)
	}
	if answer, _ := w.enrolled(token, "web"); answer.Name != "web-2" {
		t.Errorf("called %q", answer.Name)
	}
	w.Release()
	if answer, _ := w.enrolled(token, "web"); answer.Name != "web" {
		t.Errorf("called %q after Release", answer.Name)
	}
	if err := w.Revoke("web"); err != nil {
		t.Fatal(err)
	}
	w.apply(spec)
	if answer, _ := w.enrolled(token, "web"); answer.Name != "web-3" {
		t.Errorf("called %q after Apply", answer.Name)
	}
	w.apply(standard())
	if answer, _ := w.enrolled(token, "web"); answer.Name != "web" {
		t.Errorf("called %q after it was declared no longer", answer.Name)
	}
	w.check()
}

func TestANetworkGoesAndComesBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, token := w.token(reusable)
		_, key := w.enrolled(token, "web")
		next := newKey()
		if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
			t.Fatal(refusal)
		}
		_, other := w.token(func(r *TokenRequest) { r.Network = "tokyo" })
		_, stays := w.enrolled(other, "stays")
		if err := w.Drain("web", false); err != nil {
			t.Fatal(err)
		}
		held1, held2 := w.hold(t.Context(), key), w.hold(t.Context(), stays)
		without := standard()
		without.Networks = without.Networks[1:]
		w.apply(without)
		held(t, held2)
		if _, ok := w.tun.member("web"); ok {
			t.Error("it is still in the tunnel")
		}
		c := w.connector("web")
		if c.State != ConnectorAsleep || !strings.Contains(c.Why, `network "berlin"`) {
			t.Errorf("listed %+v", c)
		}
		if err := w.Grant("web", prefixes("10.7.0.0/16")); err != nil {
			t.Errorf("granting to one that sleeps: %v", err)
		}
		if a := now(t, held1); a.refusal != nil || a.Grant.Routes[0].String() != "10.7.0.0/16" {
			t.Errorf("answered %+v", a)
		}
		w.check()
		w.restart()
		if c := w.connector("web"); c.State != ConnectorAsleep {
			t.Errorf("after a restart %+v", c)
		}
		w.check()
		w.apply(standard())
		if m, ok := w.tun.member("web"); !ok || m.PublicKey != key || m.next != next || m.Routes[0].String() != "10.7.0.0/16" {
			t.Errorf("back as %+v", m)
		}
		w.check()
		if _, refusal := w.poll(next); refusal != nil {
			t.Error(refusal)
		}
		if err := w.Drain("web", false); err != nil {
			t.Fatal(err)
		}
		w.apply(without)
		w.apply(standard())
		if m, _ := w.tun.member("web"); !m.held {
			t.Error("back without its drain")
		}
		w.apply(without)
		if err := w.Revoke("web"); err != nil {
			t.Fatal(err)
		}
		_, refusal := w.poll(next)
		wantRefusal(t, refusal, wire.CodeRevoked)
		if w.tun.guests[next].Port != wire.ControlPort {
			t.Error("one that sleeps cannot be told that it was revoked")
		}
		w.check()
	})
}

func TestDeclaredConnectorsComeGoAndChange(t *testing.T) {
	w := newWorld(t, withDeclared)
	key := w.spec.Declared[0].PublicKey
	if _, refusal := w.poll(key); refusal != nil {
		t.Fatal(refusal)
	}
	reported := func() bool { return !w.connector("declared").LastSync.IsZero() }
	change := func(f func(*Declared)) wgtypes.Key {
		spec := standard()
		spec.Declared = []Declared{w.spec.Declared[0]}
		f(&spec.Declared[0])
		w.apply(spec)
		w.check()
		return spec.Declared[0].PublicKey
	}
	change(func(d *Declared) { d.Network = "berlin" })
	if c := w.connector("declared"); c.Network != "berlin" || !reported() {
		t.Errorf("moved: %+v", c)
	}
	fresh := change(func(d *Declared) { d.PublicKey = newKey() })
	if _, refusal := w.poll(fresh); refusal != nil {
		t.Error(refusal)
	}
	if _, refusal := w.poll(key); refusal == nil {
		t.Error("the old key still syncs")
	}
	change(func(d *Declared) { d.Name = "renamed" })
	if c := w.connector("renamed"); c.PublicKey != fresh || w.connector("declared").Name != "" {
		t.Errorf("renamed: %+v", c)
	}
	w.apply(standard())
	if _, refusal := w.poll(fresh); refusal == nil || refusal.Code != wire.CodeUnknown {
		t.Errorf("declared no longer: %v", refusal)
	}
	w.check()
	// Two swap their names.
	spec := standard()
	a, b := newKey(), newKey()
	spec.Declared = []Declared{{Name: "a", Network: "berlin", PublicKey: a}, {Name: "b", Network: "berlin", PublicKey: b}}
	w.apply(spec)
	spec.Declared = []Declared{{Name: "b", Network: "berlin", PublicKey: a}, {Name: "a", Network: "berlin", PublicKey: b}}
	w.apply(spec)
	if answer, refusal := w.poll(a); refusal != nil || answer.Grant.Name != "b" {
		t.Errorf("swapped: %+v, %v", answer, refusal)
	}
	w.check()
}

func TestNewRefusesAContradiction(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	w.enrolled(token, "web")
	spec := standard()
	spec.Declared = []Declared{{Name: "web", Network: "berlin", PublicKey: newKey()}}
	deps := Deps{Store: w.store, Peers: newFakePeers(t), PublicKey: w.self}
	if _, err := New(spec, deps); err == nil || !strings.Contains(err.Error(), `declaring connector "web"`) {
		t.Errorf("made with a clash: %v", err)
	}
	if _, err := New(standard(), Deps{}); err == nil {
		t.Error("made of nothing")
	}
	w.store.values[kindConnector]["web"] = []byte(`{"key":"none"}`)
	if _, err := New(standard(), deps); err == nil || !strings.Contains(err.Error(), `reading connector "web"`) {
		t.Errorf("made of a broken store: %v", err)
	}
}

// One that the tunnel refused is tried again every 10 seconds, and is heard of
// in the log when that is news.
func TestAConnectorThatTheTunnelRefusedIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(reusable)
	_, key := w.enrolled(token, "web")
	_, other := w.token(func(r *TokenRequest) { r.Network = "tokyo" })
	w.enrolled(other, "asleep")
	next := newKey()
	if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
		t.Fatal(refusal)
	}
	without := standard()
	without.Networks = without.Networks[1:]
	w.apply(without)
	w.tun.refused = key
	without.Networks = standard().Networks[:1] // and not that of the other
	w.apply(without)
	w.absent(time.Minute)
	if c := w.connector("web"); c.State != ConnectorAsleep || c.Why != "not this one" {
		t.Errorf("refused, but listed %+v", c)
	}
	if n := strings.Count(w.log.String(), "cannot be served"); n != 1 {
		t.Errorf("said %d times that it cannot be served", n)
	}
	w.check()
	if err := w.Drain("web", false); err != nil {
		t.Fatal(err)
	}
	w.tun.refused = wgtypes.Key{}
	w.absent(retryEvery)
	if m, ok := w.tun.member("web"); !ok || m.PublicKey != key || m.next != next || !m.held {
		t.Errorf("served as %+v", m)
	}
	if c := w.connector("web"); c.State != ConnectorEnrolled || c.Why != "" {
		t.Errorf("served, but listed %+v", c)
	}
	w.absent(time.Minute)
	if n := strings.Count(w.log.String(), "can be served after all"); n != 1 {
		t.Errorf("said %d times that it can be served", n)
	}
	if c := w.connector("asleep"); c.State != ConnectorAsleep || !strings.Contains(c.Why, `network "tokyo"`) {
		t.Errorf("one whose network is gone is listed %+v", c)
	}
	w.check()
}
