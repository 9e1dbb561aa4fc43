package tunnel

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/shim"
)

// arrivals is a fake of the stack's side of a link: it keeps what is delivered.
type arrivals struct {
	stack.NetworkDispatcher
	got []string
}

func (a *arrivals) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	a.got = append(a.got, string(pkt.Data().AsRange().ToSlice()))
}

// doorway is an edge with three connectors of two networks, whose packets a test
// writes as the device does, and what stands behind their links.
type doorway struct {
	*testEdge
	wire   *wire
	peers  []*Peer
	behind []*arrivals
	guest  netip.Addr // the overlay address of one
	checks int        // how often a packet was held against its peer's routes
}

// A client of the first connector's, in each family, who may be spoken to on
// one flow alone.
var (
	client4, client6 = netip.MustParseAddrPort("198.51.100.7:40000"), netip.MustParseAddrPort("[2001:db8::7]:40000")
	origin4, origin6 = netip.MustParseAddrPort("10.0.0.9:80"), netip.MustParseAddrPort("[fd00:1::9]:80")
)

func newDoorway(t testing.TB) *doorway {
	t.Helper()
	d := &doorway{testEdge: newEdge(t, newKey(t), "127.0.0.1:0")}
	d.wire = &wire{t: d.Tunnel}
	flows := loans{{client4, origin4}: true, {client6, origin6}: true}
	d.check = func(p *Peer, in shim.Inner) shim.Why {
		d.checks++
		var lent lender
		if p == d.peers[0] {
			lent = flows
		}
		return d.checker.fromConnector(in, p.routes.Load(), lent)
	}
	a, b := d.network(t, "a"), d.network(t, "b")
	for i, n := range []*Network{a, a, b} {
		p, err := n.AddConnector(ConnectorConfig{Name: fmt.Sprint(i), PublicKey: newKey(t).PublicKey(),
			Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/9"), netip.MustParsePrefix("fd00:1::/32"), netip.MustParsePrefix("fd06::/16")}})
		if err != nil {
			t.Fatal(err)
		}
		behind := &arrivals{}
		p.link.Attach(behind)
		d.peers, d.behind = append(d.peers, p), append(d.behind, behind)
	}
	g, err := d.AddGuest(GuestConfig{Name: "guest", PublicKey: newKey(t).PublicKey(), Port: testEnroll})
	if err != nil {
		t.Fatal(err)
	}
	d.guest = OverlayAddr(g.PublicKey())
	return d
}

// wrapped puts the outer header of a packet of p's around an inner one.
func (d *doorway) wrapped(p *Peer, packet []byte) []byte {
	b := make([]byte, shimLen, shimLen+len(packet))
	shim.Put(b, p.Overlay(), d.Overlay(), len(packet), packet[0]>>4 == 4)
	return append(b, packet...)
}

// between makes a packet of TCP or UDP with n bytes behind the ports. TCP has
// flags with which no link merges it, so that what is delivered is what came.
func between(src, dst netip.AddrPort, protocol byte, n int) []byte {
	b := make([]byte, 4+n)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	if protocol == protoTCP && len(b) >= header.TCPMinimumSize {
		b[header.TCPDataOffset] = 5 << 4
		b[header.TCPFlagsOffset] = byte(header.TCPFlagSyn | header.TCPFlagFin | header.TCPFlagUrg)
	}
	return inner(src.Addr().String(), dst.Addr().String(), protocol, b)
}

// outcome is what came of packets.
type outcome struct {
	Delivered [][]string // to each connector's link
	Received  []uint64   // bytes, of each
	Admitted  uint64
	Refused   map[string]uint64
}

// of returns what comes of f, which writes.
func (d *doorway) of(f func()) outcome {
	before := outcome{Admitted: d.admitted.Load(), Refused: map[string]uint64{}}
	d.refused.Each(func(why string, n uint64) { before.Refused[why] = n })
	for i, p := range d.peers {
		before.Received = append(before.Received, p.rxBytes.Load())
		d.behind[i].got = nil
	}
	f()
	o := outcome{Admitted: d.admitted.Load() - before.Admitted, Refused: map[string]uint64{}}
	d.refused.Each(func(why string, n uint64) {
		if n -= before.Refused[why]; n > 0 {
			o.Refused[why] = n
		}
	})
	for i, p := range d.peers {
		o.Received = append(o.Received, p.rxBytes.Load()-before.Received[i])
		o.Delivered = append(o.Delivered, d.behind[i].got)
	}
	return o
}

// write gives the edge copies of packets, all in one call, behind offset bytes.
func (d *doorway) write(t *testing.T, offset int, packets ...[]byte) {
	t.Helper()
	bufs := make([][]byte, len(packets))
	for i, b := range packets {
		bufs[i] = append(make([]byte, offset), b...)
	}
	if n, err := d.wire.Write(bufs, offset); n != len(packets) || err != nil {
		t.Errorf("Write = %d, %v; want %d", n, err, len(packets))
	}
	for _, b := range bufs {
		if b != nil {
			t.Error("Write holds on to a buffer")
			return
		}
	}
}

// traffic makes packets of several flows of all connectors, in runs, one in
// odds of them with something about it.
func (d *doorway) traffic(rng *rand.Rand, n, odds int) [][]byte {
	us4, us6 := netip.MustParseAddrPort("100.127.0.1:50000"), netip.MustParseAddrPort("[fd77:6172:7266::1]:50000")
	flows := []func(size int) []byte{
		func(size int) []byte { return between(origin4, us4, protoTCP, size) },
		func(size int) []byte { return between(origin4, us4, protoUDP, size) },
		func(size int) []byte { return between(origin6, us6, protoTCP, size) },
		func(size int) []byte { return between(origin6, us6, protoUDP, size) },
		func(size int) []byte { return between(origin4, client4, protoTCP, size) },
		func(size int) []byte { return between(origin6, client6, protoTCP, size) },
		func(size int) []byte {
			return between(netip.MustParseAddrPort("192.0.2.1:80"), us4, protoTCP, size)
		},
	}
	var out [][]byte
	p, flow := d.peers[0], flows[0]
	for len(out) < n {
		if rng.IntN(6) == 0 {
			p, flow = d.peers[rng.IntN(len(d.peers))], flows[rng.IntN(len(flows))]
		}
		b := d.wrapped(p, flow(rng.IntN(40)))
		if b[shimLen]>>4 == 4 {
			binary.BigEndian.PutUint16(b[shimLen+4:], uint16(rng.Uint32())) // id
		}
		if rng.IntN(odds) == 0 {
			b = d.oddity(rng, b)
		}
		if rng.IntN(2) == 0 { // as WireGuard pads
			b = append(b, make([]byte, -len(b)&15)...)
		}
		out = append(out, b)
	}
	return out
}

// oddity changes something about a packet.
func (d *doorway) oddity(rng *rand.Rand, b []byte) []byte {
	v4 := b[shimLen]>>4 == 4
	in := b[shimLen:]
	ports, protocol, source, length := header.IPv6MinimumSize, 6, 8, 4
	if v4 {
		ports, protocol, source, length = header.IPv4MinimumSize, 9, 12, 2
	}
	add := func(at int, by int) { binary.BigEndian.PutUint16(b[at:], binary.BigEndian.Uint16(b[at:])+uint16(by)) }
	insert := func(extra ...byte) { // behind the IP header
		b = slices.Insert(b, shimLen+ports, extra...)
		add(4, len(extra))
		add(shimLen+length, len(extra))
	}
	switch rng.IntN(20) {
	case 0: // options, or an extension header
		if v4 {
			b[shimLen]++
			insert(1, 1, 1, 0)
		} else {
			next := in[protocol]
			in[protocol] = 60
			insert(next, 0, 1, 4, 0, 0, 0, 0)
		}
	case 1: // a fragment
		if v4 {
			in[6+rng.IntN(2)] |= 1 << rng.IntN(8)
		} else {
			next := in[protocol]
			in[protocol] = 44
			insert(next, 0, 0, byte(rng.IntN(32)), 0, 0, 0, 1)
		}
	case 2:
		add(shimLen+length, rng.IntN(9)-4)
	case 3:
		add(4, rng.IntN(9)-4)
	case 4, 5:
		add(shimLen+ports, rng.IntN(2))
		add(shimLen+ports+2, rng.IntN(2))
	case 6: // outside the routes, or not
		in[source+rng.IntN(4)] ^= 1 << rng.IntN(8)
	case 7: // the same of the destination
		size := 16
		if v4 {
			size = 4
		}
		in[source+size+rng.IntN(size)] ^= 1 << rng.IntN(8)
	case 8: // an outer destination that is not ours
		copy(b[24:40], d.peers[0].Overlay().AsSlice())
	case 9: // another sender's
		copy(b[8:24], d.peers[rng.IntN(len(d.peers))].Overlay().AsSlice())
	case 10: // a guest's
		copy(b[8:24], d.guest.AsSlice())
	case 11: // nobody's
		b[23]++
	case 12:
		b = b[:rng.IntN(len(b))]
	case 13:
		in[protocol] = []byte{protoTCP, protoUDP, protoUDP, 132, protoIPv4}[rng.IntN(5)]
	case 14:
		b[6] = []byte{protoIPv4, protoIPv6, protoUDP, 0}[rng.IntN(4)]
	case 15: // without both ports, or just with them
		size := min(len(in), ports+rng.IntN(6))
		binary.BigEndian.PutUint16(b[4:], uint16(size))
		if !v4 {
			size -= ports
		}
		binary.BigEndian.PutUint16(in[length:], uint16(size)) // what is behind stays
	case 16:
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
	case 17: // an echo
		p := d.peers[rng.IntN(len(d.peers))]
		b = appendEcho(nil, p.Overlay(), d.Overlay(), echo{id: echoIDLiveness, flags: byte(rng.IntN(2)) * flagTrusting, boot: 1}, 0)
	case 18: // what an IP header may say of one flow as it likes
		if v4 {
			in[1], in[6], in[8] = byte(rng.Uint32()), 0x40, byte(rng.Uint32())
		} else {
			in[1], in[2], in[7] = byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())
		}
	case 19: // the same of the outer one, or another version
		b[1], b[2], b[7] = byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())
		b[0] ^= byte(rng.IntN(2) << 4)
	}
	return b
}

