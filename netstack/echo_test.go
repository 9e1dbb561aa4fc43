package netstack

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

func echoSamples() []echo {
	return []echo{
		{src: source4, dst: host4, id: 7, seq: 9, data: []byte("0123456789abcdef")},
		{src: host4, dst: source4, reply: true, id: 65535},
		{src: source6, dst: host6, seq: 65535, data: []byte("odd")},
		{src: host6, dst: source6, reply: true, id: 1, seq: 2, data: make([]byte, 1300)},
	}
}

func sameEcho(a, b echo) bool {
	return a.src == b.src && a.dst == b.dst && a.reply == b.reply && a.id == b.id && a.seq == b.seq && bytes.Equal(a.data, b.data)
}

func TestEchoRoundTrip(t *testing.T) {
	for _, want := range echoSamples() {
		b := want.packet()
		got, why := parseEcho(b)
		if why != "" || !sameEcho(got, want) {
			t.Errorf("%v came out as %v (%s)", want, got, why)
		}
		if !isEcho(b) {
			t.Errorf("%v does not look like an echo", want)
		}
		for n := range b {
			isEcho(b[:n])
			if _, why := parseEcho(b[:n]); why == "" {
				t.Errorf("the first %d of %d bytes were taken", n, len(b))
			}
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 1 << (i % 8)
			if e, why := parseEcho(bad); why == "" && want.src.Is4() {
				t.Errorf("a packet with bit %d of byte %d wrong was taken: %v", i%8, i, e)
			}
		}
		if e, why := parseEcho(append(bytes.Clone(b), "padding"...)); why != "" || !sameEcho(e, want) {
			t.Errorf("padding behind the packet: %s", why)
		}
	}
}

func TestParseEchoRefuses(t *testing.T) {
	change := func(e echo, f func(b []byte)) []byte { b := e.packet(); f(b); return b }
	all := echoSamples()
	for _, tc := range []struct {
		name string
		b    []byte
	}{
		{"nothing", nil},
		{"a fragment", change(all[0], func(b []byte) { b[6] |= 0x20; fixIPv4(b) })},
		{"options beyond the packet", change(all[1], func(b []byte) { b[0] = 0x4f })},
		{"another protocol", change(all[0], func(b []byte) { b[9] = protoUDP; fixIPv4(b) })},
		{"another protocol, IPv6", change(all[2], func(b []byte) { b[6] = protoUDP })},
		{"from loopback", (&echo{src: netip.MustParseAddr("127.0.0.1"), dst: host4}).packet()},
		{"to multicast", (&echo{src: source6, dst: netip.MustParseAddr("ff02::1")}).packet()},
		{"from an IPv4-mapped address", (&echo{src: netip.MustParseAddr("::ffff:10.0.0.1"), dst: host6}).packet()},
		{"from broadcast", (&echo{src: broadcast4, dst: host4}).packet()},
	} {
		if e, why := parseEcho(tc.b); why == "" {
			t.Errorf("%s: taken as %v", tc.name, e)
		}
	}
}

func fixIPv4(b []byte) {
	b[10], b[11] = 0, 0
	s := ^sum(b[:ip4HeaderLen])
	b[10], b[11] = byte(s>>8), byte(s)
}

// FuzzParseEcho holds the parser against golang.org/x/net/icmp, which is given
// what the lengths say, and the builder against the parser.
func FuzzParseEcho(f *testing.F) {
	for _, e := range echoSamples() {
		f.Add(e.packet())
	}
	f.Add(unreachablePacket(quoteEcho((&echo{src: source4, dst: host4}).packet()), nil))
	f.Add(unreachablePacket(quoteEcho((&echo{src: source6, dst: host6}).packet()), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		looks := isEcho(b)
		_, _ = parseAnyICMP(b)
		e, why := parseEcho(b)
		if !bytes.Equal(before, b) {
			t.Fatal("the packet was changed")
		}
		if why != "" {
			if !sameEcho(e, echo{}) {
				t.Fatalf("refused (%s) and returned %v", why, e)
			}
			return
		}
		if !looks {
			t.Fatalf("%v is an echo that does not look like one", e)
		}
		proto, msg := protoICMPv6, b[min(ip6HeaderLen, len(b)):]
		if e.src.Is4() {
			h, err := ipv4.ParseHeader(b)
			if err != nil || h.TotalLen > len(b) || h.Src.String() != e.src.String() || h.Dst.String() != e.dst.String() {
				t.Fatalf("%v: the header is %v, %v", e, h, err)
			}
			proto, msg = protoICMPv4, b[h.Len:h.TotalLen]
		} else {
			h, err := ipv6.ParseHeader(b)
			if err != nil || h.PayloadLen > len(msg) || h.Src.String() != e.src.String() || h.Dst.String() != e.dst.String() {
				t.Fatalf("%v: the header is %v, %v", e, h, err)
			}
			msg = msg[:h.PayloadLen]
		}
		m, err := icmp.ParseMessage(proto, msg)
		if err != nil {
			t.Fatal(err)
		}
		body, ok := m.Body.(*icmp.Echo)
		reply := m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply
		if !ok || m.Code != 0 || uint16(body.ID) != e.id || uint16(body.Seq) != e.seq || !bytes.Equal(body.Data, e.data) || reply != e.reply {
			t.Fatalf("%v is %v with %v to golang.org/x/net/icmp", e, m, m.Body)
		}
		if again, why := parseEcho(e.packet()); why != "" || !sameEcho(again, e) {
			t.Fatalf("%v, built anew, is %v (%s)", e, again, why)
		}
	})
}
