package shim

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// ip4 returns an IPv4 packet; opts is padded to words.
func ip4(src, dst string, proto byte, opts, payload []byte) []byte {
	for len(opts)%4 != 0 {
		opts = append(opts, 0)
	}
	h := make([]byte, 20, 20+len(opts)+len(payload))
	h[0] = 0x40 | byte((20+len(opts))/4)
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(opts)+len(payload)))
	h[8], h[9] = 64, proto
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(h[12:], s[:])
	copy(h[16:], d[:])
	return append(append(h, opts...), payload...)
}

// ip6 returns an IPv6 packet whose first next header is next.
func ip6(src, dst string, next byte, payload []byte) []byte {
	h := make([]byte, 40, 40+len(payload))
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h[6], h[7] = next, 64
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(h[8:], s[:])
	copy(h[24:], d[:])
	return append(h, payload...)
}

// ports is a transport header: 1000 → 443 and n bytes more.
func ports(n int) []byte {
	return append([]byte{0x03, 0xe8, 0x01, 0xbb, 0, 0, 0, 0}, make([]byte, n)...)
}

func tcp4(src, dst string, n int) []byte { return ip4(src, dst, 6, nil, ports(12+n)) }

// fragment4 sets the id, offset (bytes) and more-fragments flag of an IPv4 packet.
func fragment4(b []byte, id uint16, offset int, more bool) []byte {
	field := uint16(offset / 8)
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], field)
	return b
}

// ext is an 8-byte IPv6 extension header; frag6 a fragment header.
func ext(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

func frag6(next byte, id uint32, offset int, more bool) []byte {
	field := uint16(offset)
	if more {
		field |= 1
	}
	b := []byte{next, 0xaa, 0, 0, 0, 0, 0, 0} // the second byte is reserved, not a length
	binary.BigEndian.PutUint16(b[2:], field)
	binary.BigEndian.PutUint32(b[4:], id)
	return b
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// set returns b with one byte changed.
func set(b []byte, at int, v byte) []byte {
	b[at] = v
	return b
}

const (
	a4, b4 = "10.1.2.3", "100.127.0.7"
	a6, b6 = "2001:db8::1", "fd00::7"
)

func TestParseInnerAccepts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		b      []byte
		proto  byte
		frag   Fragment
		header int
		ports  bool
	}{
		{"IPv4 TCP", tcp4(a4, b4, 3), 6, Fragment{}, 20, true},
		{"IPv4 UDP", ip4(a4, b4, 17, nil, ports(0)), 17, Fragment{}, 20, true},
		{"IPv4 ICMP", ip4(a4, b4, 1, nil, ports(0)), 1, Fragment{}, 20, false},
		{"IPv4 without payload", ip4(a4, b4, 17, nil, nil), 17, Fragment{}, 20, false},
		{"IPv4 with a record route option", ip4(a4, b4, 17, []byte{1, 7, 7, 4, 0, 0, 0, 0}, ports(0)), 17, Fragment{}, 28, true},
		{"IPv4 with options ended early", ip4(a4, b4, 17, []byte{0, 131, 3, 4}, ports(0)), 17, Fragment{}, 24, true},
		{"IPv4 DF", set(ip4(a4, b4, 17, nil, ports(0)), 6, 0x40), 17, Fragment{}, 20, true},
		{"IPv4 first fragment", fragment4(ip4(a4, b4, 17, nil, ports(0)), 9, 0, true), 17, Fragment{9, 0, true}, 20, true},
		{"IPv4 middle fragment", fragment4(ip4(a4, b4, 17, nil, ports(0)), 9, 800, true), 17, Fragment{9, 800, true}, 20, false},
		{"IPv4 last fragment", fragment4(ip4(a4, b4, 17, nil, ports(5)), 9, 65496, false), 17, Fragment{9, 65496, false}, 20, false},
		{"IPv4 class E source", tcp4("240.1.2.3", b4, 0), 6, Fragment{}, 20, true},
		{"IPv6 TCP", ip6(a6, b6, 6, ports(12)), 6, Fragment{}, 40, true},
		{"IPv6 link-local source", ip6("fe80::1", b6, 17, ports(0)), 17, Fragment{}, 40, true},
		{"IPv6 hop-by-hop and destination options", ip6(a6, b6, 0, join(ext(60), ext(17), ports(0))), 17, Fragment{}, 56, true},
		{"IPv6 atomic fragment", ip6(a6, b6, 44, join(frag6(17, 7, 0, false), ports(0))), 17, Fragment{}, 48, true},
		{"IPv6 first fragment", ip6(a6, b6, 44, join(frag6(17, 0x01020304, 0, true), ports(0))), 17, Fragment{0x01020304, 0, true}, 48, true},
		{"IPv6 later fragment", ip6(a6, b6, 44, join(frag6(17, 7, 1232, false), ports(3))), 17, Fragment{7, 1232, false}, 48, false},
		{"IPv6 later fragment of an options chain", ip6(a6, b6, 44, join(frag6(60, 7, 1232, false), ports(3))), 60, Fragment{7, 1232, false}, 48, false},
		{"IPv6 fragment with options on both sides", ip6(a6, b6, 0, join(ext(60), ext(44), frag6(60, 7, 0, true), ext(17), ports(0))), 17, Fragment{7, 0, true}, 72, true},
		{"IPv6 no next header", ip6(a6, b6, 59, ports(0)), 59, Fragment{}, 40, false},
		{"IPv6 six extension headers", ip6(a6, b6, 60, join(ext(60), ext(60), ext(60), ext(60), ext(60), ext(17), ports(0))), 17, Fragment{}, 88, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in, why := ParseInner(tt.b)
			if why != OK {
				t.Fatalf("refused: %q", why)
			}
			if in.Proto != tt.proto || in.Fragment != tt.frag || in.HeaderLen != tt.header {
				t.Errorf("proto %d fragment %+v header %d, want %d %+v %d", in.Proto, in.Fragment, in.HeaderLen, tt.proto, tt.frag, tt.header)
			}
			if !bytes.Equal(in.Payload, tt.b[tt.header:]) {
				t.Errorf("payload %x", in.Payload)
			}
			if in.Fragmented() != (tt.frag != Fragment{}) {
				t.Errorf("Fragmented is %v", in.Fragmented())
			}
			src, dst, ok := in.Ports()
			if ok != tt.ports || ok && (src != 1000 || dst != 443) {
				t.Errorf("ports %d %d %v", src, dst, ok)
			}
		})
	}
}

