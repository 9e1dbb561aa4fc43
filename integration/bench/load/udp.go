package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// outstanding is how many datagrams of a flow a closed loop keeps under
	// way.
	outstanding = 32
	// batchSize is how many datagrams one system call moves at most.
	batchSize = 64
	// probes are sent on each flow before the load begins, until one comes
	// back: the contender makes a session for it, and a tunnel may lose the
	// first.
	probes = 20
	// lastAnswers is the shortest time to wait for answers after the window.
	lastAnswers = 500 * time.Millisecond
)

// runUDP sends datagrams on every flow and counts what comes back: as fast as
// the window allows (closed loop), or at a rate (open loop).
func runUDP(ctx context.Context, s Spec) (Report, error) {
	flows := make([]*udpFlow, s.Streams)
	d := newDialer(s)
	base := time.Now()
	defer func() {
		for _, f := range flows {
			if f != nil {
				f.conn.Close()
			}
		}
	}()
	err := each(len(flows), func(i int) error {
		f, err := openFlow(ctx, d, s, base)
		if err != nil {
			return err
		}
		flows[i] = f
		return f.probe(ctx)
	})
	if err != nil {
		return Report{}, err
	}
	defer context.AfterFunc(ctx, func() {
		for _, f := range flows {
			f.conn.Close()
		}
	})()

	pace, err := newAlarm(ctx)
	if err != nil {
		return Report{}, err
	}
	defer pace.close()
	w := windowAfter(s.Warmup, s.Duration)
	meter := startMeter(ctx, s, w)
	moving := &progress{window: w}
	var sum tally
	var wg sync.WaitGroup
	for _, f := range flows {
		f.window, f.moving = w, moving
		wg.Go(f.run)
	}
	if s.Rate > 0 {
		sum.Unsent = sendAtRate(pace, s, flows, w)
		for _, f := range flows {
			f.allSent.Store(true)
		}
	}
	wg.Wait()
	for _, f := range flows {
		f.tally.Sent = f.sent.Load()
		f.tally.Lost = f.tally.Sent - f.answered
		sum.add(&f.tally)
		if f.refused != nil {
			sum.fail("sending", f.refused)
		}
	}
	sum.Seconds, sum.CPU, sum.Stall = w.seconds(), meter.wait(), moving.stall()
	return sum.report(), nil
}

// udpFlow is one socket. Its run goroutine receives, and in a closed loop
// sends; in an open loop sendAtRate sends, and owns next, out and refused.
type udpFlow struct {
	spec   Spec
	base   time.Time
	conn   *net.UDPConn
	raw    syscall.RawConn
	id     uint64
	window window
	moving *progress

	out      *batch
	filled   int // datagrams in out
	next     uint64
	refused  error
	sent     atomic.Uint64 // in the window
	allSent  atomic.Bool
	in       *batch
	seen     seen
	answered uint64 // of those sent in the window
	places   []place
	expire   time.Time // when to look for places whose datagram is lost
	deadline time.Time
	tally    tally
}

// place is one of the datagrams under way in a closed loop. Place i holds the
// sequence numbers i, i+outstanding, i+2·outstanding, …
type place struct {
	sequence uint64
	busy     bool
	since    time.Time
}

func openFlow(ctx context.Context, d *dialer, s Spec, base time.Time) (*udpFlow, error) {
	conn, err := d.udp(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = enlarge(raw)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("preparing a socket: %w", err)
	}
	// One byte more than a datagram, to see one that has grown.
	return &udpFlow{spec: s, base: base, conn: conn, raw: raw, id: rand.Uint64(),
		out: newBatch(batchSize, s.Size, false), in: newBatch(batchSize, s.Size+1, false)}, nil
}

// put adds a datagram to the batch that goes out, and sends a full one.
func (f *udpFlow) put(sequence uint64, now time.Time) {
	header{f.id, sequence, uint64(now.Sub(f.base))}.write(f.out.buffer(f.filled))
	if f.filled++; f.filled == batchSize {
		f.flush()
	}
	if f.window.holds(now) {
		f.sent.Add(1)
	}
}

