package ingress_test

import (
	"context"
	"net"
	"testing"

	"github.com/warrenmesh/warren/edge/ingress"
)

// A kept flow counts, and holds up the end of the server, until it is done.
func TestKeptFlow(t *testing.T) {
	type kept struct {
		conn net.Conn
		done func()
	}
	flows := make(chan kept, 2)
	s := newServer(t, func(_ context.Context, a ingress.Accepted) { flows <- kept{a.Conn, a.Keep()} })
	at := listen(t, s, ingress.Spec{App: "db", Network: "tcp", Addr: loopback, MaxFlows: 1})["db"]
	client, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	first := <-flows // its handler has returned, or is about to
	// It is let in and reset, and the reset may come before Dial returns.
	if turnedAway, err := net.Dial("tcp", at.String()); err == nil {
		defer turnedAway.Close()
		if _, err := turnedAway.Read(make([]byte, 1)); err == nil {
			t.Error("a flow more than there may be was let in")
		}
	}
	ended := make(chan error, 1)
	ctx, cut := context.WithCancel(t.Context())
	go func() { ended <- s.Close(ctx) }()
	if _, err := first.conn.Write([]byte("x")); err != nil {
		t.Errorf("the conn of a kept flow: %v", err)
	}
	cut()
	select {
	case <-ended:
		t.Error("the server has ended before its flow")
	default:
	}
	first.conn.Close()
	first.done()
	<-ended
}
