package enroll

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a registry between its fakes.
type world struct {
	*Registry
	t     testing.TB
	clock *clock
	store *fakeStore
	tun   *fakePeers
	spec  Spec
	self  wgtypes.Key
	log   *logBuffer
	work  Work // nil: none
}

// logBuffer is everything that was logged.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// standard is a Spec with two networks and no declared connector.
func standard() Spec {
	return Spec{
		Advertise: []string{"fra1.example.net:51820"},
		Networks:  []Network{{Name: "berlin", Enroll: true}, {Name: "tokyo", Enroll: true}, {Name: "closed"}},
		CheckRoutes: func(routes []netip.Prefix) error {
			for _, p := range routes {
				if p.Overlaps(netip.MustParsePrefix("100.127.0.0/24")) {
					return fmt.Errorf("checking route %q: overlaps wireguard.inner_sources", p)
				}
			}
			return nil
		},
	}
}

func newWorld(t testing.TB, change ...func(*Spec)) *world {
	t.Helper()
	w := &world{t: t, clock: newClock(), store: newFakeStore(), spec: standard(), self: newKey(), log: &logBuffer{}}
	for _, f := range change {
		f(&w.spec)
	}
	w.restart()
	return w
}

// restart makes a new process of the same state directory: with a new tunnel.
func (w *world) restart() {
	w.t.Helper()
	w.tun = newFakePeers(w.t)
	r, err := New(Spec{}, Deps{
		Store: w.store, Peers: w.tun, Now: w.clock.Now, PublicKey: w.self, Work: w.work,
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Registry = r
	w.apply(w.spec)
}

// apply does what the edge does at a reload, beside and around the registry.
func (w *world) apply(spec Spec) {
	w.t.Helper()
	if err := w.Check(spec); err != nil {
		w.t.Fatal(err)
	}
	w.tun.mu.Lock()
	w.tun.networks = map[string]bool{}
	for _, n := range spec.Networks {
		w.tun.networks[n.Name] = true
	}
	for name, m := range w.tun.members {
		if m.declared || !w.tun.networks[m.Network] {
			delete(w.tun.members, name)
		}
	}
	for _, d := range spec.Declared {
		if _, denied := w.Denied(d.PublicKey); !denied {
			w.tun.members[d.Name] = &fakeMember{Member: Member(d), declared: true}
		}
	}
	w.tun.mu.Unlock()
	w.spec = spec
	w.Apply(spec)
}

func newKey() wgtypes.Key {
	var k wgtypes.Key
	rand.Read(k[:])
	return k
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// token makes one, and returns it as its joiners have it.
func (w *world) token(change ...func(*TokenRequest)) (Created, wire.Token) {
	w.t.Helper()
	req := TokenRequest{Network: "berlin", Routes: prefixes("10.0.0.0/16")}
	for _, f := range change {
		f(&req)
	}
	created, err := w.CreateToken(req)
	if err != nil {
		w.t.Fatal(err)
	}
	token, err := wire.ParseToken(created.Text)
	if err != nil {
		w.t.Fatal(err)
	}
	return created, token
}

func reusable(r *TokenRequest)  { r.Reusable = true }
func ephemeral(r *TokenRequest) { r.Ephemeral = true }

// joiner is the bootstrap key that a joiner picks.
func joiner(t wire.Token, i int) wgtypes.Key {
	keys := t.Bootstrap()
	return keys[i%len(keys)].PublicKey()
}

// register registers a key and gives the refusal's code, empty for none.
func (w *world) register(t wire.Token, key wgtypes.Key, name string) (wire.EnrollAnswer, *wire.Refusal) {
	return w.enroll(joiner(t, int(key[0])), wire.EnrollRequest{PublicKey: wire.Key{Key: key}, Name: name, Hostname: "db7", Version: "1.2.3", Time: w.clock.Now()})
}

// poll is a sync that asks for an answer at once.
func (w *world) poll(key wgtypes.Key) (wire.SyncAnswer, *wire.Refusal) {
	return w.sync(context.Background(), key, wire.SyncRequest{Report: wire.Report{Version: "1.2.3", Hostname: "db7", Time: w.clock.Now()}})
}

// enrolled registers a new key and lets it sync.
func (w *world) enrolled(t wire.Token, name string) (wire.EnrollAnswer, wgtypes.Key) {
	w.t.Helper()
	key := newKey()
	answer, refusal := w.register(t, key, name)
	if refusal != nil {
		w.t.Fatal(refusal)
	}
	if _, refusal := w.poll(key); refusal != nil {
		w.t.Fatal(refusal)
	}
	return answer, key
}

// connector returns the one of that name, or the zero one.
func (w *world) connector(name string) Connector {
	for _, c := range w.Connectors() {
		if c.Name == name {
			return c
		}
	}
	return Connector{}
}

// check holds memory, the tunnel and the store against each other.
func (w *world) check() {
	w.t.Helper()
	w.checkStore()
	w.changing.Lock()
	defer w.changing.Unlock()
	guests := map[wgtypes.Key]Guest{}
	for _, t := range w.tokens {
		for _, key := range t.rec.Bootstrap {
			if w.bootstraps[key.Key] != t {
				w.t.Errorf("bootstrap key %v of token %s is not known as such", key, t.rec.ID)
			}
			if t.guests {
				guests[key.Key] = Guest{"token " + t.rec.ID, key.Key, t.rec.Preshared.Key, wire.EnrollPort}
			}
		}
	}
	for _, d := range w.guestDenials {
		guests[d.rec.Key.Key] = Guest{Name: "revoked " + d.rec.Name, PublicKey: d.rec.Key.Key, Port: wire.ControlPort}
	}
	w.tun.mu.Lock()
	defer w.tun.mu.Unlock()
	if fmt.Sprint(guests) != fmt.Sprint(w.tun.guests) {
		w.t.Errorf("guests of the tunnel:\n%v\nwant\n%v", w.tun.guests, guests)
	}
	members, keys := 0, 0
	for name, c := range w.connectors {
		m := w.tun.members[name]
		keys += len(c.rec.keys())
		for _, key := range c.rec.keys() {
			if w.byKey[key] != c {
				w.t.Errorf("key %v of connector %q is not known as its own", key, name)
			}
		}
		if c.asleep {
			if m != nil {
				w.t.Errorf("connector %q sleeps but is in the tunnel", name)
			}
			continue
		}
		members++
		if m == nil {
			w.t.Errorf("connector %q is not in the tunnel", name)
			continue
		}
		inUse, spare := m.PublicKey, m.next
		if m.old != (wgtypes.Key{}) { // it has followed, but the change is not over
			inUse, spare = m.old, m.PublicKey
		}
		if inUse != c.rec.Key.Key || spare != c.rec.Next.Key || m.Network != c.rec.Network || !slices.Equal(m.Routes, c.rec.Routes) || m.held != c.draining {
			w.t.Errorf("the tunnel has %+v, want %+v", m, c.rec)
		}
		if t := w.tokens[c.rec.Token]; t != nil && (t.pending[name] == c) != c.rec.Pending {
			w.t.Errorf("connector %q is pending: %v, but its token says otherwise", name, c.rec.Pending)
		}
	}
	if len(w.tun.members) != members || len(w.byKey) != keys {
		w.t.Errorf("the tunnel has %d connectors, want %d; %d keys are known, want %d", len(w.tun.members), members, len(w.byKey), keys)
	}
}

// checkStore wants the store to hold what memory does.
func (w *world) checkStore() {
	w.t.Helper()
	w.changing.Lock()
	defer w.changing.Unlock()
	want := map[string]map[string]any{kindToken: {}, kindConnector: {}, kindDenial: {}}
	add := func(x write) { want[x.kind][x.id] = x.value }
	for _, t := range w.tokens {
		add(t.rec.write())
	}
	for _, c := range w.connectors {
		if !c.declared {
			add(c.rec.write())
		}
	}
	for _, d := range w.denials {
		add(d.rec.write())
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	for kind, ids := range want {
		if len(ids) != len(w.store.values[kind]) {
			w.t.Errorf("the store has %d of kind %s, want %d", len(w.store.values[kind]), kind, len(ids))
		}
		for id, value := range ids {
			text, err := json.Marshal(value)
			if err != nil {
				w.t.Fatal(err)
			}
			if got := w.store.values[kind][id]; !bytes.Equal(got, text) {
				w.t.Errorf("the store has %s %q as\n%s\nwant\n%s", kind, id, got, text)
			}
		}
	}
}

// wantRefusal wants a refusal of that code whose sentence has all the words.
func wantRefusal(t testing.TB, got *wire.Refusal, code wire.Code, words ...string) {
	t.Helper()
	if got == nil {
		t.Fatalf("not refused, want %s", code)
	}
	if got.Code != code {
		t.Errorf("refused with %s (%s), want %s", got.Code, got.Message, code)
	}
	wantWords(t, got.Message, words...)
}

// wantError wants an *Error of that kind.
func wantError(t testing.TB, err error, kind Kind, words ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want one of this package", err)
	}
	if e.Kind != kind {
		t.Errorf("error of kind %d (%v), want %d", e.Kind, err, kind)
	}
	wantWords(t, err.Error(), words...)
}

func wantWords(t testing.TB, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q does not say %q", text, word)
		}
	}
	if text == "" || text[:1] != strings.ToLower(text[:1]) || strings.HasSuffix(text, ".") {
		t.Errorf("%q is not a sentence in our manner", text)
	}
}
