package load

import (
	"context"
	"errors"
	"net"
	"time"
)

const (
	// tick is how often an open loop of datagrams sends what is due: one
	// wake-up for all flows. A tick sends twice what is due in one at most,
	// so that the generator's own lateness does not become a burst that the
	// contender's buffers must take.
	tick = time.Millisecond
	// behind is how late the generator may be; what was due before that is
	// not sent, and counted.
	behind = 50 * time.Millisecond
)

// sendAtRate sends datagrams on all flows in turn, s.Rate a second, until the
// window ends or the alarm does, and returns how many it left out of it.
func sendAtRate(pace *alarm, s Spec, flows []*udpFlow, w window) (unsent uint64) {
	var (
		start  = time.Now()
		issued int64
		burst  = int64(2*s.Rate*tick.Seconds()) + 2
		slack  = int64(s.Rate*behind.Seconds()) + burst
	)
	dueAt := func(n int64) time.Time { return start.Add(time.Duration(float64(n) / s.Rate * float64(time.Second))) }
	for {
		now := time.Now()
		if !now.Before(w.to) {
			return unsent
		}
		due := int64(s.Rate*now.Sub(start).Seconds()) + 1 - issued
		if skip := due - slack; skip > 0 {
			issued += skip
			due -= skip
			if w.holds(now) {
				unsent += uint64(skip)
			}
		}
		due = min(due, burst)
		for range due {
			f := flows[issued%int64(len(flows))]
			f.put(f.next, now)
			f.next++
			issued++
		}
		for _, f := range flows {
			f.flush()
		}
		next := dueAt(issued)
		if soonest := now.Add(tick); next.Before(soonest) {
			next = soonest
		}
		if !pace.sleepUntil(next) {
			return unsent
		}
	}
}

// echoDatagrams sends every datagram back to where it came from, until conn
// is closed.
func echoDatagrams(ctx context.Context, conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if err := enlarge(raw); err != nil {
		return err
	}
	b := newBatch(batchSize, maxDatagram+1, true)
	for {
		n, err := b.receive(raw)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			sleepUntil(ctx, time.Now().Add(tick)) // a word about an earlier datagram
			continue
		}
		for i := range n {
			datagram, _ := b.received(i)
			b.setLen(i, len(datagram))
		}
		b.send(raw, n) // what the kernel refuses is lost, as anywhere on the way
		for i := range n {
			b.setLen(i, b.size)
		}
	}
}
