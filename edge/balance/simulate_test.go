package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// counted picks n times, each for another client, and releases at once.
func counted(t *testing.T, d *Director, n int) map[Endpoint]int {
	t.Helper()
	got := map[Endpoint]int{}
	for i := range n {
		pick, why, ok := d.Pick(Request{App: "large", Client: clientAt(i)})
		if !ok {
			t.Fatal(why)
		}
		got[pick.Endpoint]++
		pick.Connected(time.Millisecond)
		pick.Release()
	}
	return got
}

// TestDistribution: each endpoint's share of 100,000 flows is within 2 % of
// all from that of its weight, and within 2 % of its own where chance has no
// part in it.
func TestDistribution(t *testing.T) {
	const n = 100_000
	weights := map[string]func(int) int{
		"alike": nil, "1 to 5": func(i int) int { return 1 + i }, "one heavy": func(i int) int { return 1 + 99*(i/4) },
	}
	for _, by := range []string{byRoundRobin, byRandom, byHash, byLeast, byLatency} {
		for name, weight := range weights {
			if by == byLatency && weight != nil || by == byLeast && weight != nil {
				continue // of these two the loads and times say what is right, below
			}
			t.Run(by+" "+name, func(t *testing.T) {
				spec := large(5, by, weight)
				got := counted(t, New([]Spec{spec}, appsOf(spec), Deps{Health: constant(true)}), n)
				total := 0
				for _, m := range spec.Endpoints {
					total += m.Weight
				}
				for i, m := range spec.Endpoints {
					want := float64(n*m.Weight) / float64(total)
					off := math.Abs(float64(got[m.Endpoint]) - want)
					if off > 0.02*n || by == byRoundRobin && off > 0.02*want {
						t.Errorf("endpoint %d of weight %d got %d picks, want %.0f", i, m.Weight, got[m.Endpoint], want)
					}
				}
			})
		}
	}
	t.Run(byFailover, func(t *testing.T) {
		spec := large(5, byFailover, nil)
		if got := counted(t, New([]Spec{spec}, appsOf(spec), Deps{Health: constant(true)}), 1000); got[spec.Endpoints[0].Endpoint] != 1000 {
			t.Errorf("the first endpoint got %d of 1000", got[spec.Endpoints[0].Endpoint])
		}
	})
}

// TestPoolDistribution does the same between the pools of an app.
func TestPoolDistribution(t *testing.T) {
	const n = 100_000
	for _, by := range []string{byRandom, byHash, byLeast} {
		t.Run(by, func(t *testing.T) {
			pools := []Spec{pooled("one", "", b1), pooled("three", "", b2, b3), pooled("none", "", t1)}
			app := App{Name: "large", Steering: by, Pools: []Choice{{"one", 1}, {"three", 3}, {"none", 0}}}
			d := New(pools, []App{app}, Deps{})
			got := map[string]int{}
			for i := range n {
				pick, _, _ := d.Pick(Request{App: "large", Client: clientAt(i)})
				got[pick.Pool]++
				if by != byLeast {
					pick.Release()
				}
			}
			if off := math.Abs(float64(got["three"]) - 0.75*n); off > 0.02*n || got["none"] > 0 {
				t.Errorf("picks of the pools with weights 1, 3 and 0: %v", got)
			}
		})
	}
	t.Run(byLatency, func(t *testing.T) {
		d := New([]Spec{pooled("far", "", b1), pooled("near", "", b2)}, []App{{Name: "large", Steering: byLatency,
			Pools: []Choice{{"far", 1}, {"near", 1}}}}, Deps{})
		got := map[string]int{}
		for i := range 1000 {
			pick, _, _ := d.Pick(Request{App: "large", Client: clientAt(i)})
			got[pick.Pool]++
			pick.Connected(map[string]time.Duration{"far": 30 * time.Millisecond, "near": 2 * time.Millisecond}[pick.Pool])
			pick.Release()
		}
		if got["far"] != 1 || got["near"] != 999 {
			t.Errorf("picks %v, want one trial of the far one", got)
		}
	})
}

