package monitor

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/netstack/netx"
)

// far is pg, run by connectors.
func far() Spec {
	s := pg
	s.RunBy = RunByConnector
	return s
}

var (
	passed = check.Result{RTT: 3 * time.Millisecond}
	failed = check.Result{Err: netx.ErrRefused}
)

// only is the one task there is.
func only(t *testing.T, m *Monitor) Task {
	t.Helper()
	tasks := m.Tasks()
	if len(tasks) != 1 {
		t.Fatalf("%d tasks, want 1", len(tasks))
	}
	return tasks[0]
}

func TestDelegated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m, e := start(t, w, far())
		task := only(t, m)
		if task.Network != "berlin" || task.Addr != addr10 || task.Spec.Name != "" || task.Spec.Interval != pg.Interval || task.Spec.Check.Type != check.TypeTCP {
			t.Errorf("task = %+v", task)
		}
		wantUp(t, m, false, "not checked yet")
		if m.Known("berlin", addr10, "pg") {
			t.Error("known before any report")
		}
		m.Reported("berlin-1", task.ID+1, failed) // nobody's
		m.Reported("berlin-1", task.ID, passed)
		wantUp(t, m, true, "")
		wantEvents(t, e, place+" pg unknown→up")
		if r := m.Snapshot()[0]; r.CheckedBy != "berlin-1" || r.RTT != passed.RTT || !r.Checked.Equal(time.Now()) {
			t.Errorf("result = %+v", r)
		}
		after(pg.Interval)
		m.Reported("berlin-1", task.ID, failed)
		wantUp(t, m, true, "")
		after(pg.Interval / 2)
		m.Reported("berlin-2", task.ID, failed) // Fall counts reports, whoever makes them
		wantUp(t, m, false, "connection refused")
		wantEvents(t, e, place+" pg up→down")
		if r := m.Snapshot()[0]; r.CheckedBy != "berlin-2" || !m.Known("berlin", addr10, "pg") {
			t.Errorf("result = %+v", r)
		}
		m.Recheck("berlin")
		after(time.Minute)
		if got := w.count(place); got != 0 {
			t.Errorf("the edge made %d checks of its own", got)
		}
	})
}

func TestASilentConnectorIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, e := start(t, newWorld(), far())
		task := only(t, m)
		silence := 3*pg.Interval + pg.Timeout
		after(silence - time.Second)
		wantUp(t, m, false, "not checked yet")
		after(2 * time.Second)
		wantUp(t, m, false, "connector has not reported")
		wantEvents(t, e)

		m.Reported("c", task.ID, passed)
		wantEvents(t, e, place+" pg unknown→up")
		after(silence - time.Second)
		m.Reported("c", task.ID, passed)
		after(silence - time.Millisecond)
		wantUp(t, m, true, "")
		after(minSweep)
		wantUp(t, m, false, "connector has not reported")
		wantEvents(t, e, place+" pg up→unknown")
		if r := m.Snapshot()[0]; r.CheckedBy != "c" || time.Since(r.Checked) < silence {
			t.Errorf("result = %+v", r)
		}
		after(time.Hour)
		wantEvents(t, e)

		m.Reported("c", task.ID, passed) // and one report brings it back
		wantUp(t, m, true, "")
		wantEvents(t, e, place+" pg unknown→up")
		m.Unserved(task.ID)
		m.Unserved(task.ID)
		m.Unserved(task.ID + 1)
		wantUp(t, m, false, "no live connector serves the address")
		wantEvents(t, e, place+" pg up→unknown")
		after(time.Hour)
		wantUp(t, m, false, "no live connector serves the address")
		m.Reported("c", task.ID, failed)
		wantUp(t, m, false, "connection refused")
		wantEvents(t, e, place+" pg unknown→down")
	})
}

// A connector that tells of an endpoint all there is, at once and by turns,
// turns it over no sooner than one that tells of it at its time.
func TestReportsThatComeTooSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := far()
		spec.Rise, spec.Fall = 1, 1
		m, e := start(t, newWorld(), spec)
		task := only(t, m)
		storm := func() {
			for range 300 {
				m.Reported("c", task.ID, check.Result{Err: check.ErrUnable})
				m.Reported("c", task.ID, passed)
				m.Reported("c", task.ID, failed)
			}
		}
		m.Reported("c", task.ID, passed)
		storm()
		after(spec.Interval/2 - time.Millisecond)
		storm()
		wantEvents(t, e, place+" pg unknown→up")
		after(time.Millisecond)
		storm()
		wantEvents(t, e, place+" pg up→unknown")
		m.Unserved(task.ID) // whoever has it next is heard at once
		m.Reported("d", task.ID, passed)
		wantEvents(t, e, place+" pg unknown→up")
		storm()
		for range 4 { // nor is a connector silent whose reports do not count
			after(spec.Interval / 4)
			m.Reported("d", task.ID, passed)
		}
		wantEvents(t, e)
	})
}

