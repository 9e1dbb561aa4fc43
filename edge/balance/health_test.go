package balance

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func (w *world) wantTold(want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.told()); diff != "" {
		w.t.Errorf("events differ (-want +got):\n%s", diff)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t, []Spec{pooled("db", "pg", b1, b2), pooled("plain", "", b1)})
	w.unknown[at(b1)], w.unknown[at(b2)] = true, true
	if s := w.Pools(); s[0].State != StateUnknown || s[1].State != StateUnmonitored || s[0].Endpoints[0].State != StateUnknown || s[1].Endpoints[0].State != StateUp {
		t.Errorf("the first states are %+v", s)
	}
	if got := picks(w.Director, "db", 1)[0]; got != "-" {
		t.Errorf("picked %s, of which nothing is known", got)
	}
	w.wantTold() // of the first states
	w.set(b1, "")
	w.wantTold("db "+b1+": unknown → up ()", "db: unknown → degraded (1 of 2 endpoints usable: 1 unknown (10.0.0.11:5432: not checked yet))")
	w.set(b2, "")
	w.wantTold("db "+b2+": unknown → up ()", "db: degraded → healthy ()")
	w.set(b2, "")
	w.wantTold()
	w.set(b1, "refused")
	w.wantTold("db "+b1+": up → down (refused)", "db: healthy → degraded (1 of 2 endpoints usable: 1 down (10.0.0.10:5432: refused))")
	w.set(b1, "timed out") // another reason is no other state
	w.wantTold()
	w.set(b2, "refused")
	w.wantTold("db "+b2+": up → down (refused)", "db: degraded → down (0 of 2 endpoints usable: 2 down (10.0.0.10:5432: timed out))")
	w.set(b1, "")
	w.told()
	if err := w.Drain("db", at(b1), time.Minute); err != nil {
		t.Fatal(err)
	}
	w.wantTold("db "+b1+": up → draining (drained by an operator; its clients stay for now)",
		"db: degraded → down (0 of 2 endpoints usable: 1 down (10.0.0.11:5432: refused), 1 draining)")

	// A reload tells of what stays, not of what comes first or goes.
	next := pooled("db", "pg", b1, b2, b3)
	next.Endpoints[1].Disabled = true
	w.reload([]Spec{next, pooled("new", "pg", b1)})
	w.wantTold("db "+b2+": down → disabled (disabled in the configuration)", "db: down → healthy ()")
	if w.state("db", b1).State != StateDraining || w.state("db", b1).DrainingUntil != epoch.Add(time.Minute) {
		t.Errorf("after the reload: %+v", w.state("db", b1))
	}
	if err := w.Undrain("db", at(b1)); err != nil {
		t.Fatal(err)
	}
	w.wantTold("db " + b1 + ": draining → up ()")
}

// TestUnusedReload: a Director that is made and never used changes nothing.
func TestUnusedReload(t *testing.T) {
	w := newWorld(t, []Spec{pooled("db", "pg", b1, b2)})
	w.Pools()
	disabled := pooled("db", "pg", b1, b2)
	disabled.Endpoints[0].Disabled = true
	w.With([]Spec{disabled}, nil)
	w.With(nil, nil)
	w.pass(time.Minute)
	if got := picks(w.Director, "db", 2); got[0] != b1 || got[1] != b2 {
		t.Errorf("picks %v", got)
	}
	w.set(b1, "refused")
	if got := w.told(); len(got) != 2 {
		t.Errorf("told %q", got)
	}
}

// TestEventsOutsideLocks: who hears of an event may ask the Director.
func TestEventsOutsideLocks(t *testing.T) {
	h := &world{t: t, now: epoch, down: map[Endpoint]string{}}
	var order []string
	var d *Director
	spec := pooled("db", "pg", b1, b2)
	d = New([]Spec{spec}, appsOf(spec), Deps{Health: h, Now: h.clock, OnEvent: func(e Event) {
		order = append(order, e.Kind+" "+string(e.To))
		d.Pools()
		d.Pick(Request{App: "db"})
		if len(order) == 1 {
			h.Director = d
			h.set(b2, "refused")
		}
	}})
	h.Director = d
	d.Pools()
	h.set(b1, "refused")
	if diff := cmp.Diff([]string{"endpoint down", "pool degraded", "endpoint down", "pool down"}, order); diff != "" {
		t.Errorf("events differ (-want +got):\n%s", diff)
	}
}

func TestDrainProblems(t *testing.T) {
	w := newWorld(t, []Spec{pooled("db", "", b1)})
	for _, test := range []struct {
		err  error
		want string
	}{
		{w.Drain("x", at(b1), 0), `draining "berlin/10.0.0.10:5432" in pool "x": there is no such pool`},
		{w.Undrain("db", at(b2)), `undraining "berlin/10.0.0.11:5432" in pool "db": the pool has no such endpoint`},
	} {
		if test.err == nil || test.err.Error() != test.want {
			t.Errorf("%v, want %s", test.err, test.want)
		}
	}
}