// naiveSmooth is nginx's algorithm as its comment has it.
func naiveSmooth(weights []int, n int) []int {
	current := make([]int, len(weights))
	var out []int
	for range n {
		best, total := -1, 0
		for i, w := range weights {
			current[i] += w
			total += w
			if best < 0 || current[i] > current[best] {
				best = i
			}
		}
		current[best] -= total
		out = append(out, best)
	}
	return out
}

func slotsOf(weights []int) []slot {
	var slots []slot
	for i, w := range weights {
		slots = append(slots, slot{weight: uint64(w), member: i})
	}
	return slots
}

func TestTurnsAgainstOracle(t *testing.T) {
	if got := fmt.Sprint(naiveSmooth([]int{5, 1, 1}, 7)); got != "[0 0 1 0 2 0 0]" { // nginx's own example
		t.Fatalf("the oracle says %s", got)
	}
	for range 300 {
		weights := make([]int, 1+rand.IntN(9))
		for i := range weights {
			weights[i] = 1 + rand.IntN(30)
		}
		turns := newTurns(slotsOf(weights))
		for k, want := range naiveSmooth(weights, 600) {
			if got := turns.at(uint64(k)); got != want {
				t.Fatalf("weights %v: turn %d is of slot %d, want %d", weights, k, got, want)
			}
		}
	}
}

// TestManyTurns: where the period is too long for nginx's algorithm, no slot
// is ever more than a turn or two from its due.
func TestManyTurns(t *testing.T) {
	for name, weight := range map[string]func(i int) int{
		"a period of some thousand": func(i int) int { return 1 + i%7 },
		"one of half a million":     func(i int) int { return 1 + i*7919%1000 },
	} {
		t.Run(name, func(t *testing.T) {
			weights := make([]int, 1000)
			total := 0
			for i := range weights {
				weights[i] = weight(i)
				total += weights[i]
			}
			turns := newTurns(slotsOf(weights))
			got := make([]int, len(weights))
			for k := range 100_000 {
				got[turns.at(uint64(k))]++
				if k%997 != 0 {
					continue
				}
				for i, w := range weights {
					if due := float64(k+1) * float64(w) / float64(total); math.Abs(float64(got[i])-due) > 2 {
						t.Fatalf("after %d turns slot %d of weight %d has had %d, due are %.1f", k+1, i, w, got[i], due)
					}
				}
			}
		})
	}
}

// TestHashMovesOnlyItsOwn: of N endpoints, one that goes moves its own clients
// and no other; all come back with it; and no share is far from its weight.
func TestHashMovesOnlyItsOwn(t *testing.T) {
	const clients = 20_000
	for _, n := range []int{2, 10, 100} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			spec := large(n, byHash, func(i int) int { return 1 + i%3 })
			w := newWorld(t, []Spec{spec})
			where := func() []Endpoint {
				out := make([]Endpoint, clients)
				for i := range out {
					pick := w.pick("large", i)
					out[i] = pick.Endpoint
					pick.Release()
				}
				return out
			}
			before := where()
			gone := spec.Endpoints[n/2]
			share := 0.0
			for _, m := range spec.Endpoints {
				share += float64(m.Weight)
			}
			share = float64(gone.Weight) / share

			w.set(gone.Endpoint.String(), "refused")
			moved := 0
			for i, e := range where() {
				if e == before[i] {
					continue
				}
				if moved++; before[i] != gone.Endpoint {
					t.Fatalf("client %d moved from %v, which is up, to %v", i, before[i], e)
				}
			}
			if got := float64(moved) / clients; got > share+0.02 || moved == 0 {
				t.Errorf("%.3f of the clients moved, want at most %.3f", got, share+0.02)
			}
			w.set(gone.Endpoint.String(), "")
			for i, e := range where() {
				if e != before[i] {
					t.Fatalf("client %d did not come back from %v to %v", i, e, before[i])
				}
			}
			// The same by a reload that takes it out of the configuration.
			rest := spec
			rest.Endpoints = append(append([]Member(nil), spec.Endpoints[:n/2]...), spec.Endpoints[n/2+1:]...)
			w.reload([]Spec{rest})
			for i, e := range where() {
				if e != before[i] && before[i] != gone.Endpoint {
					t.Fatalf("after a reload client %d moved from %v to %v", i, before[i], e)
				}
			}
		})
	}
}

