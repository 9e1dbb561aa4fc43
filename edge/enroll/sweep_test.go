package enroll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// setAlive tells the tunnel whether it hears a connector.
func (w *world) setAlive(name string, alive bool) {
	w.t.Helper()
	w.tun.mu.Lock()
	defer w.tun.mu.Unlock()
	m := w.tun.members[name]
	if m == nil {
		w.t.Fatalf("the tunnel has no %q", name)
	}
	m.dead, m.left = !alive, false
}

// setLeft makes a connector one that said farewell.
func (w *world) setLeft(name string) {
	w.tun.mu.Lock()
	defer w.tun.mu.Unlock()
	w.tun.members[name].left = true
}

// A rolling restart: each replica of ten comes back with a key of its own,
// half of them with another hostname, as containers do.
func TestRollingRestartOfEphemeralReplicas(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(ephemeral)
	keys := map[string]wgtypes.Key{}
	for i := range 10 {
		answer, key := w.enrolled(token, fmt.Sprintf("web-%d", i))
		if !answer.Ephemeral {
			t.Error("it is not told that it is ephemeral")
		}
		keys[answer.Name] = key
	}
	var now []string
	for i := range 10 {
		name := fmt.Sprintf("web-%d", i)
		w.setAlive(name, false)
		w.absent(brief)
		if i%2 == 1 {
			name = fmt.Sprintf("app-%d", i)
		}
		answer, key := w.enrolled(token, name)
		if answer.Name != name {
			t.Errorf("replica %q came back as %q", name, answer.Name)
		}
		if i%2 == 0 {
			if _, refusal := w.poll(keys[name]); refusal == nil || refusal.Code != wire.CodeUnknown {
				t.Errorf("the key before still syncs: %v", refusal)
			}
		}
		keys[name] = key
		now = append(now, name)
		w.check()
	}
	if n := len(w.Connectors()); n != 15 {
		t.Errorf("%d connectors, want 10 that live and 5 that are gone", n)
	}
	w.absent(absence)
	if n := len(w.Connectors()); n != 10 {
		t.Errorf("%d connectors after 10 minutes, want 10", n)
	}
	for _, name := range now {
		if _, refusal := w.poll(keys[name]); refusal != nil {
			t.Errorf("%q: %v", name, refusal)
		}
	}
	w.check()
	w.restart()
	w.check()
}

func TestAbsence(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(ephemeral, func(r *TokenRequest) { r.Name = "web" })
	_, other := w.token(ephemeral, func(r *TokenRequest) { r.Name = "web" })
	_, lasting := w.token()
	w.enrolled(lasting, "stays")
	w.enrolled(token, "")
	pass := func(d time.Duration) { w.clock.pass(d); w.Sweep() }
	w.setAlive("stays", false)
	w.setAlive("web", false)
	pass(time.Second)
	pass(absence - time.Second)
	if w.connector("web").Name == "" {
		t.Error("gone before its time")
	}
	w.setAlive("web", true)
	pass(time.Second)
	w.setAlive("web", false)
	pass(time.Second)
	pass(absence - time.Second)
	if w.connector("web").Name == "" {
		t.Error("it came back, which did not count")
	}
	if answer, _ := w.enrolled(other, ""); answer.Name != "web-2" {
		t.Errorf("a joiner of another token took the place of %q", answer.Name)
	}
	w.setAlive("web-2", false)
	pass(time.Second)
	if len(w.Connectors()) != 2 {
		t.Errorf("after the absence of one there are %+v", w.Connectors())
	}
	pass(absence - time.Second)
	if len(w.Connectors()) != 2 {
		t.Errorf("before the other's time there are %+v", w.Connectors())
	}
	pass(time.Second)
	if len(w.Connectors()) != 1 || w.connector("stays").Name == "" {
		t.Errorf("in the end there are %+v", w.Connectors())
	}
	w.check()
}

