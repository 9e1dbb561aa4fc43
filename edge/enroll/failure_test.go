package enroll

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// snapshot is all that anybody can see of the registry and of the tunnel.
func (w *world) snapshot() string {
	w.t.Helper()
	var out strings.Builder
	for _, t := range w.Tokens() {
		fmt.Fprintf(&out, "%+v\n", t)
	}
	for _, c := range w.Connectors() {
		c.LastSync, c.Report, c.ClockOffset = time.Time{}, wire.Report{}, 0
		_, denied := w.Denied(c.PublicKey)
		fmt.Fprintf(&out, "%+v %v\n", c, denied)
	}
	w.tun.mu.Lock()
	defer w.tun.mu.Unlock()
	for _, c := range w.Connectors() {
		fmt.Fprintf(&out, "%+v\n", w.tun.members[c.Name])
	}
	fmt.Fprintln(&out, w.tun.guests, len(w.tun.members))
	return out.String()
}

// Whatever writes: where the store fails, the caller is told, and neither
// memory nor the tunnel nor the store has changed.
func TestAFailingStoreChangesNothing(t *testing.T) {
	full := errors.New("no space left on device")
	type scene struct {
		*world
		token, spare wire.Token
		web, new     wgtypes.Key
		record       string
	}
	unavailable := func(t *testing.T, refusal *wire.Refusal) { wantRefusal(t, refusal, wire.CodeUnavailable, "ask again") }
	told := func(t *testing.T, err error) {
		wantError(t, err, Unavailable, "storing it", full.Error(), "disk")
	}
	for _, c := range []struct {
		name string
		do   func(t *testing.T, s scene)
	}{
		{"create a token", func(t *testing.T, s scene) {
			_, err := s.CreateToken(TokenRequest{Network: "berlin", Routes: prefixes("10.0.0.0/8")})
			told(t, err)
		}},
		{"import a token", func(t *testing.T, s scene) { _, err := s.ImportToken(s.record); told(t, err) }},
		{"revoke a token", func(t *testing.T, s scene) { _, err := s.RevokeToken(s.token.ID.String()); told(t, err) }},
		{"register", func(t *testing.T, s scene) { _, r := s.register(s.token, newKey(), "x"); unavailable(t, r) }},
		{"register in a place that is free", func(t *testing.T, s scene) {
			s.setAlive("ephemeral", false)
			defer s.setAlive("ephemeral", true)
			s.store.fail(nil, 0)
			s.absent(brief)
			s.store.fail(full, 0)
			_, r := s.register(s.spare, newKey(), "ephemeral")
			unavailable(t, r)
		}},
		{"confirm", func(t *testing.T, s scene) { _, r := s.poll(s.new); unavailable(t, r) }},
		{"register the next key", func(t *testing.T, s scene) {
			unavailable(t, s.changeKey(s.web, wire.KeyRequest{PublicKey: wire.Key{Key: newKey()}}))
		}},
		{"end a change of key", func(t *testing.T, s scene) { _, r := s.poll(s.connector("changing").NextKey); unavailable(t, r) }},
		{"ask for a new key", func(t *testing.T, s scene) { told(t, s.Rotate("web")) }},
		{"grant", func(t *testing.T, s scene) { told(t, s.Grant("web", prefixes("10.7.0.0/16"))) }},
		{"revoke", func(t *testing.T, s scene) { told(t, s.Revoke("web")) }},
		{"revoke a declared one", func(t *testing.T, s scene) { told(t, s.Revoke("declared")) }},
		{"sweep", func(t *testing.T, s scene) { s.Sweep() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := scene{world: newWorld(t, withDeclared)}
			other := newWorld(t)
			created, _ := other.token(func(r *TokenRequest) {
				r.Edges = []wire.Edge{{PublicKey: wire.Key{Key: s.self}, URLs: []string{"a.example.net:51820"}}}
			})
			s.record = created.Record
			_, s.token = s.world.token(reusable)
			_, s.spare = s.world.token(ephemeral)
			_, s.web = s.enrolled(s.token, "web")
			_, changing := s.enrolled(s.token, "changing")
			s.enrolled(s.spare, "ephemeral")
			if refusal := s.changeKey(changing, wire.KeyRequest{PublicKey: wire.Key{Key: newKey()}}); refusal != nil {
				t.Fatal(refusal)
			}
			s.new = newKey()
			if _, refusal := s.register(s.token, s.new, "new"); refusal != nil {
				t.Fatal(refusal)
			}
			if c.name == "sweep" {
				s.clock.pass(tellFor + time.Hour)
			}
			before, updates := s.snapshot(), s.store.updates
			s.store.fail(full, 0)
			c.do(t, s)
			if after := s.snapshot(); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if s.store.updates == updates {
				t.Error("nothing was written, so that this shows nothing")
			}
			s.check()
			s.store.fail(nil, 0)
			s.restart()
			s.check()
		})
	}
}