// TestHashBound: no endpoint ever gets a flow that would bring it above 5/4 of
// its share, or 8 flows above it, not even when half the flows are of one client.
func TestHashBound(t *testing.T) {
	spec := large(20, byHash, func(i int) int { return 1 + i%2 })
	d := New([]Spec{spec}, appsOf(spec), Deps{Health: constant(true)})
	conns := map[Endpoint]int{}
	weights := map[Endpoint]int{}
	sum := 0
	for _, m := range spec.Endpoints {
		weights[m.Endpoint] = m.Weight
		sum += m.Weight
	}
	var open []Pick
	r := rand.New(rand.NewPCG(1, 2))
	for step := range 50_000 {
		if len(open) > 0 && r.IntN(5) < 2 {
			i := r.IntN(len(open))
			conns[open[i].Endpoint]--
			open[i].Release()
			open[i] = open[len(open)-1]
			open = open[:len(open)-1]
			continue
		}
		pick, _, ok := d.Pick(Request{App: "large", Client: clientAt(r.IntN(2) * r.IntN(1000))})
		if !ok {
			t.Fatal("nothing picked")
		}
		open = append(open, pick)
		conns[pick.Endpoint]++
		share := float64(len(open)*weights[pick.Endpoint]) / float64(sum)
		bound := max(int(math.Ceil(1.25*share)), int(share)+8)
		if conns[pick.Endpoint] > bound {
			t.Fatalf("step %d: an endpoint has %d of %d flows, its bound is %d", step, conns[pick.Endpoint], len(open), bound)
		}
	}
}

// TestLeastConnections: flows of mixed durations leave every endpoint within 2
// of the ideal, which is the load shared out by weight.
func TestLeastConnections(t *testing.T) {
	for _, test := range []struct {
		n      int
		weight func(int) int
	}{{4, nil}, {20, nil}, {5, func(i int) int { return 1 + i }}, {1000, nil}} {
		t.Run(fmt.Sprint(test.n, test.weight != nil), func(t *testing.T) {
			spec := large(test.n, byLeast, test.weight)
			d := New([]Spec{spec}, appsOf(spec), Deps{Health: constant(true)})
			sum := 0
			for _, m := range spec.Endpoints {
				sum += m.Weight
			}
			type end struct{ pick Pick }
			ends := map[int][]end{} // by step
			conns := map[Endpoint]int{}
			off := map[Endpoint]float64{}
			open, rounds := 0, 0
			r := rand.New(rand.NewPCG(3, 4))
			load := 6 * test.n // flows open at one time, about
			worst := 0.0
			for step := range 40 * load {
				for _, e := range ends[step] {
					e.pick.Release()
					conns[e.pick.Endpoint]--
					open--
				}
				delete(ends, step)
				pick, _, _ := d.Pick(Request{App: "large"})
				conns[pick.Endpoint]++
				open++
				lasts := 1 + r.IntN(load) // short ones …
				if r.IntN(4) == 0 {
					lasts = 1 + r.IntN(6*load) // … and long ones
				}
				ends[step+lasts] = append(ends[step+lasts], end{pick})
				if step < 8*load {
					continue
				}
				i := int(pick.Endpoint.Addr.Addr().As4()[3]) | int(pick.Endpoint.Addr.Addr().As4()[2])<<8
				worst = max(worst, float64(conns[pick.Endpoint])-float64(open*spec.Endpoints[i].Weight)/float64(sum))
				if step%97 == 0 {
					rounds++
					for _, m := range spec.Endpoints {
						off[m.Endpoint] += float64(conns[m.Endpoint]) - float64(open*m.Weight)/float64(sum)
					}
				}
			}
			if worst > 2 {
				t.Errorf("an endpoint was picked to be %.1f above the ideal", worst)
			}
			most := 0.0
			for _, m := range spec.Endpoints {
				most = max(most, math.Abs(off[m.Endpoint]/float64(rounds)))
			}
			if most > 2 {
				t.Errorf("an endpoint was %.2f from the ideal on average", most)
			}
			t.Logf("at most %.2f above when picked, %.2f off on average", worst, most)
		})
	}
}

