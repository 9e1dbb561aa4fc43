package enroll

import (
	"context"
	"math"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// answerTo is what a sync was answered.
type answerTo struct {
	wire.SyncAnswer
	refusal *wire.Refusal
}

// hold begins a sync of a connector that has the grant of now, and returns once
// it is held. The channel gives its answer.
func (w *world) hold(ctx context.Context, key wgtypes.Key) <-chan answerTo {
	w.t.Helper()
	now, refusal := w.poll(key)
	if refusal != nil {
		w.t.Fatal(refusal)
	}
	held := w.Counts().SyncsHeld
	answered := make(chan answerTo, 1)
	go func() {
		answer, refusal := w.sync(ctx, key, wire.SyncRequest{Revision: now.Revision})
		answered <- answerTo{answer, refusal}
	}()
	synctest.Wait()
	if w.Counts().SyncsHeld != held+1 {
		w.t.Fatal("the sync is not held")
	}
	return answered
}

// now is the answer that a sync must have by now.
func now(t testing.TB, answered <-chan answerTo) answerTo {
	t.Helper()
	synctest.Wait()
	select {
	case a := <-answered:
		return a
	default:
		t.Fatal("the sync is still held")
		return answerTo{}
	}
}

// held wants the sync to wait on.
func held(t testing.TB, answered <-chan answerTo) {
	t.Helper()
	synctest.Wait()
	select {
	case a := <-answered:
		t.Fatalf("the sync was answered: %+v", a)
	default:
	}
}

// bubble runs a test with a world and time of its own.
func bubble(t *testing.T, f func(t *testing.T, w *world), change ...func(*Spec)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, change...)) })
}

func withDeclared(s *Spec) {
	s.Declared = []Declared{{Name: "declared", Network: "tokyo", PublicKey: newKey(), Routes: prefixes("10.9.0.0/16")}}
}

func TestSyncIsHeldUntilTheGrantChanges(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(w *world)
		want   func(g wire.Grant) bool
	}{
		{"routes", func(w *world) {
			if err := w.Grant("web", prefixes("10.2.0.0/16")); err != nil {
				w.t.Error(err)
			}
		}, func(g wire.Grant) bool { return g.Routes[0] == netip.MustParsePrefix("10.2.0.0/16") }},
		{"drain", func(w *world) {
			if err := w.Drain("web", false); err != nil {
				w.t.Error(err)
			}
		}, func(g wire.Grant) bool { return g.Drain }},
		{"rotate", func(w *world) {
			if err := w.Rotate("web"); err != nil {
				w.t.Error(err)
			}
		}, func(g wire.Grant) bool { return g.Rotate }},
		{"limits", func(w *world) {
			spec := w.spec
			spec.Networks = []Network{{Name: "berlin", Enroll: true, MaxTCPFlows: 7, MaxUDPFlows: 8}, {Name: "tokyo"}}
			w.apply(spec)
		}, func(g wire.Grant) bool { return g.MaxTCPFlows == 7 && g.MaxUDPFlows == 8 }},
		{"addresses of the edge", func(w *world) {
			spec := w.spec
			spec.Advertise = []string{"fra2.example.net:51820"}
			w.apply(spec)
		}, func(g wire.Grant) bool { return g.Edges[0].URLs[0] == "fra2.example.net:51820" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				_, token := w.token(reusable)
				_, key := w.enrolled(token, "web")
				before, _ := w.poll(key)
				answered := w.hold(t.Context(), key)
				c.change(w)
				a := now(t, answered)
				if a.refusal != nil || !c.want(a.Grant) || a.Revision == before.Revision || a.Revision == 0 {
					t.Errorf("pushed %+v", a)
				}
				if w.Counts().SyncsHeld != 0 {
					t.Error("still counted as held")
				}
				w.check()
			})
		})
	}
}

func TestSyncsThatNothingHappensTo(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, token := w.token(reusable)
		_, key := w.enrolled(token, "web")
		_, _ = w.enrolled(token, "other")
		before, _ := w.poll(key)
		answered := w.hold(t.Context(), key)
		if err := w.Grant("other", prefixes("10.2.0.0/16")); err != nil { // somebody else's
			t.Error(err)
		}
		w.apply(w.spec)                               // nothing changes
		_ = w.Grant("web", w.connector("web").Routes) // neither does this
		held(t, answered)
		time.Sleep(wire.HoldSync - time.Millisecond)
		held(t, answered)
		time.Sleep(time.Millisecond)
		if a := now(t, answered); a.refusal != nil || a.Revision != before.Revision || a.Grant.Name != "web" {
			t.Errorf("after %v: %+v", wire.HoldSync, a)
		}
	})
}

