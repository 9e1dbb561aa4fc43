package tunnel

import (
	"errors"
	"io"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/shim"
)

func (e *testEdge) guest(t testing.TB, key wgtypes.Key) *Guest {
	t.Helper()
	g, err := e.AddGuest(GuestConfig{Name: "guest", PublicKey: key.PublicKey(), Port: testEnroll})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestGuestReachesItsPort: as a joiner does, with the tunnel of a connector.
func TestGuestReachesItsPort(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	e.serveKeys(t, testEnroll)
	key, psk := newKey(t), newKey(t)
	g, err := e.AddGuest(GuestConfig{Name: "token", PublicKey: key.PublicKey(), PresharedKey: psk, Port: testEnroll})
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	events := newEvents()
	c.cfg.OnPeer = events.onPeer
	p, err := c.AddEdge(EdgeConfig{Name: "edge", PublicKey: e.PublicKey(), PresharedKey: psk, Endpoint: e.addr()})
	if err != nil {
		t.Fatal(err)
	}
	events.await(t, "the edge answers a guest's echoes", p.Alive)
	events.await(t, "and probes of the path", func() bool { return p.State().PathMTU == 8900 })
	at := netip.AddrPortFrom(e.Overlay(), testEnroll)
	if got, err := overlayGet(t, c, at); err != nil || got != key.PublicKey().String() {
		t.Errorf("the guest's port answered %q, %v", got, err)
	}
	if got, ok := e.KeyAt(c.Overlay()); !ok || got != g.PublicKey() {
		t.Errorf("the key at the guest's address is %v, %v", got, ok)
	}

	conn, err := c.DialOverlay(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	g.Remove()
	g.Remove()
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a conn of a guest that was removed ended with %v", err)
	}
	if err := g.Renew(); err == nil {
		t.Error("a guest that was removed was renewed")
	}
	if _, ok := e.KeyAt(c.Overlay()); ok {
		t.Error("the key of a guest that was removed is known")
	}
}

// TestGuestReachesNothingElse: with whatever packets.
func TestGuestReachesNothingElse(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	e.serveKeys(t, testControl)
	e.serveKeys(t, testEnroll)
	n := e.network(t, "berlin")
	join(t, e, n, "b1", handlers{tcp: echoTCP}, "10.0.0.0/8")
	flow, b1 := dialTCP(t, n, "10.0.0.1:7")
	theirs := netip.MustParseAddrPort(flow.LocalAddr().String())
	key := newKey(t)
	g := e.guest(t, key)
	h := newHostile(t, "guest", key, e)
	e.await(t, "the guest shakes hands", func() bool {
		e.forgetDeviceState()
		return !g.session.state().handshake.IsZero()
	})
	us := netip.AddrPortFrom(h.overlay, 50_000)
	edge := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(e.Overlay(), port) }
	for _, tc := range []struct {
		name   string
		packet []byte
		why    shim.Why
	}{
		{"the control port", tcpSegment(us, edge(testControl), header.TCPFlagSyn, 1), WhyOverlay},
		{"port 0", tcpSegment(us, edge(0), header.TCPFlagSyn, 1), WhyOverlay},
		{"UDP", inner(h.overlay.String(), e.Overlay().String(), protoUDP, make([]byte, 8)), WhyOverlay},
		{"a connector's address", tcpSegment(us, netip.AddrPortFrom(b1.Overlay(), testEnroll), header.TCPFlagSyn, 1), WhyNotForUs},
		{"a network's inner address", tcpSegment(us, netip.MustParseAddrPort("[fd77:6172:7266::1]:180"), header.TCPFlagSyn, 1), WhyNotForUs},
		{"a shimmed packet", h.wrap(e, udp(privateHost, theirs, make([]byte, 8)), nil), WhyGuest},
		{"a shimmed reply of another's flow", h.wrap(e, inner("10.0.0.1", theirs.Addr().String(), protoTCP, make([]byte, 20)), nil), WhyGuest},
		{"an echo reply", appendReply(nil, appendEcho(nil, e.Overlay(), h.overlay, echo{id: 1, boot: e.boot}, 0), h.overlay, e.Overlay()), WhyOverlay},
	} {
		before := e.refused.Count(string(tc.why))
		h.out <- [][]byte{tc.packet}
		e.await(t, tc.name+" is refused", func() bool { return e.refused.Count(string(tc.why)) == before+1 })
	}
	if _, err := flow.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(flow, make([]byte, 1)); err != nil {
		t.Errorf("the flow beside all that: %v", err)
	}
}

