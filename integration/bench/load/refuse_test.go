package load

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// everyKind is a spec of each kind at a host's ports.
func everyKind(host netip.Addr) map[string]Spec {
	specs := map[string]Spec{}
	for name, s := range map[string]Spec{
		"up":            {Kind: KindBulk, Direction: Up, Target: netip.AddrPortFrom(host, PortBulk)},
		"down":          {Kind: KindBulk, Direction: Down, Target: netip.AddrPortFrom(host, PortBulk)},
		"rr":            {Kind: KindRR, Target: netip.AddrPortFrom(host, PortEcho)},
		"rr at a rate":  {Kind: KindRR, Rate: 10, Target: netip.AddrPortFrom(host, PortEcho)},
		"connect":       {Kind: KindConnect, Closer: ByClient, Target: netip.AddrPortFrom(host, PortConnect)},
		"greet":         {Kind: KindConnect, Closer: ByOrigin, Target: netip.AddrPortFrom(host, PortGreet)},
		"udp":           {Kind: KindUDP, Target: netip.AddrPortFrom(host, PortUDP)},
		"udp at a rate": {Kind: KindUDP, Rate: 100, Target: netip.AddrPortFrom(host, PortUDP)},
	} {
		s.Duration, s.Streams = time.Minute, 3
		specs[name] = s
	}
	return specs
}

// TestRunEndsWithItsContext: in the middle, at once and with an error.
func TestRunEndsWithItsContext(t *testing.T) {
	host := startOrigin(t)
	for name, s := range everyKind(host) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			s.Began = cancel
			s.Ended = func() { t.Error("the window is said to have ended") }
			if _, err := Run(ctx, s); !errors.Is(err, context.Canceled) {
				t.Errorf("Run() = %v, want that it was cancelled", err)
			}
		})
	}
}

