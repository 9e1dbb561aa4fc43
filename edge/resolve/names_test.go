package resolve

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	web = Name{Public, "web.example"}
	db  = Name{"berlin", "db.internal"}

	errServer = errors.New("the server fails")
	errGone   = fmt.Errorf("looking: %w", &net.DNSError{Err: "no such host", IsNotFound: true})
)

// world is a resolver, and counts.
type world struct {
	mu      sync.Mutex
	addrs   []netip.Addr
	ttl     time.Duration
	err     error
	delay   time.Duration
	asked   map[string]int
	now     int // lookups under way
	most    int
	changes int
}

func (w *world) lookup(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	w.mu.Lock()
	w.asked[host]++
	w.now++
	w.most = max(w.most, w.now)
	delay := w.delay
	w.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-time.After(delay):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now--
	if ctx.Err() != nil {
		return nil, 0, ctx.Err()
	}
	return w.addrs, w.ttl, w.err
}

func (w *world) set(ttl time.Duration, err error, addrs ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ttl, w.err, w.addrs = ttl, err, ips(addrs...)
}

func (w *world) count(host string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[host]
}

func (w *world) changed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changes
}

func ips(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// run makes a Resolver in a bubble.
func run(t *testing.T, f func(t *testing.T, w *world, r *Resolver)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{asked: make(map[string]int), ttl: time.Minute, addrs: ips("192.0.2.1")}
		r := New(Deps{Lookup: w.lookup, OnChange: func() { w.mu.Lock(); w.changes++; w.mu.Unlock() }})
		defer r.Stop()
		f(t, w, r)
	})
}

func want(t *testing.T, r *Resolver, n Name, addrs, err string) Answer {
	t.Helper()
	a := r.Addrs(n)
	if got := strings.Trim(fmt.Sprint(a.Addrs), "[]"); got != addrs {
		t.Errorf("addrs of %v = %q, want %q", n, got, addrs)
	}
	switch {
	case err == "" && a.Err != nil, err != "" && (a.Err == nil || !strings.Contains(a.Err.Error(), err)):
		t.Errorf("err of %v = %v, want %q", n, a.Err, err)
	}
	return a
}

func after(d time.Duration) { time.Sleep(d); synctest.Wait() }

func TestPublic(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *Resolver) {
		want(t, r, web, "", "nothing names it")
		w.set(time.Minute, nil, "192.0.2.2", "::ffff:192.0.2.1", "2001:db8::1", "192.0.2.2", "0.0.0.0", "224.0.0.1")
		r.Apply([]Name{web})
		if err := r.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		a := want(t, r, web, "192.0.2.1 192.0.2.2 2001:db8::1", "")
		if a.At != time.Now() || a.Expires != time.Now().Add(time.Minute) || a.Stale() {
			t.Errorf("answer = %+v", a)
		}
		after(time.Second)
		if n := w.changed(); n != 1 {
			t.Errorf("%d changes, want 1", n)
		}
		after(time.Hour)
		if n := w.count(web.Host); n < 54 || n > 61 {
			t.Errorf("asked %d times in an hour with a TTL of a minute", n)
		}
		if n := w.changed(); n != 1 {
			t.Errorf("%d changes, and nothing changed", n)
		}
		w.set(time.Minute, nil, "192.0.2.2")
		after(2 * time.Minute)
		want(t, r, web, "192.0.2.2", "")
		if n := w.changed(); n != 2 {
			t.Errorf("%d changes, want 2", n)
		}
	})
}

func TestTTLBounds(t *testing.T) {
	for _, test := range []struct {
		ttl       time.Duration
		err       error
		low, high int // lookups in six hours
	}{
		{0, nil, 6 * 3600 / 11 * 10, 6*3600 + 1},
		{-time.Hour, nil, 6 * 3600 / 11 * 10, 6*3600 + 1},
		{time.Hour * 1000, nil, 6, 7},
		{0, errServer, 6 * 48, 6*80 + 10},
		{0, errGone, 6 * 3600 / 11 * 10, 6*3600 + 1},
		{time.Hour * 1000, errGone, 6 * 12 / 11 * 10, 6*12 + 1},
	} {
		run(t, func(t *testing.T, w *world, r *Resolver) {
			w.set(test.ttl, test.err, "192.0.2.1")
			r.Apply([]Name{web})
			after(6 * time.Hour)
			if n := w.count(web.Host); n < test.low || n > test.high {
				t.Errorf("with %v, %v: asked %d times, want %d to %d", test.ttl, test.err, n, test.low, test.high)
			}
		})
	}
}