func TestParseInnerRefuses(t *testing.T) {
	good4 := func() []byte { return tcp4(a4, b4, 4) }
	for _, tt := range []struct {
		name string
		b    []byte
		why  Why
	}{
		{"nothing", nil, InnerShort},
		{"version 5", set(good4(), 0, 0x55), InnerVersion},
		{"IPv4 cut in its header", good4()[:19], InnerShort},
		{"IPv4 IHL 4", set(good4(), 0, 0x44), InnerHeaderLength},
		{"IPv4 IHL beyond the packet", set(ip4(a4, b4, 17, nil, nil), 0, 0x46), InnerHeaderLength},
		{"IPv4 IHL that lies over payload as options", set(ip4(a4, b4, 17, nil, []byte{131, 7, 4, 1}), 0, 0x46), InnerSourceRoute},
		{"IPv4 total length too small", set(good4(), 3, 43), InnerLength},
		{"IPv4 total length too large", set(good4(), 3, 45), InnerLength},
		{"IPv4 total length 0", set(good4(), 3, 0), InnerLength},
		{"IPv4 loose source route", ip4(a4, b4, 17, []byte{1, 131, 7, 4, 10, 0, 0, 1}, ports(0)), InnerSourceRoute},
		{"IPv4 strict source route", ip4(a4, b4, 17, []byte{137, 7, 4, 10, 0, 0, 1, 0}, ports(0)), InnerSourceRoute},
		{"IPv4 option of length 0", ip4(a4, b4, 17, []byte{7, 0, 0, 0}, ports(0)), InnerOptions},
		{"IPv4 option of length 1", ip4(a4, b4, 17, []byte{7, 1, 0, 0}, ports(0)), InnerOptions},
		{"IPv4 option beyond the header", ip4(a4, b4, 17, []byte{7, 5, 0, 0}, ports(0)), InnerOptions},
		{"IPv4 option without a length", ip4(a4, b4, 17, []byte{1, 1, 1, 7}, ports(0)), InnerOptions},
		{"IPv4 fragment without bytes", fragment4(ip4(a4, b4, 17, nil, nil), 1, 8, false), InnerFragment},
		{"IPv4 fragment of 9 bytes with more to come", fragment4(ip4(a4, b4, 17, nil, make([]byte, 9)), 1, 8, true), InnerFragment},
		{"IPv4 fragment beyond 65,535", fragment4(ip4(a4, b4, 17, nil, make([]byte, 20)), 1, 65496, false), InnerFragment},
		{"IPv4 in IPv4", ip4(a4, b4, 4, nil, good4()), InnerNested},
		{"IPv6 in IPv4", ip4(a4, b4, 41, nil, good4()), InnerNested},
		{"IPv4 in IPv4, later fragment", fragment4(ip4(a4, b4, 4, nil, good4()), 1, 80, false), InnerNested},
		{"IPv4 multicast source", tcp4("224.0.0.1", b4, 0), InnerSource},
		{"IPv4 unspecified source", tcp4("0.0.0.0", b4, 0), InnerSource},
		{"IPv4 this-network source", tcp4("0.1.2.3", b4, 0), InnerSource},
		{"IPv4 loopback source", tcp4("127.9.9.9", b4, 0), InnerSource},
		{"IPv4 broadcast source", tcp4("255.255.255.255", b4, 0), InnerSource},
		{"IPv6 cut in its header", ip6(a6, b6, 6, nil)[:39], InnerShort},
		{"IPv6 payload length 0", ip6(a6, b6, 6, nil), InnerLength},
		{"IPv6 payload length too large", set(ip6(a6, b6, 6, ports(0)), 5, 9), InnerLength},
		{"IPv6 payload length too small", set(ip6(a6, b6, 6, ports(0)), 5, 7), InnerLength},
		{"IPv6 source is IPv4-mapped", ip6("::ffff:10.1.2.3", b6, 6, ports(12)), InnerMappedAddress},
		{"IPv6 destination is IPv4-mapped", ip6(a6, "::ffff:10.1.2.3", 6, ports(12)), InnerMappedAddress},
		{"IPv6 multicast source", ip6("ff02::1", b6, 6, ports(12)), InnerSource},
		{"IPv6 unspecified source", ip6("::", b6, 6, ports(12)), InnerSource},
		{"IPv6 loopback source", ip6("::1", b6, 6, ports(12)), InnerSource},
		{"IPv6 routing header", ip6(a6, b6, 43, join(ext(6), ports(12))), InnerSourceRoute},
		{"IPv6 routing header behind options", ip6(a6, b6, 60, join(ext(43), ext(6), ports(12))), InnerSourceRoute},
		{"IPv6 routing header behind a fragment header", ip6(a6, b6, 44, join(frag6(43, 1, 0, true), ext(6), ports(0))), InnerSourceRoute},
		{"IPv6 later fragment that claims a routing header", ip6(a6, b6, 44, join(frag6(43, 1, 8, false), ports(0))), InnerSourceRoute},
		{"IPv6 hop-by-hop not first", ip6(a6, b6, 60, join(ext(0), ext(6), ports(12))), InnerExtension},
		{"IPv6 two fragment headers", ip6(a6, b6, 44, join(frag6(44, 1, 0, true), frag6(6, 1, 0, true), ports(0))), InnerExtension},
		{"IPv6 seven extension headers", ip6(a6, b6, 60, join(ext(60), ext(60), ext(60), ext(60), ext(60), ext(60), ext(17), ports(0))), InnerExtension},
		{"IPv6 extension header cut", ip6(a6, b6, 60, ext(6)[:7]), InnerShort},
		{"IPv6 extension header longer than the packet", ip6(a6, b6, 60, set(ext(6), 1, 1)), InnerShort},
		{"IPv6 in IPv6", ip6(a6, b6, 41, ip6(a6, b6, 6, ports(12))), InnerNested},
		{"IPv4 in IPv6 behind options", ip6(a6, b6, 60, join(ext(4), good4())), InnerNested},
		{"IPv4 in IPv6, later fragment", ip6(a6, b6, 44, join(frag6(4, 1, 80, false), good4())), InnerNested},
		{"IPv6 fragment without bytes", ip6(a6, b6, 44, frag6(17, 1, 8, false)), InnerFragment},
		{"IPv6 fragment of 9 bytes with more to come", ip6(a6, b6, 44, join(frag6(17, 1, 8, true), make([]byte, 9))), InnerFragment},
		{"IPv6 fragment beyond 65,535", ip6(a6, b6, 44, join(frag6(17, 1, 65528, false), make([]byte, 8))), InnerFragment},
		{"IPv6 first fragment that hides its transport", ip6(a6, b6, 44, join(frag6(60, 1, 0, true), ext(58))), InnerFragment},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if in, why := ParseInner(tt.b); why != tt.why {
				t.Errorf("why %q, want %q (%+v)", why, tt.why, in)
			}
		})
	}
}

func TestParseInnerReturnsTheAddresses(t *testing.T) {
	in, why := ParseInner(tcp4(a4, b4, 0))
	if why != OK || in.Src != netip.MustParseAddr(a4) || in.Dst != netip.MustParseAddr(b4) || !in.Src.Is4() {
		t.Errorf("got %v → %v, %q", in.Src, in.Dst, why)
	}
	in, why = ParseInner(ip6(a6, b6, 6, ports(12)))
	if why != OK || in.Src != netip.MustParseAddr(a6) || in.Dst != netip.MustParseAddr(b6) {
		t.Errorf("got %v → %v, %q", in.Src, in.Dst, why)
	}
}
