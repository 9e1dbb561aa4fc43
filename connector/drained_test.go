package connector

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

// informed drops the lines that are for debugging.
type informed struct{ *logLines }

func (informed) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (i informed) WithGroup(string) slog.Handler              { return i }
func (i informed) WithAttrs([]slog.Attr) slog.Handler         { return i }

// drainedAtOne is a connector of two edges that the first has drained.
func drainedAtOne(t *testing.T, f func(t *testing.T, b *bench, c, other *fakeControl)) {
	t.Helper()
	const second = "other.example:51820"
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.deps.Log = slog.New(informed{b.log})
		other := b.declare(second, "198.51.100.7")
		b.start()
		first := b.join()
		b.joinAt(second)
		c.change(func(g *wire.Grant) { g.Drain = true })
		if !first.isRemoved() || !b.c.Status().Ready() {
			t.Fatalf("left: %v; ready: %v", first.isRemoved(), b.c.Status().Ready())
		}
		if got := b.log.with("left reason=drained by the edge hint=it is asked about once a minute"); len(got) != 1 {
			t.Errorf("the log says %q", got)
		}
		f(t, b, c, other)
	})
}

// lookIn waits for the connector to call the edge that it has left, and makes
// that answer.
func (b *bench) lookIn(t *testing.T) *fakePeer {
	t.Helper()
	before := b.tunnel.peer(t, testEdge)
	for start := time.Now(); b.tunnel.peer(t, testEdge) == before; {
		if time.Since(start) > 5*time.Minute/4 {
			t.Fatal("nobody looks in on the edge")
		}
		time.Sleep(time.Second)
		synctest.Wait()
	}
	return b.join()
}

func TestDrainedEdgeComesBack(t *testing.T) {
	drainedAtOne(t, func(t *testing.T, b *bench, c, _ *fakeControl) {
		lines := len(b.log.messages())
		for range 5 {
			p := b.lookIn(t)
			if s := b.c.Status().Edges[0]; !p.isRemoved() || s.Gone != errDrained.Error() || s.Controlled {
				t.Errorf("the edge drains still: left: %v; %+v", p.isRemoved(), s)
			}
		}
		time.Sleep(10 * time.Minute) // it does not even answer
		if got := b.log.messages()[lines:]; len(got) > 0 {
			t.Errorf("looking in is logged: %q", got)
		}
		c.change(func(g *wire.Grant) { g.Drain = false })
		p := b.lookIn(t)
		b.echoes("10.0.0.10:80")
		r, ended := b.flowAt(testEdge, "10.0.0.10:80")
		r.hangUp(ended)
		time.Sleep(time.Hour)
		if s := b.c.Status().Edges[0]; p.isRemoved() || s.Gone != "" || !s.Controlled {
			t.Errorf("the drain has ended; left: %v; %+v", p.isRemoved(), s)
		}
		if got := b.log.messages()[lines:]; !strings.HasPrefix(strings.Join(got, ","), "granted,draining no more,resolved,handshake,ready") {
			t.Errorf("the log says %q", got)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestDrainedEdgeIsGivenUpForGood(t *testing.T) {
	drainedAtOne(t, func(t *testing.T, b *bench, c, other *fakeControl) {
		c.set(func() { c.refusal = wire.Refuse(wire.CodeRevoked, "revoked") })
		b.lookIn(t)
		if s := b.c.Status().Edges[0]; !strings.Contains(s.Gone, "revoked") || len(b.log.with("given up")) != 1 {
			t.Errorf("%+v; the log says %q", s, b.log.with("given up"))
		}
		other.set(func() { other.refusal = wire.Refuse(wire.CodeRevoked, "revoked there too") })
		if err := <-b.end; !errors.Is(err, ErrRefused) {
			t.Errorf("Run returned %v", err)
		}
	})
}

// TestNoEdgeIsLeftAfterDrains: all have drained it, or all others refused it.
func TestNoEdgeIsLeftAfterDrains(t *testing.T) {
	for name, end := range map[string]func(c *fakeControl){
		"drained there too": func(c *fakeControl) { c.answer.Grant.Drain, c.answer.Revision = true, 9 },
		"refused there":     func(c *fakeControl) { c.refusal = wire.Refuse(wire.CodeRevoked, "revoked") },
	} {
		t.Run(name, func(t *testing.T) {
			drainedAtOne(t, func(t *testing.T, b *bench, _, other *fakeControl) {
				b.lookIn(t)
				start := time.Now()
				other.set(func() { end(other) })
				if err := <-b.end; err != nil {
					t.Errorf("Run returned %v", err)
				}
				if got := time.Since(start); got > time.Second {
					t.Errorf("that took %v", got)
				}
			})
		})
	}
}

func TestStopWhileAnEdgeIsLeft(t *testing.T) {
	drainedAtOne(t, func(t *testing.T, b *bench, _, _ *fakeControl) {
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}