// A change that was taken back before the connector heard of it is none, and
// neither is a restart.
func TestRevisionsFollowTheContent(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, token := w.token(reusable)
		_, key := w.enrolled(token, "web")
		before, _ := w.poll(key)
		if err := w.Drain("web", false); err != nil {
			t.Fatal(err)
		}
		during, _ := w.poll(key)
		if err := w.Drain("web", true); err != nil {
			t.Fatal(err)
		}
		after, _ := w.poll(key)
		w.restart()
		restarted, _ := w.poll(key)
		if during.Revision == before.Revision || after.Revision != before.Revision || restarted.Revision != before.Revision {
			t.Errorf("revisions %d, %d, %d, %d", before.Revision, during.Revision, after.Revision, restarted.Revision)
		}
	})
}

func TestANewerSyncEndsTheOlder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, token := w.token(reusable)
		_, key := w.enrolled(token, "web")
		older := w.hold(t.Context(), key)
		current, _ := w.poll(key)
		if a := now(t, older); a.refusal == nil || a.refusal.Code != wire.CodeBusy {
			t.Errorf("the older was answered %+v", a)
		}
		ctx, cancel := context.WithCancel(t.Context())
		newer := w.hold(ctx, key)
		cancel() // its connection is lost
		if a := now(t, newer); a.refusal == nil {
			t.Errorf("answered %+v", a)
		}
		if a, refusal := w.poll(key); refusal != nil || a.Revision != current.Revision {
			t.Errorf("the next: %+v, %v", a, refusal)
		}
		if w.connectors["web"].syncs.hold != nil || w.Counts().SyncsHeld != 0 {
			t.Error("a hold is left")
		}
	})
}

func TestSyncsOfStrangers(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	_, refusal := w.poll(newKey())
	wantRefusal(t, refusal, wire.CodeUnknown, "enrol it")
	_, refusal = w.poll(joiner(token, 0))
	wantRefusal(t, refusal, wire.CodeNotAllowed, "enrolment")
	wantRefusal(t, w.changeKey(newKey(), wire.KeyRequest{PublicKey: wire.Key{Key: newKey()}}), wire.CodeUnknown)
}

func TestReportsAreBoundedAndFitToBeShown(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	_, key := w.enrolled(token, "web")
	wild := wire.Report{
		Version: strings.Repeat("ü", 500), Hostname: "a\x1b[2J\nb\xff\u202e",
		Time: time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -3600*5)), Started: time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC),
		Load: wire.Load{TCPFlows: -1, UDPFlows: math.MinInt, CPUs: -5, Load1: -0.5},
	}
	for range 100 {
		wild.Errors = append(wild.Errors, wire.OriginError{Destination: strings.Repeat("d", 1000), Result: strings.Repeat("r", 1000), Error: strings.Repeat("e\n", 1000)})
	}
	if _, refusal := w.sync(t.Context(), key, wire.SyncRequest{Report: wild}); refusal != nil {
		t.Fatal(refusal)
	}
	got := w.connector("web")
	r := got.Report
	if len(r.Version) > wire.MaxName || !utf8.ValidString(r.Version) || r.Hostname != "a?[2J?b??" || len(r.Errors) != wire.MaxOriginErrors {
		t.Errorf("kept %+v", r)
	}
	if e := r.Errors[0]; len(e.Destination) != wire.MaxText || len(e.Result) != wire.MaxName || len(e.Error) != wire.MaxText || strings.Contains(e.Error, "\n") {
		t.Errorf("kept %+v", e)
	}
	if r.Load != (wire.Load{}) || !r.Started.IsZero() || !r.Time.IsZero() || got.ClockOffset != 0 {
		t.Errorf("kept %+v, offset %v", r, got.ClockOffset)
	}
	if !strings.Contains(r.Version, "ü") || strings.Contains(r.Version, "?") {
		t.Errorf("a rune was cut: %q", r.Version)
	}
}