// The worst of both: the tunnel refuses what was stored, and the store will
// not take it back. A restart then finds a registration that nobody confirms.
func TestARegistrationThatCannotBeTakenBackTimesOut(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	w.tun.broken = errors.New("too many peers")
	w.store.fail(errors.New("no space left on device"), 1)
	_, refusal := w.register(token, newKey(), "web")
	wantRefusal(t, refusal, wire.CodeUnavailable)
	if len(w.Connectors()) != 0 {
		t.Error("it is in memory")
	}
	w.store.fail(nil, 0)
	w.restart()
	w.check()
	w.clock.pass(wire.ConfirmWithin)
	w.Sweep()
	if len(w.Connectors()) != 0 {
		t.Error("it is still there")
	}
	w.enrolled(token, "web")
	w.check()
}

// What the state holds enrols no one, and what is logged, shown or refused
// holds no secret at all.
func TestSecretsStayWithTheToken(t *testing.T) {
	w := newWorld(t)
	var texts []string
	var tokens []wire.Token
	for _, change := range []func(*TokenRequest){func(*TokenRequest) {}, reusable, ephemeral, func(r *TokenRequest) {
		r.Edges = []wire.Edge{{PublicKey: wire.Key{Key: newKey()}, URLs: []string{"b.example.net:51820"}}}
	}} {
		created, token := w.token(change)
		tokens = append(tokens, token)
		texts = append(texts, created.Text, created.Record)
		created.Text, created.Record = "", ""
		w.log.Write([]byte(fmt.Sprintf("%+v", created)))
		_, key := w.enrolled(token, "web")
		w.log.Write([]byte(fmt.Sprintf("%+v %v", w.connector("web"), w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: joiner(token, 0)}}))))
		_, _ = w.RevokeToken(token.ID.String())
		_, refusal := w.register(token, newKey(), "")
		w.log.Write([]byte(refusal.Error()))
	}
	w.log.Write([]byte(fmt.Sprintf("%+v %+v", w.Tokens(), w.Counts())))
	w.restart()
	stored, logged := w.store.ever.Bytes(), []byte(w.log.String())
	for i, token := range tokens {
		secrets := [][]byte{token.Secret[:]}
		for _, key := range token.Bootstrap() {
			secrets = append(secrets, key[:])
		}
		for _, secret := range secrets {
			if found(stored, secret) {
				t.Errorf("the store has a secret of token %d", i)
			}
			if found([]byte(texts[2*i+1]), secret) || found(decoded(t, texts[2*i+1]), secret) {
				t.Errorf("the record has a secret of token %d", i)
			}
			if !found(decoded(t, texts[2*i]), token.Secret[:]) {
				t.Fatal("the search would not find the secret where it is")
			}
		}
		preshared := token.PresharedKey()
		for _, secret := range append(secrets, preshared[:]) {
			if found(logged, secret) {
				t.Errorf("a log or an answer has a secret of token %d", i)
			}
		}
		if !found(stored, preshared[:]) {
			t.Fatal("the search would not find a key where it is")
		}
	}
	if bytes.Contains(logged, []byte("wrn1_")) || bytes.Contains(stored, []byte("wrn1_")) {
		t.Error("a whole token is in the store or in the log")
	}
}

// decoded is what a token or a record is the text of.
func decoded(t testing.TB, text string) []byte {
	t.Helper()
	_, encoded, _ := strings.Cut(text, "_")
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// found looks for a secret in every way that it may be written.
func found(in, secret []byte) bool {
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if bytes.Contains(in, []byte(encoding.EncodeToString(secret))) {
			return true
		}
	}
	return bytes.Contains(in, secret) || bytes.Contains(bytes.ToLower(in), []byte(hex.EncodeToString(secret))) ||
		bytes.Contains(in, []byte(fmt.Sprint(secret)))
}

// A record that cannot be read is not left out, for a denial might be it: the
// edge does not start, and says what to do.
func TestARecordThatCannotBeRead(t *testing.T) {
	for kind, text := range map[string]string{
		kindToken:     `{"id":"x","preshared":"short"}`,
		kindConnector: `{"name":"x","key":5}`,
		kindDenial:    `{"key":`,
	} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.store.values[kind] = map[string][]byte{"x": []byte(text)}
			_, err := New(w.spec, Deps{Store: w.store, Peers: newFakePeers(t), PublicKey: w.self})
			if err == nil {
				t.Fatal("it was left out")
			}
			wantWords(t, err.Error(), "from the state: reading "+kind+` "x": `, "restore a backup of the state", "move it away", "enrol anew")
		})
	}
}
