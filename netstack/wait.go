package netstack

import (
	"os"
	"sync"
	"time"
)

// direction is one half of a conn, reading or writing: who may use it, what
// wakes the one who waits, and until when.
//
// One goroutine at a time is inside (op); the rest queue for op. So a single
// token in wake is enough: whoever holds op checks every condition again
// after each token, and the next one checks before it waits.
type direction struct {
	op   sync.Mutex
	wake chan struct{} // capacity 1

	mu      sync.Mutex // guards what follows
	at      time.Time  // the deadline; zero: none
	timer   *time.Timer
	expired bool
}

func (d *direction) init() { d.wake = make(chan struct{}, 1) }

// signal lets the goroutine inside look again.
func (d *direction) signal() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// clear forgets a token that was there before the caller looked.
func (d *direction) clear() {
	select {
	case <-d.wake:
	default:
	}
}

// timedOut returns os.ErrDeadlineExceeded once the deadline has passed.
func (d *direction) timedOut() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.expired {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// setDeadline sets when operations end, those that are waiting too.
func (d *direction) setDeadline(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	d.expired = false
	if t.IsZero() {
		if d.timer != nil {
			d.timer.Stop()
		}
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.expired = true
		d.signal()
		return
	}
	if d.timer == nil {
		d.timer = time.AfterFunc(left, d.fire)
		return
	}
	d.timer.Reset(left)
}

// fire runs when the timer does; the deadline may have moved meanwhile.
func (d *direction) fire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at.IsZero() {
		return
	}
	if left := time.Until(d.at); left > 0 {
		d.timer.Reset(left)
		return
	}
	d.expired = true
	d.signal()
}

// stop frees the timer; the conn is closed.
func (d *direction) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = time.Time{}
	if d.timer != nil {
		d.timer.Stop()
	}
}
