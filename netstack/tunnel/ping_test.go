package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/shim"
)

// answerPings has the connector answer what answer returns nil for.
func (c *testConnector) answerPings(t testing.TB, answer func(ctx context.Context, dst netip.Addr) error) {
	t.Helper()
	err := c.edge.Stack().ForwardPing(netstack.ForwardPingConfig{Handler: func(ctx context.Context, _, dst netip.Addr, _ int) error {
		return answer(ctx, dst)
	}})
	if err != nil {
		t.Fatal(err)
	}
}

var (
	pinged4 = netip.MustParseAddr("10.0.0.10")
	pinged6 = netip.MustParseAddr("fd00:1::10")
)

func TestPing(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	c, p := join(t, e, n, "b1", handlers{}, "10.0.0.0/8", "fd00:1::/32")
	causes := map[netip.Addr]error{
		pinged4: nil, pinged6: nil,
		netip.MustParseAddr("10.0.0.11"):   netx.ErrUnreachable,
		netip.MustParseAddr("fd00:1::11"):  netx.ErrUnreachable,
		netip.MustParseAddr("10.0.0.12"):   netx.ErrTimedOut,
		netip.MustParseAddr("fd00:1::12"):  netx.ErrTimedOut,
		netip.MustParseAddr("192.0.2.1"):   netx.ErrNoRoute,
		netip.MustParseAddr("2001:db8::1"): netx.ErrNoRoute,
	}
	c.answerPings(t, func(_ context.Context, dst netip.Addr) error { return causes[dst] })
	for dst, want := range causes {
		rtt, by, err := n.Ping(t.Context(), dst)
		if !errors.Is(err, want) || (err == nil) != (rtt > 0) {
			t.Errorf("pinging %s: %v, %v, want %v", dst, rtt, err, want)
		}
		if (want == netx.ErrNoRoute) != (by == nil) || by != nil && by != p {
			t.Errorf("pinging %s went through %s", dst, name(by))
		}
	}
	if n.stack.Load() == nil {
		t.Error("a ping did not wake the network")
	}
	if !n.rest(time.Now().Add(2 * restAfter)) {
		t.Error("a ping keeps the network awake for ever")
	}
	if _, _, err := n.Ping(t.Context(), pinged4); err != nil {
		t.Errorf("pinging after a rest: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c.answerPings(t, func(ctx context.Context, _ netip.Addr) error { <-ctx.Done(); return nil })
	if _, _, err := n.Ping(ctx, pinged4); !errors.Is(err, netx.ErrTimedOut) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a ping that nobody answers: %v", err)
	}
}

// A ping keeps its network awake, and ends with its connector, its route and
// its tunnel.
func TestPingEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(e *testEdge, c *testConnector, p *Peer)
	}{
		{"silent", func(_ *testEdge, c *testConnector, _ *Peer) { c.mute() }},
		{"left", func(_ *testEdge, c *testConnector, _ *Peer) { c.Close() }},
		{"route lost", func(_ *testEdge, _ *testConnector, p *Peer) { _ = p.SetRoutes(nil) }},
		{"removed", func(_ *testEdge, _ *testConnector, p *Peer) { p.Remove() }},
		{"closed", func(e *testEdge, _ *testConnector, _ *Peer) { e.Close() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEdge(t, newKey(t), "127.0.0.1:0")
			n := e.network(t, "berlin")
			c, p := join(t, e, n, "b1", handlers{}, "10.0.0.0/8")
			asked := make(chan struct{})
			c.answerPings(t, func(ctx context.Context, _ netip.Addr) error { close(asked); <-ctx.Done(); return ctx.Err() })
			result := make(chan error, 1)
			go func() { _, _, err := n.Ping(t.Context(), pinged4); result <- err }()
			<-asked
			if n.rest(time.Now().Add(2 * restAfter)) {
				t.Error("the network was put to rest under a ping")
			}
			tc.end(e, c, p)
			if err := <-result; !errors.Is(err, netx.ErrNoRoute) {
				t.Errorf("the ping ended with %v, want %v", err, netx.ErrNoRoute)
			}
		})
	}
}

// TestPingSteers: pings follow the steering, and the same address in another
// network is another host.
func TestPingSteers(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	berlin, tokyo := e.network(t, "berlin"), e.network(t, "tokyo")
	silent := func(context.Context, netip.Addr) error { return netx.ErrTimedOut }
	b1, _ := join(t, e, berlin, "b1", handlers{}, "10.0.0.0/8")
	b2, p2 := join(t, e, berlin, "b2", handlers{}, "10.0.0.0/8")
	t1, _ := join(t, e, tokyo, "t1", handlers{}, "10.0.0.0/8")
	b1.answerPings(t, silent)
	t1.answerPings(t, silent)
	b2.answerPings(t, func(context.Context, netip.Addr) error { return nil })
	if err := berlin.SetSteering(Failover, []string{"b2"}); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, p, err := berlin.Ping(t.Context(), pinged4); err != nil || p != p2 {
			t.Errorf("pinging in berlin: through %s, %v", name(p), err)
		}
		if _, _, err := tokyo.Ping(t.Context(), pinged4); !errors.Is(err, netx.ErrTimedOut) {
			t.Errorf("pinging in tokyo: %v", err)
		}
	}
}