// FuzzWrite: of packets that are written together comes what would come of each
// by itself, which admit looks at.
func FuzzWrite(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(seed, uint16(30+8*seed), uint8(1+seed), uint8(16*(seed%2)))
	}
	d := newDoorway(f)
	f.Fuzz(func(t *testing.T, seed uint64, packets uint16, odds, offset uint8) {
		rng := rand.New(rand.NewPCG(seed, 8))
		all := d.traffic(rng, 1+int(packets)%600, 1+int(odds)%16)
		want := d.of(func() {
			for _, b := range all {
				d.write(t, int(offset), b)
			}
		})
		got := d.of(func() {
			for rest := all; len(rest) > 0; {
				n := min(1+rng.IntN(batchSize), len(rest))
				d.write(t, int(offset), rest[:n]...)
				rest = rest[n:]
			}
		})
		if got.Admitted != want.Admitted || !reflect.DeepEqual(got.Received, want.Received) || !reflect.DeepEqual(got.Refused, want.Refused) {
			t.Errorf("together: %d admitted, %v received, refused %v\none by one: %d admitted, %v received, refused %v",
				got.Admitted, got.Received, got.Refused, want.Admitted, want.Received, want.Refused)
		}
		for i := range d.peers {
			if !slices.Equal(got.Delivered[i], want.Delivered[i]) {
				t.Errorf("connector %d: %d packets were delivered together, %d one by one, or others", i, len(got.Delivered[i]), len(want.Delivered[i]))
			}
		}
	})
}

