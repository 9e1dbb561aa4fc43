package shim

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// seeds are packets of every kind that the tables know.
func seeds() [][]byte {
	quote4, quote6 := tcp4(b4, a4, 0), ip6(b6, a6, 6, ports(12))
	return [][]byte{
		nil,
		tcp4(a4, b4, 3),
		ip4(a4, b4, 17, []byte{1, 7, 7, 4, 0, 0, 0, 0}, ports(0)),
		ip4(a4, b4, 17, []byte{1, 131, 7, 4, 10, 0, 0, 1}, ports(0)),
		ip4(a4, b4, 4, nil, quote4),
		fragment4(ip4(a4, b4, 17, nil, ports(0)), 9, 800, true),
		ip6(a6, b6, 6, ports(12)),
		ip6("::ffff:1.2.3.4", b6, 6, ports(12)),
		ip6(a6, b6, 0, join(ext(60), ext(44), frag6(60, 7, 0, true), ext(17), ports(0))),
		ip6(a6, b6, 44, join(frag6(17, 7, 1232, false), ports(3))),
		ip6(a6, b6, 43, join(ext(6), ports(12))),
		icmp4(a4, b4, 3, quote4),
		icmp4(a4, b4, 3, quote4[:28]),
		icmp6(a6, b6, 2, quote6),
		icmp6(a6, b6, 1, ip6(b6, a6, 44, join(frag6(17, 1, 0, true), ports(90)))[:56]),
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range seeds() {
		next := byte(4)
		if len(s) > 0 && s[0]>>4 == 6 {
			next = 41
		}
		f.Add(outer(next, len(s), s))
		f.Add(outer(58, len(s), s))
		f.Add(outer(next, 65496, s))
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, why := Parse(b)
		if why != OK {
			return
		}
		h := header.IPv6(b)
		if len(b) < header.IPv6MinimumSize || header.IPVersion(b) != 6 {
			t.Fatalf("accepted what is no IPv6 header: %x", b)
		}
		inner := p.Inner
		if !p.Shimmed() {
			inner = p.Payload
		}
		if len(inner) == 0 || len(inner) != int(h.PayloadLength()) || !bytes.Equal(inner, b[HeaderLen:HeaderLen+len(inner)]) {
			t.Fatalf("%d bytes inside, declared %d", len(inner), h.PayloadLength())
		}
		if p.Src != addr(h.SourceAddress()) || p.Dst != addr(h.DestinationAddress()) || p.NextHeader != h.NextHeader() {
			t.Fatalf("%+v does not match %v → %v", p, h.SourceAddress(), h.DestinationAddress())
		}
		if !p.Shimmed() {
			return
		}
		// What was parsed can be put again, and then is the same.
		again := make([]byte, HeaderLen+len(inner))
		copy(again[HeaderLen:], inner)
		Put(again, p.Src, p.Dst, len(inner), p.NextHeader == 4)
		q, why := Parse(again)
		if why != OK || q.Src != p.Src || q.Dst != p.Dst || q.NextHeader != p.NextHeader || !bytes.Equal(q.Inner, inner) {
			t.Fatalf("put and parsed again: %+v, %q; was %+v", q, why, p)
		}
	})
}

func FuzzParseInner(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in, why := ParseInner(b)
		if why == OK {
			checkInner(t, b, in)
			q, why := Quoted(in)
			if (why == QuoteNone) == IsICMPError(in) {
				t.Fatalf("IsICMPError is %v, Quoted says %q", IsICMPError(in), why)
			}
			if why == OK {
				checkQuote(t, in, q)
			}
		}
		if quote, why := parse(b, true); why == OK && quote.HeaderLen+len(quote.Payload) > len(b) {
			t.Fatal("a quote grew")
		}
	})
}

