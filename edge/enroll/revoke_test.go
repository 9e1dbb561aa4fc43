package enroll

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

func TestRevoke(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, token := w.token()
		_, key := w.enrolled(token, "berlin-1")
		answered := w.hold(t.Context(), key)
		if err := w.Revoke("berlin-1"); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, now(t, answered).refusal, wire.CodeRevoked, `connector "berlin-1" was revoked on 2026-11-22 05:13:02 UTC`)
		if _, ok := w.tun.member("berlin-1"); ok {
			t.Error("it is still in its network")
		}
		w.check()
		told := func(when string) {
			t.Helper()
			_, refusal := w.poll(key)
			wantRefusal(t, refusal, wire.CodeRevoked)
			wantRefusal(t, w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: newKey()}}), wire.CodeRevoked)
			if at, ok := w.Denied(key); !ok || !at.Equal(time.Date(2026, 11, 22, 5, 13, 2, 0, time.UTC)) {
				t.Errorf("%s: denied: %v since %v", when, ok, at)
			}
			w.check()
		}
		told("at once")
		w.restart()
		told("after a restart")
		if g := w.tun.guests[key]; g.Port != wire.ControlPort {
			t.Errorf("it is the guest %+v", g)
		}
		w.clock.pass(tellFor)
		w.Sweep()
		if _, ok := w.tun.guests[key]; ok {
			t.Error("it is told for longer than 7 days")
		}
		told("for ever, had it a way to ask")
		wantError(t, w.Revoke("berlin-2"), NotFound, `"berlin-2"`, "none")
		wantError(t, w.Revoke(""), NotFound)
	})
}

func TestWhatWasRevokedIsSaidToBe(t *testing.T) {
	w := newWorld(t)
	for range 2 { // two of that name, one after the other
		w.clock.pass(time.Hour)
		_, token := w.token()
		w.enrolled(token, "web")
		if err := w.Revoke("web"); err != nil {
			t.Fatal(err)
		}
	}
	w.clock.pass(time.Hour)
	said := func() {
		t.Helper()
		for what, err := range map[string]error{
			"revoke": w.Revoke("web"), "grant": w.Grant("web", prefixes("10.7.0.0/16")), "rotate": w.Rotate("web"), "drain": w.Drain("web", false),
		} {
			t.Log(what)
			wantError(t, err, Refused, `"web"`, "was revoked on 2026-11-22 07:13:02 UTC", "a new token")
		}
		w.check()
	}
	said()
	w.restart()
	said()
	w.clock.pass(tellFor)
	w.Sweep()
	said()
	_, token := w.token()
	w.enrolled(token, "web")
	if err := w.Drain("web", false); err != nil {
		t.Errorf("another of that name: %v", err)
	}
}

func TestRevokingAPendingConnector(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	key := newKey()
	if _, refusal := w.register(token, key, "web"); refusal != nil {
		t.Fatal(refusal)
	}
	if err := w.Revoke("web"); err != nil {
		t.Fatal(err)
	}
	_, refusal := w.register(token, key, "web")
	wantRefusal(t, refusal, wire.CodeKnownKey, "revoked")
	w.enrolled(token, "web") // the token is free again
	w.check()
}

func TestRevokingInTheMiddleOfAChangeOfKeyDeniesBoth(t *testing.T) {
	for name, followed := range map[string]bool{"before the first packet": false, "after it": true} {
		t.Run(name, func(t *testing.T) { revokeInTheMiddle(t, followed) })
	}
}

func revokeInTheMiddle(t *testing.T, followed bool) {
	w := newWorld(t)
	_, token := w.token()
	_, key := w.enrolled(token, "web")
	next := newKey()
	if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
		t.Fatal(refusal)
	}
	if followed {
		w.tun.follow("web")
	}
	if err := w.Revoke("web"); err != nil {
		t.Fatal(err)
	}
	for _, k := range []wgtypes.Key{key, next} {
		_, refusal := w.poll(k)
		wantRefusal(t, refusal, wire.CodeRevoked)
		if w.tun.guests[k].Port != wire.ControlPort {
			t.Error("one of the keys cannot be told")
		}
	}
	w.check()
	w.restart()
	w.check()
}