func ejecting(percent int, endpoints ...string) Spec {
	s := pooled("db", "", endpoints...)
	s.Ejection = Ejection{Failures: 3, Time: 10 * time.Second, MaxTime: 25 * time.Second, MaxPercent: percent}
	return s
}

func TestEjection(t *testing.T) {
	w := newWorld(t, []Spec{ejecting(50, b1, b2, b3)})
	w.fail("db", b1)
	w.fail("db", b1)
	w.pick("db", 0, b2, b3).Connected(1) // says nothing
	w.pick("db", 0, b2, b3).Answered()   // resets the count
	w.fail("db", b1)
	w.fail("db", b1)
	if s := w.state("db", b1); s.State != StateUp || s.Failures != 4 || s.LastError != "connection refused" || s.LastErrorAt != epoch {
		t.Errorf("%+v", s)
	}
	w.told()
	w.fail("db", b1)
	w.wantTold("db "+b1+": up → ejected (3 connects in a row failed, the last: connection refused)",
		"db: unmonitored → degraded (2 of 3 endpoints usable: 1 ejected (10.0.0.10:5432: 3 connects in a row failed, the last: connection refused))")
	if s := w.state("db", b1); s.EjectedUntil != epoch.Add(10*time.Second) || s.EffectiveWeight != 0 {
		t.Errorf("%+v", s)
	}
	for range 5 { // half of three is one
		w.fail("db", b2)
	}
	if s := w.state("db", b2); s.State != StateUp {
		t.Errorf("too many are ejected: %+v", s)
	}
	w.pick("db", 0, b1, b3).Answered()
	for i, want := range []int{10, 20, 25, 25} {
		if i > 0 {
			w.fail("db", b1)
			w.fail("db", b1)
			w.fail("db", b1)
		}
		if got := w.state("db", b1).EjectedUntil.Sub(w.clock()); got != time.Duration(want)*time.Second {
			t.Errorf("ejection %d lasts %v, want %d s", i+1, got, want)
		}
		w.pass(time.Duration(want)*time.Second - 1)
		if w.state("db", b1).State != StateEjected {
			t.Errorf("ejection %d is over too early", i+1)
		}
		w.pass(1)
		if s := w.state("db", b1); s.State != StateUp || !s.EjectedUntil.IsZero() {
			t.Errorf("ejection %d is not over: %+v", i+1, s)
		}
	}
	w.pass(time.Hour)
	for range 3 {
		w.fail("db", b1)
	}
	if got := w.state("db", b1).EjectedUntil.Sub(w.clock()); got != 10*time.Second {
		t.Errorf("after an hour without one, an ejection lasts %v", got)
	}
	// It survives a reload which leaves the endpoint.
	other := ejecting(50, b1, b2)
	other.Steering = byRandom
	w.reload([]Spec{other})
	if s := w.state("db", b1); s.State != StateEjected || s.Failures == 0 {
		t.Errorf("after the reload: %+v", s)
	}
}

func TestSlowStart(t *testing.T) {
	for _, by := range []string{byRoundRobin, byRandom, byHash} {
		t.Run(by, func(t *testing.T) {
			spec := pooled("db", "pg", b1, b2)
			spec.Steering, spec.SlowStart = by, 100*time.Second
			w := newWorld(t, []Spec{spec})
			share := func() float64 {
				n := 0
				for i := range 4000 {
					if w.visit("db", i) == b1 {
						n++
					}
				}
				return float64(n) / 4000
			}
			if got := share(); math.Abs(got-0.5) > 0.04 {
				t.Errorf("the first share is %.2f", got)
			}
			w.set(b1, "refused")
			w.set(b1, "")
			last := 0.0
			for at := 0; at <= 100; at += 10 {
				step := min(float64(at/5+1)/20, 1)
				if got := w.state("db", b1).EffectiveWeight; got != step {
					t.Errorf("after %d s the weight is %.2f, want %.2f", at, got, step)
				}
				got := share()
				if want := step / (1 + step); math.Abs(got-want) > 0.05 || got < last-0.04 {
					t.Errorf("after %d s the share is %.2f, want %.2f", at, got, want)
				}
				last = got
				w.pass(10 * time.Second)
			}
		})
	}
}

