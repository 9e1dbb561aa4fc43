package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/shim"
)

const (
	testControl = 179
	testEnroll  = 180
)

// serveKeys answers HTTP on a port of e's overlay address with the key that
// asked.
func (e *testEdge) serveKeys(t testing.TB, port uint16) {
	t.Helper()
	ln, err := e.ListenOverlay(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			t.Error(err)
		}
		key, _ := e.KeyAt(from.Addr())
		_, _ = io.WriteString(w, key.String())
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) })
	t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
}

// overlayGet asks as serveKeys answers.
func overlayGet(t testing.TB, c *Tunnel, at netip.AddrPort) (string, error) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.DialOverlay(ctx, at) },
		DisableKeepAlives: true,
	}}
	resp, err := client.Get("http://edge/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// tcpSegment makes a TCP segment without payload, checksum right.
func tcpSegment(src, dst netip.AddrPort, flags header.TCPFlags, seq uint32) []byte {
	b := make([]byte, header.TCPMinimumSize)
	h := header.TCP(b)
	h.Encode(&header.TCPFields{SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: seq, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 1 << 15})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, tcpip.AddrFrom16(src.Addr().As16()), tcpip.AddrFrom16(dst.Addr().As16()), uint16(len(b)))
	h.SetChecksum(^checksum.Checksum(b, sum))
	return inner(src.Addr().String(), dst.Addr().String(), protoTCP, b)
}

func TestOverlayHTTP(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	e.serveKeys(t, testControl)
	e.serveKeys(t, testEnroll)
	n := e.network(t, "berlin")
	c, p := join(t, e, n, "b1", handlers{tcp: echoTCP}, "10.0.0.0/8")
	control := netip.AddrPortFrom(e.Overlay(), testControl)
	for range 3 {
		if key, err := overlayGet(t, c.Tunnel, control); err != nil || key != c.PublicKey().String() {
			t.Errorf("the control port answered %q, %v; want the connector's key", key, err)
		}
	}
	flow, _ := dialTCP(t, n, "10.0.0.1:7") // beside a flow
	if _, err := flow.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(flow, make([]byte, 1)); err != nil {
		t.Error(err)
	}

	held, err := c.DialOverlay(t.Context(), control)
	if err != nil {
		t.Fatal(err)
	}
	p.Remove()
	_ = held.SetReadDeadline(time.Now().Add(patience))
	if _, err := held.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a conn with an edge that forgot us ended with %v", err)
	}
	c.await(t, "the edge is given up", func() bool { return !c.edge.Alive() })
	for _, at := range []netip.AddrPort{control, netip.AddrPortFrom(OverlayAddr(newKey(t).PublicKey()), testControl)} {
		if _, err := c.DialOverlay(t.Context(), at); !errors.Is(err, netx.ErrNoRoute) {
			t.Errorf("dialling %s: %v, want %v", at, err, netx.ErrNoRoute)
		}
	}
	if _, ok := e.KeyAt(c.Overlay()); ok {
		t.Error("the key of a connector that was removed is known")
	}
}

// TestOverlayConnsEndWithTheirPeer: at both ends, when the other falls silent.
func TestOverlayConnsEndWithTheirPeer(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	ln, err := e.ListenOverlay(t.Context(), testControl)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := join(t, e, e.network(t, "berlin"), "b1", handlers{}, "10.0.0.0/8")
	ours, err := c.DialOverlay(t.Context(), netip.AddrPortFrom(e.Overlay(), testControl))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.mute()
	for _, conn := range []net.Conn{ours, theirs} {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a conn over a dead tunnel ended with %v", err)
		}
	}
}

