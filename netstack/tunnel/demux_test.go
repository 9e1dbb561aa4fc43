package tunnel

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warrenmesh/warren/netstack/shim"
)

// inner makes one inner packet of protocol with a transport of 8 bytes or
// more.
func inner(src, dst string, protocol byte, transport []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if s.Is4() {
		b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(transport))
		h := header.IPv4(b)
		h.Encode(&header.IPv4Fields{
			TotalLength: uint16(len(b) + len(transport)), TTL: 64, Protocol: protocol,
			SrcAddr: tcpip.AddrFrom4(s.As4()), DstAddr: tcpip.AddrFrom4(d.As4()),
		})
		h.SetChecksum(^h.CalculateChecksum())
		return append(b, transport...)
	}
	b := make([]byte, header.IPv6MinimumSize, header.IPv6MinimumSize+len(transport))
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength: uint16(len(transport)), HopLimit: 64,
		TransportProtocol: tcpip.TransportProtocolNumber(protocol),
		SrcAddr:           tcpip.AddrFrom16(s.As16()), DstAddr: tcpip.AddrFrom16(d.As16()),
	})
	return append(b, transport...)
}

// icmpError makes the transport of an ICMP error that quotes quoted.
func icmpError(kind byte, quoted []byte) []byte {
	return append([]byte{kind, 1, 0, 0, 0, 0, 0, 0}, quoted...)
}

func TestFromConnector(t *testing.T) {
	c := checker{sources4: DefaultInnerSources, sources6: InnerSources6}
	granted := newRouteSet([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00:1::/32")})
	all := newRouteSet([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")})
	const (
		us4, us6 = "100.127.0.1", "fd77:6172:7266::1"
		icmp4    = byte(header.ICMPv4ProtocolNumber)
	)
	tcp := make([]byte, 20)
	sent := inner(us4, "10.0.0.9", protoTCP, tcp)
	fragment := inner("10.0.0.9", us4, icmp4, icmpError(3, sent))
	fragment[6] |= 0x20 // more fragments
	for _, tc := range []struct {
		name   string
		packet []byte
		routes *routeSet
		want   shim.Why
	}{
		{"granted", inner("10.0.0.9", us4, protoTCP, tcp), granted, shim.OK},
		{"granted, IPv6", inner("fd00:1::9", us6, protoUDP, tcp), granted, shim.OK},
		{"granted by the default route", inner("192.0.2.1", us4, protoTCP, tcp), all, shim.OK},
		{"route not granted", inner("10.1.0.9", us4, protoTCP, tcp), granted, WhyForeignSource},
		{"route not granted, IPv6", inner("fd00:2::9", us6, protoTCP, tcp), granted, WhyForeignSource},
		{"destination is not ours", inner("10.0.0.9", "10.0.0.10", protoTCP, tcp), granted, WhyForeignDst},
		{"destination is the overlay", inner("fd00:1::9", "fd77:6172:7265::1", protoTCP, tcp), granted, WhyForeignDst},
		{"source is an inner source", inner("100.127.0.7", us4, protoTCP, tcp), all, WhyReserved},
		{"source is an inner source, IPv6", inner("fd77:6172:7266::7", us6, protoTCP, tcp), all, WhyReserved},
		{"source is the overlay's", inner("fd77:6172:7265::7", us6, protoTCP, tcp), all, WhyReserved},
		{"loopback", inner("127.0.0.1", us4, protoTCP, tcp), all, shim.InnerSource},
		{"loopback, IPv6", inner("::1", us6, protoTCP, tcp), all, shim.InnerSource},
		{"multicast", inner("224.0.0.1", us4, protoUDP, tcp), all, shim.InnerSource},
		{"unspecified", inner("0.0.0.0", us4, protoUDP, tcp), all, shim.InnerSource},
		{"IPv4-mapped", inner("::ffff:10.0.0.9", us6, protoUDP, tcp), all, shim.InnerMappedAddress},
		{"nested", inner("10.0.0.9", us4, 41, inner("fd00:1::9", us6, protoTCP, tcp)), granted, shim.InnerNested},
		{"another protocol", inner("10.0.0.9", us4, 132, tcp), granted, WhyProtocol},
		{"echo request", inner("10.0.0.9", us4, icmp4, []byte{8, 0, 0, 0, 0, 0, 0, 0}), granted, WhyProtocol},
		{"error from a router", inner("172.16.0.1", us4, icmp4, icmpError(3, sent)), granted, shim.OK},
		{"error about a foreign flow", inner("10.0.0.9", us4, icmp4, icmpError(3, inner(us4, "10.1.0.9", protoTCP, tcp))), granted, WhyForeignQuote},
		{"error about another source's flow", inner("10.0.0.9", us4, icmp4, icmpError(3, inner("100.127.0.2", "10.0.0.9", protoTCP, tcp))), granted, WhyForeignQuote},
		{"error that quotes nothing", inner("10.0.0.9", us4, icmp4, icmpError(3, nil)), granted, shim.QuoteShort},
		{"error in fragments", fragment, granted, WhyProtocol},
		{"error from the overlay", inner("fd77:6172:7265::7", us6, protoICMP6, icmpError(1, inner(us6, "fd00:1::9", protoTCP, tcp))), granted, WhyReserved},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, why := shim.ParseInner(tc.packet)
			if why == shim.OK {
				why = c.fromConnector(in, tc.routes)
			}
			if why != tc.want {
				t.Errorf("verdict %q, want %q", why, tc.want)
			}
		})
	}
}

func TestFromEdge(t *testing.T) {
	c := checker{sources4: DefaultInnerSources, sources6: InnerSources6}
	tcp := make([]byte, 20)
	for _, tc := range []struct {
		name   string
		packet []byte
		want   shim.Why
	}{
		{"flow", inner("100.127.0.1", "10.0.0.9", protoTCP, tcp), shim.OK},
		{"the client's own address as source", inner("198.51.100.7", "10.0.0.9", protoTCP, tcp), shim.OK},
		{"to loopback", inner("100.127.0.1", "127.0.0.1", protoTCP, tcp), WhyForeignDst},
		{"to multicast", inner("100.127.0.1", "239.1.1.1", protoUDP, tcp), WhyForeignDst},
		{"to an inner source", inner("100.127.0.1", "100.127.0.2", protoUDP, tcp), WhyForeignDst},
		{"to the overlay", inner("fd77:6172:7266::1", "fd77:6172:7265::1", protoTCP, tcp), WhyForeignDst},
		{"from the overlay", inner("fd77:6172:7265::1", "fd00:1::9", protoTCP, tcp), WhyReserved},
		{"echo request", inner("fd77:6172:7266::1", "fd00:1::9", protoICMP6, []byte{128, 0, 0, 0, 0, 0, 0, 0}), WhyProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, why := shim.ParseInner(tc.packet)
			if why == shim.OK {
				why = c.fromEdge(in)
			}
			if why != tc.want {
				t.Errorf("verdict %q, want %q", why, tc.want)
			}
		})
	}
}

func TestCheckDoesNotAllocate(t *testing.T) {
	c := checker{sources4: DefaultInnerSources, sources6: InnerSources6}
	routes := newRouteSet([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")})
	b := inner("10.0.0.9", "100.127.0.1", protoTCP, make([]byte, 1000))
	if n := testing.AllocsPerRun(100, func() {
		in, _ := shim.ParseInner(b)
		c.fromConnector(in, routes)
	}); n > 0 {
		t.Errorf("checking a packet allocates %v times", n)
	}
}
