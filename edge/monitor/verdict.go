package monitor

import (
	"errors"
	"fmt"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// verdict is all that is known of an endpoint; immutable once published.
type verdict struct {
	state   State
	why     string // why it is not up
	lastErr string // of the last check; empty if it passed
	rtt     time.Duration
	since   time.Time // when state was entered
	checked time.Time // when the last check ended; zero before the first
	by      string    // who ran it
	expires time.Time // of the endpoint's certificate

	streak int           // checks in a row that speak against state
	well   time.Time     // while down: the first of the checks that passed in a row
	rose   time.Time     // while up: when it came up from down; zero if it did not
	hold   time.Duration // how long it must stay well to come up; 0 while it does not flap
}

// first is the verdict before any check.
func first(at time.Time) verdict {
	return verdict{state: StateUnknown, why: "not checked yet", since: at}
}

// inherited is the verdict that a check with other settings starts from: the
// state stays, the count towards the next one begins anew.
func (v verdict) inherited() verdict {
	v.streak, v.well = 0, time.Time{}
	return v
}

// Flapping. An endpoint that falls within flapIntervals of its rise is held
// down until it has stayed well for as long; each further fall of that kind
// doubles the hold, up to maxHold. With the default interval of 5 s an
// endpoint that comes and goes every 2 s stays down until it has been well
// for a minute. So it does with short intervals: minFlap is longer than it is
// ever up.
const (
	flapIntervals = 12
	minFlap       = 5 * time.Second
	maxHold       = 5 * time.Minute
)

func flapWindow(interval time.Duration) time.Duration {
	return max(minFlap, min(flapIntervals*interval, maxHold))
}

// judge returns what is known after one more check, which ended at at: with
// err, or with a connect time of rtt.
func judge(v verdict, spec Spec, at time.Time, rtt time.Duration, err error) verdict {
	v.checked = at
	if err == nil {
		v.rtt, v.lastErr = rtt, ""
		return v.passed(spec, at)
	}
	v.lastErr = clip(err.Error())
	return v.failed(spec, at, err)
}

func (v verdict) passed(spec Spec, at time.Time) verdict {
	rise := spec.Rise
	switch v.state {
	case StateUnknown:
		if v.hold == 0 {
			return v.enter(StateUp, at, "")
		}
		rise = 1
	case StateUp:
		v.streak = 0
		if v.hold > 0 && at.Sub(v.rose) >= max(v.hold, flapWindow(spec.Interval)) {
			v.hold, v.rose = 0, time.Time{} // it has settled
		}
		return v
	}
	if v.streak == 0 {
		v.well = at
	}
	v.streak++
	left := v.hold - at.Sub(v.well)
	switch {
	case v.streak < rise:
		v.why = fmt.Sprintf("passed %d of the %d checks in a row that bring it up", v.streak, spec.Rise)
		return v
	case left > 0:
		v.why = fmt.Sprintf("flapping: passes its checks, and is up after %s more without a failure", left.Round(time.Second))
		return v
	}
	v = v.enter(StateUp, at, "")
	v.rose = at
	return v
}

func (v verdict) failed(spec Spec, at time.Time, err error) verdict {
	why := reason(err)
	nothing := learntNothing(err)
	switch {
	case errors.Is(err, netx.ErrNoRoute):
		return v.forget(at, why)
	case v.state == StateUnknown && nothing:
		v.why = why
		return v
	case v.state == StateUnknown:
		return v.enter(StateDown, at, why)
	case v.state == StateDown && nothing:
		return v
	case v.state == StateDown:
		v.streak, v.why = 0, why
		return v
	}
	v.streak++
	switch {
	case v.streak < spec.Fall:
		return v
	case nothing: // trouble of our own that lasts; it does not end flapping
		return v.enter(StateUnknown, at, why)
	}
	window := flapWindow(spec.Interval)
	switch {
	case v.rose.IsZero() || at.Sub(v.rose) >= max(v.hold, window):
		v.hold = 0
	case v.hold == 0:
		v.hold = window
	default:
		v.hold = min(2*v.hold, maxHold)
	}
	return v.enter(StateDown, at, why)
}

// forget is the verdict once nothing is known about the endpoint any more. Its
// history is that of a path that is gone, and does not count against it.
func (v verdict) forget(at time.Time, why string) verdict {
	v.hold = 0
	if v.state == StateUnknown {
		v.why = why
		return v
	}
	return v.enter(StateUnknown, at, why)
}

// enter moves to state. What speaks against a state ends with it.
func (v verdict) enter(state State, at time.Time, why string) verdict {
	v.state, v.since, v.why = state, at, why
	v.streak, v.well, v.rose = 0, time.Time{}, time.Time{}
	return v
}

// lastWord is what the last check said, for a Change.
func (v verdict) lastWord() string {
	if v.lastErr != "" {
		return v.lastErr
	}
	return "the endpoint passes its check"
}

// reason is err in the few words that a flow's why has room for.
func reason(err error) string {
	if known := netx.Classify(err); known != nil {
		return known.Error()
	}
	return clip(err.Error())
}

// clip bounds an error's text, which may quote what a far end sent.
func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
