package balance

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// queueing is a pool of endpoints with one connection each.
func queueing(length int, endpoints ...string) Spec {
	s := pooled("db", "", endpoints...)
	s.Queue = Queue{Length: length, Timeout: 5 * time.Second}
	for i := range s.Endpoints {
		s.Endpoints[i].MaxConnections = 1
	}
	return s
}

// arrival is a flow that wants an endpoint.
type arrival struct {
	pick  Pick
	why   string
	ok    bool
	after time.Duration
	done  bool
}

func arrive(ctx context.Context, d *Director, tried ...string) *arrival {
	a := &arrival{}
	began := time.Now()
	go func() {
		a.pick, a.why, a.ok = d.Acquire(ctx, Request{App: "db", Tried: triedSet(tried...)})
		a.after, a.done = time.Since(began), true
	}()
	synctest.Wait()
	return a
}

func TestQueue(t *testing.T) {
	tests := map[string]func(t *testing.T, d *Director){
		"first come, first served": func(t *testing.T, d *Director) {
			held := []*arrival{arrive(t.Context(), d), arrive(t.Context(), d)}
			var waiting []*arrival
			for range 3 {
				waiting = append(waiting, arrive(t.Context(), d))
			}
			if s := d.Pools()[0]; s.Queued != 3 || s.Connections != 2 {
				t.Errorf("%d wait, %d connections", s.Queued, s.Connections)
			}
			if _, why, ok := d.Pick(Request{App: "db"}); ok || why != `pool "db" has no endpoint left: 2 full` {
				t.Errorf("a pick that does not wait: %v, %s", ok, why)
			}
			time.Sleep(time.Second)
			for i, w := range waiting {
				if w.done {
					t.Fatalf("flow %d has not waited", i)
				}
				held[i].pick.Release()
				synctest.Wait()
				if !w.done || !w.ok || w.pick.Endpoint != held[i].pick.Endpoint || w.why != `pool "db" by round_robin, after 1s in its queue` {
					t.Fatalf("flow %d got %+v", i, w)
				}
				held = append(held, w)
			}
			held[3].pick.Release()
			held[4].pick.Canceled()
			if s := d.Pools()[0]; s.Queued != 0 || s.Connections != 0 {
				t.Errorf("at the end %d wait, %d connections", s.Queued, s.Connections)
			}
		},
		"a full queue and a timeout": func(t *testing.T, d *Director) {
			for range 2 {
				arrive(t.Context(), d)
			}
			first, second, third := arrive(t.Context(), d), arrive(t.Context(), d), arrive(t.Context(), d)
			fourth := arrive(t.Context(), d)
			if !fourth.done || fourth.ok || fourth.why != `pool "db" is full, and 3 flows wait` {
				t.Errorf("the fourth: %+v", fourth)
			}
			time.Sleep(time.Hour)
			synctest.Wait()
			for _, a := range []*arrival{first, second, third} {
				if a.ok || a.after != 5*time.Second || a.why != `pool "db": 5s passed while waiting for an endpoint` {
					t.Errorf("%+v", a)
				}
			}
		},
		"a client that goes": func(t *testing.T, d *Director) {
			one, two := arrive(t.Context(), d), arrive(t.Context(), d)
			ctx, cancel := context.WithCancelCause(t.Context())
			gone, next := arrive(ctx, d), arrive(t.Context(), d)
			cancel(errors.New("client gone"))
			synctest.Wait()
			if !gone.done || gone.ok || gone.why != `pool "db": client gone while waiting for an endpoint` {
				t.Errorf("%+v", gone)
			}
			one.pick.Failed(errRefused)
			synctest.Wait()
			if !next.ok {
				t.Errorf("the next one: %+v", next)
			}
			next.pick.Release()
			two.pick.Release()
			if n := d.Pools()[0].Connections; n != 0 {
				t.Errorf("%d connections are left", n)
			}
		},
		"who tried an endpoint waits for another": func(t *testing.T, d *Director) {
			one, two := arrive(t.Context(), d), arrive(t.Context(), d)
			retry := arrive(t.Context(), d, one.pick.Endpoint.String())
			other := arrive(t.Context(), d)
			one.pick.Release()
			synctest.Wait()
			if retry.done || !other.ok {
				t.Errorf("retry %+v, other %+v", retry, other)
			}
			two.pick.Release()
			synctest.Wait()
			if !retry.ok || retry.pick.Endpoint != two.pick.Endpoint {
				t.Errorf("retry %+v", retry)
			}
		},
		"a drained pool sends its queue away": func(t *testing.T, d *Director) {
			arrive(t.Context(), d)
			arrive(t.Context(), d)
			a := arrive(t.Context(), d)
			for _, e := range []string{b1, b2} {
				if err := d.Drain("db", at(e), 0); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			if !a.done || a.ok || a.why != `pool "db" has no healthy endpoint: 2 draining` {
				t.Errorf("%+v", a)
			}
		},
		"a reload that makes room": func(t *testing.T, d *Director) {
			arrive(t.Context(), d)
			arrive(t.Context(), d)
			a := arrive(t.Context(), d)
			next := d.With([]Spec{queueing(3, b1, b2, b3)}, []App{{Name: "db", Pools: []Choice{{"db", 1}}}})
			next.Activate()
			synctest.Wait()
			if !a.ok || a.pick.Endpoint != at(b3) {
				t.Errorf("%+v", a)
			}
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				spec := queueing(3, b1, b2)
				test(t, New([]Spec{spec}, appsOf(spec), Deps{}))
			})
		})
	}
}