func TestClockOffset(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	_, key := w.enrolled(token, "web")
	report := func(offset time.Duration) {
		t.Helper()
		if _, refusal := w.sync(t.Context(), key, wire.SyncRequest{Report: wire.Report{Time: w.clock.Now().Add(offset)}}); refusal != nil {
			t.Fatal(refusal)
		}
		if got := w.connector("web").ClockOffset; got != offset {
			t.Errorf("offset %v, want %v", got, offset)
		}
	}
	for _, c := range []struct {
		offset      time.Duration
		warned, ok_ int // so far
	}{
		{0, 0, 0}, {30 * time.Second, 0, 0}, {31 * time.Second, 1, 0}, {time.Hour, 1, 0}, {-time.Hour, 2, 0},
		{-31 * time.Second, 2, 0}, {time.Second, 2, 1}, {-30 * time.Second, 2, 1}, {-365 * 24 * time.Hour, 3, 1},
	} {
		report(c.offset)
		text := w.log.String()
		if n := strings.Count(text, "clock is off"); n != c.warned {
			t.Errorf("at %v: warned %d times, want %d", c.offset, n, c.warned)
		}
		if n := strings.Count(text, "right again"); n != c.ok_ {
			t.Errorf("at %v: reassured %d times, want %d", c.offset, n, c.ok_)
		}
	}
}

func TestDeclaredConnectorsSync(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		key := w.spec.Declared[0].PublicKey
		answer, refusal := w.poll(key)
		if refusal != nil || answer.Grant.Name != "declared" || answer.Grant.Network != "tokyo" || len(answer.Grant.Routes) != 1 || answer.Grant.Rotate {
			t.Errorf("granted %+v, %v", answer, refusal)
		}
		wantRefusal(t, w.changeKey(key, wire.KeyRequest{PublicKey: wire.Key{Key: newKey()}}), wire.CodeNotAllowed, "declared")
		c := w.connector("declared")
		if !c.Declared || c.State != ConnectorEnrolled || c.Report.Version != "1.2.3" {
			t.Errorf("listed %+v", c)
		}
		wantError(t, w.Grant("declared", prefixes("10.0.0.0/8")), Refused, "declared in edge.toml: change its routes there and run `warren edge reload`")
		wantError(t, w.Rotate("declared"), Refused, "declared in edge.toml")

		answered := w.hold(t.Context(), key)
		if err := w.Drain("declared", false); err != nil {
			t.Fatal(err)
		}
		if a := now(t, answered); !a.Grant.Drain {
			t.Errorf("pushed %+v", a)
		}
		answered = w.hold(t.Context(), key)
		spec := w.spec
		spec.Declared = []Declared{{Name: "declared", Network: "tokyo", PublicKey: key, Routes: prefixes("10.8.0.0/16")}}
		w.apply(spec)
		if a := now(t, answered); a.Grant.Routes[0] != netip.MustParsePrefix("10.8.0.0/16") || !a.Grant.Drain {
			t.Errorf("pushed %+v: a drain survives a reload", a)
		}
		if m, _ := w.tun.member("declared"); !m.held {
			t.Error("the tunnel no longer holds it")
		}
		if c := w.connector("declared"); !c.Draining || c.Report.Version != "" && c.LastSync.IsZero() {
			t.Errorf("listed %+v", c)
		}
		w.check()
	}, withDeclared)
}

func TestDrain(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(reusable)
	w.enrolled(token, "web")
	if err := w.Drain("web", false); err != nil {
		t.Fatal(err)
	}
	if m, _ := w.tun.member("web"); !m.held {
		t.Error("the tunnel was not told")
	}
	w.check()
	w.restart()
	if m, _ := w.tun.member("web"); m.held || w.connector("web").Draining {
		t.Error("it survived a restart")
	}
	if _, refusal := w.register(token, newKey(), "pending"); refusal != nil {
		t.Fatal(refusal)
	}
	wantError(t, w.Drain("pending", false), Refused, "not confirmed")
	wantError(t, w.Drain("nobody", false), NotFound, `"nobody"`, "pending, web")
}

func TestGrantsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	w.enrolled(token, "web")
	wantError(t, w.Grant("nobody", prefixes("10.0.0.0/8")), NotFound, `"nobody"`, "web")
	wantError(t, w.Grant("web", nil), BadRequest, "at least one route")
	wantError(t, w.Grant("web", prefixes("10.0.0.1/8")), BadRequest, `"10.0.0.0/8"`)
	wantError(t, w.Grant("web", prefixes("100.127.0.0/24")), Refused, "inner_sources")
	w.tun.broken = context.DeadlineExceeded
	wantError(t, w.Grant("web", prefixes("10.2.0.0/16")), Refused, "deadline")
	w.tun.broken = nil
	w.check()
}
