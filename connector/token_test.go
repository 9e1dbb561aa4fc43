package connector

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
)

const otherEdge = "other.example:51820"

// invitedTwice is invited with a token of two edges; the second is at
// otherEdge.
func invitedTwice(t *testing.T, f func(t *testing.T, b *bench, enroller *fakeEnroller, first, second wgtypes.Key)) {
	t.Helper()
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, first wgtypes.Key, _ *fakeControl) {
		second := newKey(t).PublicKey()
		b.control(second)
		b.resolver.set("other.example", "198.51.100.7")
		b.spec.Token.Edges = append(b.spec.Token.Edges, wire.Edge{PublicKey: wire.Key{Key: second}, URLs: []string{otherEdge}})
		f(t, b, enroller, first, second)
	})
}

// restart is a bench of the next start with the same state.
func (b *bench) restart(controls ...wgtypes.Key) *bench {
	b.t.Helper()
	next := newBench(b.t)
	next.spec.StateDir, next.spec.Edges = b.spec.StateDir, nil
	for _, key := range controls {
		next.control(key)
	}
	return next
}

func (b *bench) says(t *testing.T, times int, text string) {
	t.Helper()
	if got := b.log.with(text); len(got) != times {
		t.Errorf("the log says %d times %q, want %d: %q", len(got), text, times, b.log.lines)
	}
}

func TestTokenIsNeededUntilAllEdgesHaveEnrolled(t *testing.T) {
	invitedTwice(t, func(t *testing.T, b *bench, enroller *fakeEnroller, first, second wgtypes.Key) {
		enroller.takes(first, testEdge)
		enroller.fails(second, errors.New("no answer"))
		b.start()
		b.join()
		b.says(t, 1, "enrolment is complete hint=keep the token: edge other.example:51820 has not let this connector in yet")
		if err := b.finish(); err != nil {
			t.Error(err)
		}

		// Without the token, the second edge is not forgotten.
		without := b.restart(first)
		without.start()
		without.join()
		without.says(t, 1, "an edge of the token has never let this connector in edge=other.example:51820 token="+b.spec.Token.ID.String()+" hint=start once more with the token")
		if n := len(without.c.Status().Edges); n != 1 {
			t.Errorf("%d edges are served", n)
		}
		if err := without.finish(); err != nil {
			t.Error(err)
		}

		with := b.restart(first, second)
		with.resolver.set("other.example", "198.51.100.7")
		with.spec.Token = b.spec.Token
		with.prepare = func(c *Connector) { c.enrol = enroller.enrol }
		enroller.takes(second, otherEdge)
		with.start()
		with.join()
		with.joinAt(otherEdge)
		with.says(t, 1, "enrolment is complete hint=the token is needed no more")
		with.says(t, 0, "the token is not used")
		if err := with.finish(); err != nil {
			t.Error(err)
		}

		after := b.restart(first, second)
		after.start()
		after.says(t, 0, "never let this connector in")
		if err := after.finish(); err != nil {
			t.Error(err)
		}
	})
}

// TestStateCannotBeSaved: as on a full disk.
func TestStateCannotBeSaved(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, enroller *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
		// In the way of the temporary file, and not empty; from the moment that
		// the edge has enrolled us.
		blocked := filepath.Join(b.spec.StateDir, "state.json.tmp")
		enroller.set(edge, func() (wire.EnrollAnswer, error) {
			err := os.MkdirAll(filepath.Join(blocked, "x"), 0o700)
			return wire.EnrollAnswer{Name: "berlin-1", Network: "berlin"}, err
		})
		b.start()
		b.join()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		b.says(t, 1, "remembering failed")
		b.says(t, 1, "hint=make room in "+b.spec.StateDir)
		b.says(t, 1, "enrolment is complete hint=keep the token: the enrolment with edge edge.example:51820 could not be saved yet")
		b.says(t, 0, "needed no more")
		if err := os.RemoveAll(blocked); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		b.says(t, 1, "remembered after all hint=the token is needed no more")
		if !b.remembered(edge).Confirmed {
			t.Error("not saved")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestTokenThatIsNotUsed(t *testing.T) {
	for _, tt := range []struct {
		name  string
		saved func(*state.Edge)
		want  string // "": it may be needed
	}{
		{"enrolled with it", func(m *state.Edge) { m.Confirmed = true }, "reason=this connector has enrolled with edge edge.example:51820 hint="},
		{"enrolled with another", func(m *state.Edge) { m.Confirmed, m.TokenID = true, "00" }, "hint=it is tried only where"},
		{"not confirmed", nil, ""},
		{"ephemeral", func(m *state.Edge) { m.Confirmed, m.Ephemeral = true, true }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			invited(t, func(t *testing.T, b *bench, _ *fakeEnroller, edge wgtypes.Key, _ *fakeControl) {
				b.pending(edge, tt.saved)
				b.start()
				b.join()
				if got := b.log.with("the token is not used"); (len(got) == 1) != (tt.want != "") || len(got) == 1 && !strings.Contains(got[0], tt.want) {
					t.Errorf("the log says %q, want %q", got, tt.want)
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestRevokedConnectorIsToldWhatToDo(t *testing.T) {
	invited(t, func(t *testing.T, b *bench, _ *fakeEnroller, edge wgtypes.Key, c *fakeControl) {
		b.pending(edge, func(m *state.Edge) { m.Confirmed = true })
		c.refusal = wire.Refuse(wire.CodeRevoked, "it was revoked")
		b.start()
		b.tunnel.peer(t, testEdge).set(State{Alive: true})
		err := <-b.end
		want := "it was revoked; to let it in again remove " + b.spec.StateDir + " and start with a new token; the token that was given is not used, "
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("Run returned %v, want %q", err, want)
		}
	})
}
