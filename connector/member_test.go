package connector

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/integration/require"
)

// fakeEnroller answers enrolments as a test says, by edge.
type fakeEnroller struct {
	mu      sync.Mutex
	answers map[wgtypes.Key]func() (wire.EnrollAnswer, error)
	keys    []wgtypes.Key // that enrolled, in order
}

func (f *fakeEnroller) enrol(ctx context.Context, e EdgeSpec, key wgtypes.Key) (wire.EnrollAnswer, error) {
	f.mu.Lock()
	answer := f.answers[e.PublicKey]
	f.keys = append(f.keys, key)
	f.mu.Unlock()
	if answer == nil {
		<-ctx.Done()
		return wire.EnrollAnswer{}, ctx.Err()
	}
	return answer()
}

func (f *fakeEnroller) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.keys)
}

// last is the key that enrolled last.
func (f *fakeEnroller) last() wgtypes.Key {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keys[len(f.keys)-1]
}

func (f *fakeEnroller) set(edge wgtypes.Key, answer func() (wire.EnrollAnswer, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answers == nil {
		f.answers = make(map[wgtypes.Key]func() (wire.EnrollAnswer, error))
	}
	f.answers[edge] = answer
}

// takes makes the edge enrol whoever comes.
func (f *fakeEnroller) takes(edge wgtypes.Key, urls ...string) {
	f.set(edge, func() (wire.EnrollAnswer, error) {
		return wire.EnrollAnswer{Name: "berlin-1", Network: "berlin", Edges: []wire.Edge{{PublicKey: wire.Key{Key: edge}, URLs: urls}}}, nil
	})
}

func (f *fakeEnroller) fails(edge wgtypes.Key, err error) {
	f.set(edge, func() (wire.EnrollAnswer, error) { return wire.EnrollAnswer{}, err })
}

// invited is a bench with a token, in place of a declared edge, for the edge
// at testEdge, and with that edge's control port.
func invited(t *testing.T, f func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, c *fakeControl)) {
	t.Helper()
	inBubble(t, func(t *testing.T, b *bench) {
		edge := b.spec.Edges[0].PublicKey
		enroller := &fakeEnroller{}
		b.spec.Edges = nil
		b.spec.Token = wire.NewToken(false, []wire.Edge{{PublicKey: wire.Key{Key: edge}, URLs: []string{testEdge}}})
		b.prepare = func(c *Connector) { c.enrol = enroller.enrol }
		f(t, b, enroller, edge, b.control(edge))
	})
}

func TestEnrolledThenJoinedThenConfirmed(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
		enroller.takes(edge, testEdge, "198.51.100.7:51820")
		b.start()
		if m := b.remembered(edge); m.Confirmed || m.Name != "berlin-1" || m.Network != "berlin" || m.TokenID != b.spec.Token.ID.String() ||
			!slices.Equal(m.URLs, []string{testEdge, "198.51.100.7:51820"}) {
			t.Errorf("remembered %+v", m)
		}
		if enroller.last() != b.c.Status().PublicKey {
			t.Error("another key was enrolled")
		}
		b.join()
		if m := b.remembered(edge); !m.Confirmed {
			t.Errorf("remembered %+v", m)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
		if enroller.count() != 1 {
			t.Errorf("enrolled %d times", enroller.count())
		}

		// The next run needs neither a token nor the edge in a file.
		again := newBench(t)
		again.spec.StateDir, again.spec.Edges = b.spec.StateDir, nil
		again.control(edge)
		again.start()
		again.join()
		if err := again.finish(); err != nil {
			t.Error(err)
		}
		if again.c.Status().PublicKey != enroller.last() {
			t.Error("the second run has another key")
		}
	})
}

