package tunnel

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warrenmesh/warren/netstack/bind"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/shim"
)

// hostile is a connector that was modified: it holds a valid key, shakes hands
// properly, and sends whatever bytes the test gives it. It is a stock
// wireguard-go device whose tun is a channel.
type hostile struct {
	name    string
	overlay netip.Addr
	device  *device.Device
	out     chan [][]byte
	closed  chan struct{}
	events  chan tun.Event
	hears   atomic.Pointer[func(packet []byte)] // what the edge sends, where a test asks
}

func newHostile(t *testing.T, name string, key wgtypes.Key, edge *testEdge) *hostile {
	t.Helper()
	h := &hostile{name: name, overlay: OverlayAddr(key.PublicKey()), out: make(chan [][]byte), closed: make(chan struct{}), events: make(chan tun.Event)}
	h.device = device.NewDevice(h, bind.New(bind.Config{Listen: netip.MustParseAddrPort("127.0.0.1:0")}), device.NewLogger(device.LogLevelSilent, ""))
	edgeKey := edge.PublicKey()
	err := h.device.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=::/0\npersistent_keepalive_interval=1\n",
		hex.EncodeToString(key[:]), hex.EncodeToString(edgeKey[:]), edge.addr()))
	if err == nil {
		err = h.device.Up()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.device.Close)
	return h
}

func (h *hostile) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case packets := <-h.out:
		for i, p := range packets {
			sizes[i] = copy(bufs[i][offset:], p)
		}
		return len(packets), nil
	case <-h.closed:
		return 0, os.ErrClosed
	}
}

func (h *hostile) Write(bufs [][]byte, offset int) (int, error) {
	if hear := h.hears.Load(); hear != nil {
		for _, b := range bufs {
			(*hear)(b[offset:])
		}
	}
	return len(bufs), nil
}

func (h *hostile) File() *os.File           { return nil }
func (h *hostile) MTU() (int, error)        { return 1440, nil }
func (h *hostile) Name() (string, error)    { return h.name, nil }
func (h *hostile) Events() <-chan tun.Event { return h.events }
func (h *hostile) BatchSize() int           { return 128 }
func (h *hostile) Close() error {
	close(h.closed)
	close(h.events)
	return nil
}

// victim is one UDP flow through one connector: only that connector's bytes
// may ever come out of it.
type victim struct {
	owner string // who carries it; also the one byte that its datagrams repeat
	tag   byte
	conn  net.Conn
	local netip.AddrPort
	// client is the source of a TCP flow that the connector never accepts: an
	// address that it may speak to on this flow alone.
	client netip.AddrPort
}

var privateHost = netip.MustParseAddrPort("10.0.0.10:53")

// udp makes a datagram from src to dst with n bytes of tag, checksum right.
func udp(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, header.UDPMinimumSize+len(payload))
	copy(b[header.UDPMinimumSize:], payload)
	h := header.UDP(b)
	h.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(len(b))})
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber,
		tcpip.AddrFrom4(src.Addr().As4()), tcpip.AddrFrom4(dst.Addr().As4()), uint16(len(b)))
	h.SetChecksum(^checksum.Checksum(b, sum))
	return inner(src.Addr().String(), dst.Addr().String(), protoUDP, b)
}

// tcpTo makes a segment from the private host to a client. It has no flag, and
// so ends nothing.
func tcpTo(client netip.AddrPort, payload []byte) []byte {
	b := make([]byte, header.TCPMinimumSize+len(payload))
	header.TCP(b).Encode(&header.TCPFields{SrcPort: privateHost.Port(), DstPort: client.Port(), DataOffset: header.TCPMinimumSize})
	copy(b[header.TCPMinimumSize:], payload)
	return inner(privateHost.Addr().String(), client.Addr().String(), protoTCP, b)
}

func repeat(tag byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = tag
	}
	return b
}

// forgery makes packets of one kind. They go out with a right shim, and the
// edge must judge them as want says; one that it admits must still reach no
// flow but those of its sender.
type forgery struct {
	name string
	want shim.Why
	make func(rng *rand.Rand) []byte // the inner packet
	lie  func(outer []byte)          // changes the outer packet
}

