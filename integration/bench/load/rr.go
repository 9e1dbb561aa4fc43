package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// pause is how long a worker rests after a failure, so that a contender that
// refuses everything is not also flooded.
const pause = 10 * time.Millisecond

// runRR opens a connection for each worker and sends requests on it, one
// after the other; what comes back must be what was sent.
func runRR(ctx context.Context, s Spec) (Report, error) {
	d := newDialer(s)
	workers := make([]*rrWorker, s.Streams)
	for i := range workers {
		workers[i] = &rrWorker{spec: s, dialer: d, request: make([]byte, s.Size), answer: make([]byte, s.Size)}
	}
	closeAll := func() {
		for _, r := range workers {
			r.close()
		}
	}
	defer closeAll()
	defer context.AfterFunc(ctx, closeAll)()
	err := each(len(workers), func(i int) error {
		if err := workers[i].open(ctx); err != nil {
			return err
		}
		return workers[i].roundTrip(time.Now().Add(s.Timeout))
	})
	if err != nil {
		return Report{}, fmt.Errorf("opening the workers' connections: %w", err)
	}

	start := time.Now()
	schedules, closeAlarms, err := newSchedules(ctx, s, start)
	if err != nil {
		return Report{}, err
	}
	defer closeAlarms()
	w := windowAfter(s.Warmup, s.Duration)
	meter := startMeter(ctx, s, w)
	moving := &progress{window: w}
	var wg sync.WaitGroup
	for i, r := range workers {
		wg.Go(func() { r.run(ctx, schedules[i], w, moving) })
	}
	wg.Wait()
	var sum tally
	for _, r := range workers {
		sum.add(&r.tally)
	}
	sum.Seconds, sum.CPU, sum.Stall = w.seconds(), meter.wait(), moving.stall()
	return sum.report(), nil
}

// rrWorker is one connection and what was counted on it.
type rrWorker struct {
	spec            Spec
	dialer          *dialer
	request, answer []byte
	tally           tally
	sent, got       pattern

	mu     sync.Mutex
	conn   *net.TCPConn // closed from outside when the context ends
	closed bool
}

func (r *rrWorker) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.conn != nil {
		r.conn.Close()
	}
}

// open replaces the connection by a new one.
func (r *rrWorker) open(ctx context.Context) error {
	conn, err := r.dialer.tcp(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		cut(r.conn)
	}
	r.conn = conn
	if r.closed {
		conn.Close()
		return net.ErrClosed
	}
	r.sent = pattern{seed: rand.Uint64()}
	r.got = r.sent
	return nil
}

// roundTrip sends one request and reads its answer. A deadline of zero leaves
// the connection's as it is.
func (r *rrWorker) roundTrip(deadline time.Time) error {
	if !deadline.IsZero() {
		r.conn.SetDeadline(deadline)
	}
	r.sent.fill(r.request)
	if _, err := r.conn.Write(r.request); err != nil {
		return err
	}
	if _, err := io.ReadFull(r.conn, r.answer); err != nil {
		return err
	}
	if at := r.got.check(r.answer); at >= 0 {
		return &Difference{Offset: r.got.offset, Want: r.request[at], Got: r.answer[at]}
	}
	return nil
}

// run sends requests as the schedule says until the window ends. One deadline
// serves all of them, which spares a timer for each: an answer that does not
// come shows as a stall, and at the end as a failure.
func (r *rrWorker) run(ctx context.Context, due *schedule, w window, moving *progress) {
	deadline := w.to.Add(r.spec.Timeout)
	r.conn.SetDeadline(deadline)
	for {
		begin, ok := due.wait(ctx, w.to)
		if !ok {
			break
		}
		if err := r.roundTrip(time.Time{}); err != nil {
			if ctx.Err() != nil {
				return
			}
			r.tally.fail("a request", err)
			if !r.reopen(ctx, deadline, w) {
				break
			}
			continue
		}
		end := time.Now()
		if !begin.Before(w.from) {
			r.tally.latencies.add(end.Sub(begin))
		}
		if w.holds(end) {
			r.tally.Ops++
			r.tally.Bytes += uint64(len(r.answer))
		}
		moving.done(end)
	}
	r.tally.Unsent += due.unsent(w)
}

// reopen connects again after a failure, until it works or the window ends.
func (r *rrWorker) reopen(ctx context.Context, deadline time.Time, w window) bool {
	for time.Now().Before(w.to) && sleepUntil(ctx, time.Now().Add(pause)) {
		err := r.open(ctx)
		if err == nil {
			r.conn.SetDeadline(deadline)
			return true
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return false
		}
		r.tally.fail("connecting again", err)
	}
	return false
}
