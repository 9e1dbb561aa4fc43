package shim

import (
	"net/netip"
	"testing"
)

func icmp4(src, dst string, kind byte, quote []byte) []byte {
	return ip4(src, dst, 1, nil, append([]byte{kind, 1, 0, 0, 0, 0, 0, 0}, quote...))
}

func icmp6(src, dst string, kind byte, quote []byte) []byte {
	return ip6(src, dst, 58, append([]byte{kind, 0, 0, 0, 0, 0, 5, 0}, quote...))
}

func TestIsICMPError(t *testing.T) {
	quote4, quote6 := tcp4(b4, a4, 0), ip6(b6, a6, 6, ports(12))
	for _, tt := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"IPv4 unreachable", icmp4(a4, b4, 3, quote4), true},
		{"IPv4 quench", icmp4(a4, b4, 4, quote4), true},
		{"IPv4 redirect", icmp4(a4, b4, 5, quote4), true},
		{"IPv4 time exceeded", icmp4(a4, b4, 11, quote4), true},
		{"IPv4 parameter problem", icmp4(a4, b4, 12, quote4), true},
		{"IPv4 echo", icmp4(a4, b4, 8, nil), false},
		{"IPv4 echo reply", icmp4(a4, b4, 0, nil), false},
		{"IPv4 timestamp", icmp4(a4, b4, 13, nil), false},
		{"IPv4 without payload", ip4(a4, b4, 1, nil, nil), false},
		{"IPv4 UDP", ip4(a4, b4, 17, nil, ports(0)), false},
		{"IPv4 that claims ICMPv6", ip4(a4, b4, 58, nil, []byte{1, 0, 0, 0, 0, 0, 0, 0}), false},
		{"IPv4 first fragment", fragment4(icmp4(a4, b4, 3, nil), 1, 0, true), true},
		{"IPv4 later fragment", fragment4(icmp4(a4, b4, 3, nil), 1, 8, true), false},
		{"IPv6 unreachable", icmp6(a6, b6, 1, quote6), true},
		{"IPv6 packet too big", icmp6(a6, b6, 2, quote6), true},
		{"IPv6 error of an unknown type", icmp6(a6, b6, 127, quote6), true},
		{"IPv6 echo", icmp6(a6, b6, 128, nil), false},
		{"IPv6 that claims ICMPv4", ip6(a6, b6, 1, []byte{3, 1, 0, 0, 0, 0, 0, 0}), false},
		{"IPv6 behind options", ip6(a6, b6, 60, join(ext(58), []byte{1, 0, 0, 0, 0, 0, 0, 0}, quote6)), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in, why := ParseInner(tt.b)
			if why != OK {
				t.Fatalf("refused: %q", why)
			}
			if got := IsICMPError(in); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestQuoted(t *testing.T) {
	big := set(tcp4(b4, a4, 1000), 2, 0x05) // declares 1,280 bytes and more than it holds
	for _, tt := range []struct {
		name  string
		b     []byte
		why   Why
		ports bool
	}{
		{"IPv4 whole packet", icmp4(a4, b4, 3, tcp4(b4, a4, 0)), OK, true},
		{"IPv4 header and 8 bytes", icmp4(a4, b4, 3, tcp4(b4, a4, 900)[:28]), OK, true},
		{"IPv4 header and 8 bytes behind options", icmp4(a4, b4, 3, ip4(b4, a4, 17, []byte{1, 1, 1, 1}, ports(500))[:32]), OK, true},
		{"IPv4 declares more than the packet had", icmp4(a4, b4, 3, big), OK, true},
		{"IPv4 with RFC 4884 padding", icmp4(a4, b4, 3, append(tcp4(b4, a4, 0), make([]byte, 128)...)), OK, true},
		{"IPv4 quotes an echo", icmp4(a4, b4, 11, icmp4(b4, a4, 8, nil)), OK, false},
		{"IPv4 quotes a later fragment", icmp4(a4, b4, 11, fragment4(ip4(b4, a4, 17, nil, ports(0)), 1, 80, false)), OK, false},
		{"IPv4 quotes a first fragment", icmp4(a4, b4, 11, fragment4(ip4(b4, a4, 17, nil, ports(0)), 1, 0, true)), OK, true},
		{"IPv4 7 bytes behind the header", icmp4(a4, b4, 3, tcp4(b4, a4, 900)[:27]), QuoteShort, false},
		{"IPv4 cut in its header", icmp4(a4, b4, 3, tcp4(b4, a4, 900)[:19]), QuoteShort, false},
		{"IPv4 nothing", icmp4(a4, b4, 3, nil), QuoteShort, false},
		{"IPv4 ICMP header cut", ip4(a4, b4, 1, nil, []byte{3, 1, 0, 0}), QuoteShort, false},
		{"IPv4 quotes a version 7", icmp4(a4, b4, 3, set(tcp4(b4, a4, 0), 0, 0x75)), QuoteMalformed, false},
		{"IPv4 quotes IHL beyond the quote", icmp4(a4, b4, 3, set(ip4(b4, a4, 6, nil, ports(0)), 0, 0x4f)), QuoteMalformed, false},
		{"IPv4 quotes a total length inside the header", icmp4(a4, b4, 3, set(tcp4(b4, a4, 0), 3, 19)), QuoteMalformed, false},
		{"IPv4 quotes IPv6", icmp4(a4, b4, 3, ip6(b6, a6, 6, ports(12))), QuoteMalformed, false},
		{"IPv4 quotes a tunnel packet", icmp4(a4, b4, 3, ip4(b4, a4, 4, nil, tcp4(b4, a4, 0))), QuoteMalformed, false},
		{"IPv4 error in fragments", fragment4(icmp4(a4, b4, 3, tcp4(b4, a4, 0)), 1, 0, true), QuoteFragmented, false},
		{"IPv4 no error", icmp4(a4, b4, 8, tcp4(b4, a4, 0)), QuoteNone, false},
		{"IPv6 whole packet", icmp6(a6, b6, 1, ip6(b6, a6, 17, ports(30))), OK, true},
		{"IPv6 header and 8 bytes", icmp6(a6, b6, 2, ip6(b6, a6, 6, ports(900))[:48]), OK, true},
		{"IPv6 quote behind a fragment header", icmp6(a6, b6, 1, ip6(b6, a6, 44, join(frag6(17, 1, 0, true), ports(900)))[:56]), OK, true},
		{"IPv6 cut in an extension header", icmp6(a6, b6, 1, ip6(b6, a6, 44, join(frag6(17, 1, 0, true), ports(900)))[:44]), QuoteShort, false},
		{"IPv6 7 bytes behind the header", icmp6(a6, b6, 1, ip6(b6, a6, 17, ports(30))[:47]), QuoteShort, false},
		{"IPv6 quotes IPv4", icmp6(a6, b6, 1, tcp4(b4, a4, 0)), QuoteMalformed, false},
		{"IPv6 quotes mapped addresses", icmp6(a6, b6, 1, ip6("::ffff:1.2.3.4", a6, 17, ports(30))), QuoteMalformed, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in, why := ParseInner(tt.b)
			if why != OK {
				t.Fatalf("the error itself is refused: %q", why)
			}
			q, why := Quoted(in)
			if why != tt.why {
				t.Fatalf("why %q, want %q", why, tt.why)
			}
			if why != OK {
				return
			}
			src, dst := netip.MustParseAddr(b4), netip.MustParseAddr(a4)
			if in.Src.Is6() {
				src, dst = netip.MustParseAddr(b6), netip.MustParseAddr(a6)
			}
			if q.Src != src || q.Dst != dst {
				t.Errorf("quotes %v → %v, want %v → %v", q.Src, q.Dst, src, dst)
			}
			from, to, ok := q.Ports()
			if ok != tt.ports || ok && (from != 1000 || to != 443) {
				t.Errorf("ports %d %d %v", from, to, ok)
			}
		})
	}
}