// forgeries of the connector me, against its own flow and those of others.
func forgeries(me victim, others []victim) []forgery {
	us := me.local
	any24 := func(prefix string, rng *rand.Rand) netip.AddrPort {
		a := netip.MustParseAddr(prefix).As4()
		a[2], a[3] = byte(rng.Uint32()), 1+byte(rng.IntN(250))
		return netip.AddrPortFrom(netip.AddrFrom4(a), 53)
	}
	other := func(rng *rand.Rand) victim { return others[rng.IntN(len(others))] }
	body := func(rng *rand.Rand) []byte { return repeat(me.tag, 8+rng.IntN(64)) }
	from := func(prefix string) func(*rand.Rand) []byte {
		return func(rng *rand.Rand) []byte { return udp(any24(prefix, rng), us, body(rng)) }
	}
	return []forgery{
		{name: "foreign source", want: WhyForeignSource, make: from("192.0.2.0")},
		{name: "ungranted route", want: WhyForeignSource, make: from("10.200.0.0")},
		{name: "inner source as source", want: WhyReserved, make: from("100.127.0.0"), lie: func(b []byte) { b[shimLen+14] = 0 }},
		{name: "loopback", want: shim.InnerSource, make: from("127.0.0.0")},
		{name: "multicast", want: shim.InnerSource, make: from("224.0.0.0")},
		{name: "foreign destination", want: WhyForeignDst, make: func(rng *rand.Rand) []byte {
			return udp(privateHost, any24("10.0.0.0", rng), body(rng))
		}},
		{name: "nested shim", want: shim.InnerNested, make: func(rng *rand.Rand) []byte {
			packet := udp(privateHost, other(rng).local, body(rng))
			wrapped := make([]byte, shimLen, shimLen+len(packet))
			shim.Put(wrapped, others[0].local.Addr(), us.Addr(), len(packet), true)
			return inner("10.0.0.10", us.Addr().String(), 41, append(wrapped, packet...))
		}},
		{name: "IPv4-mapped", want: shim.InnerMappedAddress, make: func(rng *rand.Rand) []byte {
			return inner("::ffff:10.0.0.10", "fd77:6172:7266::1", protoUDP, repeat(me.tag, 16))
		}, lie: func(b []byte) { b[6] = 41 }},
		{name: "payload length that wraps", want: shim.OuterShort, make: from("10.0.0.0"),
			lie: func(b []byte) { binary.BigEndian.PutUint16(b[4:], 65496) }},
		{name: "no payload", want: shim.OuterEmpty, make: from("10.0.0.0"),
			lie: func(b []byte) { binary.BigEndian.PutUint16(b[4:], 0) }},
		{name: "inner length that lies", want: shim.InnerLength, make: func(rng *rand.Rand) []byte {
			p := udp(privateHost, us, body(rng))
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)+1+rng.IntN(1000)))
			return p
		}},
		{name: "overlay packet", want: WhyOverlay, make: from("10.0.0.0"), lie: func(b []byte) { b[6] = protoUDP }},
		{name: "ICMP error about an ungranted flow", want: WhyForeignQuote, make: func(rng *rand.Rand) []byte {
			return inner("10.0.0.10", us.Addr().String(), 1, icmpError(3, udp(us, any24("10.200.0.0", rng), nil)))
		}},

		{name: "another's client, exact addresses and ports", want: WhyForeignDst, make: func(rng *rand.Rand) []byte {
			return tcpTo(other(rng).client, body(rng))
		}},
		{name: "own client, another port", want: WhyForeignDst, make: func(rng *rand.Rand) []byte {
			return tcpTo(netip.AddrPortFrom(me.client.Addr(), me.client.Port()+1+uint16(rng.IntN(1000))), body(rng))
		}},
		{name: "own client, from another port", want: WhyForeignDst, make: func(rng *rand.Rand) []byte {
			p := tcpTo(me.client, body(rng))
			p[header.IPv4MinimumSize]++
			return p
		}},
		{name: "own client, UDP", want: WhyForeignDst, make: func(rng *rand.Rand) []byte { return udp(privateHost, me.client, body(rng)) }},
		{name: "own client, a fragment", want: WhyForeignDst, make: func(rng *rand.Rand) []byte {
			p := tcpTo(me.client, repeat(me.tag, 4)) // fragments are of eights
			p[6] |= 0x20
			return p
		}},
		{name: "ICMP error about another's client", want: WhyForeignDst, make: func(rng *rand.Rand) []byte {
			o := other(rng).client
			return inner("10.0.0.10", o.Addr().String(), 1, icmpError(3, udp(o, privateHost, nil)))
		}},
		{name: "own client's flow", make: func(rng *rand.Rand) []byte { return tcpTo(me.client, body(rng)) }},

		// What follows is admitted into the sender's own NIC, and must die there.
		{name: "another flow's exact addresses and ports", make: func(rng *rand.Rand) []byte {
			return udp(privateHost, other(rng).local, body(rng))
		}},
		{name: "ICMP error about another's flow", make: func(rng *rand.Rand) []byte {
			o := other(rng).local
			p := inner("10.0.0.10", o.Addr().String(), 1, icmpError(3, udp(o, privateHost, nil)))
			p[header.IPv4MinimumSize+1] = 3 // port unreachable
			m := header.ICMPv4(p[header.IPv4MinimumSize:])
			m.SetChecksum(0)
			m.SetChecksum(header.ICMPv4Checksum(m, 0))
			return p
		}},
		{name: "echo reply of a host that was not granted", want: WhyForeignSource, make: func(rng *rand.Rand) []byte {
			return inner("192.0.2.1", us.Addr().String(), protoICMP4, repeat(0, 24))
		}},
		{name: "echo request to the edge", want: WhyProtocol, make: func(rng *rand.Rand) []byte {
			return inner("10.0.0.10", us.Addr().String(), protoICMP4, append([]byte{icmp4EchoRequest, 0}, repeat(0, 22)...))
		}},
		{name: "echo reply to nobody", make: func(rng *rand.Rand) []byte {
			return inner("10.0.0.10", us.Addr().String(), protoICMP4, append([]byte{0, 0, 0xff, 0xff}, repeat(0, 20)...))
		}},
		{name: "first fragment", make: func(rng *rand.Rand) []byte { return fragment(me.tag, me.local, uint16(rng.IntN(64)), true) }},
		{name: "last fragment of another's datagram", make: func(rng *rand.Rand) []byte {
			return fragment(me.tag, other(rng).local, uint16(rng.IntN(64)), false)
		}},
	}
}

