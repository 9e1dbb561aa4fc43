package load

import (
	"context"
	"fmt"
	"net"
	"time"
)

// runIdle opens connections, proves each alive, holds them and proves them
// alive again. The end of ctx is the end of holding, not a failure.
func runIdle(ctx context.Context, s Spec) (Report, error) {
	d := newDialer(s)
	conns := make([]*net.TCPConn, s.Streams)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	err := each(len(conns), func(i int) error {
		conn, err := d.tcp(ctx)
		if err != nil {
			return err
		}
		conns[i] = conn
		defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
		return alive(conn, byte(i), s.Timeout)
	})
	if err != nil {
		return Report{}, fmt.Errorf("opening idle connections: %w", err)
	}

	began := time.Now()
	s.Began()
	hold(ctx, s.Duration)
	s.Ended()
	var sum tally
	sum.Seconds = time.Since(began).Seconds()
	failed := make([]error, len(conns))
	each(len(conns), func(i int) error {
		failed[i] = alive(conns[i], ^byte(i), s.Timeout)
		return nil
	})
	for _, err := range failed {
		if err != nil {
			sum.fail("an idle connection", err)
		} else {
			sum.Ops++
		}
	}
	return sum.report(), nil
}

// hold waits for the end of ctx, or of the duration where there is one.
func hold(ctx context.Context, duration time.Duration) {
	if duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, duration)
		defer cancel()
	}
	<-ctx.Done()
}

// alive sends a byte and waits for it to come back.
func alive(conn *net.TCPConn, b byte, timeout time.Duration) error {
	conn.SetDeadline(time.Now().Add(timeout))
	if _, err := conn.Write([]byte{b}); err != nil {
		return err
	}
	return expect(conn, b)
}