// TestQueueWithTime: an ejection that ends lets flows go on, though nothing
// tells of it.
func TestQueueWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := queueing(3, b1, b2)
		spec.Ejection = Ejection{Failures: 1, Time: 2 * time.Second, MaxTime: time.Minute, MaxPercent: 50}
		d := New([]Spec{spec}, appsOf(spec), Deps{})
		arrive(t.Context(), d).pick.Failed(errRefused)
		arrive(t.Context(), d)
		a := arrive(t.Context(), d)
		time.Sleep(2*time.Second + recheck)
		synctest.Wait()
		if !a.ok || a.pick.Endpoint != at(b1) || a.after > 2*time.Second+recheck {
			t.Errorf("%+v", a)
		}
	})
}

// TestQueueLosesNothing: flows that come, wait, give up and go on all
// processors at once are never above MaxConnections, and none waits for ever.
func TestQueueLosesNothing(t *testing.T) {
	spec := queueing(1000, b1, b2, b3)
	for i := range spec.Endpoints {
		spec.Endpoints[i].MaxConnections = 2
	}
	spec.Queue.Timeout = time.Minute
	d := New([]Spec{spec}, appsOf(spec), Deps{})
	var open [3]atomic.Int64
	var wg sync.WaitGroup
	for worker := range 32 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 1))
			for range 400 {
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(4) == 0 {
					go cancel()
				}
				pick, why, ok := d.Acquire(ctx, Request{App: "db"})
				if ok {
					i := pick.Endpoint.Addr.Addr().As4()[3] - 10
					if n := open[i].Add(1); n > 2 {
						t.Errorf("%d connections", n)
					}
					if r.IntN(3) == 0 {
						time.Sleep(time.Microsecond)
					}
					open[i].Add(-1)
					pick.Release()
				} else if ctx.Err() == nil {
					t.Error(why)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if s := d.Pools()[0]; s.Connections != 0 || s.Queued != 0 {
		t.Errorf("at the end: %d connections, %d wait", s.Connections, s.Queued)
	}
}

// TestEverythingAtOnce: picks, ends, reloads, health and operators at once
// leave counters right.
func TestEverythingAtOnce(t *testing.T) {
	specs := func(k int) []Spec {
		a := queueing(10, b1, b2, b3)
		a.Monitor = "pg"
		a.Ejection = Ejection{Failures: 2, Time: time.Millisecond, MaxTime: 5 * time.Millisecond, MaxPercent: 70}
		a.SlowStart = time.Millisecond
		a.Queue.Timeout = 2 * time.Millisecond
		a.Steering = endpointPolicies()[k%6]
		b := large(40, endpointPolicies()[k/6%6], func(i int) int { return 1 + (i+k)%3 })
		return []Spec{a, b}
	}
	apps := func(k int) []App {
		a := affined([]string{"", failoverSticky}[k%2], "db", "large")
		a.Affinity.Max, a.Steering = 50, poolPolicies()[k%5]
		if k%3 == 0 {
			a.Fallback = "large"
			a.Pools = a.Pools[:1]
		}
		return []App{a}
	}
	w := &world{t: t, down: map[Endpoint]string{}, unknown: map[Endpoint]bool{}}
	var current atomic.Pointer[Director]
	var events atomic.Int64
	current.Store(New(specs(0), apps(0), Deps{Health: w, OnEvent: func(Event) { events.Add(1) }}))
	stop := make(chan struct{})
	var operators, flows sync.WaitGroup
	operators.Go(func() {
		for k := 0; ; k++ {
			select {
			case <-stop:
				return
			default:
			}
			d := current.Load()
			e := at([]string{b1, b2, b3}[k%3])
			w.mu.Lock()
			w.down[e] = []string{"", "refused"}[rand.IntN(2)]
			w.mu.Unlock()
			d.HealthChanged(e.Network, e.Addr, "pg")
			switch k % 7 {
			case 1:
				current.Store(d.With(specs(k), apps(k)))
			case 2:
				_ = d.Drain("db", e, time.Duration(k%3)*time.Millisecond)
			case 3:
				_ = d.Undrain("db", e)
			case 4:
				for _, s := range d.Pools() {
					for _, e := range s.Endpoints {
						if e.Connections < 0 || e.MaxConnections > 0 && e.Connections > e.MaxConnections {
							t.Errorf("%v has %d connections", e.Endpoint, e.Connections)
						}
					}
				}
			}
		}
	})
	for worker := range 8 {
		flows.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 2))
			var open []Pick
			for range 3000 {
				req := Request{App: "a", Client: clientAt(r.IntN(80))}
				if len(open) > 0 {
					req.Tried = func(e Endpoint) bool { return e == open[0].Endpoint }
				}
				pick, why, ok := current.Load().Acquire(t.Context(), req)
				if why == "" {
					t.Error("no reason")
				}
				if ok {
					switch r.IntN(4) {
					case 0:
						pick.Failed(errRefused)
					case 1:
						pick.Canceled()
					default:
						pick.Connected(time.Duration(1 + r.IntN(1000)))
						open = append(open, pick)
					}
				}
				for len(open) > r.IntN(3) {
					open[0].Release()
					open = open[1:]
				}
			}
			for _, p := range open {
				p.Release()
			}
		})
	}
	flows.Wait()
	close(stop)
	operators.Wait()
	for _, s := range current.Load().Pools() {
		n := 0
		for _, e := range s.Endpoints {
			n += e.Connections
		}
		if n != 0 || s.Connections != 0 || s.Queued != 0 {
			t.Errorf("pool %q ends with %d and %d connections, %d wait", s.Spec.Name, n, s.Connections, s.Queued)
		}
	}
	if events.Load() == 0 {
		t.Error("nothing was told")
	}
}

