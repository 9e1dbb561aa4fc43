package monitor

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/netstack/netx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBeginsUnknownAndSettlesAtLoad(t *testing.T) {
	tests := []struct {
		name string
		err  error
		up   bool
		why  string
	}{
		{"accepts", nil, true, ""},
		{"refuses", netx.ErrRefused, false, "connection refused"},
		{"is silent", errSilence, false, "connection timed out"},
		{"fails in another way", errors.New("the stack is closed"), false,
			`dialling "10.0.0.10:5432" in network "berlin": the stack is closed`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.set(place, test.err)
				m, e := start(t, w, pg)
				wantUp(t, m, false, "not checked yet")
				after(pg.Timeout + time.Second/2)
				wantUp(t, m, test.up, test.why)
				if got := len(e.take()); got != 1 {
					t.Errorf("%d events, want 1", got)
				}
			})
		})
	}
}

func TestRiseAndFall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		spec := pg
		spec.Rise, spec.Fall = 3, 2
		m, e := start(t, w, spec)
		after(time.Second)
		wantUp(t, m, true, "")
		wantEvents(t, e, place+" pg unknown→up")

		step := func() { // to the end of the next check
			t.Helper()
			before := w.count(place)
			for w.count(place) == before {
				after(100 * time.Millisecond)
			}
		}
		w.set(place, netx.ErrRefused)
		step()
		wantUp(t, m, true, "")
		w.set(place, nil)
		step() // one pass between ends the count
		w.set(place, netx.ErrRefused)
		step()
		wantUp(t, m, true, "")
		step()
		wantUp(t, m, false, "connection refused")
		wantEvents(t, e, place+" pg up→down")

		w.set(place, nil)
		step()
		wantUp(t, m, false, "passed 1 of the 3 checks in a row that bring it up")
		step()
		w.set(place, netx.ErrUnreachable)
		step()
		wantUp(t, m, false, "host unreachable")
		w.set(place, nil)
		step()
		step()
		wantUp(t, m, false, "passed 2 of the 3 checks in a row that bring it up")
		step()
		wantUp(t, m, true, "")
		wantEvents(t, e, place+" pg down→up")
		if w.open != 0 || w.closed != 0 {
			t.Errorf("%d conns left open, %d closed in order; want every one aborted", w.open, w.closed)
		}
	})
}

func TestNoConnectorIsUnknownAndOnePassBringsItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		spec := pg
		spec.Interval, spec.Rise = time.Minute, 5
		m, e := start(t, w, spec)
		after(time.Second)
		wantEvents(t, e, place+" pg unknown→up")

		w.set(place, netx.ErrNoRoute)
		m.Recheck("tokyo")
		after(time.Second)
		wantUp(t, m, true, "")
		m.Recheck("berlin")
		synctest.Wait()
		wantUp(t, m, false, "no live connector serves the address")
		wantEvents(t, e, place+" pg up→unknown")

		w.set(place, nil)
		after(2 * unknownPause) // without anyone's Recheck
		wantUp(t, m, true, "")
		wantEvents(t, e, place+" pg unknown→up")
	})
}

func TestFlappingIsDamped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		spec := pg
		spec.Interval, spec.Timeout = time.Second, time.Second
		m, e := start(t, w, spec)
		const run = 10 * time.Minute
		for elapsed := time.Duration(0); elapsed < run; elapsed += 4 * time.Second {
			w.set(place, nil)
			after(2500 * time.Millisecond)
			w.set(place, netx.ErrRefused)
			after(1500 * time.Millisecond)
		}
		if got, most := len(e.take()), int(run/(30*time.Second)); got > most {
			t.Errorf("%d changes of state in %v, want at most %d", got, run, most)
		}
		// Once it stays well it comes back.
		w.set(place, nil)
		after(maxHold + time.Minute)
		wantUp(t, m, true, "")
	})
}

func TestSharedByMonitorsWithTheSameSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		e := new(events)
		m := New(Deps{Dial: w.dial, OnChange: e.add})
		defer m.Stop()
		same, slower := pg, pg
		same.Name = "again"
		slower.Name, slower.Interval = "slower", 50*time.Second
		targets := []Target{target, target, {"berlin", addr10, "again"}, {"berlin", addr10, "slower"}}
		if err := m.Apply([]Spec{pg, same, slower}, targets); err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		if got := w.count(place); got != 2 {
			t.Errorf("%d checks, want 2: one shared by pg and again, one of slower", got)
		}
		if got := len(m.Snapshot()); got != 3 {
			t.Errorf("%d results, want 3", got)
		}
		wantEvents := map[string]bool{place + " again unknown→up": true, place + " slower unknown→up": true}
		for _, got := range e.take() {
			if !wantEvents[got] {
				t.Errorf("event %q", got)
			}
			delete(wantEvents, got)
		}
		if len(wantEvents) != 0 {
			t.Errorf("no event %v", wantEvents)
		}
	})
}

func TestConcurrencyIsBoundedAndStartsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.delay = 50 * time.Millisecond
		m := New(Deps{Dial: w.dial, Concurrency: 7})
		defer m.Stop()
		var targets []Target
		for i := range 200 {
			addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 80)
			targets = append(targets, Target{"berlin", addr, "pg"})
		}
		if err := m.Apply([]Spec{pg}, targets); err != nil {
			t.Fatal(err)
		}
		after(4 * time.Second)
		for _, r := range m.Snapshot() {
			if r.State != StateUp || r.RTT != w.delay {
				t.Fatalf("%v is %v with RTT %v, want up with %v", r.Target, r.State, r.RTT, w.delay)
			}
		}
		if w.most != 7 {
			t.Errorf("%d dials at one time, want 7", w.most)
		}
		bursts := make(map[time.Time]int)
		for _, at := range w.at {
			bursts[at]++
		}
		for at, n := range bursts {
			if n > 7 {
				t.Errorf("%d checks left at %v", n, at)
			}
		}
	})
}

func TestFirstChecksAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := New(Deps{Dial: w.dial})
		defer m.Stop()
		var targets []Target
		for i := range 200 {
			addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 80)
			targets = append(targets, Target{"berlin", addr, "pg"})
		}
		began := time.Now()
		if err := m.Apply([]Spec{pg}, targets); err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		early := 0
		for _, at := range w.at {
			if at.Sub(began) < 50*time.Millisecond {
				early++
			}
		}
		if len(w.at) != 200 || early > 100 {
			t.Errorf("%d of %d first checks left within the first fifth of their time", early, len(w.at))
		}
	})
}

// A dialer that does not honour its context must not make a slow endpoint up.
func TestALateAnswerIsATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := New(Deps{Dial: func(_ context.Context, network, proto string, addr netip.AddrPort) (net.Conn, error) {
			time.Sleep(pg.Timeout + time.Millisecond)
			return w.dial(context.Background(), network, proto, addr)
		}})
		defer m.Stop()
		if err := m.Apply([]Spec{pg}, []Target{target}); err != nil {
			t.Fatal(err)
		}
		after(pg.Timeout + time.Second)
		wantUp(t, m, false, "connection timed out")
		if w.open != 0 || w.closed != 0 {
			t.Errorf("%d conns left open, %d closed in order", w.open, w.closed)
		}
	})
}

func TestSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.delay = 3 * time.Millisecond
		w.set("berlin/10.0.0.11:5432", netx.ErrRefused)
		m := New(Deps{Dial: w.dial})
		defer m.Stop()
		specs := []Spec{pg}
		targets := []Target{{"tokyo", addr10, "pg"}, {"berlin", addr11, "pg"}, {"berlin", addr10, "pg"}}
		if err := m.Apply(specs, targets); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		after(time.Second)
		got := m.Snapshot()
		for i := range got {
			if s := got[i].Since.Sub(began); s <= 0 || s > time.Second {
				t.Errorf("%v since %v after the start", got[i].Target, s)
			}
			if !got[i].Checked.Equal(got[i].Since) {
				t.Errorf("%v checked %v, since %v", got[i].Target, got[i].Checked, got[i].Since)
			}
			got[i].Since, got[i].Checked = time.Time{}, time.Time{}
		}
		want := []Result{
			{Target: targets[2], State: StateUp, RTT: w.delay, CheckedBy: "edge"},
			{Target: targets[1], State: StateDown, Why: "connection refused",
				LastError: `dialling "10.0.0.11:5432" in network "berlin": connection refused`, CheckedBy: "edge"},
			{Target: targets[0], State: StateUp, RTT: w.delay, CheckedBy: "edge"},
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("snapshot differs (-want +got):\n%s", diff)
		}
	})
}

func TestStopCancelsDialsAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.set(place, errSilence)
		m, e := start(t, w, pg)
		after(time.Second) // the check is in its dial
		if w.now != 1 {
			t.Fatalf("%d dials under way, want 1", w.now)
		}
		m.Stop()
		if w.now != 0 {
			t.Errorf("%d dials under way after Stop", w.now)
		}
		wantEvents(t, e)
		if err := m.Apply([]Spec{pg}, []Target{target}); err == nil {
			t.Error("Apply after Stop succeeded")
		}
		m.Stop() // again is harmless
	})
}

func TestUpAllocatesNothing(t *testing.T) {
	m := New(Deps{Dial: newWorld().dial})
	defer m.Stop()
	if err := m.Apply([]Spec{pg}, []Target{target}); err != nil {
		t.Fatal(err)
	}
	if allocs := testing.AllocsPerRun(1000, func() { m.Up("berlin", addr10, "pg") }); allocs != 0 {
		t.Errorf("Up makes %v allocations, want 0", allocs)
	}
}

// A check over real sockets: the origin's accept queue sees each connection
// end in a reset, and the descriptors are gone.
func TestAbortsRealSockets(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	reset := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		reset <- err
	}()
	var dialled atomic.Int64
	m := New(Deps{Dial: func(ctx context.Context, _, proto string, addr netip.AddrPort) (net.Conn, error) {
		dialled.Add(1)
		return new(net.Dialer).DialContext(ctx, proto, addr.String())
	}})
	defer m.Stop()
	addr := ln.Addr().(*net.TCPAddr).AddrPort()
	if err := m.Apply([]Spec{pg}, []Target{{"@public", addr, "pg"}}); err != nil {
		t.Fatal(err)
	}
	if err := <-reset; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the origin read %v, want a reset", err)
	}
}

func BenchmarkUp(b *testing.B) {
	m := New(Deps{Dial: newWorld().dial})
	defer m.Stop()
	if err := m.Apply([]Spec{pg}, []Target{target}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		m.Up("berlin", addr10, "pg")
	}
}
