package connector

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

func below(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(d)))
}

// turn is when a job was done.
type turn struct {
	job int
	at  time.Duration
}

// Jobs are done when a naive clock says so, in whatever order they come and
// go, where there is a place for each.
func TestRotaKeepsTime(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			r := newRota(1000)
			ctx, stop := context.WithCancel(t.Context())
			over := make(chan struct{})
			go func() { defer close(over); r.run(ctx) }()
			began := time.Now()
			var mu sync.Mutex
			var got, want []turn
			const end = 60 * time.Second
			for i := range 50 {
				// Odd and even nanoseconds: no two things happen at one time.
				first := below(rng, 10*time.Second) | 1
				pause := (below(rng, 5*time.Second) + time.Second) &^ 1
				entered, left := below(rng, 20*time.Second)&^1, (below(rng, 80*time.Second) &^ 1)
				j := &job{}
				j.do = func(context.Context) time.Duration {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, turn{i, time.Since(began)})
					return pause
				}
				time.AfterFunc(entered, func() { r.add(j, first) })
				left = max(left, entered+2)
				time.AfterFunc(left, func() { r.remove(j); r.remove(j) })
				for at := entered + first; at < min(left, end); at += pause {
					want = append(want, turn{i, at})
				}
			}
			time.Sleep(end)
			synctest.Wait()
			stop()
			<-over
			byTime := func(a, b turn) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.job, b.job)) }
			slices.SortFunc(got, byTime)
			slices.SortFunc(want, byTime)
			if !slices.Equal(got, want) {
				t.Errorf("seed %d: jobs were done at\n%v\nwant\n%v", seed, got, want)
			}
		})
	}
}

// There are never more jobs at one time than places, the one that waits for
// longest is the next, and a removed one is cut short.
func TestRotaBoundsWhatIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		r := newRota(3)
		ctx, stop := context.WithCancel(t.Context())
		over := make(chan struct{})
		go func() { defer close(over); r.run(ctx) }()
		var mu sync.Mutex
		doing, most := 0, 0
		done := map[int]int{}
		var jobs []*job
		for i := range 30 {
			j := &job{}
			j.do = func(ctx context.Context) time.Duration {
				mu.Lock()
				doing++
				most = max(most, doing)
				mu.Unlock()
				sleep(ctx, time.Second)
				mu.Lock()
				doing--
				done[i]++
				mu.Unlock()
				return time.Second
			}
			jobs = append(jobs, j)
			r.add(j, below(rng, time.Second))
		}
		time.Sleep(100 * time.Second)
		synctest.Wait()
		mu.Lock()
		if most != 3 {
			t.Errorf("%d at one time, want 3", most)
		}
		for i := range jobs {
			if done[i] < 9 || done[i] > 11 {
				t.Errorf("job %d was done %d times, want 10", i, done[i])
			}
		}
		mu.Unlock()
		for _, j := range jobs {
			r.remove(j)
		}
		synctest.Wait()
		mu.Lock()
		if doing != 0 || len(r.jobs) != 0 {
			t.Errorf("%d are done still, and %d wait", doing, len(r.jobs))
		}
		mu.Unlock()
		stop()
		<-over
	})
}

// FuzzOutbox holds the outbox against a list: nothing is lost or turned round
// within its bounds, and there is a time to send whenever there is something.
func FuzzOutbox(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 200, 4, 4, 250, 5, 255, 6})
	f.Fuzz(func(t *testing.T, steps []byte) {
		o := outbox{earlier: make(chan struct{}, 1)}
		var results []wire.CheckResult
		var names []wire.Found
		for i, step := range steps {
			switch {
			case step < 150:
				r := wire.CheckResult{ID: uint64(i), RTT: time.Duration(step)}
				o.result(r, time.Duration(step))
				if o.open {
					results = append(results, r)
				}
			case step < 200:
				n := wire.Found{Host: string('a' + rune(step%4)), TTL: time.Duration(i)}
				o.name(n, time.Duration(step))
				if o.open {
					names = slices.DeleteFunc(names, func(old wire.Found) bool { return old.Host == n.Host })
					names = append(names, n)
				}
			case step < 230:
				r, n := o.take()
				if len(r) > wire.MaxResults || len(n) > wire.MaxFound || !slices.Equal(r, results[:len(r)]) || len(n) != min(len(names), wire.MaxFound) {
					t.Fatalf("took %v, %v of %v, %v", r, n, results, names)
				}
				for k := range n {
					if n[k].Host != names[k].Host || n[k].TTL != names[k].TTL {
						t.Fatalf("took %v of %v", n, names)
					}
				}
				results, names = results[len(r):], names[len(n):]
			case step < 243:
				o.open = true
			default:
				o.close()
				results, names = nil, nil
			}
			if o.due.IsZero() != (len(results)+len(names) == 0) || len(o.results) != len(results) || len(o.names) != len(names) {
				t.Fatalf("step %d: %d results and %d names are due at %v, want %d and %d", i, len(o.results), len(o.names), o.due, len(results), len(names))
			}
		}
	})
}

// What an edge does not take is bounded, and the latest stays.
func TestOutboxIsBounded(t *testing.T) {
	o := outbox{open: true, earlier: make(chan struct{}, 1)}
	for i := range 3 * maxWaiting {
		o.result(wire.CheckResult{ID: uint64(i)}, 0)
	}
	if n := len(o.results); n > maxWaiting || n < maxWaiting*8/10 || o.results[n-1].ID != 3*maxWaiting-1 || cap(o.results) > 2*maxWaiting {
		t.Errorf("%d results wait", n)
	}
}

// A result is taken in, and taken out to be sent, without garbage but for the
// message.
func TestOutboxAllocatesNothing(t *testing.T) {
	o := outbox{open: true, earlier: make(chan struct{}, 1)}
	for range 200 {
		o.result(wire.CheckResult{}, 0)
	}
	o.results = o.results[:0]
	r := wire.CheckResult{ID: 7, Error: "connection refused", Class: wire.ClassRefused}
	if n := testing.AllocsPerRun(100, func() { o.result(r, wait(9, 5*time.Second)) }); n != 0 {
		t.Errorf("%v allocations a result", n)
	}
}

// BenchmarkChecked is what it costs to take in a result and to let it wait,
// once the outbox has grown.
func BenchmarkChecked(b *testing.B) {
	o := outbox{open: true, earlier: make(chan struct{}, 1)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		o.result(wire.CheckResult{ID: uint64(i)}, wait(9, 5*time.Second))
		if i%1000 == 999 {
			o.take()
			o.take()
		}
	}
}
