package balance

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// passing is a flow that had enough of some pools.
func passing(pools ...string) func(string) bool {
	return func(name string) bool {
		for _, p := range pools {
			if p == name {
				return true
			}
		}
		return false
	}
}

func TestPassed(t *testing.T) {
	pools := []Spec{pooled("one", "", b1), pooled("two", "", b2), pooled("last", "", b3)}
	for _, by := range poolPolicies() {
		app := appOf("one", "two")
		app.Steering, app.Fallback = by, "last"
		app.Affinity = Affinity{By: affinityIP, TTL: time.Hour}
		w := newWorld(t, pools, app)
		if first := w.visit("a", 7); by == byFailover && first != b1 {
			t.Fatalf("the client's home is %s", first)
		}
		for _, test := range []struct {
			passed    []string
			pool, why string
		}{
			{[]string{"one"}, "two", "pool \"one\" was tried enough"},
			{[]string{"two"}, "one", ""},
			{[]string{"one", "two"}, "last", "pool \"one\" was tried enough; pool \"two\" was tried enough"},
			{[]string{"one", "two", "last"}, "", "pool \"one\" was tried enough; pool \"two\" was tried enough; the fallback pool \"last\" was tried enough"},
		} {
			pick, why, ok := w.Pick(Request{App: "a", Client: clientAt(7), Passed: passing(test.passed...)})
			if pick.Pool != test.pool || ok != (test.pool != "") {
				t.Errorf("by %s without %q: pool %q, %s", by, test.passed, pick.Pool, why)
			}
			if !strings.Contains(why, "affinity") && !strings.Contains(why, test.why) {
				t.Errorf("by %s without %q: %s, want %s", by, test.passed, why, test.why)
			}
			pick.Release()
		}
		// A pool that is passed over is passed by for this flow alone: the client goes home.
		home := w.visit("a", 7)
		pick, _, _ := w.Pick(Request{App: "a", Client: clientAt(7), Passed: passing(map[string]string{b1: "one", b2: "two"}[home])})
		pick.Connected(time.Millisecond)
		pick.Release()
		if again := w.visit("a", 7); again != home {
			t.Errorf("by %s: the client's home was %s, and is %s", by, home, again)
		}
	}
}

// TestConnectedMeasures: a time of 0 is none.
func TestConnectedMeasures(t *testing.T) {
	w := newWorld(t, []Spec{pooled("db", "", b1)})
	for _, rtt := range []time.Duration{0, 8 * time.Millisecond, 0, 0} {
		pick := w.pick("db", 0)
		pick.Connected(rtt)
		pick.Release()
	}
	s := w.Pools()[0]
	if s.RTT != 8*time.Millisecond || s.Endpoints[0].RTT != 8*time.Millisecond {
		t.Errorf("the averages are %v and %v, want 8ms", s.RTT, s.Endpoints[0].RTT)
	}
	Pick{}.Answered()
}

// downed is an app over a pool of 1,000 endpoints that are down, and others.
func downed(by string) *Director {
	spec := large(1000, byRoundRobin, nil)
	app := appOf("large", "gone", "sheds", "two")
	app.Steering = by
	sheds := pooled("sheds", "", b2)
	sheds.Shedding.Percent = 100
	return New([]Spec{spec, sheds, pooled("two", "", b1, b2)}, []App{app}, Deps{Health: constant(false)})
}

// TestDetourAllocatesNothing: nor do picks from the pool that stands in while
// another is down.
func TestDetourAllocatesNothing(t *testing.T) {
	for _, by := range poolPolicies() {
		d := downed(by)
		allocs := testing.AllocsPerRun(1000, func() {
			pick, _, ok := d.Pick(Request{App: "a", Client: clientAt(1), Tried: func(Endpoint) bool { return false }})
			if !ok || pick.Pool != "two" && by == byFailover {
				t.Fatalf("picked %+v", pick)
			}
			pick.Release()
		})
		if allocs != 0 && by != byRandom && by != byHash { // by which it is not always the same
			t.Errorf("by %s: %v allocations", by, allocs)
		}
	}
}

