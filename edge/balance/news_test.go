package balance

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestNewsComeInTime: what Health tells in a row reaches flows after
// newsEvery at the latest, and at once where it changes the pool's state.
func TestNewsComeInTime(t *testing.T) {
	w := newWorld(t, []Spec{pooled("db", "pg", b1, b2, b3)})
	w.Pools()
	w.pass(newsEvery)
	w.tell(b1, "refused") // the first counts at once
	w.wantTold("db "+b1+": up → down (refused)", "db: healthy → degraded (2 of 3 endpoints usable: 1 down (10.0.0.10:5432: refused))")
	if got := picks(w.Director, "db", 2); got[0] == b1 || got[1] == b1 {
		t.Errorf("picks %v", got)
	}
	w.pass(time.Millisecond)
	w.tell(b2, "refused")
	w.wantTold("db " + b2 + ": up → down (refused)")
	w.pass(newsEvery - 2*time.Millisecond)
	if s := w.Pools()[0]; s.Usable != 2 {
		t.Errorf("%d are usable", s.Usable)
	}
	w.pass(time.Millisecond)
	if got := picks(w.Director, "db", 2); got[0] != b3 || got[1] != b3 {
		t.Errorf("picks %v", got)
	}
	w.wantTold()
	w.tell(b3, "refused")
	w.wantTold("db "+b3+": up → down (refused)", "db: degraded → down (0 of 3 endpoints usable: 3 down (10.0.0.10:5432: refused))")
	w.tell(b1, "")
	w.wantTold("db "+b1+": down → up ()", "db: down → degraded (1 of 3 endpoints usable: 2 down (10.0.0.11:5432: refused))")
	before := w.pools["db"].views[ordinary].Load()
	w.tell(b1, "") // no news
	w.pass(newsEvery)
	w.Pools()
	if now := w.pools["db"].views[ordinary].Load(); now != before {
		t.Error("a verdict that has not changed rebuilt the view")
	}
	w.wantTold()
}

// TestNewsInMasses: 5,000 endpoints that lose their connector, and get it back,
// cost a few views, and one event each.
func TestNewsInMasses(t *testing.T) {
	spec := large(5000, byRoundRobin, nil)
	w := newWorld(t, []Spec{spec})
	w.Pools()
	p := w.pools["large"]
	for _, why := range []string{"no route", ""} {
		w.pass(time.Second)
		views := map[*view]bool{}
		for _, m := range spec.Endpoints {
			w.pass(4 * time.Microsecond)
			w.tell(m.Endpoint.String(), why)
			views[p.views[ordinary].Load()] = true
		}
		if n := len(views); n > 6 {
			t.Errorf("%d views", n)
		}
		endpoints, pools := 0, 0
		for _, e := range w.events {
			if e.Kind == KindPool {
				pools++
			} else {
				endpoints++
			}
		}
		if endpoints != 5000 || pools != 2 {
			t.Errorf("%d events of endpoints, want 5000; %d of the pool, want 2", endpoints, pools)
		}
		w.told()
	}
}

// TestNewsAgainstOracle: at random times the state that events have told is
// what a Director that has heard nothing before works out.
func TestNewsAgainstOracle(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		spec := pooled("db", "pg", b1, b2, b3, t1)
		spec.MinimumHealthy = r.IntN(4)
		spec.Endpoints[r.IntN(4)].Weight = r.IntN(2)
		spec.Endpoints[r.IntN(4)].Disabled = r.IntN(2) == 0
		w := newWorld(t, []Spec{spec})
		w.Pools()
		told := map[Endpoint]State{}
		for _, e := range w.Pools()[0].Endpoints {
			told[e.Endpoint] = e.State
		}
		told[Endpoint{}] = w.Pools()[0].State
		for range 200 {
			e := []string{b1, b2, b3, t1}[r.IntN(4)]
			w.mu.Lock()
			w.unknown[at(e)] = r.IntN(4) == 0
			w.down[at(e)] = []string{"", "refused"}[r.IntN(2)]
			w.mu.Unlock()
			w.HealthChanged(at(e).Network, at(e).Addr, "pg")
			if r.IntN(3) == 0 {
				w.pass(time.Duration(r.IntN(12)) * time.Millisecond)
			}
			if r.IntN(3) == 0 {
				picks(w.Director, "db", 1)
			}
			for _, e := range w.events {
				if told[e.Endpoint] != e.From {
					t.Fatalf("told of %s → %s, it was %s", e.From, e.To, told[e.Endpoint])
				}
				told[e.Endpoint] = e.To
			}
			w.told()
			fresh := New([]Spec{spec}, appsOf(spec), Deps{Health: w, Now: w.clock}).Pools()[0]
			if fresh.State != told[Endpoint{}] {
				t.Fatalf("seed %d: the pool is told to be %s, it is %s", seed, told[Endpoint{}], fresh.State)
			}
			for _, e := range fresh.Endpoints {
				if e.State != told[e.Endpoint] {
					t.Fatalf("seed %d: %v is told to be %s, it is %s", seed, e.Endpoint, told[e.Endpoint], e.State)
				}
			}
		}
	}
}

// BenchmarkMassNews is a connector of 5,000 endpoints that goes or comes, while
// flows go on.
func BenchmarkMassNews(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			spec := large(n, byRoundRobin, nil)
			w := &world{now: epoch, down: map[Endpoint]string{}}
			w.Director = New([]Spec{spec}, appsOf(spec), Deps{Health: w})
			w.Pools()
			began := cpu()
			for i := range b.N {
				for k := range spec.Endpoints {
					e := spec.Endpoints[k].Endpoint
					w.mu.Lock()
					w.down[e] = []string{"no route", ""}[i%2]
					w.now = w.now.Add(4 * time.Microsecond)
					w.mu.Unlock()
					w.HealthChanged(e.Network, e.Addr, "pg")
					if pick, _, ok := w.Pick(Request{App: "large"}); ok {
						pick.Release()
					}
				}
			}
			b.ReportMetric(float64(cpu()-began)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}
