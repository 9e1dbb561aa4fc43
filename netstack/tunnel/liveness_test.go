package tunnel

import (
	"testing"
	"time"
)

// sim drives a life on a clock of its own. answer says, for the echo sent at
// t, after how long its reply arrives; a negative delay means never.
type sim struct {
	life  life
	now   time.Time
	heard time.Time
	left  bool

	initiate bool
	answer   func(at time.Duration) time.Duration
	start    time.Time

	replies []time.Time
	echoes  int
	deeds   map[string]time.Duration // first time of each deed
	downs   int
	calls   []time.Duration // handshakes
}

func newSim(answer func(time.Duration) time.Duration) *sim {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return &sim{now: start, start: start, answer: answer, deeds: make(map[string]time.Duration)}
}

func (s *sim) run(until time.Duration) {
	for ; s.now.Sub(s.start) < until; s.now = s.now.Add(watchEvery) {
		for len(s.replies) > 0 && !s.replies[0].After(s.now) {
			s.heard = s.replies[0]
			s.replies = s.replies[1:]
		}
		at := s.now.Sub(s.start)
		d := s.life.step(s.now, s.heard, s.left, s.initiate)
		s.note("up", d.up, at)
		s.note("down", d.down, at)
		s.note("abandon", d.abandon, at)
		if d.down {
			s.downs++
		}
		if d.handshake {
			s.calls = append(s.calls, at)
		}
		if d.echo {
			s.echoes++
			if delay := s.answer(at); delay >= 0 {
				s.replies = append(s.replies, s.now.Add(delay))
			}
		}
	}
}

func (s *sim) note(what string, happened bool, at time.Duration) {
	if _, seen := s.deeds[what]; happened && !seen {
		s.deeds[what] = at
	}
}

func always(delay time.Duration) func(time.Duration) time.Duration {
	return func(time.Duration) time.Duration { return delay }
}

func TestSilentPeerIsDeadWithinThreeSeconds(t *testing.T) {
	for _, rtt := range []time.Duration{0, 30 * time.Millisecond, 300 * time.Millisecond} {
		for cut := 10 * time.Second; cut < 12*time.Second; cut += 130 * time.Millisecond {
			s := newSim(nil)
			s.answer = func(at time.Duration) time.Duration {
				if at+rtt >= cut {
					return -1
				}
				return rtt
			}
			s.heard = s.now.Add(time.Millisecond)
			s.run(20 * time.Second)
			last := s.heard.Sub(s.start)
			died, ok := s.deeds["down"]
			if !ok || died-last > 3*time.Second {
				t.Errorf("rtt %v, cut at %v: last heard at %v, dead at %v; want within 3 s", rtt, cut, last, died)
			}
			if died < cut {
				t.Errorf("rtt %v: dead at %v, before the cut at %v", rtt, died, cut)
			}
		}
	}
}

func TestLongRoundTripsAndLossDoNotKill(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(time.Duration) time.Duration
	}{
		{"steady", always(20 * time.Millisecond)},
		{"satellite, 900 ms", always(900 * time.Millisecond)},
		{"three of four lost", func() func(time.Duration) time.Duration {
			n := 0
			return func(time.Duration) time.Duration {
				if n++; n%4 != 0 {
					return -1
				}
				return 50 * time.Millisecond
			}
		}()},
		{"silence of a second and a half each minute", func(at time.Duration) time.Duration {
			if at%time.Minute < 1500*time.Millisecond && at > time.Minute {
				return -1
			}
			return 20 * time.Millisecond
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSim(tc.answer)
			s.heard = s.now.Add(time.Millisecond)
			s.run(10 * time.Minute)
			if s.downs > 0 {
				t.Errorf("declared dead %d times, the first at %v", s.downs, s.deeds["down"])
			}
			if _, ok := s.deeds["up"]; !ok {
				t.Error("never came up")
			}
		})
	}
}

func TestIdlePeerCostsOneEchoASecond(t *testing.T) {
	s := newSim(always(10 * time.Millisecond))
	s.heard = s.now.Add(time.Millisecond)
	s.run(100 * time.Second)
	if s.echoes < 90 || s.echoes > 105 {
		t.Errorf("%d echoes in 100 s, want about 100", s.echoes)
	}
}

func TestFarewellIsBelievedAtOnce(t *testing.T) {
	s := newSim(always(10 * time.Millisecond))
	s.heard = s.now.Add(time.Millisecond)
	s.run(5 * time.Second)
	s.left = true
	s.run(6 * time.Second)
	if died, ok := s.deeds["down"]; !ok || died > 5*time.Second+watchEvery {
		t.Errorf("dead at %v (%v), want at 5 s", died, ok)
	}
	s.run(20 * time.Second)
	if s.life.alive {
		t.Error("a peer that left is alive")
	}
	s.left = false
	s.heard = s.now
	s.run(21 * time.Second)
	if !s.life.alive {
		t.Error("a peer that came back is not alive")
	}
}

func TestFlowsAreAbandonedOnceAfterHalfAMinute(t *testing.T) {
	s := newSim(always(-1))
	s.heard = s.now.Add(time.Millisecond)
	s.run(2 * time.Minute)
	died, abandoned := s.deeds["down"], s.deeds["abandon"]
	if gap := abandoned - died; gap < abandonAfter || gap > abandonAfter+watchEvery {
		t.Errorf("abandoned %v after death, want %v", gap, abandonAfter)
	}
}

func TestNeverHeardPeerIsLeftAlone(t *testing.T) {
	s := newSim(always(-1))
	s.run(2 * time.Minute)
	if s.echoes > 0 || len(s.deeds) > 0 {
		t.Errorf("%d echoes and %v for a peer that never called", s.echoes, s.deeds)
	}
}

// TestInitiatorCallsAgain: often in the first minute, so that a restarted edge
// has its connectors back within five seconds; with a pause long enough for a
// slow handshake now and then; and never more than half a minute apart.
func TestInitiatorCallsAgain(t *testing.T) {
	s := newSim(always(-1))
	s.initiate = true
	s.run(10 * time.Minute)
	if len(s.calls) == 0 || s.calls[0] != 0 {
		t.Fatalf("first call at %v, want at once", s.calls)
	}
	slow := false
	for i := 1; i < len(s.calls); i++ {
		gap := s.calls[i] - s.calls[i-1]
		switch {
		case s.calls[i] < 50*time.Second && gap > 4*time.Second:
			t.Errorf("a gap of %v at %v", gap, s.calls[i])
		case gap > 37*time.Second:
			t.Errorf("a gap of %v at %v", gap, s.calls[i])
		}
		slow = slow || s.calls[i] < 10*time.Second && gap >= 2*time.Second
	}
	if !slow {
		t.Error("no pause for a slow handshake in the first 10 s")
	}
	if n := len(s.calls); n > 90 {
		t.Errorf("%d calls in 10 minutes: there is no back-off", n)
	}
}
