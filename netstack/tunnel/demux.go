package tunnel

import (
	"net/netip"

	"github.com/gaissmai/bart"

	"github.com/warrenmesh/warren/netstack/shim"
)

// Why an inner packet was refused, besides shim's reasons. They are the
// values of warren_drops_total{where="tunnel"}.
const (
	WhyUnknownPeer   shim.Why = "unknown_peer"    // no such overlay address (the peer was just removed)
	WhyNotForUs      shim.Why = "not_for_us"      // outer destination is not this end's overlay address
	WhyOverlay       shim.Why = "overlay_service" // a plain overlay packet that is neither an echo nor TCP for a port that the peer may reach
	WhyOverlayRate   shim.Why = "overlay_rate"    // TCP of the overlay beyond the peer's pace
	WhyGuest         shim.Why = "guest"           // a shimmed packet of a guest, which is in no network
	WhyForeignSource shim.Why = "foreign_source"  // inner source outside the peer's routes
	WhyReserved      shim.Why = "reserved_source" // inner source is the overlay's, an inner source, or not a host's
	WhyForeignDst    shim.Why = "foreign_destination"
	WhyForeignQuote  shim.Why = "foreign_quote" // ICMP error about a packet that we never sent that way
	WhyProtocol      shim.Why = "protocol"      // neither TCP, UDP nor a wanted ICMP message
)

// IANA protocol numbers, and the length of an IPv6 header without extensions.
const (
	protoTCP      = 6
	protoUDP      = 17
	protoICMP4    = 1
	protoICMP6    = 58
	protoIPv4     = 4
	protoIPv6     = 41
	ipv6HeaderLen = 40
)

// OverlayPrefix holds the overlay address of every peer and edge there can be.
var OverlayPrefix = netip.MustParsePrefix("fd77:6172:7265::/48")

// InnerSources6 is the block of inner sources for IPv6 (RFC 4193 space next to
// the overlay's). Each network has it for itself, as it has InnerSources.
var InnerSources6 = netip.MustParsePrefix("fd77:6172:7266::/64")

// DefaultInnerSources is the block of inner sources for IPv4: part of the
// shared address space of RFC 6598, which private networks do not use.
var DefaultInnerSources = netip.MustParsePrefix("100.127.0.0/24")

// routeSet is an immutable set of prefixes.
type routeSet struct {
	table    *bart.Lite
	prefixes []netip.Prefix
}

func newRouteSet(prefixes []netip.Prefix) *routeSet {
	s := &routeSet{table: new(bart.Lite), prefixes: prefixes}
	for _, p := range prefixes {
		s.table.Insert(p.Masked())
	}
	return s
}

func (s *routeSet) contains(a netip.Addr) bool { return s.table.Contains(a) }

// checker decides which inner packets may enter a stack. It is pure and
// immutable.
type checker struct {
	sources4, sources6 netip.Prefix // our inner sources
}

func (c checker) ours(a netip.Addr) bool { return c.sources4.Contains(a) || c.sources6.Contains(a) }

// fromConnector decides on a packet that a connector with these routes sent
// to the edge: its source must be of the routes and its destination one of our
// inner sources, or the client's end of one of the connector's own flows,
// whatever else the packet claims. An ICMP error may come from any router, if
// the packet that it quotes is one that we sent to a destination within the
// routes. Of echoes only replies come: nobody pings an edge.
func (c checker) fromConnector(in shim.Inner, routes *routeSet, flows lender) shim.Why {
	if !c.ours(in.Dst) && !lent(in, flows) {
		return WhyForeignDst
	}
	if OverlayPrefix.Contains(in.Src) || c.ours(in.Src) {
		return WhyReserved
	}
	if why := carried(in, isEchoReply); why != shim.OK {
		return why
	}
	if shim.IsICMPError(in) {
		quoted, why := shim.Quoted(in)
		if why != shim.OK {
			return why
		}
		if quoted.Src != in.Dst || !routes.contains(quoted.Dst) {
			return WhyForeignQuote
		}
		return shim.OK
	}
	if !routes.contains(in.Src) {
		return WhyForeignSource
	}
	return shim.OK
}

// fromEdge decides on a packet that an edge sent to a connector. Where it may
// go is the guard's to say, flow by flow; here only what no flow can be is
// refused.
func (c checker) fromEdge(in shim.Inner) shim.Why {
	if OverlayPrefix.Contains(in.Src) {
		return WhyReserved
	}
	d := in.Dst
	if OverlayPrefix.Contains(d) || d.IsLoopback() || d.IsMulticast() || d.IsUnspecified() || c.ours(d) {
		return WhyForeignDst
	}
	return carried(in, isEchoRequest)
}

// carried refuses what Warren does not carry. Of echoes it carries those that
// echo says yes to: requests towards a connector, replies back. ICMP messages in
// fragments or behind extension headers are refused: the link must recognise an
// ICMP error at sight, to handle it on another goroutine.
func carried(in shim.Inner, echo func(shim.Inner) bool) shim.Why {
	switch {
	case in.Proto == protoTCP, in.Proto == protoUDP:
		return shim.OK
	case in.Fragmented() || in.Src.Is6() && in.HeaderLen != ipv6HeaderLen:
		return WhyProtocol
	case shim.IsICMPError(in), echo(in):
		return shim.OK
	}
	return WhyProtocol
}

// check decides on a packet that p sent.
func (p *Peer) check(in shim.Inner) shim.Why {
	if p.initiate {
		return p.tunnel.checker.fromEdge(in)
	}
	return p.tunnel.checker.fromConnector(in, p.routes.Load(), p)
}