func TestRevokingADeclaredConnector(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		key := w.spec.Declared[0].PublicKey
		answered := w.hold(t.Context(), key)
		if err := w.Revoke("declared"); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, now(t, answered).refusal, wire.CodeRevoked, `"declared"`)
		w.check()
		w.apply(w.spec) // does not bring it back
		w.restart()
		_, refusal := w.poll(key)
		wantRefusal(t, refusal, wire.CodeRevoked)
		if c := w.connector("declared"); c.State != ConnectorRevoked || !strings.Contains(c.Why, "was revoked on 2026-11-22 05:13:02 UTC") {
			t.Errorf("listed %+v", c)
		}
		wantError(t, w.Revoke("declared"), Refused, "was revoked on", "new key")
		w.check()

		spec := w.spec
		spec.Declared = []Declared{{Name: "declared", Network: "tokyo", PublicKey: newKey(), Routes: prefixes("10.9.0.0/16")}}
		w.apply(spec)
		if _, refusal := w.poll(spec.Declared[0].PublicKey); refusal != nil {
			t.Errorf("with a new key: %v", refusal)
		}
		w.check()
	}, withDeclared)
}

func TestARevokedConnectorThatTheTunnelCannotDemoteIsRemoved(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	_, key := w.enrolled(token, "web")
	w.tun.broken = errors.New("some trouble")
	if err := w.Revoke("web"); err != nil {
		t.Fatal(err)
	}
	w.tun.broken = nil
	if _, ok := w.tun.member("web"); ok {
		t.Error("it is still in its network")
	}
	if _, ok := w.Denied(key); !ok {
		t.Error("not denied")
	}
	w.checkStore()
}

func TestTheLatestThousandRevokedConnectorsAreTold(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(reusable)
	var keys []wgtypes.Key
	for i := range maxGuestsTold + 3 {
		_, key := w.enrolled(token, fmt.Sprint(i))
		keys = append(keys, key)
		w.clock.pass(time.Second)
		if err := w.Revoke(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string) {
		t.Helper()
		for i, key := range keys {
			if _, ok := w.tun.guests[key]; ok != (i >= 3) {
				t.Errorf("%s: key %d is a guest: %v", when, i, ok)
			}
			if _, ok := w.Denied(key); !ok {
				t.Errorf("%s: key %d is not denied", when, i)
			}
		}
		w.check()
	}
	want("at once")
	w.restart()
	want("after a restart")
}

func TestDenialsAreBounded(t *testing.T) {
	w := newWorld(t, withDeclared)
	declared := w.spec.Declared[0].PublicKey
	if err := w.Revoke("declared"); err != nil { // the oldest, but declared
		t.Fatal(err)
	}
	start := w.clock.Now()
	var keys []wgtypes.Key
	for i := range maxDenials - 1 {
		d := &denial{rec: denialRecord{Key: wire.Key{Key: newKey()}, Name: "x", When: start.Add(time.Duration(i+1) * time.Millisecond)}}
		keys = append(keys, d.rec.Key.Key)
		w.denials[d.rec.Key.Key] = d
	}
	w.clock.pass(time.Hour)
	_, token := w.token()
	_, key := w.enrolled(token, "web")
	if err := w.Revoke("web"); err != nil {
		t.Fatal(err)
	}
	if len(w.denials) != maxDenials {
		t.Errorf("%d denials, want %d", len(w.denials), maxDenials)
	}
	for i, want := range map[wgtypes.Key]bool{key: true, declared: true, keys[0]: false, keys[1]: true} {
		if _, ok := w.Denied(i); ok != want {
			t.Errorf("denied: %v, want %v", ok, want)
		}
	}
}

func TestRotation(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, token := w.token()
		_, key := w.enrolled(token, "web")
		answered := w.hold(t.Context(), key)
		if err := w.Rotate("web"); err != nil {
			t.Fatal(err)
		}
		if a := now(t, answered); !a.Grant.Rotate {
			t.Errorf("pushed %+v", a)
		}
		if err := w.Rotate("web"); err != nil {
			t.Errorf("asked again: %v", err)
		}
		w.restart() // what was acknowledged stays
		if a, _ := w.poll(key); !a.Grant.Rotate {
			t.Error("forgotten in a restart")
		}
		w.clock.pass(time.Hour)
		next := newKey()
		for range 2 { // the first answer was lost
			if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
				t.Fatal(refusal)
			}
			w.check()
		}
		if c := w.connector("web"); c.Rotation != RotationRegistered || c.NextKey != next || c.PublicKey != key {
			t.Errorf("registered as %+v", c)
		}
		if _, refusal := w.poll(key); refusal != nil {
			t.Errorf("the old key meanwhile: %v", refusal)
		}
		w.restart()
		if m, _ := w.tun.member("web"); m.PublicKey != key || m.next != next {
			t.Errorf("after a restart the tunnel has %+v", m)
		}
		old := w.hold(t.Context(), key)
		if a, refusal := w.poll(next); refusal != nil || a.Grant.Rotate {
			t.Errorf("the new key syncs: %+v, %v", a, refusal)
		}
		if a := now(t, old); a.refusal == nil {
			t.Errorf("the old key's sync was answered %+v", a)
		}
		w.check()
		_, refusal := w.poll(key)
		wantRefusal(t, refusal, wire.CodeUnknown)
		if c := w.connector("web"); c.PublicKey != next || c.NextKey != (wgtypes.Key{}) || c.Rotation != "" || !c.KeySince.Equal(w.clock.Now()) {
			t.Errorf("in the end %+v", c)
		}
		if refusal := w.changeKey(next, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
			t.Errorf("asked again when it is over: %v", refusal)
		}
		w.restart()
		w.check()
		synctest.Wait()
	})
}