// TestAdmittedTogether: the packets of a flow are held against its peer's routes
// once a Write, and what may be of no such flow by itself.
func TestAdmittedTogether(t *testing.T) {
	d := newDoorway(t)
	a, b := d.peers[0], d.peers[1]
	us4, us6 := netip.MustParseAddrPort("100.127.0.1:50000"), netip.MustParseAddrPort("[fd77:6172:7266::1]:50000")
	v4 := func(p *Peer, n int) []byte { return d.wrapped(p, between(origin4, us4, protoTCP, n)) }
	v6 := func(p *Peer, n int) []byte { return d.wrapped(p, between(origin6, us6, protoUDP, n)) }
	with := func(b []byte, at int, to byte) []byte { b[at] = to; return b }
	times := func(n int, make func(i int) []byte) (all [][]byte) {
		for i := range n {
			all = append(all, make(i))
		}
		return all
	}
	client := func() []byte { return d.wrapped(a, between(origin4, client4, protoTCP, 20)) }
	const ports = shimLen + header.IPv4MinimumSize
	options := func() []byte {
		p := between(origin4, us4, protoTCP, 20)
		p = slices.Insert(p, header.IPv4MinimumSize, 1, 1, 1, 0)
		p[0]++
		p[3] += 4
		return d.wrapped(a, p)
	}
	// The source of an IPv6 packet that has, where IPv4 has them, the protocol,
	// addresses and ports of a packet from a source outside the routes.
	foreign := between(netip.MustParseAddrPort("192.0.2.1:80"), us4, protoTCP, 20)
	guise := netip.AddrFrom16([16]byte(append([]byte{0xfd, protoTCP, 0, 1}, foreign[12:24]...)))
	for _, tc := range []struct {
		name     string
		packets  [][]byte
		checks   int
		admitted int
	}{
		{"one", [][]byte{v4(a, 20)}, 1, 1},
		{"IPv4", times(9, func(i int) []byte { return v4(a, i) }), 1, 9},
		{"IPv6", times(9, func(i int) []byte { return v6(a, i) }), 1, 9},
		{"padded", times(9, func(i int) []byte { return append(v4(a, 20), make([]byte, i)...) }), 1, 9},
		{"TTL, DF and id are anything", [][]byte{v4(a, 20), with(v4(a, 20), shimLen+8, 9), with(v4(a, 20), shimLen+6, 0x40), with(v4(a, 20), shimLen+5, 7)}, 1, 4},
		{"two flows in turns", times(8, func(i int) []byte { return [][]byte{v4(a, 20), v6(a, 20)}[i%2] }), 8, 8},
		{"two peers in turns", times(8, func(i int) []byte { return v4([]*Peer{a, b}[i%2], 20) }), 8, 8},
		{"TCP and UDP", [][]byte{v4(a, 20), with(v4(a, 20), shimLen+9, protoUDP)}, 2, 2},
		{"another source port", [][]byte{v4(a, 20), with(v4(a, 20), ports+1, 99)}, 2, 2},
		{"another destination port", [][]byte{v4(a, 20), with(v4(a, 20), ports+3, 99)}, 2, 2},
		{"a client's flow, and another port of the client", [][]byte{client(), client(), with(client(), ports+3, 99)}, 2, 2},
		{"another source", [][]byte{v4(a, 20), with(v4(a, 20), shimLen+13, 200)}, 2, 1},
		{"a foreign source, again and again", times(4, func(int) []byte { return with(v4(a, 20), shimLen+13, 200) }), 4, 0},
		{"a foreign source behind its guise", [][]byte{d.wrapped(a, between(netip.AddrPortFrom(guise, 80), us6, protoTCP, 20)), d.wrapped(a, foreign)}, 2, 1},
		{"options", times(4, func(int) []byte { return options() }), 4, 4},
		{"options behind none", [][]byte{v4(a, 20), options()}, 2, 2},
		{"fragments", times(4, func(int) []byte { return with(v4(a, 20), shimLen+7, 1) }), 4, 4},
		{"a fragment behind a whole one", [][]byte{v4(a, 20), with(v4(a, 20), shimLen+6, 0x20)}, 2, 2},
		{"a lying length", [][]byte{v4(a, 20), with(v4(a, 20), shimLen+3, 43), v4(a, 20)}, 2, 2},
		{"an echo between", [][]byte{v4(a, 20), appendEcho(nil, a.Overlay(), d.Overlay(), echo{id: 1, boot: 1}, 0), v4(a, 20)}, 2, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := d.checks
			got := d.of(func() { d.write(t, 16, tc.packets...) })
			delivered := 0
			for _, packets := range got.Delivered {
				delivered += len(packets)
			}
			if n := d.checks - before; n != tc.checks || int(got.Admitted) != tc.admitted || delivered != tc.admitted {
				t.Errorf("%d checks, %d admitted, %d delivered, want %d, %d and as many", n, got.Admitted, delivered, tc.checks, tc.admitted)
			}
			before = d.checks
			d.of(func() { d.write(t, 0, tc.packets[0]); d.write(t, 0, tc.packets[0]) })
			if n := d.checks - before; n != 2 {
				t.Errorf("%d checks of two Writes, want 2", n)
			}
		})
	}
}

// TestBatchOfAnOldKey: what comes in a key that the connector has left counts
// for nothing, however many come together.
func TestBatchOfAnOldKey(t *testing.T) {
	d := newDoorway(t)
	p := d.peers[0]
	packet := between(origin4, netip.MustParseAddrPort("100.127.0.1:50000"), protoTCP, 20)
	old, next := d.wrapped(p, packet), newKey(t).PublicKey()
	if err := p.AddKey(next); err != nil {
		t.Fatal(err)
	}
	changed := slices.Clone(old)
	copy(changed[8:24], OverlayAddr(next).AsSlice())
	d.write(t, 0, changed)
	if p.PublicKey() != next {
		t.Fatal("the change is not followed")
	}
	single := d.of(func() { d.write(t, 0, old); d.write(t, 0, old); d.write(t, 0, old) })
	batch := d.of(func() { d.write(t, 0, old, old, old) })
	if !reflect.DeepEqual(batch, single) {
		t.Errorf("together: %v bytes received, %d admitted; one by one: %v and %d", batch.Received, batch.Admitted, single.Received, single.Admitted)
	}
}
