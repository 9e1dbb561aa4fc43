package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// errPorts is the client's own fault: it has no port left for the target.
var errPorts = errors.New("the client's own ports ran out: give it more source addresses, or set net.ipv4.tcp_tw_reuse=1 there")

// runConnect has every worker connect, exchange a byte each way and close, one
// connection after the other.
func runConnect(ctx context.Context, s Spec) (Report, error) {
	ctx, cancel := context.WithCancelCause(ctx) // with errPorts, or by the caller
	defer cancel(nil)
	d := newDialer(s)
	first := connectWorker{spec: s, dialer: d}
	if err := first.once(ctx, time.Now(), nil); err != nil {
		return Report{}, fmt.Errorf("trying one connection: %w", err)
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
	workers := make([]*connectWorker, s.Streams)
	var wg sync.WaitGroup
	for i := range workers {
		c := &connectWorker{spec: s, dialer: d, window: w, next: byte(i)}
		workers[i] = c
		wg.Go(func() {
			if err := c.run(ctx, schedules[i], moving); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	var sum tally
	for _, c := range workers {
		sum.add(&c.tally)
	}
	sum.Seconds, sum.CPU, sum.Stall = w.seconds(), meter.wait(), moving.stall()
	return sum.report(), context.Cause(ctx)
}

// connectWorker makes one connection after the other.
type connectWorker struct {
	spec   Spec
	dialer *dialer
	window window
	tally  tally
	next   byte // to send; another one each time
}

// run connects as the schedule says until the window ends. Its error is one
// that makes the whole load worthless.
func (c *connectWorker) run(ctx context.Context, due *schedule, moving *progress) error {
	for {
		begin, ok := due.wait(ctx, c.window.to)
		if !ok {
			break
		}
		err := c.once(ctx, begin, moving)
		var step *stepError
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			return errPorts
		case errors.As(err, &step):
			c.tally.fail(step.doing, step.err)
			sleepUntil(ctx, time.Now().Add(pause))
		}
	}
	c.tally.Unsent += due.unsent(c.window)
	return nil
}

// stepError says at which step a connection failed.
type stepError struct {
	doing string
	err   error
}

func (e *stepError) Error() string { return e.doing + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// once is one connection. Its latency ends with the byte that came back; the
// operation ends when the connection has closed in the given order, as seen by
// the end of the stream that the origin's close makes.
func (c *connectWorker) once(ctx context.Context, begin time.Time, moving *progress) error {
	conn, err := c.dialer.tcp(ctx)
	if err != nil {
		return &stepError{"connecting", err}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	conn.SetDeadline(time.Now().Add(c.spec.Timeout))
	c.next++
	exchange := c.callFirst
	if c.spec.Closer == ByOrigin {
		exchange = c.listenFirst
	}
	answered, err := exchange(conn)
	if err != nil {
		return err
	}
	var none [1]byte
	n, err := conn.Read(none[:])
	switch {
	case n > 0:
		return &stepError{"closing", &Difference{Offset: 1, Got: none[0]}}
	case errors.Is(err, syscall.ECONNRESET):
		c.tally.Resets++
	case !errors.Is(err, io.EOF):
		return &stepError{"closing", err}
	}
	if moving == nil {
		return nil // the trial before the load
	}
	end := time.Now()
	if !begin.Before(c.window.from) {
		c.tally.latencies.add(answered.Sub(begin))
	}
	if c.window.holds(end) {
		c.tally.Ops++
	}
	moving.done(end)
	return nil
}

// callFirst sends a byte, reads its answer and ends the stream before the
// origin does.
func (c *connectWorker) callFirst(conn *net.TCPConn) (answered time.Time, err error) {
	if _, err := conn.Write([]byte{c.next}); err != nil {
		return time.Time{}, &stepError{"sending", err}
	}
	if err := expect(conn, answerTo(c.next)); err != nil {
		return time.Time{}, &stepError{"receiving", err}
	}
	answered = time.Now()
	if err := conn.CloseWrite(); err != nil {
		return time.Time{}, &stepError{"closing", err}
	}
	return answered, nil
}

// listenFirst reads the greeting and sends a byte, at which the origin closes.
func (c *connectWorker) listenFirst(conn *net.TCPConn) (answered time.Time, err error) {
	if err := expect(conn, greeting); err != nil {
		return time.Time{}, &stepError{"receiving", err}
	}
	answered = time.Now()
	if _, err := conn.Write([]byte{c.next}); err != nil {
		return time.Time{}, &stepError{"sending", err}
	}
	return answered, nil
}