func BenchmarkDetour(b *testing.B) {
	d := downed(byFailover)
	b.ReportAllocs()
	for range b.N {
		pick, _, _ := d.Pick(Request{App: "a", Tried: func(Endpoint) bool { return false }})
		pick.Release()
	}
}

// TestDetourWords: they are of now, whatever was said before.
func TestDetourWords(t *testing.T) {
	one, two := pooled("one", "pg", b1, b2), pooled("two", "", b3)
	one.Endpoints[0].MaxConnections, one.Endpoints[1].MaxConnections = 1, 1
	app := appOf("one", "two")
	w := newWorld(t, []Spec{one, two}, app)
	want := func(words string, passed ...string) Pick {
		t.Helper()
		var pick Pick
		for range 2 {
			var why string
			pick, why, _ = w.Pick(Request{App: "a", Passed: passing(passed...)})
			if !strings.HasSuffix(why, words) || pick.Pool == "two" && !strings.HasPrefix(why, `pool "two" by round_robin; `) {
				t.Errorf("%s, want %s", why, words)
			}
		}
		return pick
	}
	w.set(b1, "refused")
	w.set(b2, "refused")
	want(`pool "one" has no healthy endpoint: 2 down (10.0.0.10:5432: refused)`)
	w.set(b1, "timed out")
	want(`pool "one" has no healthy endpoint: 2 down (10.0.0.10:5432: timed out)`)
	want(`pool "one" was tried enough`, "one")
	want(`pool "one" has no healthy endpoint: 2 down (10.0.0.10:5432: timed out)`)
	w.set(b1, "")
	w.pick("a", 0)
	full := want(`pool "one" has no endpoint left: 1 full, 1 down (10.0.0.11:5432: refused)`)
	w.set(b2, "")
	w.pick("a", 0)
	full.Release()
	want(`pool "one" has no endpoint left: 2 full`)
	for range 3 {
		if _, why, _ := w.Pick(Request{App: "a", Tried: triedSet(b1)}); why != `pool "two" by round_robin; pool "one" has no endpoint left: 1 tried, 1 full` {
			t.Error(why)
		}
	}
}

// TestSheddingAsksOnce: a flow that was let in is not shed when it tries the
// next endpoint.
func TestSheddingAsksOnce(t *testing.T) {
	spec := pooled("db", "", b1, b2)
	spec.Shedding.Percent = 50
	w := newWorld(t, []Spec{spec})
	let := 0
	for range 1000 {
		pick, _, ok := w.Pick(Request{App: "db"})
		if !ok {
			continue
		}
		let++
		pick.Failed(errRefused)
		w.pick("db", 0, pick.Endpoint.String()).Release()
	}
	if let < 400 || let > 600 {
		t.Errorf("%d of 1000 flows were let in", let)
	}
	// One that has tried an endpoint of another pool has not been let in here.
	full := spec
	full.Shedding.Percent = 100
	w.reload([]Spec{full})
	if pick, _, ok := w.Pick(Request{App: "db", Tried: triedSet(b3)}); ok {
		t.Errorf("picked %+v", pick)
	}
}