func TestEnrollingBacksOff(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
		enroller.fails(edge, errors.New("no answer from 203.0.113.10:51820 over UDP"))
		b.start()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := enroller.count(); n > 3600/20 || n < 3600/40 {
			t.Errorf("%d attempts in an hour", n)
		}
		enroller.fails(edge, wire.Refuse(wire.CodeBusy, "another key is being confirmed"))
		time.Sleep(time.Minute)
		enroller.takes(edge, testEdge)
		time.Sleep(time.Minute)
		synctest.Wait()
		b.join()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestFinalRefusalOfEnrolment(t *testing.T) {
	const other = "other.example:51820"
	refusal := wire.Refuse(wire.CodeSpent, "the token was used on 2026-01-02 by connector \"berlin-1\"")
	t.Run("of the only edge", func(t *testing.T) {
		invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
			enroller.fails(edge, refusal)
			b.start()
			if err := <-b.end; !errors.Is(err, ErrRefused) || !strings.HasSuffix(err.Error(), `edge "edge.example:51820": `+refusal.Message) {
				t.Errorf("Run returned %v", err)
			}
			if got := b.log.with(refusal.Message); len(got) != 1 {
				t.Errorf("the log says %q", got)
			}
		})
	})
	t.Run("of one of two", func(t *testing.T) {
		invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
			second := newKey(t).PublicKey()
			b.control(second)
			b.resolver.set("other.example", "198.51.100.7")
			b.spec.Token.Edges = append(b.spec.Token.Edges, wire.Edge{PublicKey: wire.Key{Key: second}, URLs: []string{other}})
			enroller.fails(edge, refusal)
			enroller.takes(second, other)
			b.start()
			b.joinAt(other)
			time.Sleep(time.Hour)
			if !b.c.Status().Ready() {
				t.Error("the other edge is not served")
			}
			if err := b.finish(); err != nil {
				t.Error(err)
			}
		})
	})
	declared := func(b *bench, edge wgtypes.Key) {
		b.spec.Edges = []EdgeSpec{{PublicKey: edge, URLs: []EdgeURL{{Host: "edge.example", Port: 51820}}}}
	}
	enrolled := func(change func(*state.Edge)) func(*bench, wgtypes.Key) {
		return func(b *bench, edge wgtypes.Key) { b.pending(edge, change) }
	}
	known := wire.Refuse(wire.CodeKnownKey, "the key is known already")
	for _, tt := range []struct {
		name    string
		known   func(*bench, wgtypes.Key)
		refusal *wire.Refusal
		served  bool
	}{
		{"of a key that a declared edge knows", declared, known, true},
		{"of a spent token at a declared edge", declared, refusal, true},
		{"of a key that was enrolled", enrolled(nil), known, true},
		{"of the token that was not confirmed", enrolled(nil), refusal, false},
		{"of a spent token, after another was confirmed", enrolled(func(m *state.Edge) { m.Confirmed, m.TokenID = true, "00" }), refusal, true},
		{"of a spent token, after another was not", enrolled(func(m *state.Edge) { m.TokenID = "00" }), refusal, false},
		{"of the token of an ephemeral one", enrolled(func(m *state.Edge) { m.Confirmed, m.Ephemeral = true, true }), refusal, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
				tt.known(b, edge)
				enroller.fails(edge, tt.refusal)
				b.start()
				time.Sleep(time.Minute)
				synctest.Wait()
				if enroller.count() != 1 {
					t.Errorf("%d enrolments", enroller.count())
				}
				if !tt.served {
					if err := <-b.end; !errors.Is(err, ErrRefused) {
						t.Errorf("Run returned %v", err)
					}
					return
				}
				b.join()
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// pending saves the edge of the token as one whose enrolment was not confirmed.
func (b *bench) pending(edge wgtypes.Key, change func(*state.Edge)) {
	b.t.Helper()
	dir, err := state.Open(b.spec.StateDir)
	if err != nil {
		b.t.Fatal(err)
	}
	defer dir.Close()
	if _, _, err := dir.Key(); err != nil {
		b.t.Fatal(err)
	}
	m := state.Edge{PublicKey: wire.Key{Key: edge}, URLs: []string{testEdge}, TokenID: b.spec.Token.ID.String()}
	if change != nil {
		change(&m)
	}
	if err := dir.SaveEdge(m); err != nil {
		b.t.Fatal(err)
	}
}

func TestPendingEdgeEnrolsAgain(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
		b.pending(edge, nil)
		enroller.takes(edge, testEdge)
		b.start()
		time.Sleep(answerWithin - time.Millisecond)
		synctest.Wait()
		if enroller.count() != 0 {
			t.Error("enrolled before the edge had its time to answer")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if enroller.count() != 1 {
			t.Errorf("enrolled %d times", enroller.count())
		}
		p := b.tunnel.peer(t, testEdge)
		p.mu.Lock()
		if n := len(p.calls); n != 2 {
			t.Errorf("the edge was called %d times, want anew once it knows the key", n)
		}
		p.mu.Unlock()
		b.join()
		if !b.remembered(edge).Confirmed {
			t.Error("not confirmed")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestWhoEnrolsAgain(t *testing.T) {
	tests := []struct {
		name   string
		saved  func(m *state.Edge)
		joined bool // the edge answered before it fell silent
		silent time.Duration
		want   bool
	}{
		{"confirmed", func(m *state.Edge) { m.Confirmed = true }, false, time.Hour, false},
		{"confirmed, with another token", func(m *state.Edge) { m.Confirmed, m.TokenID = true, "00" }, false, time.Minute, true},
		{"ephemeral, at the start", func(m *state.Edge) { m.Confirmed, m.Ephemeral = true, true }, false, time.Minute, true},
		{"ephemeral, away for a moment", func(m *state.Edge) { m.Confirmed, m.Ephemeral = true, true }, true, 55 * time.Second, false},
		{"ephemeral, away for long", func(m *state.Edge) { m.Confirmed, m.Ephemeral = true, true }, true, 2 * time.Minute, true},
		{"confirmed, with another token, away for a moment", func(m *state.Edge) { m.Confirmed, m.TokenID = true, "00" }, true, 9 * time.Minute, false},
		{"confirmed, with another token, away for long", func(m *state.Edge) { m.Confirmed, m.TokenID = true, "00" }, true, 12 * time.Minute, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
				b.pending(edge, tt.saved)
				enroller.takes(edge, testEdge)
				b.start()
				if tt.joined {
					b.join().set(State{})
				}
				time.Sleep(tt.silent)
				synctest.Wait()
				if got := enroller.count() > 0; got != tt.want {
					t.Errorf("enrolled again: %v", got)
				}
				b.join()
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// An edge that is down for an hour is not flooded by those that it has enrolled.
func TestEphemeralEnrolsAgainOnceAMinute(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
		b.pending(edge, func(m *state.Edge) { m.Confirmed, m.Ephemeral = true, true })
		enroller.fails(edge, errors.New("no answer"))
		b.start()
		b.join().set(State{})
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := enroller.count(); n < 25 || n > 60*4/3 {
			t.Errorf("%d enrolments in an hour", n)
		}
		b.join()
		if !b.c.Status().Ready() {
			t.Error("the edge is not served")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// The token of an ephemeral connector has ended while its edge was away: the
// edge may say so a moment before it answers the connector's own key.
func TestEndedTokenOfAnEphemeralConnector(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
		b.pending(edge, func(m *state.Edge) { m.Confirmed, m.Ephemeral = true, true })
		asked := make(chan struct{})
		enroller.set(edge, func() (wire.EnrollAnswer, error) {
			close(asked)
			return wire.EnrollAnswer{}, wire.Refuse(wire.CodeRevoked, "the token was revoked")
		})
		b.start()
		<-asked
		time.Sleep(time.Second)
		b.join()
		if !b.c.Status().Ready() {
			t.Error("the edge is not served, though it knows the key")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// An edge that comes back while the connector enrols is joined, whatever the
// token would have brought.
func TestEnrollingEndsWhenTheEdgeAnswers(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
		b.pending(edge, nil)
		enroller.fails(edge, errors.New("no answer"))
		b.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		b.join()
		if !b.c.Status().Ready() || !b.remembered(edge).Confirmed {
			t.Error("the edge is not served")
		}
		n := enroller.count()
		time.Sleep(time.Hour)
		synctest.Wait()
		if enroller.count() != n {
			t.Error("it enrols on")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestEdgeAnswersDuringAnEnrolment(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
		b.pending(edge, nil)
		b.start() // an enrolment never ends by itself
		time.Sleep(time.Minute)
		synctest.Wait()
		if enroller.count() != 1 {
			t.Errorf("%d enrolments", enroller.count())
		}
		b.join()
		if !b.c.Status().Ready() || !b.remembered(edge).Confirmed {
			t.Error("the edge is not served")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestSilenceOfAnEdgeThatWasEnrolledAt(t *testing.T) {
	tests := []struct {
		name      string
		confirmed bool
		want      string
	}{
		{"pending", false, "its enrolment was not completed: run again with the token"},
		{"confirmed", true, hintForgotten},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.enrolledEdge(testEdge, tt.confirmed)
				b.start()
				time.Sleep(sayAfter)
				synctest.Wait()
				if got := b.log.with("no answer"); len(got) != 1 || !strings.HasSuffix(got[0], tt.want) {
					t.Errorf("the log says %q", got)
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestNoEdgeIsKnown(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.spec.Edges = nil
		b.start()
		if err := <-b.end; err == nil || !strings.Contains(err.Error(), "run with a token") {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestEdgesAreToldApartByKey(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		declared := b.spec.Edges[0].PublicKey
		saved, fresh := newKey(t).PublicKey(), newKey(t).PublicKey()
		b.spec.Token = wire.NewToken(false, []wire.Edge{
			{PublicKey: wire.Key{Key: saved}, URLs: []string{"saved.example:1"}},
			{PublicKey: wire.Key{Key: fresh}, URLs: []string{testEdge, "fresh.example:1"}},
		})
		c, err := New(b.spec, b.deps)
		if err != nil {
			t.Fatal(err)
		}
		edges := c.gather([]state.Edge{
			{PublicKey: wire.Key{Key: saved}, URLs: []string{"moved.example:1", "unreadable"}},
			{PublicKey: wire.Key{Key: declared}, URLs: []string{"also.example:1"}},
		})
		var got []string
		for _, e := range edges {
			what := ""
			if e.declared {
				what += " declared"
			}
			if e.member != nil {
				what += " enrolled"
			}
			if e.invited {
				what += " invited"
			}
			got = append(got, strings.Join(texts(e.spec.URLs), ",")+what)
		}
		want := []string{
			"edge.example:51820,also.example:1 declared enrolled",
			"moved.example:1,saved.example:1 enrolled invited",
			"edge.example:51820,fresh.example:1 invited",
		}
		if !slices.Equal(got, want) {
			t.Errorf("edges %q, want %q", got, want)
		}
		if a, b := edges[0].name(), edges[2].name(); a == b {
			t.Errorf("two edges are called %q", a)
		}
	})
}

func TestToldURLsAreRememberedAndUsed(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		key, c := b.enrolledEdge(testEdge, true)
		stranger := newKey(t).PublicKey()
		b.resolver.set("new.example", "198.51.100.7")
		b.start()
		p := b.join()
		c.change(func(g *wire.Grant) {
			g.Edges = []wire.Edge{
				{PublicKey: wire.Key{Key: stranger}, URLs: []string{"evil.example:1"}},
				{PublicKey: wire.Key{Key: key}, URLs: []string{"new.example:4500", "what is this?"}},
			}
		})
		if m := b.remembered(key); !slices.Equal(m.URLs, []string{"new.example:4500"}) {
			t.Errorf("remembered %q", m.URLs)
		}
		delete(b.resolver.names, "edge.example")
		p.set(State{})
		synctest.Wait()
		if got := p.called(); !slices.Equal(got, at("203.0.113.10:51820", "198.51.100.7:4500")) {
			t.Errorf("called %v", got)
		}
		if len(b.c.Status().Edges) != 1 {
			t.Error("an edge was joined by hearsay")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestVolatileStateIsWarnedOf(t *testing.T) {
	const tmpfs = "/dev/shm"
	tests := []struct {
		name string
		set  func(b *bench, m *state.Edge)
		want bool
	}{
		{"declared", nil, true},
		{"enrolled", func(_ *bench, m *state.Edge) { m.Confirmed = true }, true},
		{"ephemeral", func(_ *bench, m *state.Edge) { m.Confirmed, m.Ephemeral = true, true }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path, err := os.MkdirTemp(tmpfs, "warren")
			if err != nil {
				require.Missing(t, "a tmpfs at %s: %v", tmpfs, err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(path) })
			inBubble(t, func(t *testing.T, b *bench) {
				b.spec.StateDir = filepath.Join(path, "state")
				if tt.set != nil {
					b.pending(b.spec.Edges[0].PublicKey, func(m *state.Edge) { tt.set(b, m) })
					b.spec.Edges = nil
				}
				b.start()
				if got := b.log.with("state will be lost"); (len(got) == 1) != tt.want {
					t.Errorf("the log says %q", got)
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
