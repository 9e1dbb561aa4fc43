package connector

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// The tests of this file run a whole Connector against the edge's side of a
// real tunnel, over loopback, with the kernel's sockets as origins.

func TestFlowsThroughTheTunnel(t *testing.T) {
	b := newRealBench(t)
	b.alias("tcp/10.0.0.10:80", echoTCP(t))
	b.alias("tcp/[fd00::10]:80", echoTCP(t))
	e := startOne(t, b)

	data := random(256 << 10)
	var flows sync.WaitGroup
	for i := range 8 {
		dst := []string{"10.0.0.10:80", "[fd00::10]:80"}[i%2]
		flows.Go(func() {
			c, err := e.dial(t, "tcp", dst)
			if err != nil {
				t.Error(err)
				return
			}
			roundTrip(t, c, data)
		})
	}
	flows.Wait()
	if to, from := b.c.count.toOrigin.Load(), b.c.count.fromOrigin.Load(); to != 2<<20 || from != 2<<20 {
		t.Errorf("counted %d bytes there and %d back, want %d", to, from, 2<<20)
	}
	for _, step := range []string{"resolved", "handshake", "ready"} {
		if len(b.log.with(step)) == 0 {
			t.Errorf("the log has no line %q", step)
		}
	}
}

// hangDialer is the kernel, but for one address that drops what it is sent.
type hangDialer struct{ address string }

func (d hangDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if address == d.address {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

func TestTheEdgeLearnsWhy(t *testing.T) {
	b := newRealBench(t)
	b.alias("tcp/10.0.0.1:80", closedPort(t))
	b.alias("tcp/[fd00::1]:80", closedPort(t))
	b.alias("tcp/10.0.0.3:80", "none.invalid:80")
	b.spec.Guard.Deny = append(b.spec.Guard.Deny, rule("tcp/10.0.0.2"), rule("tcp/fd00::2"), rule("udp/10.0.0.2"))
	b.spec.Origin.Timeout = 300 * time.Millisecond
	b.deps.OriginNet = hangDialer{"10.0.0.4:80"}
	b.deps.Resolver = &fakeResolver{}
	e := startOne(t, b)
	tests := []struct {
		name, dst string
		want      error
	}{
		{"refused", "10.0.0.1:80", netx.ErrRefused},
		{"refused, IPv6", "[fd00::1]:80", netx.ErrRefused},
		{"denied", "10.0.0.2:80", netx.ErrUnreachable},
		{"denied, IPv6", "[fd00::2]:80", netx.ErrUnreachable},
		{"alias to nowhere", "10.0.0.3:80", netx.ErrUnreachable},
		{"silent", "10.0.0.4:80", netx.ErrTimedOut},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// The edge's own patience is 7 s; the answer must come from here.
			ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
			defer cancel()
			_, _, err := e.net.Dial(ctx, "tcp", netip.MustParseAddrPort(tt.dst))
			if !errors.Is(err, tt.want) || ctx.Err() != nil {
				t.Errorf("the edge's dial fails with %v (its own time is up: %v), want %v", err, ctx.Err() != nil, tt.want)
			}
		})
	}
	t.Run("denied, UDP", func(t *testing.T) {
		c := e.mustDial(t, "udp", "10.0.0.2:53")
		if _, err := io.WriteString(c, "query"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); netx.Classify(err) != netx.ErrUnreachable {
			t.Errorf("the edge reads %v", err)
		}
	})
}

func TestDatagramsThroughTheTunnel(t *testing.T) {
	b := newRealBench(t)
	b.alias("udp/10.0.0.53:53", echoUDP(t))
	b.alias("udp/10.0.0.54:53", closedPort(t))
	e := startOne(t, b)
	c := e.mustDial(t, "udp", "10.0.0.53:53")
	buf := make([]byte, 65536)
	for _, size := range []int{1, 1200, 1500, 9000, 65507} {
		data := random(size)
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], data) {
			t.Fatalf("%d of %d bytes came back, %v", n, size, err)
		}
	}
	if n := b.c.Status().UDPFlows; n != 1 {
		t.Errorf("%d flows are live", n)
	}

	// The origin's port is closed: the edge hears it, each time.
	closed := e.mustDial(t, "udp", "10.0.0.54:53")
	for range 2 {
		if _, err := io.WriteString(closed, "query"); err != nil {
			t.Fatal(err)
		}
		if _, err := closed.Read(buf); netx.Classify(err) != netx.ErrRefused {
			t.Fatalf("the edge reads %v, want a refusal", err)
		}
	}
}

// A session that the edge ends gives its place back at once, not after the
// connector's own idle time.
func TestDatagramSessionsEndWithTheEdge(t *testing.T) {
	b := newRealBench(t)
	b.alias("udp/10.0.0.53:53", echoUDP(t))
	b.spec.MaxUDPFlows = 1
	e := startOne(t, b)
	buf := make([]byte, 16)
	for i := range 3 {
		c := e.mustDial(t, "udp", "10.0.0.53:53")
		if _, err := io.WriteString(c, "query"); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); string(buf[:n]) != "query" || err != nil {
			t.Fatalf("session %d reads %q, %v", i, buf[:n], err)
		}
		_ = c.Close()
		await(t, "the flow ends", func() bool { return b.c.Status().UDPFlows == 0 })
	}
	if got := b.log.with("end=orderly err=<nil>"); len(got) != 3 {
		t.Errorf("the log says %q, want three orderly ends", b.log.with("flow"))
	}
	if got := b.log.with("flow failed"); len(got) != 0 {
		t.Errorf("the log blames somebody: %q", got)
	}
}

