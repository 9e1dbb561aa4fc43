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
	echoFragment := inner("10.0.0.9", us4, icmp4, make([]byte, 8))
	echoFragment[6] |= 0x20
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
		{"echo request, IPv6", inner("fd00:1::9", us6, protoICMP6, []byte{128, 0, 0, 0, 0, 0, 0, 0}), granted, WhyProtocol},
		{"echo reply", inner("10.0.0.9", us4, icmp4, make([]byte, 8)), granted, shim.OK},
		{"echo reply, IPv6", inner("fd00:1::9", us6, protoICMP6, []byte{129, 0, 0, 0, 0, 0, 0, 0}), granted, shim.OK},
		{"echo reply of the other family's type", inner("fd00:1::9", us6, icmp4, make([]byte, 8)), granted, WhyProtocol},
		{"echo reply from a host that was not granted", inner("10.1.0.9", us4, icmp4, make([]byte, 8)), granted, WhyForeignSource},
		{"echo reply to who is not ours", inner("10.0.0.9", "198.51.100.7", icmp4, make([]byte, 8)), granted, WhyForeignDst},
		{"echo reply in fragments", echoFragment, granted, WhyProtocol},
		{"timestamp reply", inner("10.0.0.9", us4, icmp4, []byte{14, 0, 0, 0, 0, 0, 0, 0}), granted, WhyProtocol},
		{"error about a ping", inner("172.16.0.1", us4, icmp4, icmpError(3, inner(us4, "10.0.0.9", icmp4, []byte{8, 0, 0, 0, 0, 0, 0, 0}))), granted, shim.OK},
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
				why = c.fromConnector(in, tc.routes, nil)
			}
			if why != tc.want {
				t.Errorf("verdict %q, want %q", why, tc.want)
			}
		})
	}
}

// loans is the flows of one connector, local to remote.
type loans map[[2]netip.AddrPort]bool

func (l loans) lends(local, remote netip.AddrPort) bool { return l[[2]netip.AddrPort{local, remote}] }

// A client's address is a destination on the flow of that very connector
// alone.
func TestFromConnectorToClient(t *testing.T) {
	c := checker{sources4: DefaultInnerSources, sources6: InnerSources6}
	routes := newRouteSet([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00:1::/32")})
	const client4, client6, origin4, origin6 = "198.51.100.7", "2001:db8::7", "10.0.0.9", "fd00:1::9"
	flows := loans{
		{netip.MustParseAddrPort("198.51.100.7:40000"), netip.MustParseAddrPort("10.0.0.9:80")}:     true,
		{netip.MustParseAddrPort("[2001:db8::7]:40000"), netip.MustParseAddrPort("[fd00:1::9]:80")}: true,
		// Nothing in the index can be trusted more than the routes.
		{netip.MustParseAddrPort("198.51.100.7:40000"), netip.MustParseAddrPort("10.9.0.9:80")}: true,
	}
	segment := func(src, dst uint16) []byte {
		b := make([]byte, header.TCPMinimumSize)
		header.TCP(b).Encode(&header.TCPFields{SrcPort: src, DstPort: dst, DataOffset: header.TCPMinimumSize})
		return b
	}
	fragment := inner(origin4, client4, protoTCP, append(segment(80, 40000), 1, 2, 3, 4))
	fragment[6] |= 0x20 // more fragments
	tail := inner(origin4, client4, protoTCP, segment(80, 40000))
	tail[7] = 2 // offset
	for _, tc := range []struct {
		name   string
		packet []byte
		flows  lender
		want   shim.Why
	}{
		{"its flow", inner(origin4, client4, protoTCP, segment(80, 40000)), flows, shim.OK},
		{"its flow, IPv6", inner(origin6, client6, protoTCP, segment(80, 40000)), flows, shim.OK},
		{"no flows", inner(origin4, client4, protoTCP, segment(80, 40000)), loans{}, WhyForeignDst},
		{"nobody to ask", inner(origin4, client4, protoTCP, segment(80, 40000)), nil, WhyForeignDst},
		{"another client", inner(origin4, "198.51.100.8", protoTCP, segment(80, 40000)), flows, WhyForeignDst},
		{"another port of the client", inner(origin4, client4, protoTCP, segment(80, 40001)), flows, WhyForeignDst},
		{"another port of the origin", inner(origin4, client4, protoTCP, segment(81, 40000)), flows, WhyForeignDst},
		{"another origin", inner("10.0.0.8", client4, protoTCP, segment(80, 40000)), flows, WhyForeignDst},
		{"an origin outside the routes", inner("10.9.0.9", client4, protoTCP, segment(80, 40000)), flows, WhyForeignSource},
		{"UDP", inner(origin4, client4, protoUDP, segment(80, 40000)), flows, WhyForeignDst},
		{"the first fragment", fragment, flows, WhyForeignDst},
		{"the last fragment", tail, flows, WhyForeignDst},
		{"error about it", inner("172.16.0.1", client4, 1, icmpError(3, inner(client4, origin4, protoTCP, segment(40000, 80)))), flows, shim.OK},
		{"error about another port", inner("172.16.0.1", client4, 1, icmpError(3, inner(client4, origin4, protoTCP, segment(40001, 80)))), flows, WhyForeignDst},
		{"error about another client", inner("172.16.0.1", client4, 1, icmpError(3, inner("198.51.100.8", origin4, protoTCP, segment(40000, 80)))), flows, WhyForeignDst},
		{"error about UDP", inner("172.16.0.1", client4, 1, icmpError(3, inner(client4, origin4, protoUDP, segment(40000, 80)))), flows, WhyForeignDst},
		{"error that quotes nothing", inner("172.16.0.1", client4, 1, icmpError(3, nil)), flows, WhyForeignDst},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, why := shim.ParseInner(tc.packet)
			if why == shim.OK {
				why = c.fromConnector(in, routes, tc.flows)
			}
			if why != tc.want {
				t.Errorf("verdict %q, want %q", why, tc.want)
			}
		})
	}
	b := inner(origin4, client4, protoTCP, segment(80, 40000))
	if n := testing.AllocsPerRun(100, func() {
		in, _ := shim.ParseInner(b)
		c.fromConnector(in, routes, flows)
	}); n > 0 {
		t.Errorf("checking a packet to a client allocates %v times", n)
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
		{"echo request", inner("100.127.0.1", "10.0.0.9", protoICMP4, []byte{8, 0, 0, 0, 0, 0, 0, 0}), shim.OK},
		{"echo request, IPv6", inner("fd77:6172:7266::1", "fd00:1::9", protoICMP6, []byte{128, 0, 0, 0, 0, 0, 0, 0}), shim.OK},
		{"echo request to loopback", inner("100.127.0.1", "127.0.0.1", protoICMP4, []byte{8, 0, 0, 0, 0, 0, 0, 0}), WhyForeignDst},
		{"echo reply", inner("fd77:6172:7266::1", "fd00:1::9", protoICMP6, []byte{129, 0, 0, 0, 0, 0, 0, 0}), WhyProtocol},
		{"neighbour solicitation", inner("fd77:6172:7266::1", "fd00:1::9", protoICMP6, []byte{135, 0, 0, 0, 0, 0, 0, 0}), WhyProtocol},
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
		c.fromConnector(in, routes, nil)
	}); n > 0 {
		t.Errorf("checking a packet allocates %v times", n)
	}
}