func TestLastKnownGood(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		age  time.Duration
	}{{"a failure", errServer, MaxAge}, {"no such name", errGone, NotFoundAge}} {
		t.Run(test.name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world, r *Resolver) {
				r.Apply([]Name{web})
				after(time.Second)
				w.set(30*time.Second, test.err)
				after(2 * time.Minute)
				if a := want(t, r, web, "192.0.2.1", test.err.Error()); !a.Stale() || a.Expires.After(time.Now()) {
					t.Errorf("answer = %+v, want a stale one", a)
				}
				if s := r.Snapshot()[0]; s.Failures == 0 || s.Asked.IsZero() || s.Name != web {
					t.Errorf("status = %+v", s)
				}
				after(test.age - 5*time.Minute)
				want(t, r, web, "192.0.2.1", test.err.Error())
				if n := w.changed(); n != 1 {
					t.Errorf("%d changes, and the addresses are the same", n)
				}
				after(10 * time.Minute)
				if a := want(t, r, web, "", test.err.Error()); !a.At.IsZero() || a.Stale() {
					t.Errorf("answer = %+v", a)
				}
				if n := w.changed(); n != 2 {
					t.Errorf("%d changes, want 2", n)
				}
				w.set(time.Minute, nil, "192.0.2.1")
				after(2 * time.Minute)
				want(t, r, web, "192.0.2.1", "")
				if n := w.changed(); n != 3 {
					t.Errorf("%d changes, want 3", n)
				}
			})
		})
	}
}

func TestNoAddressIsNotFound(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *Resolver) {
		w.set(time.Minute, nil)
		r.Apply([]Name{web, db})
		after(time.Second)
		if a := want(t, r, web, "", "it has no address"); !notFound(a.Err) {
			t.Errorf("err = %v", a.Err)
		}
		r.Report(db, ips("127.0.0.1", "fe80::1", "::", "ff02::1"), time.Minute, nil)
		want(t, r, db, "", "no address that an endpoint can have, such as 127.0.0.1")
	})
}

func TestPrivate(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *Resolver) {
		r.Apply([]Name{db, web})
		want(t, r, db, "", `"db.internal" in network "berlin": not resolved yet: no connector`)
		after(time.Minute)
		if w.count(db.Host) > 0 {
			t.Error("a private name was asked of the edge's resolver")
		}
		w.changes = 0
		r.Report(db, ips("10.0.0.2", "10.0.0.1"), 40*time.Second, nil)
		r.Report(web, ips("10.0.0.2"), time.Hour, nil) // no connector speaks for a public name
		r.Report(Name{"berlin", "other"}, ips("10.0.0.2"), time.Hour, nil)
		want(t, r, web, "192.0.2.1", "")
		if len(r.Snapshot()) != 2 {
			t.Errorf("a report made a name: %v", r.Snapshot())
		}
		for range 10 {
			after(40 * time.Second)
			r.Report(db, ips("10.0.0.1", "10.0.0.2"), 40*time.Second, nil)
		}
		want(t, r, db, "10.0.0.1 10.0.0.2", "")
		after(119 * time.Second)
		want(t, r, db, "10.0.0.1 10.0.0.2", "")
		after(2 * time.Second)
		if a := want(t, r, db, "10.0.0.1 10.0.0.2", "no connector of it has reported for 2m0s"); !a.Stale() {
			t.Error("not stale")
		}
		after(MaxAge - 3*time.Minute)
		want(t, r, db, "10.0.0.1 10.0.0.2", "no connector")
		if w.changed() != 1 {
			t.Errorf("%d changes, want 1", w.changed())
		}
		after(2 * time.Minute)
		want(t, r, db, "", "no connector")
		if w.changed() != 2 {
			t.Errorf("%d changes, want 2", w.changed())
		}
		r.Report(db, ips("10.0.0.1"), time.Second, nil)
		after(59 * time.Second) // not 3 × 1 s
		want(t, r, db, "10.0.0.1", "")
		after(2 * time.Second)
		want(t, r, db, "10.0.0.1", "for 1m0s")
	})
}

func TestPrivateFailures(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *Resolver) {
		r.Apply([]Name{db})
		r.Report(db, nil, 0, errServer)
		want(t, r, db, "", "the server fails")
		r.Report(db, ips("10.0.0.1"), time.Minute, nil)
		r.Report(db, nil, 0, errServer) // another connector's
		r.Report(db, nil, 0, errGone)
		want(t, r, db, "10.0.0.1", "")
		after(time.Minute)
		r.Report(db, nil, 0, errServer)
		want(t, r, db, "10.0.0.1", "the server fails")
		after(time.Hour)
		want(t, r, db, "10.0.0.1", "the server fails")
		r.Report(db, nil, time.Minute, errGone) // and no more reports
		after(NotFoundAge - time.Second)
		want(t, r, db, "10.0.0.1", "no such host")
		after(2 * time.Second)
		want(t, r, db, "", "no such host")
		r.Report(db, ips("10.0.0.1"), time.Minute, nil)
		after(time.Minute)
		r.Report(db, nil, 0, errServer)
		after(MaxAge - time.Minute)
		want(t, r, db, "", "the server fails")
	})
}