// TestQueueMovesOn: a flow whose pool goes down while it waits goes on to wait
// for the next one, and no longer in all than the first pool's timeout says.
func TestQueueMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := queueing(3, b1), queueing(3, b2)
		one.Monitor, two.Name, two.Queue.Timeout = "pg", "two", time.Minute
		var down atomic.Bool
		d := New([]Spec{one, two}, []App{{Name: "db", Pools: []Choice{{"db", 1}, {"two", 1}}}}, Deps{Health: switched{&down}})
		arrive(t.Context(), d)
		if other, why, ok := d.Pick(Request{App: "db"}); !ok || other.Pool != "two" {
			t.Fatal(why)
		}
		waits := arrive(t.Context(), d)
		time.Sleep(time.Second)
		down.Store(true)
		d.HealthChanged("berlin", at(b1).Addr, "pg")
		synctest.Wait()
		if d.pools["two"].shared.queue.waiting.Load() != 1 {
			t.Fatal("it does not wait for the second pool")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if waits.ok || waits.after != 5*time.Second || waits.why != `pool "two": 5s passed while waiting for an endpoint` {
			t.Errorf("%+v", waits)
		}
	})
}

// TestQueueHearsNews: a flow that waits gets an endpoint that comes up, however
// soon after other news.
func TestQueueHearsNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := queueing(3, b1, b2, b3)
		spec.Monitor = "pg"
		h := health{b2 + " pg": "refused", b3 + " pg": "refused"}
		d := New([]Spec{spec}, appsOf(spec), Deps{Health: h})
		one, waits := arrive(t.Context(), d), arrive(t.Context(), d)
		if !one.ok || waits.done {
			t.Fatalf("%+v, %+v", one, waits)
		}
		delete(h, b2+" pg")
		d.HealthChanged("berlin", at(b2).Addr, "pg")
		synctest.Wait()
		if !waits.ok || waits.pick.Endpoint != at(b2) || waits.after != 0 {
			t.Errorf("%+v", waits)
		}
	})
}

// switched is a Health that is down as a whole, or up.
type switched struct{ down *atomic.Bool }

func (s switched) Up(string, netip.AddrPort, string) (bool, string) {
	return !s.down.Load(), "no route"
}
