package balance

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
)

// affined is an app "a" over pools whose clients stay for an hour.
func affined(failover string, pools ...string) App {
	a := appOf(pools...)
	a.Affinity = Affinity{By: affinityIP, TTL: time.Hour, Failover: failover}
	return a
}

func (w *world) wantVisits(client int, steps ...string) {
	w.t.Helper()
	for i, want := range steps {
		if got := w.visit("a", client); got != want {
			w.t.Errorf("visit %d of client %d leads to %s, want %s", i, client, got, want)
		}
	}
}

func TestAffinity(t *testing.T) {
	pool := pooled("db", "pg", b1, b2, b3)
	ordered := pool
	ordered.Steering = byFailover
	t.Run("a client stays", func(t *testing.T) {
		w := newWorld(t, []Spec{pool}, affined("", "db"))
		w.wantVisits(1, b1, b1, b1)
		w.wantVisits(2, b2, b2)
		w.wantVisits(1, b1)
		if _, why, _ := w.Pick(Request{App: "a", Client: clientAt(1)}); why != `pool "db" by affinity of its client ip` {
			t.Error(why)
		}
	})
	t.Run("until its time is over, which use prolongs", func(t *testing.T) {
		w := newWorld(t, []Spec{pool}, affined("", "db"))
		w.wantVisits(1, b1)
		w.pass(59 * time.Minute)
		w.wantVisits(1, b1)
		w.pass(59 * time.Minute)
		w.wantVisits(1, b1)
		w.pass(time.Hour)
		w.wantVisits(1, b2)
	})
	t.Run("temporary comes back", func(t *testing.T) {
		w := newWorld(t, []Spec{ordered}, affined("temporary", "db"))
		w.wantVisits(1, b1)
		w.set(b1, "refused")
		w.wantVisits(1, b2, b2, b2) // the stand-in is one, too
		w.set(b1, "")
		w.wantVisits(1, b1, b1)
	})
	t.Run("sticky stays", func(t *testing.T) {
		w := newWorld(t, []Spec{ordered}, affined("sticky", "db"))
		w.wantVisits(1, b1)
		w.set(b1, "refused")
		w.wantVisits(1, b2)
		w.set(b1, "")
		w.wantVisits(1, b2, b2)
	})
	t.Run("a retry stands in", func(t *testing.T) {
		w := newWorld(t, []Spec{pool}, affined("", "db"))
		w.wantVisits(1, b1)
		if got := w.visit("a", 1, b1); got != b2 {
			t.Error(got)
		}
		w.wantVisits(1, b1)
	})
	t.Run("only Connected binds", func(t *testing.T) {
		w := newWorld(t, []Spec{pool}, affined("", "db"))
		w.pick("a", 1).Canceled()
		w.pick("a", 1).Failed(errRefused)
		w.wantVisits(1, b3, b3)
	})
	t.Run("draining keeps clients for a time", func(t *testing.T) {
		w := newWorld(t, []Spec{ordered}, affined("", "db"))
		w.wantVisits(1, b1)
		if err := w.Drain("db", at(b1), time.Minute); err != nil {
			t.Fatal(err)
		}
		w.wantVisits(2, b2)
		w.wantVisits(1, b1)
		w.pass(time.Minute)
		w.wantVisits(1, b2, b2)
		if err := w.Undrain("db", at(b1)); err != nil {
			t.Fatal(err)
		}
		w.wantVisits(1, b1)
	})
	t.Run("weight 0 keeps clients", func(t *testing.T) {
		w := newWorld(t, []Spec{pool}, affined("", "db"))
		w.wantVisits(1, b1)
		idle := pooled("db", "pg", b1, b2, b3)
		idle.Endpoints[0].Weight = 0
		w.reload([]Spec{idle}, affined("", "db"))
		w.wantVisits(1, b1)
		w.wantVisits(2, b2)
		w.wantVisits(3, b3)
		w.wantVisits(4, b2)
	})
	t.Run("an endpoint that the config drops is forgotten", func(t *testing.T) {
		w := newWorld(t, []Spec{pool}, affined("", "db"))
		w.wantVisits(1, b1)
		w.reload([]Spec{pooled("db", "pg", b2, b3)}, affined("", "db"))
		w.wantVisits(1, b2, b2)
	})
	t.Run("across pools, and not for the fallback", func(t *testing.T) {
		app := affined("", "one", "two")
		app.Fallback = "last"
		w := newWorld(t, []Spec{pooled("one", "pg", b1), pooled("two", "pg", b2), pooled("last", "pg", b3)}, app)
		w.wantVisits(1, b1)
		w.set(b1, "x")
		w.wantVisits(1, b2)
		w.set(b2, "x")
		w.set(b3, "x")
		w.wantVisits(1, b3, b3)
		w.set(b2, "")
		w.wantVisits(1, b2)
		w.set(b1, "")
		w.wantVisits(1, b1)
	})
	t.Run("clients that stay are not shed", func(t *testing.T) {
		w := newWorld(t, []Spec{pool}, affined("", "db"))
		w.wantVisits(1, b1)
		shedding := pool
		shedding.Shedding.Percent = 100
		w.reload([]Spec{shedding}, affined("", "db"))
		w.wantVisits(1, b1)
		if _, _, ok := w.Pick(Request{App: "a", Client: clientAt(2)}); ok {
			t.Error("a new client was not shed")
		}
		if s := w.Pools()[0]; s.Shed != 1 {
			t.Errorf("%d shed", s.Shed)
		}
	})
	t.Run("no table where hashing does the same", func(t *testing.T) {
		hashed := pool
		hashed.Steering = byHash
		w := newWorld(t, []Spec{hashed}, affined("", "db"))
		first := w.visit("a", 1)
		w.wantVisits(1, first, first)
		if w.apps["a"].table != nil {
			t.Error("there is a table")
		}
	})
	t.Run("a table where hashing does not", func(t *testing.T) {
		hashed, last := pool, pooled("last", "pg", t1)
		hashed.Steering = byHash
		net, fallback := affined("", "db"), affined("", "db")
		net.Affinity.By, fallback.Fallback = affinityNet, "last"
		for name, app := range map[string]App{
			"sticky": affined("sticky", "db"), "client_net": net, "fallback": fallback, "two pools": affined("", "db", "last"),
		} {
			w := newWorld(t, []Spec{hashed, last}, app)
			if w.apps["a"].table == nil {
				t.Errorf("%s: there is no table", name)
			}
		}
		w := newWorld(t, []Spec{hashed}, affined("sticky", "db"))
		home := w.visit("a", 1)
		w.set(home, "refused")
		away := w.visit("a", 1)
		w.set(home, "")
		w.wantVisits(1, away, away)
	})
}