// echoReply answers the echo request in packet, a whole inner packet, as a
// kernel does. It returns nil where packet is none.
func echoReply(packet []byte) []byte {
	in, why := shim.ParseInner(packet)
	if why != shim.OK || !isEchoRequest(in) {
		return nil
	}
	msg := bytes.Clone(in.Payload)
	msg[0] = icmp4EchoReply
	if in.Src.Is6() {
		msg[0] = icmp6EchoReply
	}
	return inner(in.Dst.String(), in.Src.String(), in.Proto, resum(msg, in.Dst, in.Src))
}

// resum writes the checksum of the ICMP message msg from src to dst.
func resum(msg []byte, src, dst netip.Addr) []byte {
	msg[2], msg[3] = 0, 0
	var sum uint16
	if src.Is6() {
		pseudo := append(src.AsSlice(), dst.AsSlice()...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(msg)))
		sum = checksum.Checksum(append(pseudo, 0, 0, 0, protoICMP6), 0)
	}
	binary.BigEndian.PutUint16(msg[2:], ^checksum.Checksum(msg, sum))
	return msg
}

// addHostile adds a connector that answers for its life as a router does, hands
// the inner packets that it gets to the test, and answers none of them. It waits
// until the connector lives.
func addHostile(t *testing.T, e *testEdge, n *Network, name string, routes ...string) (*hostile, *Peer, <-chan []byte) {
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
	h := newHostile(t, name, key, e)
	got := make(chan []byte, 64)
	hear := func(b []byte) {
		packet, why := shim.Parse(b)
		if why != shim.OK {
			return
		}
		if packet.Shimmed() {
			got <- bytes.Clone(packet.Inner)
		} else if asked, ok := parseEcho(b[:shimLen+len(packet.Payload)], packet.Src, packet.Dst); ok && !asked.reply {
			select {
			case h.out <- [][]byte{appendReply(nil, b[:shimLen+len(packet.Payload)], packet.Dst, packet.Src)}:
			case <-h.closed:
			}
		}
	}
	h.hears.Store(&hear)
	e.await(t, name+" shakes hands", func() bool { return !p.State().LastHandshake.IsZero() })
	h.out <- [][]byte{appendEcho(nil, h.overlay, e.Overlay(), echo{id: echoIDLiveness}, 0)}
	e.await(t, name+" is alive", p.Alive)
	return h, p, got
}

// TestPingThroughRouter: a WireGuard router of another make knows nothing of
// pings; it forwards a plain echo request, and the host's plain reply.
func TestPingThroughRouter(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	h, p, requests := addHostile(t, e, n, "router", "10.0.0.0/8", "fd00:1::/32")
	for _, dst := range []netip.Addr{pinged4, pinged6} {
		go func() {
			request := <-requests
			if in, _ := shim.ParseInner(request); in.Dst != dst || in.Proto == protoICMP4 && !validICMP4(in.Payload) {
				t.Errorf("the router got %v", in)
			}
			h.out <- [][]byte{h.wrap(e, echoReply(request), nil)}
		}()
		if rtt, by, err := n.Ping(t.Context(), dst); err != nil || by != p || rtt <= 0 {
			t.Errorf("pinging %s through a router: %v, %v", dst, rtt, err)
		}
	}
}

func validICMP4(msg []byte) bool {
	return len(msg) > header.ICMPv4MinimumSize && checksum.Checksum(msg, 0) == 0xffff
}

// TestForgedPingReplies: a replica of the same route and a connector of another
// network that know every byte of an echo request cannot answer it.
func TestForgedPingReplies(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n, other := e.network(t, "berlin"), e.network(t, "tokyo")
	h, p, requests := addHostile(t, e, n, "asked", "10.0.0.0/8")
	replica, rp, _ := addHostile(t, e, n, "replica", "10.0.0.0/8")
	foreign, fp, _ := addHostile(t, e, other, "foreign", "10.0.0.0/8")
	for _, q := range []*Peer{rp, fp} { // both have a NIC
		if _, err := q.enter(); err != nil {
			t.Fatal(err)
		}
		defer q.leave()
	}
	result := make(chan error, 1)
	go func() { _, err := p.ping(t.Context(), pinged4); result <- err }()
	request := <-requests
	genuine := echoReply(request)

	changed := func(change func(msg []byte)) []byte {
		b := bytes.Clone(genuine)
		change(b[header.IPv4MinimumSize:])
		resum(b[header.IPv4MinimumSize:], pinged4, pinged4)
		return b
	}
	before := e.admitted.Load()
	forged := [][]byte{
		replica.wrap(e, genuine, nil),
		replica.wrap(e, inner("10.0.0.1", "100.127.0.1", protoICMP4, icmpError(3, request)), nil),
	}
	replica.out <- forged
	foreign.out <- [][]byte{foreign.wrap(e, genuine, nil)}
	h.out <- [][]byte{
		h.wrap(e, changed(func(msg []byte) { msg[4]++ }), nil), // identifier
		h.wrap(e, changed(func(msg []byte) { msg[7]++ }), nil), // sequence number
		h.wrap(e, changed(func(msg []byte) { msg[8]++ }), nil), // data
	}
	e.await(t, "the forgeries are in", func() bool { return e.admitted.Load() >= before+6 })
	select {
	case err := <-result:
		t.Fatalf("a forgery was believed: %v", err)
	default:
	}
	h.out <- [][]byte{h.wrap(e, genuine, nil)}
	if err := <-result; err != nil {
		t.Errorf("the genuine reply: %v", err)
	}
	counted := map[string]uint64{}
	e.Drops(func(where, why string, n uint64) { counted[where+" "+why] += n })
	if n := counted["netstack echo_unknown"]; n != 5 {
		t.Errorf("%d of 5 forged replies were counted: %v", n, counted)
	}
}
