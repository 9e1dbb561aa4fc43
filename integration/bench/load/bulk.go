package load

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// runBulk opens all streams, starts them together and adds up what their
// receivers counted.
func runBulk(ctx context.Context, s Spec) (Report, error) {
	var streams []*bulkStream
	for range s.Streams {
		if s.Direction != Down {
			streams = append(streams, &bulkStream{order: order{Up: true}})
		}
		if s.Direction != Up {
			streams = append(streams, &bulkStream{})
		}
	}
	d := newDialer(s)
	defer func() {
		for _, b := range streams {
			b.close()
		}
	}()
	err := each(len(streams), func(i int) error {
		o := &streams[i].order
		o.Seed, o.Buffer, o.Warmup, o.Duration = rand.Uint64(), bufferFor(len(streams)), s.Warmup, s.Duration
		return streams[i].open(ctx, d)
	})
	if err != nil {
		return Report{}, err
	}
	defer context.AfterFunc(ctx, func() {
		for _, b := range streams {
			b.close()
		}
	})()

	w := windowAfter(s.Warmup, s.Duration)
	meter := startMeter(ctx, s, w)
	var wg sync.WaitGroup
	for _, b := range streams {
		wg.Go(func() { b.run(w) })
	}
	wg.Wait()
	return addStreams(streams, w, meter.wait()), nil
}

// addStreams makes one report of all streams.
func addStreams(streams []*bulkStream, w window, cpu float64) Report {
	var sum tally
	sum.Slowest = ^uint64(0)
	for _, b := range streams {
		name := "receiving"
		if b.order.Up {
			name = "sending"
			sum.Up += b.in.Bytes
		} else {
			sum.Down += b.in.Bytes
		}
		if b.err != nil {
			sum.fail(name, b.err)
		} else {
			sum.Ops++
		}
		sum.Stall = max(sum.Stall, b.in.Stall)
		sum.Slowest, sum.Fastest = min(sum.Slowest, b.in.Bytes), max(sum.Fastest, b.in.Bytes)
	}
	sum.Bytes, sum.Seconds, sum.CPU = sum.Up+sum.Down, w.seconds(), cpu
	return sum.report()
}

// bulkStream is the client's end of one stream.
type bulkStream struct {
	order order
	conn  *net.TCPConn

	in  intake // what the receiver counted, here or there
	err error
}

func (b *bulkStream) close() {
	if b.conn != nil {
		cut(b.conn)
	}
}

// open connects, sends the order and waits until the origin is ready.
func (b *bulkStream) open(ctx context.Context, d *dialer) error {
	conn, err := d.tcp(ctx)
	if err != nil {
		return err
	}
	b.conn = conn
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	conn.SetDeadline(time.Now().Add(d.Timeout))
	if err := writeLine(conn, b.order); err != nil {
		return fmt.Errorf("opening a stream: %w", err)
	}
	if err := expect(conn, readyByte); err != nil {
		return fmt.Errorf("opening a stream: %w", err)
	}
	return conn.SetDeadline(time.Time{})
}

// run starts the stream and sees it through to the end of the window, then
// cuts it.
func (b *bulkStream) run(w window) {
	defer b.close()
	if _, b.err = b.conn.Write([]byte{goByte}); b.err != nil {
		return
	}
	buf := make([]byte, b.order.Buffer)
	if !b.order.Up {
		b.in, b.err = receive(b.conn, b.order.Seed, buf, w)
		return
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		pump(b.conn, b.order.Seed, buf) // ends when the stream is cut
	}()
	b.in, b.err = awaitIntake(b.conn, w)
	b.close()
	<-sent
}

// awaitIntake reads what the origin counted.
func awaitIntake(conn net.Conn, w window) (intake, error) {
	conn.SetReadDeadline(w.to.Add(grace))
	line, err := readLine(conn)
	if err != nil {
		return intake{}, err
	}
	var in intake
	if err := json.Unmarshal(line, &in); err != nil {
		return intake{}, fmt.Errorf("reading what the origin counted: %w", err)
	}
	return in, in.err()
}