// TestRunRefusesADeadTarget: a load that never began is no report.
func TestRunRefusesADeadTarget(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is closed soon
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for name, s := range everyKind(netip.MustParseAddr("127.0.0.1")) {
		s.Target = l.Addr().(*net.TCPAddr).AddrPort()
		s.Timeout = 5 * time.Millisecond
		s.Began = func() { t.Errorf("%s: the load is said to have begun", name) }
		if r, err := Run(t.Context(), s); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestOriginRefusesNonsense: a stream without an order is closed.
func TestOriginRefusesNonsense(t *testing.T) {
	host := startOrigin(t)
	long := make([]byte, 2*maxLine)
	for _, line := range []string{"GET / HTTP/1.1\n", `{"buffer":-1,"duration":1}` + "\n", string(long), "\n"} {
		conn, err := net.Dial("tcp", netip.AddrPortFrom(host, PortBulk).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, line)
		if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) || err == nil {
			t.Errorf("%.20q is answered by %d bytes, %v", line, n, err)
		}
	}
}

// TestOriginEndsWhole: connections of every service end with it, and its
// ports can be had again.
func TestOriginEndsWhole(t *testing.T) {
	host := netip.MustParseAddr("127.99.98.97")
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		origin, err := Listen(host)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error)
		go func() { served <- origin.Serve(ctx) }()
		var conns []net.Conn
		for _, port := range []uint16{PortBulk, PortEcho, PortConnect, PortGreet, PortIdle} {
			conn, err := net.Dial("tcp", netip.AddrPortFrom(host, port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conns = append(conns, conn)
		}
		if _, err := Listen(host); err == nil {
			t.Error("a second origin at the same address")
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		for _, conn := range conns {
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, context.DeadlineExceeded) {
				t.Error("a connection outlives the origin")
			}
		}
	}
	if err := Serve(t.Context(), netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("an origin at an address that is not ours")
	}
}

// TestScheduleOmitsNothing: a worker that comes late counts from the moment
// at which it should have come, and what it never begins is counted.
func TestScheduleOmitsNothing(t *testing.T) {
	start := time.Now().Add(-time.Second)
	w := window{start.Add(200 * time.Millisecond), start.Add(time.Hour)}
	workers, closeAll, err := newSchedules(t.Context(), Spec{Rate: 100, Streams: 4}, start)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	s := workers[1]
	for i := range 20 {
		begin, ok := s.wait(t.Context(), w.to)
		want := start.Add(10*time.Millisecond + time.Duration(i)*40*time.Millisecond)
		if !ok || !begin.Equal(want) {
			t.Fatalf("operation %d counts from %v after the start, want %v", i, begin.Sub(start), want.Sub(start))
		}
	}
	// 20 operations, the next is due at 810 ms; a window to 1 s ends first
	w.to = start.Add(time.Second)
	if _, ok := s.wait(t.Context(), w.to); ok {
		t.Fatal("an operation after the window's end")
	}
	if n := s.unsent(w); n != 5 { // 810, 850, 890, 930, 970 ms
		t.Errorf("%d operations were never begun, want 5", n)
	}
	closed := schedule{start: start}
	if begin, ok := closed.wait(t.Context(), start.Add(time.Hour)); !ok || time.Since(begin) > time.Minute || closed.unsent(w) != 0 {
		t.Errorf("a closed loop begins at %v, %v", begin, ok)
	}
}

func TestProgress(t *testing.T) {
	from := time.Now()
	p := progress{window: window{from, from.Add(100)}}
	for _, at := range []int{-5, 10, 30, 95, 120} {
		p.done(from.Add(time.Duration(at)))
	}
	if got := p.stall(); got != 65 {
		t.Errorf("the longest gap is %d, want 65", got)
	}
	var none = progress{window: p.window}
	if got := none.stall(); got != 100 {
		t.Errorf("the longest gap without any progress is %d, want 100", got)
	}
}

func TestAlarm(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a, err := newAlarm(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	for _, d := range []time.Duration{-time.Second, 0, 1, time.Microsecond, 3 * time.Millisecond} {
		until := time.Now().Add(d)
		if !a.sleepUntil(until) || time.Now().Before(until) {
			t.Errorf("an alarm in %v rang early or failed", d)
		}
	}
	time.AfterFunc(time.Millisecond, cancel)
	if a.sleepUntil(time.Now().Add(time.Hour)) {
		t.Error("an alarm outlives its context")
	}
	if a.sleepUntil(time.Now()) {
		t.Error("an alarm works after its context has ended")
	}
}

// TestServeEndsWell also under a context that says why it ended.
func TestServeEndsWell(t *testing.T) {
	origin, err := Listen(netip.MustParseAddr("127.99.98.96"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("a signal"))
	if err := origin.Serve(ctx); err != nil {
		t.Errorf("Serve() = %v", err)
	}
	if origin, err = Listen(netip.MustParseAddr("127.99.98.96")); err != nil {
		t.Fatal(err)
	}
	origin.listeners[2].Close()
	if err := origin.Serve(t.Context()); err == nil {
		t.Error("Serve() ended well without one of its listeners")
	}
}

// TestPortsThatRunOut are no failure of the contender's: the kernel's word for
// it, here about an address that is not ours, ends the load.
func TestPortsThatRunOut(t *testing.T) {
	host := startOrigin(t)
	s := short(KindConnect, host, PortConnect)
	s.Closer, s.Sources = ByClient, []netip.Addr{netip.MustParseAddr("127.0.0.11"), netip.MustParseAddr("192.0.2.1")}
	s.Duration = time.Minute
	// The trial takes the second source, or the first worker does.
	if r, err := Run(t.Context(), s); err == nil {
		t.Errorf("%+v", r)
	}
	w := windowAfter(0, time.Minute)
	s = s.filled()
	s.Sources = s.Sources[1:]
	c := &connectWorker{spec: s, dialer: newDialer(s), window: w}
	if err := c.run(t.Context(), &schedule{start: w.from}, &progress{window: w}); !errors.Is(err, errPorts) || c.tally.Failures != 0 {
		t.Errorf("run() = %v, with %d failures", err, c.tally.Failures)
	}
}