// A call of any kind shows that the key is there.
func TestTheFirstCallOfAKeyMayAskForAnother(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	keys := []wgtypes.Key{newKey(), newKey(), newKey(), newKey()}
	if _, refusal := w.register(token, keys[0], "web"); refusal != nil {
		t.Fatal(refusal)
	}
	for i, key := range keys[:3] {
		if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: keys[i+1]}}); refusal != nil {
			t.Fatal(refusal)
		}
		w.check()
		if c := w.connector("web"); c.State != ConnectorEnrolled || c.PublicKey != key || c.NextKey != keys[i+1] {
			t.Errorf("after %d calls: %+v", i+1, c)
		}
		w.tun.follow("web")
	}
}

func TestKeysThatAreRefused(t *testing.T) {
	w := newWorld(t, withDeclared)
	created, token := w.token(reusable)
	_, key := w.enrolled(token, "web")
	_, other := w.enrolled(token, "other")
	_, gone := w.enrolled(token, "gone")
	_ = w.Revoke("gone")
	pending := newKey()
	if _, refusal := w.register(token, pending, "pending"); refusal != nil {
		t.Fatal(refusal)
	}
	next := newKey()
	if refusal := w.changeKey(other, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
		t.Fatal(refusal)
	}
	for _, c := range []struct {
		name string
		next wgtypes.Key
		code wire.Code
		word string
	}{
		{"none", wgtypes.Key{}, wire.CodeBadRequest, "no public key"},
		{"another connector's", other, wire.CodeKnownKey, `"other"`},
		{"another connector's next", next, wire.CodeKnownKey, `"other"`},
		{"a pending connector's", pending, wire.CodeKnownKey, `"pending"`},
		{"a denied one", gone, wire.CodeKnownKey, "revoked"},
		{"a bootstrap key", joiner(token, 1), wire.CodeKnownKey, created.Token.ID},
		{"this edge's", w.self, wire.CodeKnownKey, "own"},
		{"a declared one", w.spec.Declared[0].PublicKey, wire.CodeKnownKey, `"declared"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantRefusal(t, w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: c.next}}), c.code, c.word)
			w.check()
		})
	}
	wantError(t, w.Rotate("pending"), Refused, "not confirmed")
	wantError(t, w.Rotate("nobody"), NotFound)

	replaced := newKey() // a connector that lost its next key makes another
	for _, k := range []wgtypes.Key{newKey(), replaced} {
		if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: k}}); refusal != nil {
			t.Fatal(refusal)
		}
	}
	if m, _ := w.tun.member("web"); m.next != replaced {
		t.Errorf("the tunnel has %+v", m)
	}
	w.check()
	w.tun.broken = errors.New("too many peers")
	wantRefusal(t, w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: newKey()}}), wire.CodeUnavailable)
	w.tun.broken = nil
	w.check()
}
