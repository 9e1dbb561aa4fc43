package connector

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/host"
)

const secondEdge = "other.example:51820"

// twoEdges is a bench with two edges at which the connector has enrolled.
func twoEdges(t *testing.T, f func(t *testing.T, b *bench, first, second *fakeControl)) {
	t.Helper()
	inBubble(t, func(t *testing.T, b *bench) {
		_, first := b.enrolledEdge(testEdge, true)
		_, second := b.enrolledEdge(secondEdge, true)
		b.resolver.set("other.example", "198.51.100.7")
		f(t, b, first, second)
	})
}

// askToRotate makes the edge want a new key, and have it once the tunnel has
// it, as a real edge's registry does at the first sync from the new key.
func askToRotate(c *fakeControl) {
	c.change(func(g *wire.Grant) { g.Rotate = true })
}

func (b *bench) savedKey() wgtypes.Key {
	b.t.Helper()
	key, err := host.ReadKey(filepath.Join(b.spec.StateDir, state.KeyName))
	if err != nil {
		b.t.Fatal(err)
	}
	return key
}

// used returns the keys that the tunnel was given.
func (f *fakeTunnel) used() []wgtypes.Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.keys)
}

func TestKeyChanges(t *testing.T) {
	twoEdges(t, func(t *testing.T, b *bench, first, second *fakeControl) {
		b.echoes("10.0.0.10:80")
		b.start()
		old := b.savedKey()
		b.joinAt(testEdge)
		b.joinAt(secondEdge)
		r, ended := b.flowAt(testEdge, "10.0.0.10:80")
		before := len(first.seen())
		first.set(func() {
			first.refuse = func(wire.KeyRequest) *wire.Refusal {
				if b.savedKey() != old || len(b.tunnel.used()) != 0 {
					t.Error("the key was taken before every edge knew it")
				}
				first.mu.Lock()
				first.answer.Grant.Rotate = false // the next sync has it from the new key
				first.mu.Unlock()
				return nil
			}
		})
		askToRotate(first)
		next := b.savedKey()
		if next == old {
			t.Fatal("the saved key is the old one")
		}
		for _, got := range [][]wgtypes.Key{first.registered(), second.registered()} {
			if !slices.Equal(got, []wgtypes.Key{next.PublicKey()}) {
				t.Errorf("an edge was told %d keys, or another one", len(got))
			}
		}
		if got := b.tunnel.used(); !slices.Equal(got, []wgtypes.Key{next}) || b.c.Status().PublicKey != next.PublicKey() {
			t.Error("the tunnel does not use the saved key")
		}
		if got := first.seen()[before:]; len(got) < 2 || got[len(got)-2].Revision != 0 {
			t.Errorf("after the change: %+v", got)
		}
		r.carries(t)
		r.hangUp(ended)
		b.c.rotation.ask(0) // by a grant of before
		time.Sleep(time.Hour)
		if n := len(b.tunnel.used()); n != 1 {
			t.Errorf("the key was changed %d times", n)
		}
		if got := b.log.with("no control"); len(got) != 0 {
			t.Errorf("the log says %q", got)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestKeyWaitsForEveryEdge(t *testing.T) {
	twoEdges(t, func(t *testing.T, b *bench, first, second *fakeControl) {
		b.start()
		old := b.savedKey()
		b.joinAt(testEdge)
		askToRotate(first)
		time.Sleep(time.Hour)
		synctest.Wait()
		if b.savedKey() != old || len(b.tunnel.used()) != 0 {
			t.Fatal("the key was changed, though an edge does not know it")
		}
		if got := b.log.with("the new key waits for=" + secondEdge); len(got) != 1 {
			t.Errorf("the log says %q", b.log.with("waits"))
		}
		second.set(func() {
			second.refuse = func(wire.KeyRequest) *wire.Refusal { return wire.Refuse(wire.CodeUnavailable, "the disk is full") }
		})
		b.joinAt(secondEdge)
		time.Sleep(time.Hour)
		if b.savedKey() != old {
			t.Fatal("the key was changed, though an edge does not have it")
		}
		second.set(func() { second.refuse = nil })
		first.change(func(g *wire.Grant) { g.Rotate = false })
		time.Sleep(time.Minute)
		synctest.Wait()
		next := b.savedKey()
		if next == old || !slices.Equal(b.tunnel.used(), []wgtypes.Key{next}) {
			t.Error("the key was not changed")
		}
		for _, c := range []*fakeControl{first, second} {
			if got := c.registered(); !slices.Equal(got, []wgtypes.Key{next.PublicKey()}) {
				t.Errorf("%d keys were registered, or another one", len(got))
			}
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestKeyThatCannotChange(t *testing.T) {
	tests := []struct {
		name string
		set  func(b *bench, second *fakeControl)
		want string
	}{
		{"an edge does not let it", func(_ *bench, second *fakeControl) {
			second.refuse = func(wire.KeyRequest) *wire.Refusal {
				return wire.Refuse(wire.CodeNotAllowed, "the key is declared in the edge's config")
			}
		}, "edge other.example:51820 does not take a new one: the key is declared in the edge's config"},
		{"an edge knows it from its config", func(b *bench, _ *fakeControl) { b.declare("third.example:51820", "198.51.100.8") },
			"edge third.example:51820 has it from its own configuration"},
		{"a file of the operator's", func(b *bench, _ *fakeControl) {
			b.spec.PrivateKeyFile = filepath.Join(b.t.TempDir(), "key")
			writeFile(b.t, b.spec.PrivateKeyFile, newKey(b.t).String(), 0o600)
		}, "it is in a file of its operator's"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			twoEdges(t, func(t *testing.T, b *bench, first, second *fakeControl) {
				tt.set(b, second)
				b.start()
				old := b.savedKey()
				b.joinAt(testEdge)
				b.joinAt(secondEdge)
				askToRotate(first)
				time.Sleep(time.Hour)
				synctest.Wait()
				if got := b.log.with("the key cannot be changed"); len(got) != 1 || !strings.Contains(got[0], tt.want) {
					t.Errorf("the log says %q, want once %q", got, tt.want)
				}
				errs := second.last(t).Errors
				if len(errs) != 1 || errs[0].Destination != "key rotation" || !strings.HasPrefix(errs[0].Error, tt.want) {
					t.Errorf("reported %+v", errs)
				}
				if b.savedKey() != old || len(b.tunnel.used()) != 0 {
					t.Error("the key was changed")
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A run that ended before every edge was told goes on with the same next key
// when it is asked again; one that ended after it was saved starts with it.
func TestKeyChangeSurvivesAnEnd(t *testing.T) {
	twoEdges(t, func(t *testing.T, b *bench, first, _ *fakeControl) {
		b.start()
		old := b.savedKey()
		b.joinAt(testEdge)
		askToRotate(first)
		if err := b.finish(); err != nil {
			t.Error(err)
		}
		if b.savedKey() != old || len(first.registered()) != 1 {
			t.Fatalf("the key was changed, or the edge that was there was told of %d keys", len(first.registered()))
		}

		again := newBench(t)
		again.spec.StateDir, again.spec.Edges = b.spec.StateDir, nil
		again.tunnel.controls = b.tunnel.controls
		again.resolver = b.resolver
		again.deps.Resolver = b.resolver
		again.start()
		again.joinAt(testEdge)
		again.joinAt(secondEdge)
		time.Sleep(time.Minute - time.Second)
		synctest.Wait()
		next := again.savedKey()
		if next.PublicKey() != first.registered()[0] || !slices.Equal(again.tunnel.used(), []wgtypes.Key{next}) {
			t.Error("the second run changed to another key than the one that the edge was told")
		}
		if err := again.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestKeyThatCannotBeTaken(t *testing.T) {
	twoEdges(t, func(t *testing.T, b *bench, first, second *fakeControl) {
		b.start()
		old := b.savedKey()
		b.joinAt(testEdge)
		b.joinAt(secondEdge)
		second.set(func() {
			second.refuse = func(wire.KeyRequest) *wire.Refusal {
				if err := os.Remove(filepath.Join(b.spec.StateDir, state.KeyName+".next")); err != nil {
					t.Error(err)
				}
				second.set(func() { second.refuse = nil })
				return nil
			}
		})
		askToRotate(first)
		if b.savedKey() != old || len(b.tunnel.used()) != 0 {
			t.Fatal("the key was changed to one that is not saved")
		}
		time.Sleep(rotateEvery + time.Second) // the edge asks on
		first.change(func(g *wire.Grant) { g.Rotate = false })
		if next := b.savedKey(); next == old || b.tunnel.used()[0] != next || first.registered()[1] != next.PublicKey() {
			t.Error("the key was not changed in the second attempt")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestTunnelThatDoesNotTakeTheKey(t *testing.T) {
	twoEdges(t, func(t *testing.T, b *bench, first, _ *fakeControl) {
		b.tunnel.keyErr = errors.New("no memory")
		b.start()
		b.joinAt(testEdge)
		b.joinAt(secondEdge)
		askToRotate(first)
		next := b.savedKey()
		first.change(func(g *wire.Grant) { g.Rotate = false })
		time.Sleep(time.Minute)
		b.tunnel.mu.Lock()
		b.tunnel.keyErr = nil
		b.tunnel.mu.Unlock()
		time.Sleep(time.Minute)
		if got := b.tunnel.used(); !slices.Equal(got, []wgtypes.Key{next}) || b.savedKey() != next {
			t.Error("the tunnel does not use the saved key")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// An edge that never has enough of new keys gets no more than one a minute.
func TestKeyChangesArePaced(t *testing.T) {
	twoEdges(t, func(t *testing.T, b *bench, first, _ *fakeControl) {
		b.start()
		b.joinAt(testEdge)
		b.joinAt(secondEdge)
		askToRotate(first)
		time.Sleep(10*rotateEvery - time.Second)
		synctest.Wait()
		if n := len(b.tunnel.used()); n < 5 || n > 10 {
			t.Errorf("%d changes in 10 minutes", n)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// An edge that is being enrolled with the old key holds the change up; one
// that enrols later does so with the new key.
func TestKeyAndEnrolment(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		_, first := b.enrolledEdge(testEdge, true)
		second, third := newKey(t).PublicKey(), newKey(t).PublicKey()
		b.resolver.set("other.example", "198.51.100.7")
		b.resolver.set("third.example", "198.51.100.8")
		b.spec.Token = wire.NewToken(false, []wire.Edge{
			{PublicKey: wire.Key{Key: second}, URLs: []string{secondEdge}}, {PublicKey: wire.Key{Key: third}, URLs: []string{"third.example:51820"}},
		})
		enroller := &fakeEnroller{}
		b.prepare = func(c *Connector) { c.enrol = enroller.enrol }
		answered := make(chan struct{})
		enroller.set(second, func() (wire.EnrollAnswer, error) {
			<-answered
			return wire.EnrollAnswer{Name: "berlin-1", Network: "berlin", Edges: b.spec.Token.Edges[:1]}, nil
		})
		enroller.fails(third, errors.New("no answer"))
		c := b.control(second)
		b.control(third)
		b.start()
		old := b.savedKey()
		b.joinAt(testEdge)
		askToRotate(first)
		time.Sleep(time.Minute)
		if b.savedKey() != old {
			t.Fatal("the key was changed while the old one is being enrolled")
		}
		close(answered)
		synctest.Wait()
		time.Sleep(time.Minute)
		if b.savedKey() != old {
			t.Fatal("the key was changed though an edge has just enrolled the old one")
		}
		first.change(func(g *wire.Grant) { g.Rotate = false })
		b.joinAt(secondEdge)
		time.Sleep(time.Minute)
		synctest.Wait()
		next := b.savedKey()
		if got := c.registered(); next == old || !slices.Equal(got, []wgtypes.Key{next.PublicKey()}) {
			t.Fatalf("the edge was told %d keys", len(got))
		}
		enroller.takes(third, "third.example:51820")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := enroller.last(); got != next.PublicKey() {
			t.Error("the third edge has enrolled another key")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// Between the last edge that is told and the change, another may enrol the old
// key.
func TestKeyAndAnEnrolmentInBetween(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		late, early := newKey(t).PublicKey(), newKey(t).PublicKey()
		b.spec.Edges = nil
		b.resolver.set("other.example", "198.51.100.7")
		b.spec.Token = wire.NewToken(false, []wire.Edge{
			{PublicKey: wire.Key{Key: late}, URLs: []string{secondEdge}}, {PublicKey: wire.Key{Key: early}, URLs: []string{testEdge}},
		})
		enroller := &fakeEnroller{}
		b.prepare = func(c *Connector) { c.enrol = enroller.enrol }
		enroller.fails(late, errors.New("no answer"))
		enroller.takes(early, testEdge)
		c, d := b.control(early), b.control(late)
		b.start()
		old := b.savedKey()
		b.joinAt(testEdge)
		c.set(func() {
			c.refuse = func(wire.KeyRequest) *wire.Refusal {
				enroller.takes(late, secondEdge)
				time.Sleep(postWithin / 2) // in which it does
				return nil
			}
			c.answer.Grant.Rotate = true
			c.answer.Revision++
		})
		time.Sleep(postWithin)
		synctest.Wait()
		if m := b.remembered(late); m.Confirmed || enroller.last() != old.PublicKey() {
			t.Fatalf("the late edge is %+v", m)
		}
		time.Sleep(5 * time.Minute)
		if b.savedKey() != old {
			t.Fatal("the key was changed, though an edge has enrolled the old one")
		}
		c.change(func(g *wire.Grant) { g.Rotate = false })
		b.joinAt(secondEdge)
		time.Sleep(time.Minute)
		synctest.Wait()
		if next := b.savedKey(); next == old || !slices.Equal(d.registered(), []wgtypes.Key{next.PublicKey()}) {
			t.Error("the key was not changed, or the late edge does not know it")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// Whatever goes wrong, no private key and nothing of the token but its id is
// in a log line or a report.
func TestNoSecretIsToldOrLogged(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, c *fakeControl) {
		enroller.fails(edge, errors.New("no answer"))
		b.start()
		secrets := []string{b.savedKey().String()}
		time.Sleep(time.Minute)
		enroller.takes(edge, testEdge)
		time.Sleep(time.Minute)
		synctest.Wait()
		b.tunnel.keyErr = errors.New("no memory")
		b.join()
		c.set(func() {
			c.refuse = func(wire.KeyRequest) *wire.Refusal { return wire.Refuse(wire.CodeKnownKey, "known") }
		})
		askToRotate(c)
		c.set(func() { c.refuse = nil })
		time.Sleep(2 * rotateEvery)
		synctest.Wait()
		c.set(func() { c.refusal = wire.Refuse(wire.CodeRevoked, "revoked") })
		err := <-b.end
		text, textErr := b.spec.Token.Text()
		if textErr != nil || err == nil {
			t.Fatal(textErr, err)
		}
		secrets = append(secrets, b.savedKey().String(), text, text[20:40], b.spec.Token.PresharedKey().String(), b.spec.Token.Bootstrap()[0].String())
		said := append(b.log.with(""), err.Error())
		for _, sync := range c.seen() {
			report, err := json.Marshal(sync)
			if err != nil {
				t.Fatal(err)
			}
			said = append(said, string(report))
		}
		for _, line := range said {
			for i, secret := range secrets {
				if strings.Contains(line, secret) {
					t.Errorf("secret %d is in %q", i, line)
				}
			}
		}
		if secrets[0] == secrets[1] || len(b.log.with("cannot be changed")) == 0 || len(b.log.with("enrolling failed")) == 0 {
			t.Error("not all of it happened")
		}
	})
}

// An edge that revokes the connector in the middle of a change does not hold up
// the others.
func TestKeyChangesWithoutAnEdgeThatRevokes(t *testing.T) {
	twoEdges(t, func(t *testing.T, b *bench, first, second *fakeControl) {
		b.start()
		old := b.savedKey()
		b.joinAt(testEdge)
		b.joinAt(secondEdge)
		revoked := wire.Refuse(wire.CodeRevoked, "connector \"berlin-1\" was revoked")
		second.set(func() { second.refuse = func(wire.KeyRequest) *wire.Refusal { return revoked } })
		askToRotate(first)
		if b.savedKey() != old {
			t.Fatal("the key was changed, though an edge does not have it")
		}
		first.change(func(g *wire.Grant) { g.Rotate = false }) // nobody asks a second time
		second.set(func() { second.refusal = revoked })
		synctest.Wait()
		if next := b.savedKey(); next == old || !slices.Equal(b.tunnel.used(), []wgtypes.Key{next}) {
			t.Error("the key was not changed once the edge was left")
		}
		if got := b.log.with("the key cannot be changed"); len(got) != 0 {
			t.Errorf("the log says %q", got)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// Between the look at an edge and the telling the edge may be left.
func TestKeyIsNotToldToAnEdgeThatWasLeft(t *testing.T) {
	twoEdges(t, func(t *testing.T, b *bench, _, second *fakeControl) {
		b.start()
		b.joinAt(testEdge)
		b.joinAt(secondEdge)
		second.change(func(g *wire.Grant) { g.Drain = true })
		time.Sleep(leaveCheck)
		synctest.Wait()
		if err := b.c.list()[1].tellKey(b.t.Context(), newKey(t)); err == nil || len(second.registered()) != 0 {
			t.Errorf("tellKey returned %v", err)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// Edges that all revoke the connector while its new key waits leave it the old
// one: they can tell nobody else that it was revoked.
func TestKeyStaysWhenNoEdgeIsLeft(t *testing.T) {
	twoEdges(t, func(t *testing.T, b *bench, first, second *fakeControl) {
		b.start()
		old := b.savedKey()
		b.joinAt(testEdge)
		b.joinAt(secondEdge)
		revoked := wire.Refuse(wire.CodeRevoked, "connector \"berlin-1\" was revoked")
		for _, c := range []*fakeControl{first, second} {
			c.set(func() { c.refuse = func(wire.KeyRequest) *wire.Refusal { return revoked } })
		}
		askToRotate(first)
		for _, c := range []*fakeControl{first, second} {
			c.set(func() { c.refusal = revoked })
		}
		synctest.Wait()
		if err := b.finish(); !errors.Is(err, ErrRefused) {
			t.Error(err)
		}
		if b.savedKey() != old || len(b.tunnel.used()) != 0 {
			t.Error("the key was changed to one that nobody knows")
		}
	})
}
