package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; nothing is measured against it.
const patience = 30 * time.Second

func newKey(t testing.TB) wgtypes.Key {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// events passes OnPeer on, so that tests wait for states, not for time.
type events struct {
	mu      sync.Mutex
	changed chan struct{}
}

func newEvents() *events { return &events{changed: make(chan struct{})} }

func (e *events) onPeer(*Peer, PeerState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.changed)
	e.changed = make(chan struct{})
}

// await returns once ok says yes, which is asked at each event.
func (e *events) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		e.mu.Lock()
		changed := e.changed
		e.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond): // for what is no event
		case <-deadline:
			t.Fatalf("%s: did not happen", what)
		}
	}
}

// testEdge is a tunnel on the edge's side, on a port of the loopback.
type testEdge struct {
	*Tunnel
	*events
	key wgtypes.Key
}

func newEdge(t testing.TB, key wgtypes.Key, listen string) *testEdge {
	t.Helper()
	e := &testEdge{events: newEvents(), key: key}
	var err error
	e.Tunnel, err = New(Config{PrivateKey: key, Listen: netip.MustParseAddrPort(listen), ControlPort: testControl, OnPeer: e.onPeer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func (e *testEdge) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(e.ListenPort()))
}

func (e *testEdge) network(t testing.TB, name string) *Network {
	t.Helper()
	n, err := e.AddNetwork(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// testConnector is a connector that answers TCP and UDP with handlers.
type testConnector struct {
	*Tunnel
	*events
	edge *Peer
}

type handlers struct {
	tcp func(*netstack.TCPRequest)
	udp func(*netstack.UDPRequest)
}

func newConnector(t testing.TB, key wgtypes.Key, edge *testEdge, h handlers) *testConnector {
	t.Helper()
	c := &testConnector{events: newEvents()}
	var err error
	c.Tunnel, err = New(Config{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0"), OnPeer: c.onPeer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.edge, err = c.AddEdge(EdgeConfig{Name: "edge", PublicKey: edge.PublicKey(), Endpoint: edge.addr()})
	if err != nil {
		t.Fatal(err)
	}
	if h.tcp == nil {
		h.tcp = func(r *netstack.TCPRequest) { r.Reject(netx.ErrRefused) }
	}
	if h.udp == nil {
		h.udp = func(r *netstack.UDPRequest) { r.Reject(netx.ErrRefused) }
	}
	if err := c.edge.Stack().ForwardTCP(netstack.ForwardTCPConfig{Handler: h.tcp}); err != nil {
		t.Fatal(err)
	}
	if err := c.edge.Stack().ForwardUDP(netstack.ForwardUDPConfig{Handler: h.udp}); err != nil {
		t.Fatal(err)
	}
	return c
}

// join adds a connector to a network and waits until it is alive there.
func join(t testing.TB, e *testEdge, n *Network, name string, h handlers, routes ...string) (*testConnector, *Peer) {
	t.Helper()
	key := newKey(t)
	var prefixes []netip.Prefix
	for _, r := range routes {
		prefixes = append(prefixes, netip.MustParsePrefix(r))
	}
	p, err := n.AddConnector(ConnectorConfig{Name: name, PublicKey: key.PublicKey(), Routes: prefixes})
	if err != nil {
		t.Fatal(err)
	}
	c := newConnector(t, key, e, h)
	e.await(t, name+" joins", p.Alive)
	c.await(t, name+" is alive on its own side", c.edge.Alive)
	return c, p
}

// echoTCP answers a connection with what it receives.
func echoTCP(r *netstack.TCPRequest) {
	conn, err := r.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.Copy(conn, conn)
}

// greetTCP answers a connection with a word and closes it.
func greetTCP(word string) func(*netstack.TCPRequest) {
	return func(r *netstack.TCPRequest) {
		conn, err := r.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte(word))
	}
}

func echoUDP(r *netstack.UDPRequest) {
	conn, err := r.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(r.Context(), func() { conn.Close() })
	defer stop()
	b := make([]byte, 65535)
	for {
		n, err := conn.Read(b)
		if err != nil {
			return
		}
		_, _ = conn.Write(b[:n])
	}
}

func dialTCP(t testing.TB, n *Network, addr string) (net.Conn, *Peer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, p, err := n.Dial(ctx, "tcp", netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, p
}

func TestSamePrivateAddressInTwoNetworks(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	for _, name := range []string{"berlin", "tokyo"} {
		join(t, e, e.network(t, name), name+"-1", handlers{tcp: greetTCP(name)}, "10.0.0.0/8", "fd00:1::/32")
	}
	for name, n := range e.networks {
		for _, addr := range []string{"10.0.0.10:80", "[fd00:1::10]:80"} {
			conn, _ := dialTCP(t, n, addr)
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != name {
				t.Errorf("%s in %s answered %q, %v; want %q", addr, name, got, err, name)
			}
		}
	}
}

func TestBytesArriveWholeBothWays(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	join(t, e, n, "b1", handlers{tcp: echoTCP}, "10.0.0.0/8")
	conn, _ := dialTCP(t, n, "10.0.0.10:7")
	const size = 8 << 20
	rng := rand.New(rand.NewPCG(3, 4))
	sent, received := sha256.New(), sha256.New()
	var writer sync.WaitGroup
	writer.Go(func() {
		b := make([]byte, 100_000)
		for left := size; left > 0; {
			part := b[:min(left, 1+rng.IntN(len(b)))]
			for i := range part {
				part[i] = byte(rng.Uint32())
			}
			sent.Write(part)
			if _, err := conn.Write(part); err != nil {
				t.Error(err)
				return
			}
			left -= len(part)
		}
		_ = conn.(netx.HalfCloser).CloseWrite()
	})
	got, err := io.Copy(received, conn)
	writer.Wait()
	if err != nil || got != size || !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		t.Errorf("%d of %d bytes came back, equal %v, %v", got, size, bytes.Equal(sent.Sum(nil), received.Sum(nil)), err)
	}
}

func TestLargestDatagramsArriveWhole(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	join(t, e, n, "b1", handlers{udp: echoUDP}, "10.0.0.0/8", "fd00:1::/32")
	for _, addr := range []string{"10.0.0.10:53", "[fd00:1::10]:53"} {
		conn, _, err := n.Dial(t.Context(), "udp", netip.MustParseAddrPort(addr))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, size := range []int{1, 1200, 1372, 1373, 9000, 65507} {
			want := bytes.Repeat([]byte{byte(size)}, size)
			b := make([]byte, 65535)
			var got int
			for range 5 { // a loss on loopback is possible, if unlikely
				if _, err := conn.Write(want); err != nil {
					t.Fatalf("%s: writing %d bytes: %v", addr, size, err)
				}
				_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
				if got, err = conn.Read(b); err == nil {
					break
				}
			}
			if err != nil || !bytes.Equal(b[:got], want) {
				t.Errorf("%s: a datagram of %d bytes came back with %d, %v", addr, size, got, err)
			}
		}
	}
}

// TestTheEdgeLearnsTheTruth: how a dial failed in the private network is what
// the edge's dial says.
func TestTheEdgeLearnsTheTruth(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	causes := map[uint16]error{1: netx.ErrRefused, 2: netx.ErrUnreachable, 3: netx.ErrTimedOut}
	join(t, e, n, "b1", handlers{
		tcp: func(r *netstack.TCPRequest) { r.Reject(causes[r.Destination().Port()]) },
		udp: func(r *netstack.UDPRequest) { r.Reject(causes[r.Destination().Port()]) },
	}, "10.0.0.0/8", "fd00:1::/32")
	for port, want := range causes {
		for _, host := range []string{"10.0.0.10", "fd00:1::10"} {
			addr := netip.AddrPortFrom(netip.MustParseAddr(host), port)
			if _, _, err := n.Dial(t.Context(), "tcp", addr); !errors.Is(err, want) {
				t.Errorf("dialling %s: %v, want %v", addr, err, want)
			}
			conn, _, err := n.Dial(t.Context(), "udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write([]byte("x"))
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, want) {
				t.Errorf("a datagram to %s: %v, want %v", addr, err, want)
			}
			conn.Close()
		}
	}
	for _, tc := range []string{"192.0.2.1:80", "[2001:db8::1]:80"} {
		if _, _, err := n.Dial(t.Context(), "tcp", netip.MustParseAddrPort(tc)); !errors.Is(err, netx.ErrNoRoute) {
			t.Errorf("dialling %s: %v, want %v", tc, err, netx.ErrNoRoute)
		}
	}
}

func TestReplicasShareAndADeadOneIsLeftOut(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	one, p1 := join(t, e, n, "b1", handlers{tcp: greetTCP("one")}, "10.0.0.0/8")
	two, p2 := join(t, e, n, "b2", handlers{tcp: greetTCP("two")}, "10.0.0.0/8")
	longer, p3 := join(t, e, n, "b3", handlers{tcp: greetTCP("longer")}, "10.9.0.0/16")

	carried := map[*Peer]int{}
	for range 40 {
		_, p := dialTCP(t, n, "10.0.0.10:80")
		carried[p]++
	}
	if carried[p1] < 10 || carried[p2] < 10 || carried[p3] > 0 {
		t.Errorf("flows: %d and %d over the replicas, %d over the other prefix", carried[p1], carried[p2], carried[p3])
	}
	if _, p := dialTCP(t, n, "10.9.0.1:80"); p != p3 {
		t.Errorf("the longest prefix was not used: %s", p.Name())
	}

	two.SetDraining(true)
	e.await(t, "b2 drains", p2.Draining)
	for range 6 {
		if _, p := dialTCP(t, n, "10.0.0.10:80"); p != p1 {
			t.Errorf("a new flow went to %s, which drains", p.Name())
		}
	}
	two.SetDraining(false)
	e.await(t, "b2 is back", func() bool { return !p2.Draining() })

	for range 6 {
		p1.suspect.Store(true) // watch may say otherwise at any moment
		if p := n.Pick(netip.MustParseAddr("10.0.0.10")); p != p2 {
			t.Errorf("a new flow would go to %s, which misses echoes", p.Name())
		}
	}

	one.Close() // says farewell
	e.await(t, "b1 leaves", func() bool { return !p1.Alive() })
	for range 6 {
		if _, p := dialTCP(t, n, "10.0.0.10:80"); p != p2 {
			t.Errorf("a new flow went to %s, which left", p.Name())
		}
	}
	two.mute()
	e.await(t, "b2 is found dead", func() bool { return !p2.Alive() })
	if _, _, err := n.Dial(t.Context(), "tcp", netip.MustParseAddrPort("10.0.0.10:80")); !errors.Is(err, netx.ErrNoRoute) {
		t.Errorf("dialling with both replicas dead: %v, want %v", err, netx.ErrNoRoute)
	}
	longer.mute()
}

// mute makes a connector fall silent without a farewell, as one that was
// killed: its device goes down.
func (c *testConnector) mute() { _ = c.device.Down() }

func TestRestartedEdgeIsFoundAgain(t *testing.T) {
	key, connectorKey := newKey(t), newKey(t)
	first := newEdge(t, key, "127.0.0.1:0")
	cfg := ConnectorConfig{Name: "b1", PublicKey: connectorKey.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	n := first.network(t, "berlin")
	p, err := n.AddConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	aborted := make(chan error, 1)
	c := newConnector(t, connectorKey, first, handlers{tcp: func(r *netstack.TCPRequest) {
		conn, err := r.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("hello"))
		_, err = conn.Read(make([]byte, 1))
		aborted <- err
	}})
	first.await(t, "b1 joins", p.Alive)
	conn, _ := dialTCP(t, n, "10.0.0.10:80")
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}

	// Killed: no farewell, the port is free again.
	addr := first.addr().String()
	_ = first.device.Down()
	second := newEdge(t, key, addr)
	m := second.network(t, "berlin")
	p2, err := m.AddConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	second.await(t, "b1 joins the restarted edge", p2.Alive)
	if err := <-aborted; !errors.Is(err, netstack.ErrAborted) {
		t.Errorf("the flow of the edge that was killed ended with %v, want %v", err, netstack.ErrAborted)
	}
	c.await(t, "b1 knows it", c.edge.Alive)
	again, _ := dialTCP(t, m, "10.0.0.10:80")
	if _, err := io.ReadFull(again, make([]byte, 5)); err != nil {
		t.Errorf("a flow through the restarted edge: %v", err)
	}
}

func TestKeyOfTwoMachinesIsNoticed(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	c, p := join(t, e, e.network(t, "berlin"), "b1", handlers{}, "10.0.0.0/8")
	say := func(boot uint64) {
		e.admit(appendEcho(nil, p.Overlay(), e.Overlay(), echo{id: echoIDLiveness, boot: boot}, 0), time.Now())
	}
	say(1) // restarted
	say(3) // and again
	if p.State().KeyShared {
		t.Error("two restarts were taken for two machines")
	}
	say(1)
	e.await(t, "it is noticed", func() bool { return p.State().KeyShared })
	c.Close()
}

func TestPathMTUIsProbed(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	c, p := join(t, e, e.network(t, "berlin"), "b1", handlers{}, "10.0.0.0/8")
	e.await(t, "the edge proves the path", func() bool { return p.State().PathMTU == 8900 })
	c.await(t, "the connector proves the path", func() bool { return c.edge.State().PathMTU == 8900 })
	if mtu := p.link.MTU(); mtu != 8900 {
		t.Errorf("MTU of the link = %d, want 8900", mtu)
	}
	e.await(t, "a round trip is measured", func() bool { return p.State().RTT > 0 })
	// The device counts a datagram behind its send, and its answer is kept for a while.
	e.await(t, "what was sent is counted", func() bool { return p.State().TxBytes > 0 })
	s := p.State()
	if !s.Endpoint.IsValid() || s.LastHandshake.IsZero() || s.RxBytes == 0 || s.TxBytes == 0 || s.BootID != c.boot {
		t.Errorf("state %+v", s)
	}
}

func TestRoutesChangeLive(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	_, p := join(t, e, n, "b1", handlers{tcp: echoTCP}, "10.0.0.0/16", "10.1.0.0/16")
	kept, _ := dialTCP(t, n, "10.0.0.1:7")
	lost, _ := dialTCP(t, n, "10.1.0.1:7")
	if err := p.SetRoutes([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}); err != nil {
		t.Fatal(err)
	}
	if _, err := lost.Read(make([]byte, 1)); !errors.Is(err, netstack.ErrAborted) {
		t.Errorf("a flow whose route went: %v, want %v", err, netstack.ErrAborted)
	}
	if _, err := kept.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(kept, make([]byte, 1)); err != nil {
		t.Errorf("a flow whose route stayed: %v", err)
	}
	if _, _, err := n.Dial(t.Context(), "tcp", netip.MustParseAddrPort("10.1.0.1:7")); !errors.Is(err, netx.ErrNoRoute) {
		t.Errorf("dialling a lost route: %v, want %v", err, netx.ErrNoRoute)
	}
	p.Remove()
	if _, err := kept.Read(make([]byte, 1)); err == nil {
		t.Error("a flow outlived its connector's removal")
	}
}

func TestRefusedConfigurations(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	key := newKey(t).PublicKey()
	add := func(key wgtypes.Key, route string) error {
		_, err := n.AddConnector(ConnectorConfig{Name: "x", PublicKey: key, Routes: []netip.Prefix{netip.MustParsePrefix(route)}})
		return err
	}
	if err := add(key, "10.0.0.0/8"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		key   wgtypes.Key
		route string
		want  error
	}{
		{"a key that is known", key, "10.0.0.0/8", ErrKnownKey},
		{"the edge's own key", e.PublicKey(), "10.0.0.0/8", ErrKnownKey},
		{"a route over the inner sources", newKey(t).PublicKey(), "100.64.0.0/10", nil},
		{"a route over the overlay", newKey(t).PublicKey(), "fd77:6172::/32", nil},
	} {
		err := add(tc.key, tc.route)
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	if _, err := e.AddNetwork("berlin"); err == nil {
		t.Error("two networks of one name")
	}
	if _, err := New(Config{PrivateKey: newKey(t), Listen: e.addr()}); err == nil {
		t.Error("two tunnels on one port")
	}
}

func TestCloseIsCompleteAndFinal(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	c, _ := join(t, e, n, "b1", handlers{tcp: echoTCP}, "10.0.0.0/8")
	conn, _ := dialTCP(t, n, "10.0.0.1:7")
	e.Close()
	e.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a flow outlived the tunnel")
	}
	c.await(t, "the connector hears the farewell", func() bool { return !c.edge.Alive() })
	if _, err := e.AddNetwork("late"); !errors.Is(err, ErrClosed) {
		t.Errorf("AddNetwork after Close: %v, want %v", err, ErrClosed)
	}
}

func TestOverlayAddr(t *testing.T) {
	a, b := OverlayAddr(newKey(t).PublicKey()), OverlayAddr(newKey(t).PublicKey())
	if a == b || !OverlayPrefix.Contains(a) || !OverlayPrefix.Contains(b) {
		t.Errorf("overlay addresses %v and %v", a, b)
	}
}