func TestRetriesLengthenTheSilence(t *testing.T) {
	s := Spec{Interval: 5 * time.Second, Timeout: 2 * time.Second, Retries: 2}
	if got := s.silence(); got != 21*time.Second {
		t.Errorf("silence = %v, want 21s", got)
	}
}

func TestTasksAreTheSameForAsLongAsTheyAreAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told int
		m := New(Deps{Dial: newWorld().dial})
		m.deps.OnTasks = func() { told++; m.Tasks() }
		defer m.Stop()
		other := target
		other.Addr = addr11
		apply := func(s []Spec, wantTold int, targets ...Target) []Task {
			t.Helper()
			told = 0
			if err := m.Apply(s, targets); err != nil {
				t.Fatal(err)
			}
			if told != wantTold {
				t.Errorf("told %d times of other tasks, want %d", told, wantTold)
			}
			return m.Tasks()
		}
		first := apply([]Spec{far()}, 1, target)
		again := apply([]Spec{far()}, 0, target)
		if !slices.Equal(first, again) {
			t.Errorf("tasks = %+v, then %+v", first, again)
		}
		both := apply([]Spec{far()}, 1, target, other)
		if len(both) != 2 || both[0] != first[0] || both[0].Spec != both[1].Spec {
			t.Errorf("tasks = %+v", both)
		}
		same := far()
		same.Name = "same"
		if got := apply([]Spec{far(), same}, 0, target, other, Target{"berlin", addr10, "same"}); !slices.Equal(got, both) {
			t.Errorf("tasks = %+v, want %+v", got, both)
		}
		last := apply([]Spec{far()}, 1, other)
		if len(last) != 1 || last[0] != both[1] {
			t.Errorf("tasks = %+v, want the second of %+v", last, both)
		}
		if got := apply([]Spec{far()}, 1, target, other); len(got) != 2 || got[1].ID == first[0].ID || got[1].Addr != addr10 {
			t.Errorf("tasks = %+v: an ID was used again", got)
		}
		if got := apply(nil, 1); len(got) != 0 {
			t.Errorf("%d tasks", len(got))
		}
		m.Reported("c", last[0].ID, passed) // too late
	})
}

// What a Pending brings is handed out before it is in force, so that Settle
// has something to wait for.
func TestTasksOfAPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told int
		m := New(Deps{Dial: newWorld().dial, OnTasks: func() { told++ }})
		defer m.Stop()
		p, err := m.Prepare([]Spec{far()}, []Target{target, {"tokyo", addr10, "pg"}})
		if err != nil {
			t.Fatal(err)
		}
		tasks := m.Tasks()
		if len(tasks) != 2 || told != 1 {
			t.Fatalf("%d tasks, told %d times", len(tasks), told)
		}
		m.Reported("c", tasks[0].ID, passed)
		wantUp(t, m, true, "") // a Pending's, too
		m.Unserved(tasks[1].ID)
		if n := p.Settle(t.Context()); n != 0 {
			t.Errorf("%d unsettled", n)
		}
		p.Rollback()
		if got := len(m.Tasks()); got != 0 || told != 2 {
			t.Errorf("%d tasks after the rollback, told %d times", got, told)
		}
		m.Reported("c", tasks[0].ID, passed)
		p, err = m.Prepare([]Spec{far()}, []Target{target})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n := p.Settle(ctx); n != 1 {
			t.Errorf("%d unsettled, want the one that nobody has reported on", n)
		}
		p.Commit()
	})
}

// The state goes from one runner to the other and to other settings, and no
// change is told twice.
func TestHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m, e := start(t, w, pg)
		after(time.Second)
		wantEvents(t, e, place+" pg unknown→up")

		p, err := m.Prepare([]Spec{far()}, []Target{target})
		if err != nil {
			t.Fatal(err)
		}
		task := only(t, m)
		for range 5 { // not in force yet: the edge's own check has the say
			m.Reported("c", task.ID, failed)
		}
		after(10 * time.Second)
		wantUp(t, m, true, "")
		p.Commit()
		synctest.Wait()
		wantUp(t, m, true, "")
		dials := w.count(place)
		m.Reported("c", task.ID, failed)
		after(pg.Interval)
		m.Reported("c", task.ID, failed)
		wantUp(t, m, false, "connection refused")
		wantEvents(t, e, place+" pg up→down")

		slower := far()
		slower.Interval = 10 * time.Second
		if err := m.Apply([]Spec{slower}, []Target{target}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		m.Reported("c", task.ID, passed)
		m.Reported("c", task.ID, passed) // the old task is no more
		wantUp(t, m, false, "connection refused")
		task = only(t, m)
		m.Reported("c", task.ID, passed)
		after(slower.Interval)
		m.Reported("c", task.ID, passed)
		wantUp(t, m, true, "")
		wantEvents(t, e, place+" pg down→up")
		if got := w.count(place); got != dials {
			t.Errorf("the edge made %d more checks", got-dials)
		}

		if err := m.Apply([]Spec{pg}, []Target{target}); err != nil {
			t.Fatal(err)
		}
		after(6 * time.Second)
		wantUp(t, m, true, "")
		wantEvents(t, e)
		if got := w.count(place); got == dials {
			t.Error("the edge made no check")
		}
	})
}