func TestApplyKeepsWhatStays(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *Resolver) {
		r.Apply([]Name{web, db})
		r.Report(db, ips("10.0.0.1"), time.Minute, nil)
		after(time.Second)
		before := r.Snapshot()
		for range 100 {
			r.Apply([]Name{db, web, web, {Public, "new.example"}})
		}
		after(time.Second)
		if n := w.count(web.Host); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		r.Apply([]Name{web, db})
		if now := r.Snapshot(); fmt.Sprint(now) != fmt.Sprint(before) {
			t.Errorf("%v\n%v", now, before)
		}
		changes := w.changed()
		w.set(time.Minute, nil, "192.0.2.9")
		r.Apply(nil)
		after(time.Hour)
		if len(r.Snapshot()) != 0 || w.count(web.Host) != 1 || w.changed() != changes {
			t.Errorf("what was removed goes on: %v, asked %d", r.Snapshot(), w.count(web.Host))
		}
	})
}

func TestManyNames(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *Resolver) {
		w.delay = time.Second
		var names []Name
		for i := range 200 {
			names = append(names, Name{Public, fmt.Sprintf("n%d.example", i)})
		}
		r.Apply(names)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		if err := r.Settle(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Settle = %v", err)
		}
		cancel()
		if err := r.Settle(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 7*time.Second { // 200 at 32 a second
			t.Errorf("took %v", took)
		}
		synctest.Wait()
		if w.most != defaultConcurrency {
			t.Errorf("%d lookups at one time", w.most)
		}
		after(time.Second)
		if n := w.changed(); n > 7 {
			t.Errorf("%d calls of OnChange for 7 bursts", n)
		}
	})
}

func TestStopAndRemovalEndWhoWaits(t *testing.T) {
	run(t, func(t *testing.T, w *world, r *Resolver) {
		w.delay = time.Hour
		r.Apply([]Name{web})
		settled := make(chan error, 1)
		go func() { settled <- r.Settle(t.Context()) }()
		after(time.Millisecond)
		r.Apply([]Name{{Public, "other"}})
		if err := <-settled; err != nil {
			t.Error(err)
		}
		go func() { settled <- r.Settle(t.Context()) }()
		after(time.Millisecond)
		r.Stop()
		if err := <-settled; err == nil {
			t.Error("Settle of a stopped one succeeds")
		}
		r.Apply([]Name{web})
		r.Report(db, nil, 0, nil)
		if len(r.Snapshot()) != 1 {
			t.Error("Apply after Stop")
		}
	})
}

// TestAgainstOracle drives one public and one private name through random
// answers, and holds each against the rule in its plainest form.
func TestAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 30 {
		run(t, func(t *testing.T, w *world, r *Resolver) {
			r.Apply([]Name{db})
			var good []netip.Addr
			var at, gone, last time.Time // of the last good answer, the first "no such name" since, the last report
			var ttl time.Duration
			failing := true
			for range 60 {
				fresh := !failing && time.Since(last) < ttl
				switch verdict := rng.IntN(4); {
				case verdict <= 1:
					good = ips(fmt.Sprintf("10.0.0.%d", rng.IntN(3)+1))
					ttl = time.Duration(rng.IntN(5000)) * time.Second
					r.Report(db, slices.Clone(good), ttl, nil)
					ttl = min(max(ttl, time.Second), time.Hour)
					at, gone, last, failing = time.Now(), time.Time{}, time.Now(), false
				case fresh:
					r.Report(db, nil, 0, []error{errServer, errGone}[verdict-2]) // of no weight
				case verdict == 2:
					r.Report(db, nil, 0, errServer)
					failing = true
				default:
					r.Report(db, nil, 0, errGone)
					if gone.IsZero() {
						gone = time.Now()
					}
					failing = true
					if time.Since(gone) >= NotFoundAge {
						good = nil
					}
				}
				wasGone := r.Addrs(db).Err == errGone
				time.Sleep(time.Duration(rng.Int64N(int64([]time.Duration{time.Minute, time.Hour, 30 * time.Hour}[rng.IntN(3)]))))
				synctest.Wait()
				if time.Since(at) >= MaxAge || wasGone && time.Since(gone) >= NotFoundAge {
					good = nil
				}
				overdue := time.Since(last) >= max(3*ttl, time.Minute)
				a := r.Addrs(db)
				if !slices.Equal(a.Addrs, good) || (a.Err != nil) != (failing || overdue) {
					t.Fatalf("answer = %+v, want %v, failing %v, overdue %v", a, good, failing, overdue)
				}
			}
		})
	}
}
