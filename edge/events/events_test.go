package events

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ids writes the IDs of events as "1-3 5".
func ids(events []Event) string {
	var out []string
	for i := 0; i < len(events); {
		k := i
		for k+1 < len(events) && events[k+1].ID == events[k].ID+1 {
			k++
		}
		text := fmt.Sprint(events[i].ID)
		if k > i {
			text = fmt.Sprintf("%d-%d", events[i].ID, events[k].ID)
		}
		out = append(out, text)
		i = k + 1
	}
	return strings.Join(out, " ")
}

func TestSince(t *testing.T) {
	l := New(Deps{Ring: 10})
	defer l.Stop()
	if events, missed := l.Since(0, 0); len(events) > 0 || missed != 0 {
		t.Errorf("an empty log has %v, %d", events, missed)
	}
	for i := range 7 {
		if id := l.Add(Event{Kind: "pool", From: "up", To: "down"}); id != uint64(i+1) || l.Last() != id {
			t.Errorf("id = %d, last = %d", id, l.Last())
		}
	}
	check := func(id uint64, max int, want string, missed uint64) {
		t.Helper()
		events, n := l.Since(id, max)
		if ids(events) != want || n != missed {
			t.Errorf("Since(%d, %d) = %s, missed %d; want %s, %d", id, max, ids(events), n, want, missed)
		}
	}
	check(0, 0, "1-7", 0)
	check(0, 3, "1-3", 0)
	check(3, 3, "4-6", 0)
	check(6, 3, "7", 0)
	check(7, 3, "", 0)
	check(99, 0, "1-7", 0) // of a life before
	for range 20 {
		l.Add(Event{Kind: "pool"})
	}
	check(0, 0, "18-27", 17)
	check(12, 2, "18-19", 5)
	check(17, 0, "18-27", 0)
	check(26, 0, "27", 0)
	check(27, 0, "", 0)
	check(28, 0, "18-27", 17)
}

// TestRingAgainstOracle compares the ring with a slice.
func TestRingAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		r, next := ring{max: 1 + rng.IntN(70)}, uint64(0)
		var oracle []Event
		for range 300 {
			if rng.IntN(5) > 0 {
				next++
				oracle = append(oracle, Event{ID: next})
				dropped := len(oracle) > r.max
				if dropped {
					oracle = oracle[1:]
				}
				if r.push(Event{ID: next}) != dropped {
					t.Fatal("dropped otherwise")
				}
				continue
			}
			n := rng.IntN(r.n + 1)
			if got := r.take(n); !slices.Equal(got, oracle[:n]) {
				t.Fatalf("took %s, want %s", ids(got), ids(oracle[:n]))
			}
			oracle = oracle[n:]
			if got := r.slice(0, r.n); !slices.Equal(got, oracle) {
				t.Fatalf("holds %s, want %s", ids(got), ids(oracle))
			}
		}
		if len(r.buf) > r.max {
			t.Fatalf("the memory is %d of %d", len(r.buf), r.max)
		}
	}
}

func TestAddTidies(t *testing.T) {
	l := New(Deps{})
	defer l.Stop()
	at := time.Date(2020, 1, 1, 12, 0, 0, 0, time.FixedZone("x", 3600))
	l.Add(Event{Time: at, Why: strings.Repeat("ä", 1000)})
	l.Add(Event{Time: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), Why: "a" + strings.Repeat("ä", 1000)})
	l.Add(Event{})
	l.Add(Event{Why: strings.Repeat("\xbf", 5000)})
	events, _ := l.Since(0, 0)
	if e := events[0]; !e.Time.Equal(at) || e.Time.Location() != time.UTC || len(e.Why) != maxText {
		t.Errorf("event = %v, %d bytes", e.Time, len(e.Why))
	}
	if e := events[1]; e.Time.Year() > 9999 || len(e.Why) != maxText-1 || !utf8.ValidString(e.Why) {
		t.Errorf("event = %v, %d bytes", e.Time, len(e.Why))
	}
	if time.Since(events[2].Time) > time.Hour || len(events[3].Why) > maxText {
		t.Errorf("events = %v", events[2:])
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Deps{})
		got := make(chan error, 3)
		for range 2 {
			go func() { got <- l.Wait(t.Context(), 0) }()
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { got <- l.Wait(ctx, 0) }()
		synctest.Wait()
		cancel()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
		l.Add(Event{})
		for range 2 {
			if err := <-got; err != nil {
				t.Error(err)
			}
		}
		if err := l.Wait(t.Context(), 0); err != nil {
			t.Error(err)
		}
		if err := l.Wait(t.Context(), 77); err != nil { // of a life before
			t.Error(err)
		}
		go func() { got <- l.Wait(t.Context(), 1) }()
		synctest.Wait()
		l.Stop()
		if err := <-got; err == nil {
			t.Error("a wait outlived Stop")
		}
	})
}

// TestAddAllocatesNothing holds where the ring is full and two webhooks hang.
func TestAddAllocatesNothing(t *testing.T) {
	l := New(Deps{Ring: 64, Transport: &site{hang: true}, Grace: time.Millisecond})
	defer l.Stop()
	if err := l.Apply([]Spec{{Name: "a", URL: "https://a.example", Queue: 16}, {Name: "b", URL: "https://b.example", Queue: 16, Kinds: []string{"pool", "endpoint"}}}); err != nil {
		t.Fatal(err)
	}
	e := Event{Kind: "endpoint", Pool: "db", Endpoint: "10.0.0.1:5432", From: "up", To: "down", Why: "connection refused"}
	for range 1000 {
		l.Add(e)
	}
	if n := testing.AllocsPerRun(1000, func() { l.Add(e) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	l := New(Deps{Transport: &site{hang: true}, Grace: time.Millisecond})
	defer l.Stop()
	if err := l.Apply([]Spec{{Name: "a", URL: "https://a.example"}}); err != nil {
		b.Fatal(err)
	}
	e := Event{Kind: "endpoint", Pool: "db", Endpoint: "10.0.0.1:5432", From: "up", To: "down", Why: "connection refused"}
	b.ReportAllocs()
	for b.Loop() {
		l.Add(e)
	}
}

// TestAtOnce uses everything from many goroutines.
func TestAtOnce(t *testing.T) {
	s := &site{}
	l := New(Deps{Ring: 100, Transport: s})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 500 {
				l.Add(Event{Kind: "pool"})
			}
		})
		wg.Go(func() {
			last := uint64(0)
			for range 200 {
				events, missed := l.Since(last, 50)
				if len(events) > 0 && events[0].ID != last+missed+1 {
					t.Errorf("after %d, %d missed, came %d", last, missed, events[0].ID)
				}
				if len(events) > 0 {
					last = events[len(events)-1].ID
				}
				l.Hooks()
			}
		})
		wg.Go(func() {
			for k := range 20 {
				p, err := l.Prepare([]Spec{{Name: "a", URL: fmt.Sprintf("https://a%d.example", (i+k)%2)}, {Name: "b", URL: "https://b.example"}})
				if err == nil && k%3 > 0 {
					p.Commit()
				} else if err == nil {
					p.Rollback()
				}
			}
		})
	}
	wg.Wait()
	l.Stop()
	l.Stop()
	if l.Last() != 2000 {
		t.Errorf("last = %d", l.Last())
	}
}