func (f *udpFlow) flush() {
	if f.filled == 0 {
		return
	}
	err := f.out.send(f.raw, f.filled)
	f.filled = 0
	if err != nil && !errors.Is(err, net.ErrClosed) {
		f.refused = err
	}
}

// probe sends a datagram at a time until one comes back.
func (f *udpFlow) probe(ctx context.Context) error {
	var last error
	for range probes {
		if err := ctx.Err(); err != nil {
			return err
		}
		now := time.Now()
		f.put(f.next, now)
		f.next++
		f.flush()
		f.conn.SetReadDeadline(now.Add(f.spec.Timeout))
		n, err := f.in.receive(f.raw)
		for i := range n {
			datagram, _ := f.in.received(i)
			if _, last = readDatagram(datagram, f.id, f.spec.Size); last == nil {
				return nil
			}
		}
		if err != nil {
			last = err
			sleepUntil(ctx, now.Add(f.spec.Timeout)) // refused: the answer came at once
		}
	}
	return fmt.Errorf("probing a flow with %d datagrams: none came back: %w", probes, last)
}

// run receives until the window has ended and every answer has come, or the
// time for that is over.
func (f *udpFlow) run() {
	closed := f.spec.Rate == 0
	if closed {
		f.openWindow()
	}
	for {
		now := time.Now()
		if !now.Before(f.window.to) {
			if closed {
				f.allSent.Store(true)
			}
			over := now.After(f.window.to.Add(max(lastAnswers, f.spec.Timeout)))
			if over || f.allSent.Load() && f.answered == f.sent.Load() {
				return
			}
		} else if closed {
			f.refill(now)
		}
		if f.deadline.Sub(now) < f.spec.Timeout/8 {
			f.deadline = now.Add(f.spec.Timeout / 4)
			f.conn.SetReadDeadline(f.deadline)
		}
		n, err := f.in.receive(f.raw)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			f.tally.fail("receiving", err)
			time.Sleep(time.Millisecond)
		}
		f.takeAll(n)
	}
}

// takeAll counts the datagrams that one call received.
func (f *udpFlow) takeAll(n int) {
	if n == 0 {
		return
	}
	now := time.Now()
	f.moving.done(now)
	for i := range n {
		datagram, whole := f.in.received(i)
		h, err := readDatagram(datagram, f.id, f.spec.Size)
		if err == nil && !whole {
			err = &Difference{Offset: uint64(f.spec.Size)}
		}
		if err != nil {
			f.tally.fail("a datagram", err)
			continue
		}
		f.take(h, now)
	}
}

// take counts one good answer and frees its place.
func (f *udpFlow) take(h header, now time.Time) {
	inside := f.window.holds(now)
	if !f.seen.mark(h.sequence) {
		if inside {
			f.tally.Duplicates++
		}
		return
	}
	sent := f.base.Add(time.Duration(h.sent))
	took := now.Sub(sent)
	if f.window.holds(sent) {
		f.answered++
		f.tally.latencies.add(took)
	}
	if inside {
		f.tally.Ops++
		f.tally.Bytes += uint64(f.spec.Size)
		if took > f.spec.Timeout {
			f.tally.Late++
		}
	}
	if len(f.places) > 0 {
		if p := &f.places[h.sequence%outstanding]; p.sequence == h.sequence {
			p.busy = false
		}
	}
}

// openWindow makes the places of a closed loop, all free.
func (f *udpFlow) openWindow() {
	first := (f.next + outstanding - 1) / outstanding * outstanding
	f.places = make([]place, outstanding)
	for i := range f.places {
		f.places[i].sequence = first + uint64(i)
	}
}

// refill sends a datagram for every place that is free or whose datagram has
// been away for too long.
func (f *udpFlow) refill(now time.Time) {
	look := now.After(f.expire)
	if look {
		f.expire = now.Add(f.spec.Timeout / 8)
	}
	for i := range f.places {
		p := &f.places[i]
		if p.busy && !(look && now.Sub(p.since) > f.spec.Timeout) {
			continue
		}
		p.sequence += outstanding
		p.busy, p.since = true, now
		f.put(p.sequence, now)
	}
	f.flush()
}