func TestAverage(t *testing.T) {
	var a average
	for range 30 {
		a.add(10*time.Millisecond, 1)
	}
	a.add(5*time.Second, 1)
	if got := time.Duration(a.value.Load()); got != 10*time.Millisecond {
		t.Errorf("one outlier moved the average to %v", got)
	}
	a.add(10*time.Millisecond, 1)
	a.add(5*time.Second, 1)
	if got := time.Duration(a.value.Load()); got != 10*time.Millisecond {
		t.Errorf("an outlier now and then moved the average to %v", got)
	}
	for range 40 {
		a.add(100*time.Millisecond, 1)
	}
	if got := time.Duration(a.value.Load()); got < 95*time.Millisecond || got > 101*time.Millisecond {
		t.Errorf("after 40 times 100 ms the average is %v", got)
	}
	for range 40 {
		a.add(time.Millisecond, 1)
	}
	if got := time.Duration(a.value.Load()); got > 2*time.Millisecond {
		t.Errorf("after 40 times 1 ms the average is %v", got)
	}
}

// TestLatency: with two choices of n the i-th best gets (2(n-i)+1)/n² … less
// what it may not be drawn against itself: 2(n-i)/n(n-1).
func TestLatency(t *testing.T) {
	const n, flows = 5, 50_000
	spec := large(n, byLatency, nil)
	w := newWorld(t, []Spec{spec})
	got := make([]float64, n)
	for range flows {
		pick := w.pick("large", 0)
		i := int(pick.Endpoint.Addr.Addr().As4()[3])
		got[i]++
		pick.Connected(time.Duration(1+i) * 10 * time.Millisecond)
		pick.Release()
		w.pass(time.Millisecond)
	}
	for i := range got {
		want := 2 * float64(n-1-i) / float64(n*(n-1))
		if share := got[i] / flows; math.Abs(share-want) > 0.02 || got[i] == 0 {
			t.Errorf("the endpoint that is %d. best got %.3f of the flows, want %.3f", i+1, share, want)
		}
	}
	if rtt := w.state("large", spec.Endpoints[4].Endpoint.String()).RTT; rtt != 50*time.Millisecond {
		t.Errorf("the slowest has an average of %v", rtt)
	}
}

// TestLatencyTries: what was never measured, or failed, or was measured long
// ago is tried by one flow, and not again before ten seconds have passed.
func TestLatencyTries(t *testing.T) {
	spec := pooled("db", "", b1, b2)
	spec.Steering = byLatency
	w := newWorld(t, []Spec{spec})
	tries := func(seconds int, end func(Pick)) (n int) {
		for range 10 * seconds {
			pick := w.pick("db", 0)
			if pick.Endpoint == at(b2) {
				n++
				end(pick)
			} else {
				pick.Connected(time.Millisecond)
				pick.Answered()
				pick.Release()
			}
			w.pass(100 * time.Millisecond)
		}
		return n
	}
	hang := func(Pick) {}
	if n := tries(20, hang); n != 2 {
		t.Errorf("an endpoint that does not answer was tried %d times in 20 s, want 2", n)
	}
	w.pass(time.Minute)
	if n := tries(20, func(p Pick) { p.Failed(errRefused) }); n != 2 {
		t.Errorf("an endpoint that fails was tried %d times in 20 s, want 2", n)
	}
	if n := tries(100, func(p Pick) { p.Connected(time.Second); p.Answered(); p.Release() }); n != 2 {
		t.Errorf("a slow endpoint was tried %d times in 100 s, want 2", n)
	}
}

func TestManyPools(t *testing.T) {
	var pools []Spec
	var names []string
	for i := range MaxPools + 6 {
		s := pooled(fmt.Sprint(i), "", b1)
		s.Disabled = i != MaxPools-1
		pools, names = append(pools, s), append(names, s.Name)
	}
	for _, by := range poolPolicies() {
		app := appOf(names...)
		app.Steering = by
		w := newWorld(t, pools, app)
		if pick := w.pick("a", 1); pick.Pool != "63" {
			t.Errorf("by %s: pool %s", by, pick.Pool)
		}
		if _, why, ok := w.Pick(Request{App: "a", Tried: triedSet(b1)}); ok || why == "" {
			t.Errorf("by %s: %v, %s", by, ok, why)
		}
	}
}