// checkInner compares an accepted packet with gVisor's reading of it, which is
// what it will be delivered to.
func checkInner(t *testing.T, b []byte, in Inner) {
	t.Helper()
	if in.HeaderLen+len(in.Payload) != len(b) || !bytes.Equal(in.Payload, b[in.HeaderLen:]) {
		t.Fatalf("header %d and payload %d of %d bytes", in.HeaderLen, len(in.Payload), len(b))
	}
	if in.Src.Is4In6() || in.Dst.Is4In6() || !in.Src.IsValid() || in.Src.IsMulticast() || in.Src.IsLoopback() || in.Src.IsUnspecified() {
		t.Fatalf("source %v, destination %v", in.Src, in.Dst)
	}
	if in.Proto == 4 || in.Proto == 41 {
		t.Fatal("nested")
	}
	if in.Src.Is4() {
		h := header.IPv4(b)
		if !h.IsValid(len(b)) {
			t.Fatalf("gVisor refuses %x", b)
		}
		if int(h.TotalLength()) != len(b) || addr(h.SourceAddress()) != in.Src || addr(h.DestinationAddress()) != in.Dst ||
			h.Protocol() != in.Proto || int(h.HeaderLength()) != in.HeaderLen || h.FragmentOffset() != in.Fragment.Offset ||
			h.More() != in.Fragment.More || in.Fragmented() && uint32(h.ID()) != in.Fragment.ID {
			t.Fatalf("%+v is not what gVisor reads in %x", in, b)
		}
		return
	}
	h := header.IPv6(b)
	if !h.IsValid(len(b)) || int(h.PayloadLength())+40 != len(b) || addr(h.SourceAddress()) != in.Src || addr(h.DestinationAddress()) != in.Dst {
		t.Fatalf("%+v is not what gVisor reads in %x", in, b)
	}
	proto, at, frag, routed := naiveWalk(b)
	if routed || proto != in.Proto || at != in.HeaderLen || frag != in.Fragment {
		t.Fatalf("%+v, naively proto %d at %d, %+v, routed %v", in, proto, at, frag, routed)
	}
}

// naiveWalk follows IPv6 extension headers by recursion over the bytes, with
// no thought of bounds: ParseInner has accepted them.
func naiveWalk(b []byte) (proto byte, at int, frag Fragment, routed bool) {
	var step func(kind byte, at int)
	step = func(kind byte, pos int) {
		proto, at = kind, pos
		if frag.Offset != 0 {
			routed = routed || kind == 43
			return
		}
		switch kind {
		case 43:
			routed = true
		case 44:
			h := header.IPv6Fragment(b[pos:])
			if h.FragmentOffset() != 0 || h.More() {
				frag = Fragment{ID: h.ID(), Offset: h.FragmentOffset() * 8, More: h.More()}
			}
			step(h.NextHeader(), pos+8)
		case 0, 60:
			step(b[pos], pos+8*(1+int(b[pos+1])))
		}
	}
	step(b[6], 40)
	return proto, at, frag, routed
}

func checkQuote(t *testing.T, in, q Inner) {
	t.Helper()
	if q.Src.Is4() != in.Src.Is4() || q.Src.Is4In6() || in.Fragmented() {
		t.Fatalf("quote of %v → %v in a packet from %v", q.Src, q.Dst, in.Src)
	}
	raw := in.Payload[8:]
	if q.HeaderLen+len(q.Payload) > len(raw) || !bytes.Equal(q.Payload, raw[q.HeaderLen:q.HeaderLen+len(q.Payload)]) {
		t.Fatal("the quote's payload is not the packet's bytes")
	}
	if src, dst, ok := q.Ports(); ok {
		if src != binary.BigEndian.Uint16(raw[q.HeaderLen:]) || dst != binary.BigEndian.Uint16(raw[q.HeaderLen+2:]) {
			t.Fatal("ports come from elsewhere")
		}
	}
}

func addr(a tcpip.Address) netip.Addr {
	out, _ := netip.AddrFromSlice(a.AsSlice())
	return out
}