// TestGuestWithAnOlderClock: the handshake of a machine whose clock is behind
// that of the last one with its key is let in once the guest was renewed, by
// hand or for its silence.
func TestGuestWithAnOlderClock(t *testing.T) {
	for _, tc := range []struct {
		name  string
		renew func(*Guest) error
	}{
		{"renewed by hand", (*Guest).Renew},
		{"renewed for its silence", func(*Guest) error { return nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			e := newEdge(t, newKey(t), "127.0.0.1:0")
			e.serveKeys(t, testEnroll)
			key := newKey(t)
			g := e.guest(t, key)
			shake(t, e, key, time.Now().Add(time.Hour))
			c := newConnector(t, key, e, handlers{})
			refused := time.Now()
			c.await(t, "the edge is called", func() bool { return c.edge.State().TxBytes > 0 })
			if c.edge.Alive() {
				t.Fatal("a handshake that is dated before the last one was answered")
			}
			if err := tc.renew(g); err != nil {
				t.Error(err)
			}
			c.await(t, "the joiner gets in", c.edge.Alive)
			t.Logf("in after %v", time.Since(refused))
			if _, err := overlayGet(t, c.Tunnel, netip.AddrPortFrom(e.Overlay(), testEnroll)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGuestThatIsHeardIsNotRenewed: its conn outlasts guestSilence.
func TestGuestThatIsHeardIsNotRenewed(t *testing.T) {
	var q quiet
	now := time.Now()
	if q.look(now, 0) != 0 || q.look(now.Add(time.Hour), 0) != 0 {
		t.Error("a guest that never came is silent")
	}
	for i := range 100 {
		if d := q.look(now.Add(time.Duration(i)*time.Second), uint64(148+i)); d != 0 {
			t.Errorf("a guest that was heard now is silent for %v", d)
		}
	}
	if d := q.look(now.Add(105*time.Second), 148+99); d != 6*time.Second {
		t.Errorf("silent for %v, want 6 s", d)
	}
	if d := q.look(now.Add(106*time.Second), 0); d != 0 {
		t.Errorf("a guest that was renewed is silent for %v", d)
	}
}

// TestDemote: the flows of a revoked connector end at once, at both ends; the
// request that it has waiting is answered in the session that stays, and so is
// the next one; its network is closed to it.
func TestDemote(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	ln, err := e.ListenOverlay(t.Context(), testControl)
	if err != nil {
		t.Fatal(err)
	}
	waits, answer := make(chan struct{}, 1), make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		waits <- struct{}{}
		<-answer
		_, _ = io.WriteString(w, "revoked")
	})}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(ln) })
	defer running.Wait()
	defer server.Close()

	accepted, aborted := make(chan struct{}), make(chan error, 1)
	c, p := join(t, e, n, "b1", handlers{tcp: func(r *netstack.TCPRequest) {
		conn, err := r.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		close(accepted)
		_, err = io.Copy(io.Discard, conn)
		aborted <- err
	}}, "10.0.0.0/8")
	flow, _ := dialTCP(t, n, "10.0.0.1:7")
	<-accepted // the end of the handshake may wait for the first data
	control := netip.AddrPortFrom(e.Overlay(), testControl)
	got := make(chan string, 1)
	running.Go(func() {
		text, err := overlayGet(t, c.Tunnel, control)
		if err != nil {
			t.Error(err)
		}
		got <- text
	})
	<-waits

	g, err := p.Demote(testControl)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flow.Read(make([]byte, 1)); !errors.Is(err, netstack.ErrAborted) {
		t.Errorf("the flow ended with %v at the edge, want %v", err, netstack.ErrAborted)
	}
	if err := <-aborted; err == nil {
		t.Error("the flow ended in order at the connector")
	}
	if n.Pick(netip.MustParseAddr("10.0.0.1")) != nil || len(n.Peers()) != 0 {
		t.Error("the connector still serves its network")
	}
	close(answer)
	if text := <-got; text != "revoked" {
		t.Errorf("the waiting request was answered %q", text)
	}
	if text, err := overlayGet(t, c.Tunnel, control); err != nil || text != "revoked" {
		t.Errorf("the next request was answered %q, %v", text, err)
	}
	heard := c.edge.State().Heard
	c.await(t, "the edge is alive to it", func() bool { return c.edge.Alive() && c.edge.State().Heard.After(heard) })
	if _, err := p.Demote(testControl); err == nil {
		t.Error("demoted twice")
	}
	p.Remove() // does nothing any more
	if key, ok := e.KeyAt(c.Overlay()); !ok || key != c.PublicKey() || g.PublicKey() != key {
		t.Errorf("the key at its address is %v, %v", key, ok)
	}
	cfg := ConnectorConfig{Name: "b1", PublicKey: c.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	if _, err := n.AddConnector(cfg); !errors.Is(err, ErrKnownKey) {
		t.Errorf("adding its key: %v, want %v", err, ErrKnownKey)
	}
	g.Remove()
	if err := p.session().renew(func() {}); err == nil {
		t.Error("who looked at the connector before it was demoted brought its key back")
	}
	again, err := n.AddConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.await(t, "it is pardoned", again.Alive)
}

// TestRestartedConnectorIsGuestNow: one that was revoked while it was away
// finds the edge alive and reaches the port that tells it so.
func TestRestartedConnectorIsGuestNow(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	e.serveKeys(t, testControl)
	key := newKey(t)
	if _, err := e.AddGuest(GuestConfig{Name: "b1", PublicKey: key.PublicKey(), Port: testControl}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c := newConnector(t, key, e, handlers{})
		c.await(t, "the edge is alive", c.edge.Alive)
		if _, err := overlayGet(t, c.Tunnel, netip.AddrPortFrom(e.Overlay(), testControl)); err != nil {
			t.Error(err)
		}
		c.Close()
	}
}

// TestKeysOfGuestsAreKnown, whoever asks.
func TestKeysOfGuestsAreKnown(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	guest, connector, edge := newKey(t).PublicKey(), newKey(t).PublicKey(), newKey(t).PublicKey()
	add := map[string]func(wgtypes.Key) error{
		"guest": func(k wgtypes.Key) error { _, err := e.AddGuest(GuestConfig{PublicKey: k}); return err },
		"connector": func(k wgtypes.Key) error {
			_, err := n.AddConnector(ConnectorConfig{PublicKey: k})
			return err
		},
		"edge": func(k wgtypes.Key) error { _, err := e.AddEdge(EdgeConfig{PublicKey: k}); return err },
	}
	for what, key := range map[string]wgtypes.Key{"guest": guest, "connector": connector, "edge": edge} {
		if err := add[what](key); err != nil {
			t.Fatal(err)
		}
	}
	for what, f := range add {
		for _, key := range []wgtypes.Key{guest, connector, edge, e.PublicKey()} {
			if err := f(key); !errors.Is(err, ErrKnownKey) {
				t.Errorf("adding a known key as %s: %v, want %v", what, err, ErrKnownKey)
			}
		}
	}
	e.Close()
	if err := add["guest"](newKey(t).PublicKey()); !errors.Is(err, ErrClosed) {
		t.Errorf("adding a guest to a closed tunnel: %v", err)
	}
}

// TestThousandGuests says what they cost.
func TestThousandGuests(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	measure := func() (heap uint64, goroutines int) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse, runtime.NumGoroutine()
	}
	const n = 1000
	guests := make([]*Guest, n)
	heap, goroutines := measure()
	start := time.Now()
	for i := range guests {
		guests[i] = e.guest(t, newKey(t))
	}
	added := time.Since(start)
	after, more := measure()
	t.Logf("a guest: %d bytes and %d goroutines, %v to add", (after-heap)/n, (more-goroutines)/n, added/n)
	if !raceEnabled && (after-heap)/n > 40<<10 {
		t.Errorf("a guest takes %d bytes", (after-heap)/n)
	}
	start = time.Now()
	for _, g := range guests {
		if err := g.Renew(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("to renew one of %d: %v", n, time.Since(start)/n)
	start = time.Now()
	e.forgetDeviceState()
	e.renewSilent(start)
	t.Logf("to look at all of them: %v", time.Since(start))
}