// fragment makes one half of a datagram to local. It has no checksum, so that
// one put together from two senders' halves would be believed.
func fragment(tag byte, local netip.AddrPort, id uint16, first bool) []byte {
	whole := udp(privateHost, local, repeat(tag, 8+64))
	binary.BigEndian.PutUint16(whole[header.IPv4MinimumSize+6:], 0) // RFC 768: none
	const cut = 40                                                  // of the UDP datagram: a multiple of 8
	half, flags := whole[header.IPv4MinimumSize:header.IPv4MinimumSize+cut], uint16(0x2000)
	if !first {
		half, flags = whole[header.IPv4MinimumSize+cut:], cut/8
	}
	p := inner("10.0.0.10", local.Addr().String(), protoUDP, half)
	binary.BigEndian.PutUint16(p[4:], id)
	binary.BigEndian.PutUint16(p[6:], flags)
	h := header.IPv4(p)
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
	return p
}

// attack sends total packets from three authenticated connectors of two
// networks that hold the same 10.0.0.0/8, two of them replicas, half of the
// packets legitimate. It returns what went wrong.
func attack(t *testing.T, total int, check func(*Peer, shim.Inner) shim.Why) []string {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	e.check = check
	a, b := e.network(t, "a"), e.network(t, "b")
	var (
		attackers []*hostile
		victims   []victim
		legit     []*atomic.Int64
		wrong     atomic.Pointer[string]
		readers   sync.WaitGroup
	)
	for i, n := range []*Network{a, a, b} {
		key := newKey(t)
		name := fmt.Sprintf("%s%d", n.Name(), i)
		p, err := n.AddConnector(ConnectorConfig{Name: name, PublicKey: key.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/9")}})
		if err != nil {
			t.Fatal(err)
		}
		attackers = append(attackers, newHostile(t, name, key, e))
		e.await(t, name+" shakes hands", func() bool { return !p.State().LastHandshake.IsZero() })
		conn, err := p.dial(t.Context(), "udp", netip.AddrPort{}, privateHost)
		if err != nil {
			t.Fatal(err)
		}
		v := victim{owner: name, tag: byte('A' + i), conn: conn, local: netip.MustParseAddrPort(conn.LocalAddr().String()),
			client: netip.MustParseAddrPort(fmt.Sprintf("198.51.100.%d:40000", 10+i))}
		dialling, hangUp := context.WithCancel(t.Context())
		dialled := make(chan struct{})
		go func() {
			defer close(dialled)
			if conn, err := p.nic.Load().DialFrom(dialling, "tcp", v.client, privateHost); err == nil {
				t.Errorf("%s accepted a connection", name)
				conn.Close()
			}
		}()
		defer func() { hangUp(); <-dialled }()
		e.await(t, name+" has a client's flow", func() bool { return p.lends(v.client, privateHost) })
		got := new(atomic.Int64)
		victims, legit = append(victims, v), append(legit, got)
		readers.Go(func() {
			if err := onlyOwn(v, got); err != nil {
				s := fmt.Sprintf("flow of %s: %v", v.owner, err)
				wrong.CompareAndSwap(nil, &s)
			}
		})
	}

	var (
		expect  = map[shim.Why]uint64{}
		mu      sync.Mutex
		senders sync.WaitGroup
		sent    atomic.Uint64
	)
	for i, h := range attackers {
		others := append(append([]victim(nil), victims[:i]...), victims[i+1:]...)
		senders.Go(func() {
			counts := h.send(e, victims[i], others, total/len(attackers), &sent)
			mu.Lock()
			defer mu.Unlock()
			for why, n := range counts {
				expect[why] += n
			}
		})
	}
	senders.Wait()
	e.await(t, "every packet is judged", func() bool { return e.judged() >= sent.Load() })
	for _, v := range victims {
		v.conn.Close()
	}
	readers.Wait()

	var problems []string
	if s := wrong.Load(); s != nil {
		problems = append(problems, *s)
	}
	if e.judged() != sent.Load() {
		problems = append(problems, fmt.Sprintf("%d packets sent, %d judged", sent.Load(), e.judged()))
	}
	for why, n := range expect {
		got := e.refused.Count(string(why))
		if why == shim.OK {
			got = e.admitted.Load()
		}
		if got != n {
			problems = append(problems, fmt.Sprintf("%d packets judged %q, want %d", got, why, n))
		}
	}
	for i, got := range legit {
		if got.Load() == 0 {
			problems = append(problems, fmt.Sprintf("%s: no legitimate datagram arrived", victims[i].owner))
		}
	}
	return problems
}

// judged is how many packets of connectors were admitted or refused.
func (e *testEdge) judged() uint64 { return e.admitted.Load() + e.refused.Total() }

// onlyOwn reads v until it is closed and fails at the first byte, or ICMP
// error, of somebody else.
func onlyOwn(v victim, got *atomic.Int64) error {
	b := make([]byte, 2048)
	for {
		n, err := v.conn.Read(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, netx.ErrRefused):
			return fmt.Errorf("an ICMP error of another connector arrived: %w", err)
		case err != nil:
			return err
		}
		for _, c := range b[:n] {
			if c != v.tag {
				return fmt.Errorf("a datagram of another connector arrived: %q", b[:n])
			}
		}
		got.Add(1)
	}
}

// window bounds the packets under way, so that the loopback loses none.
const window = 2048

// send sends n packets as h, every second one legitimate, and returns how the
// edge must have judged them.
func (h *hostile) send(e *testEdge, me victim, others []victim, n int, sent *atomic.Uint64) map[shim.Why]uint64 {
	rng := rand.New(rand.NewPCG(uint64(me.tag), 7))
	kinds := forgeries(me, others)
	counts := make(map[shim.Why]uint64)
	for i := 0; i < n; {
		batch := make([][]byte, 0, 128) // handed over
		for ; i < n && len(batch) < cap(batch); i++ {
			if i%2 == 0 {
				batch = append(batch, h.wrap(e, udp(privateHost, me.local, repeat(me.tag, 1+rng.IntN(64))), nil))
				counts[shim.OK]++
				continue
			}
			kind := kinds[rng.IntN(len(kinds))]
			batch = append(batch, h.wrap(e, kind.make(rng), kind.lie))
			counts[kind.want]++
		}
		sent.Add(uint64(len(batch)))
		h.out <- batch
		for sent.Load() > e.judged()+window {
			time.Sleep(50 * time.Microsecond)
		}
	}
	return counts
}

// wrap puts the shim around an inner packet, then lets lie change it.
func (h *hostile) wrap(e *testEdge, packet []byte, lie func([]byte)) []byte {
	b := make([]byte, shimLen, shimLen+len(packet))
	shim.Put(b, h.overlay, e.Overlay(), len(packet), packet[0]>>4 == 4)
	b = append(b, packet...)
	if lie != nil {
		lie(b)
	}
	return b
}

// TestIsolation is the promise that the whole product stands on.
func TestIsolation(t *testing.T) {
	total := 1_000_000
	if testing.Short() {
		total = 60_000
	}
	for _, problem := range attack(t, total, (*Peer).check) {
		t.Error(problem)
	}
}

// TestIsolationNeedsTheSourceCheck shows that TestIsolation can fail: without
// the check of the inner source it finds what is wrong.
func TestIsolationNeedsTheSourceCheck(t *testing.T) {
	problems := attack(t, 20_000, func(p *Peer, in shim.Inner) shim.Why {
		if !p.tunnel.checker.ours(in.Dst) {
			return WhyForeignDst
		}
		return carried(in, isEchoReply)
	})
	if len(problems) == 0 {
		t.Error("an edge that does not check sources passed")
	}
}
