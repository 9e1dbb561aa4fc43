package monitor

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/netstack/netx"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// outcomes of a check, one letter each.
var outcomes = map[byte]error{'.': nil, 'x': netx.ErrRefused, '-': netx.ErrNoRoute,
	'!': fmt.Errorf("pinging: %w", check.ErrUnable)}

// play feeds the outcomes to judge, one an interval, and returns the states
// after each: U unknown, + up, d down.
func play(spec Spec, script string) (states string, last verdict) {
	letter := map[State]string{StateUnknown: "U", StateUp: "+", StateDown: "d"}
	v := first(epoch)
	var b strings.Builder
	for i := range len(script) {
		at := epoch.Add(time.Duration(i+1) * spec.Interval)
		v = judge(v, spec, at, time.Millisecond, outcomes[script[i]])
		b.WriteString(letter[v.state])
	}
	return b.String(), v
}

func TestJudge(t *testing.T) {
	// The interval is 5 s, so the window in which a fall is flapping and the
	// first hold are 12 intervals.
	tests := []struct {
		name           string
		rise, fall     int
		script, states string
	}{
		{"the first answer settles it", 3, 3, ".", "+"},
		{"the first failure settles it", 3, 3, "x", "d"},
		{"falls after fall failures in a row", 2, 3, ".xx.xxx", "++++++d"},
		{"rises after rise passes in a row", 3, 2, "x..x...", "dddddd+"},
		{"rise and fall of one", 1, 1, ".x.", "+d+"},
		{"no connector, at once and back at once", 3, 3, "..-.", "++U+"},
		{"no connector from the start", 3, 3, "---x", "UUUd"},
		{"down, then no connector, then good", 3, 3, "x-.", "dU+"},
		{"the first fall is not flapping", 2, 2, ".xx..", "++dd+"},
		{"a fall soon after the rise is held", 1, 1, "x.x............", "d+ddddddddddddd"},
		{"and comes up after twelve intervals without failure", 1, 1, "x.x.............", "d+ddddddddddddd+"},
		{"a failure begins the hold anew", 1, 1, "x.x......x............", "d+dddddddddddddddddddd"},
		{"a fall long after the rise is not flapping", 1, 1, "x............." + "x.", "d+++++++++++++" + "d+"},
		{"trouble of our own says nothing", 3, 3, "..!.x!.", "+++++++"},
		{"and is unknown if it lasts", 3, 3, ".!!!!.", "+++UU+"},
		{"nor does it bring anything down, or up", 2, 2, "x!!!.!.!", "dddddd++"},
		{"nor anything in, at first", 2, 2, "!!x", "UUd"},
		{"but does not end flapping", 1, 1, "x.x" + "!" + ".............", "d+dddddddddddddd+"},
		{"nor does it while it is up", 1, 1, "x.x.............!" + ".............", "d+ddddddddddddd+" + "U" + "UUUUUUUUUUUU+"},
		{"and a failure then counts", 1, 1, "x.x.............!.x..", "d+ddddddddddddd+UUddd"},
		{"losing the connector forgives", 1, 1, "x.x-.x.", "d+dU+d+"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := pg
			spec.Rise, spec.Fall = test.rise, test.fall
			if got, _ := play(spec, test.script); got != test.states {
				t.Errorf("%s\n got %s\nwant %s", test.script, got, test.states)
			}
		})
	}
}

func TestHoldDoublesUpToItsMost(t *testing.T) {
	spec := pg
	spec.Rise, spec.Fall = 1, 1
	v := judge(first(epoch), spec, epoch, 0, netx.ErrRefused)
	at := epoch
	pass := func() { at = at.Add(spec.Interval); v = judge(v, spec, at, 0, nil) }
	for i, want := range []time.Duration{0, time.Minute, 2 * time.Minute, 4 * time.Minute, maxHold, maxHold} {
		if v.hold != want {
			t.Errorf("after %d falls soon after a rise the hold is %v, want %v", i, v.hold, want)
		}
		from := at
		for pass(); v.state == StateDown; pass() {
			if v.hold > 0 && spec.Rise > 0 && !strings.Contains(v.why, "flapping") {
				t.Fatalf("why = %q", v.why)
			}
		}
		if got := at.Sub(from); got < want || got > want+spec.Interval {
			t.Errorf("it was held for %v, want %v", got, want)
		}
		at = at.Add(spec.Interval)
		v = judge(v, spec, at, 0, netx.ErrRefused)
	}
	// It forgets once the endpoint has been up for long.
	for at.Sub(v.since) < 3*maxHold {
		pass()
	}
	if v.state != StateUp || v.hold != 0 {
		t.Errorf("after staying well: %s with hold %v", v.state, v.hold)
	}
}

// Whatever happens, these hold.
func TestJudgeInvariants(t *testing.T) {
	for range 300 {
		spec := pg
		spec.Rise, spec.Fall = 1+rand.IntN(4), 1+rand.IntN(4)
		v, at := first(epoch), epoch
		passes, fails := 0, 0
		trace := ""
		for range 200 {
			at = at.Add(spec.Interval)
			letter := "....xx-"[rand.IntN(7)]
			if rand.IntN(3) == 0 && trace != "" {
				letter = trace[len(trace)-1] // runs are interesting
			}
			trace += string(letter)
			err := outcomes[letter]
			before := v
			v = judge(v, spec, at, time.Millisecond, err)
			switch {
			case err == nil:
				passes, fails = passes+1, 0
			case errors.Is(err, netx.ErrNoRoute):
				passes, fails = 0, 0
			default:
				passes, fails = 0, fails+1
			}
			problem := ""
			switch {
			case v.state == StateUp && before.state != StateUp && err != nil:
				problem = "came up on a failure"
			case v.state == StateUp && before.state == StateDown && passes < spec.Rise:
				problem = "came up before its rise"
			case v.state == StateDown && before.state == StateUp && fails < spec.Fall:
				problem = "went down before its fall"
			case v.state == StateUp && fails >= spec.Fall:
				problem = "is up after its fall"
			case v.state == StateUnknown && before.state != StateUnknown && !errors.Is(err, netx.ErrNoRoute):
				problem = "became unknown by an answer"
			case v.hold > maxHold || v.hold < 0:
				problem = fmt.Sprintf("is held for %v", v.hold)
			case v.state == StateUp && v.why != "", v.state != StateUp && v.why == "":
				problem = fmt.Sprintf("says why %q", v.why)
			case v.state != before.state && !v.since.Equal(at), v.state == before.state && !v.since.Equal(before.since):
				problem = "has the wrong since"
			case !v.checked.Equal(at) || (v.lastErr == "") != (err == nil):
				problem = "does not remember the check"
			}
			if problem != "" {
				t.Fatalf("rise %d, fall %d, after %s: the endpoint %s; %+v", spec.Rise, spec.Fall, trace, problem, v)
			}
		}
	}
}

func TestLongErrorsAreClipped(t *testing.T) {
	v := judge(first(epoch), pg, epoch, 0, errors.New(strings.Repeat("x", 10_000)))
	if len(v.lastErr) > 310 || len(v.why) > 310 {
		t.Errorf("%d and %d bytes are kept", len(v.lastErr), len(v.why))
	}
}
