package connector

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// The tests of this file run a whole Connector against the edge's side of a
// real tunnel, over loopback, with the kernel's sockets as origins.

// patience bounds what a test waits for; nothing is measured against it.
const patience = time.Minute

// realEdge is the edge's side: a tunnel with one network.
type realEdge struct {
	*tunnel.Tunnel
	net  *tunnel.Network
	peer *tunnel.Peer // the connector
}

// openEdge opens an edge at listen that knows a connector, with routes to everything here.
func openEdge(t *testing.T, key, connector wgtypes.Key, listen string) *realEdge {
	t.Helper()
	d, err := tunnel.New(tunnel.Config{PrivateKey: key, Listen: netip.MustParseAddrPort(listen)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	n, err := d.AddNetwork("berlin")
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.AddConnector(tunnel.ConnectorConfig{Name: "berlin-1", PublicKey: connector.PublicKey(), Routes: []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/16"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return &realEdge{Tunnel: d, net: n, peer: p}
}

func (e *realEdge) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(e.ListenPort()))
}

// dial opens a flow as an app's would be, within the 7 s that an edge waits.
func (e *realEdge) dial(t *testing.T, proto, dst string) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
	defer cancel()
	c, _, err := e.net.Dial(ctx, proto, netip.MustParseAddrPort(dst))
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
		err = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

func (e *realEdge) mustDial(t *testing.T, proto, dst string) net.Conn {
	t.Helper()
	c, err := e.dial(t, proto, dst)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// realBench is a Connector with real deps, but for what a test changes.
type realBench struct {
	t    *testing.T
	key  wgtypes.Key
	spec Spec
	deps Deps
	log  *logLines
	c    *Connector

	stop   context.CancelFunc
	force  chan struct{}
	end    chan error
	update chan bool // edges that came (true) and went
}

func newKey(t *testing.T) wgtypes.Key {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRealBench(t *testing.T) *realBench {
	t.Helper()
	b := &realBench{t: t, key: newKey(t), log: &logLines{}, force: make(chan struct{}), end: make(chan error, 1), update: make(chan bool, 64)}
	file := filepath.Join(t.TempDir(), "key")
	writeFile(t, file, b.key.String(), 0o600)
	b.spec = Spec{PrivateKeyFile: file, Listen: netip.MustParseAddrPort("127.0.0.1:0"), Grace: patience}
	b.deps = Deps{Log: slog.New(b.log), Force: b.force, OnEdge: func(_ string, up bool) { b.update <- up }}
	return b
}

// serve adds an edge to the spec.
func (b *realBench) serve(key wgtypes.Key, at netip.AddrPort) {
	b.spec.Edges = append(b.spec.Edges, EdgeSpec{PublicKey: key.PublicKey(), URL: EdgeURL{Host: at.Addr().String(), Port: at.Port()}})
}

func (b *realBench) alias(from, to string) {
	fake := &bench{t: b.t}
	fake.alias(from, to)
	b.spec.Origin.Aliases = append(b.spec.Origin.Aliases, fake.spec.Origin.Aliases...)
}

// start runs the Connector until its edges are there.
func (b *realBench) start() {
	b.t.Helper()
	c, err := New(b.spec, b.deps)
	if err != nil {
		b.t.Fatal(err)
	}
	b.c = c
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.end <- c.Run(ctx)
	}()
	b.t.Cleanup(func() {
		cancel()
		select {
		case <-b.force:
		default:
			close(b.force)
		}
		<-done
	})
	for range b.spec.Edges {
		b.await(true)
	}
}

// await waits until an edge came or went.
func (b *realBench) await(up bool) {
	b.t.Helper()
	select {
	case got := <-b.update:
		if got != up {
			b.t.Fatalf("an edge is up: %v, want %v", got, up)
		}
	case err := <-b.end:
		b.t.Fatalf("Run returned %v", err)
	case <-time.After(patience):
		b.t.Fatalf("no news of an edge; the log says %q", b.log.with(""))
	}
}

// startOne starts b with one edge.
func startOne(t *testing.T, b *realBench) *realEdge {
	t.Helper()
	key := newKey(t)
	e := openEdge(t, key, b.key, "127.0.0.1:0")
	b.serve(key, e.addr())
	b.start()
	return e
}

// echoTCP is an origin of the kernel's that sends everything back.
func echoTCP(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var flows sync.WaitGroup
	flows.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			flows.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); flows.Wait() })
	return l.Addr().String()
}

// echoUDP is the same for datagrams.
func echoUDP(t *testing.T) string {
	t.Helper()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = l.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() { _ = l.Close(); ended.Wait() })
	return l.LocalAddr().String()
}

// closedPort is a port of the loopback where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// roundTrip sends data through an echo and half-closes.
func roundTrip(t *testing.T, c net.Conn, data []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		if err == nil {
			err = c.(netx.HalfCloser).CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back (%v)", len(got), len(data), err)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

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
	b.spec.Edges = []EdgeSpec{{PublicKey: key.PublicKey(), URL: EdgeURL{Host: "edge.example", Port: e.addr().Port()}}}
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

// await waits for what is no event.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: did not happen", what)
		}
	}
}

// cable is a UDP path that can be cut, and plugged in elsewhere.
type cable struct {
	front net.PacketConn // the connector's side

	mu    sync.Mutex
	back  *net.UDPConn // towards the edge; nil while it is cut
	from  net.Addr     // the connector
	ended sync.WaitGroup
}

func newCable(t *testing.T, to netip.AddrPort) *cable {
	t.Helper()
	front, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{front: front}
	c.plug(to)
	c.ended.Go(c.forth)
	t.Cleanup(func() {
		_ = front.Close()
		c.plug(netip.AddrPort{})
		c.ended.Wait()
	})
	return c
}

func (c *cable) addr() netip.AddrPort { return c.front.LocalAddr().(*net.UDPAddr).AddrPort() }

// plug connects the cable to an edge, or to nothing.
func (c *cable) plug(to netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.back != nil {
		_ = c.back.Close()
		c.back = nil
	}
	if !to.IsValid() {
		return
	}
	back, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return
	}
	c.back = back
	c.ended.Go(func() { c.backwards(back) })
}

func (c *cable) forth() {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.front.ReadFrom(buf)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.from = from
		if c.back != nil {
			_, _ = c.back.Write(buf[:n])
		}
		c.mu.Unlock()
	}
}

func (c *cable) backwards(back *net.UDPConn) {
	buf := make([]byte, 65536)
	for {
		n, err := back.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		c.mu.Lock()
		if c.from != nil && err == nil {
			_, _ = c.front.WriteTo(buf[:n], c.from)
		}
		c.mu.Unlock()
	}
}
