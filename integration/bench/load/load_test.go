package load

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startOrigin serves on a loopback address of its own, whose ports nobody
// else has, until the test ends.
func startOrigin(tb testing.TB) netip.Addr {
	tb.Helper()
	var (
		origin *Origin
		host   netip.Addr
		err    error
	)
	for range 10 {
		host = netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
		if origin, err = Listen(host); err == nil {
			break
		}
	}
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- origin.Serve(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	return host
}

// short is a spec of a fraction of a second.
func short(kind string, host netip.Addr, port uint16) Spec {
	return Spec{Kind: kind, Target: netip.AddrPortFrom(host, port), Warmup: 20 * time.Millisecond, Duration: 150 * time.Millisecond}
}

// run runs a spec that must do well, and again for longer while the machine
// was too busy for enough to happen in a short window.
func run(t *testing.T, s Spec, enough func(Report) bool) Report {
	t.Helper()
	for {
		var began, ended int
		s.Began, s.Ended = func() { began++ }, func() { ended++ }
		r, err := Run(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s", line)
		if began != 1 || ended != 1 {
			t.Errorf("Began was called %d times and Ended %d times, want once each", began, ended)
		}
		if enough(r) {
			return r
		}
		if s.Duration *= 4; s.Duration > 10*time.Second {
			t.Fatalf("not what was to happen: %+v", r)
		}
	}
}

func anything(r Report) bool { return r.Ops > 0 }

// clean fails the test where the report counts a fault.
func clean(t *testing.T, r Report) {
	t.Helper()
	if r.Failures != 0 || r.Corrupt != 0 || r.Resets != 0 || r.Duplicates != 0 {
		t.Errorf("faults on a path without any: %+v", r)
	}
	if r.Ops == 0 || r.Seconds <= 0 {
		t.Errorf("nothing was done: %+v", r)
	}
}

func TestBulk(t *testing.T) {
	host := startOrigin(t)
	for _, direction := range []string{Up, Down, Both} {
		t.Run(direction, func(t *testing.T) {
			s := short(KindBulk, host, PortBulk)
			s.Direction, s.Streams = direction, 3
			r := run(t, s, func(r Report) bool {
				return (r.Up > 0) == (direction != Down) && (r.Down > 0) == (direction != Up)
			})
			clean(t, r)
			if r.Bytes != r.Up+r.Down {
				t.Errorf("up %d and down %d bytes, %d in all", r.Up, r.Down, r.Bytes)
			}
			if r.Slowest > r.Fastest || r.Fastest > r.Bytes {
				t.Errorf("slowest %d, fastest %d, all %d", r.Slowest, r.Fastest, r.Bytes)
			}
		})
	}
}

func TestRequests(t *testing.T) {
	host := startOrigin(t)
	for name, edit := range map[string]func(*Spec){
		"one worker":       func(s *Spec) {},
		"many workers":     func(s *Spec) { s.Streams = 20 },
		"odd size":         func(s *Spec) { s.Size = 1 },
		"large":            func(s *Spec) { s.Size = 200_000 },
		"open loop":        func(s *Spec) { s.Streams, s.Rate = 4, 400 },
		"ping":             func(s *Spec) { s.Kind = KindPing },
		"several sources":  func(s *Spec) { s.Streams, s.Sources = 3, sources() },
		"without a warmup": func(s *Spec) { s.Warmup = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			s := short(KindRR, host, PortEcho)
			edit(&s)
			r := run(t, s, anything)
			clean(t, r)
			if l := r.Latency; l.P50 <= 0 || l.P50 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max {
				t.Errorf("latency is %+v", l)
			}
			if want := s.filled().Rate * s.Duration.Seconds(); want > 0 && float64(r.Ops+r.Unsent) > want+float64(s.filled().Streams) {
				t.Errorf("%d operations and %d unsent at a rate that gives %.0f", r.Ops, r.Unsent, want)
			}
		})
	}
}

func sources() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("127.0.0.11"), netip.MustParseAddr("127.0.0.12")}
}

func TestConnect(t *testing.T) {
	host := startOrigin(t)
	for name, edit := range map[string]func(*Spec){
		"the client closes first": func(s *Spec) {},
		"the origin closes first": func(s *Spec) { s.Closer, s.Target = ByOrigin, netip.AddrPortFrom(host, PortGreet) },
		"several sources":         func(s *Spec) { s.Sources = sources() },
		"open loop":               func(s *Spec) { s.Rate = 200 },
	} {
		t.Run(name, func(t *testing.T) {
			s := short(KindConnect, host, PortConnect)
			s.Closer, s.Streams = ByClient, 4
			edit(&s)
			clean(t, run(t, s, anything))
		})
	}
}

func TestUDP(t *testing.T) {
	host := startOrigin(t)
	for name, edit := range map[string]func(*Spec){
		"closed loop": func(s *Spec) { s.Streams = 3 },
		"smallest":    func(s *Spec) { s.Size = minDatagram },
		"largest":     func(s *Spec) { s.Size = maxDatagram },
		"open loop":   func(s *Spec) { s.Streams, s.Rate = 3, 2000 },
	} {
		t.Run(name, func(t *testing.T) {
			s := short(KindUDP, host, PortUDP)
			edit(&s)
			r := run(t, s, anything)
			clean(t, r)
			if r.Sent == 0 || r.Lost > r.Sent {
				t.Errorf("%d sent and %d lost", r.Sent, r.Lost)
			}
		})
	}
}

func TestIdle(t *testing.T) {
	host := startOrigin(t)
	s := short(KindIdle, host, PortIdle)
	s.Streams, s.Duration = 100, 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.Began = cancel
	r, err := Run(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if r.Ops != 100 || r.Failures != 0 {
		t.Errorf("of 100 connections %d lived to the end, %d failed", r.Ops, r.Failures)
	}
}