// A rollback, a commit and a stop at any time leave nothing behind and tell of
// nothing twice; the race detector watches.
func TestDelegatedInDisorder(t *testing.T) {
	for range 20 {
		var ended atomic.Bool
		m := New(Deps{Dial: newWorld().dial, OnTasks: func() {}})
		m.deps.OnChange = func(Change) {
			if ended.Load() {
				t.Error("a change after Stop")
			}
			m.Tasks()
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 200 {
				for _, task := range m.Tasks() {
					r := passed
					if rand.IntN(2) == 0 {
						r = failed
					}
					m.Reported("c", task.ID, r)
					if rand.IntN(5) == 0 {
						m.Unserved(task.ID)
					}
				}
			}
		}()
		for range 50 {
			s := far()
			s.Rise, s.Fall = 1, 1+rand.IntN(3)
			if rand.IntN(3) == 0 {
				s.RunBy = RunByEdge
			}
			p, err := m.Prepare([]Spec{s}, []Target{target, {"tokyo", addr10, "pg"}}[:1+rand.IntN(2)])
			if err != nil {
				t.Fatal(err)
			}
			if rand.IntN(2) == 0 {
				p.Commit()
			} else {
				p.Rollback()
			}
		}
		m.Stop()
		ended.Store(true)
		<-done
	}
}

// 5,000 delegated checks need one goroutine.
func TestOneGoroutineWatchesOverAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Deps{Dial: newWorld().dial})
		defer m.Stop()
		targets := crowd(5000)
		if err := m.Apply([]Spec{far()}, targets); err != nil {
			t.Fatal(err)
		}
		for _, task := range m.Tasks() {
			m.Reported("c", task.ID, passed)
		}
		if got := goroutines(); got > 1 {
			t.Errorf("%d goroutines of the monitor", got)
		}
		after(20 * time.Second)
		for _, r := range m.Snapshot() {
			if r.State != StateUnknown {
				t.Fatalf("%v is %s", r.Target, r.State)
			}
		}
	})
}

// An icmp check without anybody who can ping says so.
func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := pg
		spec.Check = check.Spec{Type: check.TypeICMP}
		m, _ := start(t, newWorld(), spec)
		after(time.Second)
		wantUp(t, m, false, "this edge cannot ping: the check could not be made")
		if m.Known("berlin", addr10, "pg") {
			t.Error("known, though nobody can ping")
		}

		var asked []string
		pinging := New(Deps{Dial: newWorld().dial, Ping: func(_ context.Context, network string, addr netip.Addr) error {
			asked = append(asked, network+"/"+addr.String())
			return nil
		}})
		defer pinging.Stop()
		if err := pinging.Apply([]Spec{spec}, []Target{target}); err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		wantUp(t, pinging, true, "")
		if want := []string{"berlin/10.0.0.10"}; !slices.Equal(asked, want) {
			t.Errorf("pinged %q, want %q", asked, want)
		}
	})
}

func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		dials int // at once
	}{
		{"refused", netx.ErrRefused, 3},
		{"another failure", errors.New("odd"), 3},
		{"silence", errSilence, 3},
		{"no connector: nothing to repeat", netx.ErrNoRoute, 1},
		{"trouble of our own", syscall.EMFILE, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				spec := pg
				spec.Retries, spec.Interval, spec.Timeout = 2, time.Minute, time.Second
				m, _ := start(t, w, spec)
				after(time.Second / 2)
				w.set(place, tt.err)
				before := w.count(place)
				m.Recheck("berlin")
				after(3 * time.Second / 2)
				if tt.err == errSilence {
					w.set(place, nil) // the last try passes
				}
				after(2 * time.Second)
				if got := w.count(place) - before; got < tt.dials || tt.dials > 1 && got > tt.dials {
					t.Errorf("%d dials, want %d", got, tt.dials)
				}
				if tt.err == errSilence {
					if r := m.Snapshot()[0]; r.LastError != "" || r.RTT != 0 && r.State != StateUp {
						t.Errorf("after a retry that passed: %+v", r)
					}
				}
			})
		})
	}
}
