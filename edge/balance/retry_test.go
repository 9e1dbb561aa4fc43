package balance

import (
	"strings"
	"testing"
	"time"
)

// passing is a flow that had enough of some pools.
func passing(pools ...string) func(string) bool {
	return func(name string) bool {
		for _, p := range pools {
			if p == name {
				return true
			}
		}
		return false
	}
}

func TestPassed(t *testing.T) {
	pools := []Spec{pooled("one", "", b1), pooled("two", "", b2), pooled("last", "", b3)}
	for _, by := range poolPolicies() {
		app := appOf("one", "two")
		app.Steering, app.Fallback = by, "last"
		app.Affinity = Affinity{By: affinityIP, TTL: time.Hour}
		w := newWorld(t, pools, app)
		if first := w.visit("a", 7); by == byFailover && first != b1 {
			t.Fatalf("the client's home is %s", first)
		}
		for _, test := range []struct {
			passed    []string
			pool, why string
		}{
			{[]string{"one"}, "two", "pool \"one\" was tried enough"},
			{[]string{"two"}, "one", ""},
			{[]string{"one", "two"}, "last", "pool \"one\" was tried enough; pool \"two\" was tried enough"},
			{[]string{"one", "two", "last"}, "", "pool \"one\" was tried enough; pool \"two\" was tried enough; the fallback pool \"last\" was tried enough"},
		} {
			pick, why, ok := w.Pick(Request{App: "a", Client: clientAt(7), Passed: passing(test.passed...)})
			if pick.Pool != test.pool || ok != (test.pool != "") {
				t.Errorf("by %s without %q: pool %q, %s", by, test.passed, pick.Pool, why)
			}
			if !strings.Contains(why, "affinity") && !strings.Contains(why, test.why) {
				t.Errorf("by %s without %q: %s, want %s", by, test.passed, why, test.why)
			}
			pick.Release()
		}
		// A pool that is passed over is passed by for this flow alone: the client goes home.
		home := w.visit("a", 7)
		pick, _, _ := w.Pick(Request{App: "a", Client: clientAt(7), Passed: passing(map[string]string{b1: "one", b2: "two"}[home])})
		pick.Connected(time.Millisecond)
		pick.Release()
		if again := w.visit("a", 7); again != home {
			t.Errorf("by %s: the client's home was %s, and is %s", by, home, again)
		}
	}
}

// TestConnectedMeasures: a time of 0 is none.
func TestConnectedMeasures(t *testing.T) {
	w := newWorld(t, []Spec{pooled("db", "", b1)})
	for _, rtt := range []time.Duration{0, 8 * time.Millisecond, 0, 0} {
		pick := w.pick("db", 0)
		pick.Connected(rtt)
		pick.Release()
	}
	s := w.Pools()[0]
	if s.RTT != 8*time.Millisecond || s.Endpoints[0].RTT != 8*time.Millisecond {
		t.Errorf("the averages are %v and %v, want 8ms", s.RTT, s.Endpoints[0].RTT)
	}
	Pick{}.Answered()
}