func TestAffinityByNet(t *testing.T) {
	app := affined("", "db")
	app.Affinity.By = affinityNet
	w := newWorld(t, []Spec{pooled("db", "", b1, b2)}, app)
	visit := func(addr string) string {
		pick, _, _ := w.Pick(Request{App: "a", Client: netip.MustParseAddr(addr)})
		pick.Connected(1)
		return pick.Endpoint.String()
	}
	for _, test := range []struct {
		addr, want string
	}{
		{"192.0.2.1", b1}, {"192.0.3.1", b2}, {"192.0.2.254", b1}, {"::ffff:192.0.2.9", b1}, {"192.0.3.200", b2},
		{"2001:db8:0:1::1", b1}, {"2001:db8:0:100::1", b2}, {"2001:db8:0:ff::9", b1}, {"2001:db8:0:1ff::9", b2},
	} {
		if got := visit(test.addr); got != test.want {
			t.Errorf("%s is led to %s, want %s", test.addr, got, test.want)
		}
	}
}

// TestAffinityIsBounded: a million sources that connect leave a bounded table,
// and those that never connect leave nothing.
func TestAffinityIsBounded(t *testing.T) {
	app := affined("", "db")
	w := newWorld(t, []Spec{pooled("db", "", b1, b2)}, app)
	table := w.apps["a"].table
	sources := 1_000_000
	if raceEnabled { // which makes each pick ten times as slow
		sources = 150_000
	}
	for i := range sources / 10 {
		w.pick("a", i).Canceled()
	}
	if n := table.len(); n != 0 {
		t.Errorf("%d clients that never connected are remembered", n)
	}
	var early, late runtime.MemStats
	for i := range sources {
		w.visit("a", i)
		if i == sources/2 {
			runtime.GC()
			runtime.ReadMemStats(&early)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&late)
	if n := table.len(); n != DefaultAffinity || len(table.entries) > DefaultAffinity+1 {
		t.Errorf("%d clients in %d entries, want %d", n, len(table.entries), DefaultAffinity)
	}
	if grown := int64(late.HeapAlloc) - int64(early.HeapAlloc); grown > 2<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	app.Affinity.Max = 10
	w.reload([]Spec{pooled("db", "", b1, b2)}, app)
	w.visit("a", -1)
	if n := table.len(); n != 10 {
		t.Errorf("%d clients after the bound was lowered to 10", n)
	}
}

// naiveTable is table, written with a list in order of use.
type naiveTable struct {
	keys []int
	home map[int]string
	seen map[int]int64
}

func (n *naiveTable) use(key int, now int64) {
	if i := slices.Index(n.keys, key); i >= 0 {
		n.keys = slices.Delete(n.keys, i, i+1)
	}
	n.keys = append(n.keys, key)
	n.seen[key] = now
}

func TestTableAgainstOracle(t *testing.T) {
	eps := map[string]*endpoint{"": nil}
	for i := range 4 {
		eps[fmt.Sprint(i)] = &endpoint{}
	}
	for round := range 50 {
		table := newTable()
		naive := &naiveTable{home: map[int]string{}, seen: map[int]int64{}}
		most, clients, now := 1+rand.IntN(8), 14, int64(0)
		if round%5 == 0 { // enough for the chains to grow
			most, clients = 150, 300
		}
		const ttl = 20 * time.Nanosecond
		for step := range 600 {
			if clients < 100 || step%20 == 0 {
				now += int64(rand.IntN(3))
			}
			k := rand.IntN(clients)
			key := [16]byte{byte(k), byte(k >> 8)}
			if rand.IntN(2) == 0 {
				name := fmt.Sprint(rand.IntN(4))
				table.bind(key, now, eps[name], false, most)
				if _, known := naive.home[k]; !known {
					for len(naive.home) >= most {
						delete(naive.home, naive.keys[0])
						naive.keys = naive.keys[1:]
					}
				}
				naive.use(k, now)
				naive.home[k] = name
				continue
			}
			want := ""
			if name, known := naive.home[k]; known && now-naive.seen[k] >= int64(ttl) {
				delete(naive.home, k)
				naive.keys = slices.DeleteFunc(naive.keys, func(o int) bool { return o == k })
			} else if known {
				want = name
				naive.use(k, now)
			}
			if got, _ := table.get(key, now, ttl); got != eps[want] {
				t.Fatalf("step %d: client %d has %p, want %q", step, k, got, want)
			}
			if table.len() != len(naive.home) {
				t.Fatalf("step %d: %d clients, want %d", step, table.len(), len(naive.home))
			}
		}
	}
}
