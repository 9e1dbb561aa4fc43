package monitor

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// An endpoint that comes and goes every 2 s changes its state at most once in
// 30 s, whatever the monitor's settings, and whoever runs the checks.
func TestAnEndpointThatFlapsEveryTwoSeconds(t *testing.T) {
	for _, interval := range []time.Duration{MinInterval, 300 * time.Millisecond, time.Second, 5 * time.Second} {
		for _, runBy := range []string{RunByEdge, RunByConnector} {
			for _, count := range []int{1, 2} {
				spec := pg
				spec.Interval, spec.Timeout, spec.Rise, spec.Fall, spec.RunBy = interval, interval, count, count, runBy
				t.Run(runBy+" "+interval.String(), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { flap(t, spec) })
				})
			}
		}
	}
}

func flap(t *testing.T, spec Spec) {
	w := newWorld()
	m, e := start(t, w, spec)
	stop := make(chan struct{})
	defer close(stop)
	if spec.RunBy == RunByConnector {
		task := only(t, m)
		go func() { // as a connector does it
			for {
				select {
				case <-stop:
					return
				case <-time.After(pause(spec.Interval)):
				}
				r := passed
				if w.has(place) {
					r = failed
				}
				m.Reported("c", task.ID, r)
			}
		}()
	}
	const run = 10 * time.Minute
	late := 0 // changes of the last minutes, with the damping in full force
	for elapsed := time.Duration(0); elapsed < run; elapsed += 4 * time.Second {
		w.set(place, nil)
		after(2 * time.Second)
		w.set(place, netx.ErrRefused)
		after(2 * time.Second)
		if elapsed > time.Minute {
			late += len(e.take())
		}
	}
	if most := int((run - time.Minute) / (30 * time.Second)); late > most {
		t.Errorf("%d changes of state in the last %v, want at most %d", late, run-time.Minute, most)
	}
	if early := len(e.take()); early > 6 {
		t.Errorf("%d changes of state in the first minute", early)
	}
}