// Replicas that share a name take the places of those that are gone, and of no
// other.
func TestReplicasOfOneNameTakeThePlacesOfThoseGone(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(ephemeral, func(r *TokenRequest) { r.Name = "web" })
	for _, want := range []string{"web", "web-2", "web-3"} {
		if answer, _ := w.enrolled(token, ""); answer.Name != want {
			t.Errorf("called %q, want %q", answer.Name, want)
		}
	}
	w.setAlive("web-2", false)
	w.absent(brief)
	pending := newKey()
	if answer, refusal := w.register(token, pending, ""); refusal != nil || answer.Name != "web-2" {
		t.Errorf("called %q (%v), want web-2", answer.Name, refusal)
	}
	w.setAlive("web-2", false) // it has not called yet: its place is its own
	w.absent(brief)
	if answer, refusal := w.register(token, newKey(), ""); refusal != nil || answer.Name != "web-4" {
		t.Errorf("called %q (%v), want web-4", answer.Name, refusal)
	}
	w.check()
	w.setAlive("web-3", false)
	w.absent(brief)
	if err := w.Drain("web-3", false); err != nil {
		t.Fatal(err)
	}
	w.tun.refused = newKey()
	_, refusal := w.register(token, w.tun.refused, "")
	wantRefusal(t, refusal, wire.CodeUnavailable)
	w.check() // the one before is back in its place, and drains as it did
	w.tun.broken = errors.New("too many peers")
	if _, refusal := w.register(token, newKey(), ""); refusal == nil {
		t.Error("a tunnel that takes nobody was no hindrance")
	}
	w.tun.broken = nil
	w.checkStore()
}

func TestSweepSaysOnceThatTheStoreFails(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	if _, refusal := w.register(token, newKey(), "web"); refusal != nil {
		t.Fatal(refusal)
	}
	w.clock.pass(wire.ConfirmWithin)
	w.store.fail(errors.New("no space left on device"), 0)
	for range 3 {
		w.Sweep()
	}
	if n := strings.Count(w.log.String(), "no space left"); n != 1 {
		t.Errorf("said %d times", n)
	}
	if w.connector("web").Name == "" {
		t.Error("forgotten though the store still has it")
	}
	w.check()
	w.store.fail(nil, 0)
	w.Sweep()
	if w.connector("web").Name != "" {
		t.Error("still there though the store works")
	}
	w.check()
}

func TestKeysAreAskedForByAge(t *testing.T) {
	w := newWorld(t, func(s *Spec) {
		s.KeyMaxAge = 24 * time.Hour
		s.Declared = []Declared{{Name: "declared", Network: "tokyo", PublicKey: newKey(), Routes: prefixes("10.9.0.0/16")}}
	})
	_, token := w.token()
	_, key := w.enrolled(token, "web")
	w.clock.pass(24*time.Hour - time.Second)
	w.Sweep()
	if answer, _ := w.poll(key); answer.Grant.Rotate {
		t.Error("asked before its time")
	}
	w.clock.pass(time.Second)
	w.Sweep()
	w.Sweep()
	if answer, _ := w.poll(key); !answer.Grant.Rotate || w.connector("web").Rotation != RotationAsked {
		t.Error("not asked")
	}
	if answer, refusal := w.poll(w.spec.Declared[0].PublicKey); refusal != nil || answer.Grant.Rotate {
		t.Errorf("a declared one is asked for a key: %+v, %v", answer, refusal)
	}
	if n := strings.Count(w.log.String(), "asked for a new key"); n != 1 {
		t.Errorf("said %d times", n)
	}
	w.restart()
	if answer, _ := w.poll(key); !answer.Grant.Rotate {
		t.Error("not asked after a restart")
	}
	next := newKey()
	if refusal := w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: next}}); refusal != nil {
		t.Fatal(refusal)
	}
	if answer, _ := w.poll(next); answer.Grant.Rotate || w.connector("web").Rotation != "" {
		t.Error("still asked with the new key")
	}
	w.check()
}

func TestRunSweepsEachSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, token := w.token()
		if _, refusal := w.register(token, newKey(), "web"); refusal != nil {
			t.Fatal(refusal)
		}
		w.clock.pass(wire.ConfirmWithin)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.Run(ctx) }()
		time.Sleep(sweepEvery + time.Millisecond) // of the bubble's time
		synctest.Wait()
		if w.connector("web").Name != "" {
			t.Error("not swept")
		}
		cancel()
		<-done
	})
}