func TestEdgeRestarts(t *testing.T) {
	b := newRealBench(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	b.alias("tcp/10.0.0.10:80", l.Addr().String())
	edgeKey := newKey(t)
	e := openEdge(t, edgeKey, b.key, "127.0.0.1:0")
	wire := newCable(t, e.addr())
	b.serve(edgeKey, wire.addr())
	b.start()

	old := e.mustDial(t, "tcp", "10.0.0.10:80")
	atOrigin, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = atOrigin.Close() }()
	if _, err := io.WriteString(old, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := atOrigin.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(atOrigin, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}

	// Its echo was answered, so the connector knows this life of the edge.
	await(t, "the edge and the connector know each other", func() bool { return e.peer.State().RTT > 0 })

	// The edge dies without a word, and another with its key takes its place.
	wire.plug(netip.AddrPort{})
	e.Close()
	b.await(false)
	again := openEdge(t, edgeKey, b.key, "127.0.0.1:0")
	wire.plug(again.addr())
	b.await(true)
	if _, err := atOrigin.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || netx.Classify(err) == netx.ErrTimedOut {
		t.Errorf("the origin of the old edge's flow reads %v: want a reset", err)
	}
	c := again.mustDial(t, "tcp", "10.0.0.10:80")
	fresh, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = fresh.Close()
	_ = c.Close()
	if got := b.log.with("lost reason=no answer from"); len(got) != 1 {
		t.Errorf("the log says %q", b.log.with("lost"))
	}
}

func TestEdgeSaysFarewell(t *testing.T) {
	b := newRealBench(t)
	e := startOne(t, b)
	e.Close()
	b.await(false)
	if got := b.log.with("lost"); len(got) != 1 || !strings.Contains(got[0], "farewell") {
		t.Errorf("the log says %q", got)
	}
}

func TestEdgeChangesItsAddress(t *testing.T) {
	b := newRealBench(t)
	b.alias("tcp/10.0.0.10:80", echoTCP(t))
	b.spec.Listen = netip.AddrPort{} // to reach both addresses
	key := newKey(t)
	e := openEdge(t, key, b.key, "127.0.0.1:0")
	resolver := &fakeResolver{}
	resolver.set("edge.example", "127.0.0.1")
	b.deps.Resolver = resolver
	b.spec.Edges = []EdgeSpec{{PublicKey: key.PublicKey(), URLs: []EdgeURL{{Host: "edge.example", Port: e.addr().Port()}}}}
	b.start()
	resolver.set("edge.example", "127.0.0.2")
	next := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), e.addr().Port())
	e.Close()
	b.await(false)
	moved := openEdge(t, key, b.key, next.String())
	b.await(true)
	roundTrip(t, moved.mustDial(t, "tcp", "10.0.0.10:80"), random(1000))
}

func TestTwoEdges(t *testing.T) {
	b := newRealBench(t)
	b.alias("tcp/10.0.0.10:80", echoTCP(t))
	var edges []*realEdge
	for range 2 {
		key := newKey(t)
		e := openEdge(t, key, b.key, "127.0.0.1:0")
		b.serve(key, e.addr())
		edges = append(edges, e)
	}
	b.start()
	for _, e := range edges {
		roundTrip(t, e.mustDial(t, "tcp", "10.0.0.10:80"), random(1000))
	}
	// One edge's end is none of the other's business.
	c := edges[1].mustDial(t, "tcp", "10.0.0.10:80")
	edges[0].Close()
	b.await(false)
	roundTrip(t, c, random(1000))
}

func TestDrainThroughTheTunnel(t *testing.T) {
	b := newRealBench(t)
	b.alias("tcp/10.0.0.10:80", echoTCP(t))
	e := startOne(t, b)
	c := e.mustDial(t, "tcp", "10.0.0.10:80")
	b.stop()
	await(t, "the edge learns of the drain", e.peer.Draining)
	if _, err := e.dial(t, "tcp", "10.0.0.10:80"); netx.Classify(err) == nil {
		t.Errorf("a new flow gets %v", err)
	}
	roundTrip(t, c, random(100_000))
	select {
	case err := <-b.end:
		if err != nil {
			t.Error(err)
		}
		b.end <- err
	case <-time.After(patience):
		t.Fatal("the drain does not end after the last flow")
	}
	await(t, "the edge hears the farewell", func() bool { return !e.peer.Alive() })
}

func TestForceThroughTheTunnel(t *testing.T) {
	b := newRealBench(t)
	b.alias("tcp/10.0.0.10:80", echoTCP(t))
	e := startOne(t, b)
	c := e.mustDial(t, "tcp", "10.0.0.10:80")
	b.stop()
	await(t, "the edge learns of the drain", e.peer.Draining)
	close(b.force)
	if err := <-b.end; !errors.Is(err, ErrForced) {
		t.Errorf("Run returned %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the cut flow reads %v: want a reset, not an end", err)
	}
}