func TestShedding(t *testing.T) {
	for _, by := range []string{"", shedRandom, shedHash} {
		t.Run(by, func(t *testing.T) {
			spec := pooled("db", "", b1)
			spec.Shedding = Shedding{Percent: 30, By: by}
			w := newWorld(t, []Spec{spec, pooled("other", "", b2)}, appOf("db", "other"))
			n := 0
			for i := range 20_000 {
				got := w.visit("a", i)
				if got == b2 {
					n++
				}
				if by == shedHash && w.visit("a", i) != got {
					t.Fatalf("client %d is not always treated alike", i)
				}
			}
			if math.Abs(float64(n)/20_000-0.3) > 0.02 {
				t.Errorf("%d of 20,000 flows are shed", n)
			}
		})
	}
}

func TestStates(t *testing.T) {
	off := func(s Spec, i int) Spec { s.Endpoints[i].Disabled = true; return s }
	least := func(s Spec, n int) Spec { s.MinimumHealthy = n; return s }
	dead := pooled("db", "pg", b1)
	dead.Disabled = true
	for i, test := range []struct {
		spec Spec
		down []string
		want State
	}{
		{pooled("db", "pg", b1, b2), nil, StateHealthy},
		{pooled("db", "pg", b1, b2), []string{b1}, StateDegraded},
		{pooled("db", "pg", b1, b2), []string{b1, b2}, StateDown},
		{least(pooled("db", "pg", b1, b2, b3), 2), []string{b1}, StateDegraded},
		{least(pooled("db", "pg", b1, b2, b3), 2), []string{b1, b2}, StateCritical},
		{least(pooled("db", "pg", b1, b2, b3), 2), []string{b1, b2, b3}, StateDown},
		{off(pooled("db", "pg", b1, b2), 0), nil, StateHealthy},
		{off(pooled("db", "pg", b1, b2), 0), []string{b2}, StateDown},
		{pooled("db", "", b1, b2), []string{b1}, StateUnmonitored},
		{off(pooled("db", "", b1), 0), nil, StateDown},
		{dead, nil, StateDisabled},
	} {
		t.Run(fmt.Sprint(i, test.want), func(t *testing.T) {
			w := newWorld(t, []Spec{test.spec})
			for _, e := range test.down {
				w.set(e, "x")
			}
			s := w.Pools()[0]
			if s.State != test.want {
				t.Errorf("the state is %s (%s)", s.State, s.Why)
			}
			_, _, ok := w.Pick(Request{App: "db"})
			if serves := test.want != StateDown && test.want != StateCritical && test.want != StateDisabled; ok != serves {
				t.Errorf("picked: %v", ok)
			}
		})
	}
}

// TestLostNews: what Health did not tell is noticed all the same.
func TestLostNews(t *testing.T) {
	w := newWorld(t, []Spec{pooled("db", "pg", b1, b2)})
	w.visit("db", 0)
	w.down[at(b1)] = "refused"
	w.pass(recheck)
	if got := picks(w.Director, "db", 2); got[0] != b2 || got[1] != b2 {
		t.Errorf("picks %v", got)
	}
}

// TestNames: an endpoint waits for its name to have an address, gets it by a
// reload, and is one with another whose name has the same.
func TestNames(t *testing.T) {
	w := newWorld(t, []Spec{{Name: "db", Monitor: "pg", Endpoints: []Member{named("db.internal", 5432)}}})
	if _, why, ok := w.Pick(Request{App: "db"}); ok || why != `pool "db" has no healthy endpoint: 1 unknown (db.internal:5432: the name "db.internal" has no address yet)` {
		t.Errorf("%v, %s", ok, why)
	}
	off := named("db.internal", 5432)
	off.Disabled = true
	w.told()
	w.reload([]Spec{{Name: "db", Monitor: "pg", Endpoints: []Member{off}}})
	w.wantTold("db: unknown → down (0 of 1 endpoints usable: 1 disabled)") // of the endpoint there is no address to tell
	last := App{Name: "a", Pools: []Choice{{"none", 1}}, Fallback: "db"}
	w.reload([]Spec{{Name: "db", Endpoints: []Member{named("db.internal", 5432)}}}, last)
	if pick, why, ok := w.Pick(Request{App: "a"}); ok {
		t.Errorf("the fallback without an address gives %+v, %s", pick, why)
	}
	one, two := named("db.internal", 5432), named("other.internal", 5432)
	one.Endpoint, two.Endpoint = at(b1), at(b1)
	w.reload([]Spec{{Name: "db", Monitor: "pg", Endpoints: []Member{one, two}}})
	pick := w.pick("db", 0)
	if pick.Endpoint != at(b1) || w.Pools()[0].Endpoints[0].Host != "db.internal" {
		t.Errorf("%+v", pick)
	}
	if n := len(w.Pools()[0].Endpoints); n != 1 {
		t.Errorf("the pool has %d endpoints", n)
	}
}