// TestRotatingAnswers: what is known of an endpoint survives that its name
// leads elsewhere for a while.
func TestRotatingAnswers(t *testing.T) {
	answer := func(endpoints ...string) Spec {
		s := ejecting(100, endpoints...)
		for i := range s.Endpoints {
			s.Endpoints[i].Host, s.Endpoints[i].MaxConnections = "db.internal", 2
		}
		return s
	}
	app := affined("", "db")
	rotate := func(w *world) {
		for range 5 {
			w.reload([]Spec{answer(b2)}, app)
			w.reload([]Spec{answer(b3)}, app)
			w.pass(time.Second)
		}
		w.reload([]Spec{answer(b1, b2, b3)}, app)
	}
	only := []string{b2, b3}
	for name, test := range map[string]struct {
		before, after func(t *testing.T, w *world)
	}{
		"connections": {
			func(t *testing.T, w *world) { w.pick("a", 1, only...); w.pick("a", 2, only...) },
			func(t *testing.T, w *world) {
				if pick, _, ok := w.Pick(Request{App: "a", Tried: triedSet(only...)}); ok {
					t.Errorf("a third connection: %+v", pick)
				}
			},
		},
		"a drain": {
			func(t *testing.T, w *world) { _ = w.Drain("db", at(b1), time.Minute) },
			func(t *testing.T, w *world) {
				if s := w.state("db", b1); s.State != StateDraining || !s.DrainingUntil.Equal(epoch.Add(time.Minute)) {
					t.Errorf("%+v", s)
				}
			},
		},
		"an ejection": {
			func(t *testing.T, w *world) {
				for range 3 {
					w.pick("a", 1, only...).Failed(errRefused)
				}
			},
			func(t *testing.T, w *world) {
				if s := w.state("db", b1); s.State != StateEjected {
					t.Errorf("%+v", s)
				}
			},
		},
		"clients": {
			func(t *testing.T, w *world) { w.visit("a", 9, only...) },
			func(t *testing.T, w *world) {
				if got := w.visit("a", 9); got != b1 {
					t.Errorf("the client is led to %s", got)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []Spec{answer(b1, b2, b3)}, app)
			test.before(t, w)
			w.told()
			rotate(w)
			test.after(t, w)
			for _, e := range w.told() {
				if strings.Contains(e, "berlin") {
					t.Errorf("told: %s", e)
				}
			}
		})
	}
	t.Run("is bounded", func(t *testing.T) {
		all := large(4000, "", nil)
		w := newWorld(t, []Spec{all})
		for range len(all.Endpoints) {
			w.pick("large", 0) // and never ends
		}
		for i := range 10 {
			next := all
			next.Endpoints = all.Endpoints[i*100 : i*100+50]
			w.reload([]Spec{next})
			if n := len(w.pools["large"].departed); n > maxDeparted {
				t.Fatalf("%d endpoints are remembered", n)
			}
		}
	})
	t.Run("not for ever", func(t *testing.T) {
		w := newWorld(t, []Spec{answer(b1, b2)}, app)
		w.visit("a", 1, b2)
		w.reload([]Spec{answer(b2)}, app)
		w.reload([]Spec{answer(b3)}, app)
		if p := w.pools["db"]; fmt.Sprint(ids(p.departed)) != fmt.Sprint([]Endpoint{at(b1), at(b2)}) && fmt.Sprint(ids(p.departed)) != fmt.Sprint([]Endpoint{at(b2), at(b1)}) {
			t.Errorf("departed: %v", ids(p.departed))
		}
		w.reload([]Spec{answer(b3)}) // without the app, and its table
		w.reload([]Spec{answer(t1)})
		w.reload([]Spec{answer(b2)})
		if p := w.pools["db"]; len(p.departed) != 1 {
			t.Errorf("departed: %v", ids(p.departed))
		}
	})
}

// TestReturnIsNoNews: what an endpoint was when it left is no state to tell a
// change from when it comes back.
func TestReturnIsNoNews(t *testing.T) {
	w := newWorld(t, []Spec{pooled("db", "pg", b1, b2)})
	w.Pools()
	w.reload([]Spec{pooled("db", "pg", b2)})
	w.set(b1, "refused")
	w.told()
	w.reload([]Spec{pooled("db", "pg", b1, b2)})
	w.wantTold("db: healthy → degraded (1 of 2 endpoints usable: 1 down (10.0.0.10:5432: refused))")
	w.set(b1, "")
	w.wantTold("db "+b1+": down → up ()", "db: degraded → healthy ()")
}

func ids(list []*endpoint) (out []Endpoint) {
	for _, e := range list {
		out = append(out, e.id)
	}
	return out
}
