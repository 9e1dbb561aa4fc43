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
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

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
	d, err := tunnel.New(tunnel.Config{PrivateKey: key, Listen: netip.MustParseAddrPort(listen), ControlPort: wire.ControlPort})
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

// serveControl gives the edge a control port. A key that is registered there
// becomes the connector's once it syncs.
func (e *realEdge) serveControl(t *testing.T) *fakeControl {
	t.Helper()
	l, err := e.ListenOverlay(t.Context(), wire.ControlPort)
	if err != nil {
		t.Fatal(err)
	}
	c := newFakeControl()
	c.refuse = func(r wire.KeyRequest) *wire.Refusal {
		if err := e.peer.AddKey(r.PublicKey.Key); err != nil {
			return wire.Refuse(wire.CodeUnavailable, "%v", err)
		}
		return nil
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
			if key, ok := e.KeyAt(from); ok {
				c.promote(key, e.peer.DropKey)
			}
			serving.Go(func() { c.serve(conn) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return c
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

	edges  int // at which it has enrolled
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
	b.spec.Edges = append(b.spec.Edges, EdgeSpec{PublicKey: key.PublicKey(), URLs: []EdgeURL{{Host: at.Addr().String(), Port: at.Port()}}})
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
	for range max(b.edges, len(b.spec.Edges)) {
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