// TestOverlayPortsAreClosed: a connector reaches the control port and nothing
// else of the overlay, whatever it sends.
func TestOverlayPortsAreClosed(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	e.serveKeys(t, testControl)
	e.serveKeys(t, testEnroll)
	n := e.network(t, "berlin")
	key := newKey(t)
	p, err := n.AddConnector(ConnectorConfig{Name: "b1", PublicKey: key.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	other, err := n.AddConnector(ConnectorConfig{Name: "b2", PublicKey: newKey(t).PublicKey()})
	if err != nil {
		t.Fatal(err)
	}
	h := newHostile(t, "b1", key, e)
	e.await(t, "b1 shakes hands", func() bool { return !p.State().LastHandshake.IsZero() })
	us, them := netip.AddrPortFrom(h.overlay, 50_000), func(port uint16) netip.AddrPort { return netip.AddrPortFrom(e.Overlay(), port) }
	syn := tcpSegment(us, them(testEnroll), header.TCPFlagSyn, 1)
	short := inner(h.overlay.String(), e.Overlay().String(), protoTCP, syn[shimLen:shimLen+12])
	for _, tc := range []struct {
		name   string
		packet []byte
		why    shim.Why
	}{
		{"another port", syn, WhyOverlay},
		{"port 0", tcpSegment(us, them(0), header.TCPFlagSyn, 1), WhyOverlay},
		{"a short segment", short, WhyOverlay},
		{"UDP", inner(h.overlay.String(), e.Overlay().String(), protoUDP, make([]byte, 8)), WhyOverlay},
		{"an ICMP error", inner(h.overlay.String(), e.Overlay().String(), protoICMP6, icmpError(1, syn)), WhyOverlay},
		{"a fragment", inner(h.overlay.String(), e.Overlay().String(), 44, make([]byte, 16)), shim.OuterExtension},
		{"another's address", tcpSegment(us, netip.AddrPortFrom(other.Overlay(), testControl), header.TCPFlagSyn, 1), WhyNotForUs},
		{"an address of the network", tcpSegment(us, netip.MustParseAddrPort("[fd77:6172:7266::1]:179"), header.TCPFlagSyn, 1), WhyNotForUs},
	} {
		before := e.refused.Count(string(tc.why))
		h.out <- [][]byte{tc.packet}
		e.await(t, tc.name+" is refused", func() bool { return e.refused.Count(string(tc.why)) == before+1 })
	}
	if n := e.admitted.Load(); n != 0 {
		t.Errorf("%d packets entered a network", n)
	}
	stack := e.self.Load().stack
	if n := stack.nic.Flows(); n != 0 {
		t.Errorf("%d flows on the overlay", n)
	}

	// A forged outer source is WireGuard's to refuse: nothing comes at all.
	judged := e.judged()
	forged := tcpSegment(netip.AddrPortFrom(other.Overlay(), 1), them(testControl), header.TCPFlagSyn, 1)
	h.out <- [][]byte{forged, tcpSegment(us, them(testEnroll), header.TCPFlagSyn, 1)}
	e.await(t, "the packet behind the forgery is refused", func() bool { return e.judged() == judged+1 })
}

// TestOverlayFloodIsBounded: SYNs that nobody finishes cost what the backlog
// and a peer's pace hold, however many come; another peer is served meanwhile.
func TestOverlayFloodIsBounded(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	e.serveKeys(t, testControl)
	n := e.network(t, "berlin")
	c, _ := join(t, e, n, "b1", handlers{}, "10.0.0.0/8")
	key := newKey(t)
	p, err := n.AddConnector(ConnectorConfig{Name: "b2", PublicKey: key.PublicKey()})
	if err != nil {
		t.Fatal(err)
	}
	h := newHostile(t, "b2", key, e)
	e.await(t, "b2 shakes hands", func() bool { return !p.State().LastHandshake.IsZero() })
	to := netip.AddrPortFrom(e.Overlay(), testControl)
	const synLen = header.IPv6MinimumSize + header.TCPMinimumSize
	sent := uint64(0)
	flood := func(n int) uint64 {
		for i := 0; i < n; {
			var batch [][]byte
			for ; i < n && len(batch) < 128; i++ {
				from := netip.AddrPortFrom(h.overlay, uint16(1+i))
				batch = append(batch, tcpSegment(from, to, header.TCPFlagSyn, rand.Uint32()))
			}
			h.out <- batch
			sent += uint64(len(batch))
			for sent*synLen > p.rxBytes.Load()+window*synLen/2 {
				time.Sleep(50 * time.Microsecond)
			}
		}
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := flood(10_000) // wireguard-go's buffers, some 64 KiB for each packet under way, are made then
	after := flood(200_000)
	if key, err := overlayGet(t, c.Tunnel, to); err != nil || key != c.PublicKey().String() {
		t.Errorf("another connector was answered %q, %v", key, err)
	}
	t.Logf("200,000 SYNs of one peer, %d of them refused, hold %d KB", e.refused.Count(string(WhyOverlayRate)), int64(after-before)>>10)
	if !raceEnabled && after > before+96<<20 {
		t.Errorf("a flood of SYNs took %d bytes", after-before)
	}
}

// TestHeldPeerGetsNoNewFlows is the operator's drain.
func TestHeldPeerGetsNoNewFlows(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	_, p1 := join(t, e, n, "b1", handlers{tcp: echoTCP}, "10.0.0.0/8")
	old, _ := dialTCP(t, n, "10.0.0.1:7")
	_, p2 := join(t, e, n, "b2", handlers{tcp: echoTCP}, "10.0.0.0/8")
	p1.SetHeld(true)
	for range 6 {
		if _, p := dialTCP(t, n, "10.0.0.1:7"); p != p2 {
			t.Errorf("a new flow went to %s, which is held", p.Name())
		}
	}
	if s := p1.State(); !s.Held || s.Draining {
		t.Errorf("state %+v", s)
	}
	if _, err := old.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(old, make([]byte, 1)); err != nil {
		t.Errorf("a flow of the held peer: %v", err)
	}
	p2.SetHeld(true)
	if p := n.Pick(netip.MustParseAddr("10.0.0.1")); p != nil {
		t.Errorf("picked %s, though all are held", p.Name())
	}
	p1.SetHeld(false)
	if _, p := dialTCP(t, n, "10.0.0.1:7"); p != p1 {
		t.Errorf("a new flow went to %s", p.Name())
	}
}

// FuzzOverlayPacket gives the edge whole packets of a connector, authenticated
// and without a shim: nothing of them may enter a network, and TCP reaches the
// overlay's stack for the control port alone.
func FuzzOverlayPacket(f *testing.F) {
	e := newEdge(f, newKey(f), "127.0.0.1:0")
	if _, err := e.ListenOverlay(f.Context(), testControl); err != nil {
		f.Fatal(err)
	}
	p, err := e.network(f, "berlin").AddConnector(ConnectorConfig{Name: "b1", PublicKey: newKey(f).PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("::/0")}})
	if err != nil {
		f.Fatal(err)
	}
	us := netip.AddrPortFrom(p.Overlay(), 50_000)
	for _, flags := range []header.TCPFlags{header.TCPFlagSyn, header.TCPFlagAck, header.TCPFlagRst, header.TCPFlagSyn | header.TCPFlagFin} {
		f.Add(byte(protoTCP), tcpSegment(us, netip.AddrPortFrom(e.Overlay(), testControl), flags, 1)[shimLen:])
	}
	f.Add(byte(protoICMP6), appendEcho(nil, p.Overlay(), e.Overlay(), echo{id: 1, boot: 1}, 0)[shimLen:])
	f.Add(byte(protoUDP), make([]byte, 8))
	f.Fuzz(func(t *testing.T, next byte, payload []byte) {
		if next == 4 || next == 41 || len(payload) == 0 || len(payload) > 60_000 {
			return
		}
		b := make([]byte, shimLen, shimLen+len(payload))
		shim.Put(b, p.Overlay(), e.Overlay(), len(payload), true)
		b[6] = next
		a := e.admit(append(b, payload...), time.Now())
		if a.link == nil {
			return
		}
		if a.link != e.self.Load().stack.link {
			t.Error("an overlay packet entered a network")
		}
		if next != protoTCP || binary.BigEndian.Uint16(payload[2:]) != testControl {
			t.Errorf("next header %d for port %x reached the overlay's stack", next, payload[2:4])
		}
		a.link.Deliver([][]byte{a.packet})
	})
}
