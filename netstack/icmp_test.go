package netstack

import (
	"bytes"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/warrenmesh/warren/netstack/netx"
)

func sum(b []byte) uint16 { return checksum.Checksum(b, 0) }

// flows of the ICMP tests, one of each kind.
func icmpFlows() []flowKey {
	local4, local6 := netip.AddrPortFrom(source4, 40000), netip.AddrPortFrom(source6, 40001)
	return []flowKey{
		{proto: protoUDP, local: local4, remote: service4},
		{proto: protoUDP, local: local6, remote: service6},
	}
}

// What unreachablePacket says, the parsers understand; the two are the ends
// of one conversation.
func TestICMPRoundTrip(t *testing.T) {
	for _, flow := range icmpFlows() {
		for _, cause := range []error{netx.ErrRefused, netx.ErrUnreachable, netx.ErrTimedOut} {
			// As the connector's UDPConn sees the flow: the other way round.
			theirs := flowKey{proto: flow.proto, local: flow.remote, remote: flow.local}
			b := unreachablePacket(syntheticUDP(theirs), cause)
			e, why := parseAnyICMP(b)
			if why != "" || e.err != cause || e.flow != flow {
				t.Errorf("%v about %v came out as %v about %v (%s)", cause, flow, e.err, e.flow, why)
			}
		}
	}
}

func parseAnyICMP(b []byte) (icmpError, string) {
	if len(b) > 0 && b[0]>>4 == 4 {
		return parseICMPv4(b)
	}
	return parseICMPv6(b)
}

func TestICMPRefuses(t *testing.T) {
	for _, flow := range icmpFlows() {
		theirs := flowKey{proto: flow.proto, local: flow.remote, remote: flow.local}
		good := unreachablePacket(syntheticUDP(theirs), netx.ErrRefused)
		for n := range good {
			if _, why := parseAnyICMP(good[:n]); why == "" {
				t.Errorf("%v: the first %d of %d bytes were taken", flow.remote, n, len(good))
			}
		}
		for i := ip4HeaderLen; i < len(good); i++ {
			if good[0]>>4 == 6 && i < ip6HeaderLen {
				continue // the IPv6 header's start is not under the checksum
			}
			bad := bytes.Clone(good)
			bad[i] ^= 0x10
			if _, why := parseAnyICMP(bad); why == "" {
				t.Errorf("%v: with byte %d changed it was taken", flow.remote, i)
			}
		}
	}
}

// Nothing that arrives may make the parsers panic, or name a flow that is
// not one of TCP or UDP between two addresses of one family.
func FuzzParseICMP(f *testing.F) {
	for _, flow := range icmpFlows() {
		f.Add(unreachablePacket(syntheticUDP(flow), netx.ErrRefused))
		f.Add(syntheticUDP(flow))
	}
	f.Add([]byte{0x4f, 0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, why := parseAnyICMP(b)
		if why != "" {
			return
		}
		if e.flow.proto != protoTCP && e.flow.proto != protoUDP || e.flow.local.Addr().BitLen() != e.flow.remote.Addr().BitLen() {
			t.Errorf("flow %+v", e.flow)
		}
		if (e.mtu == 0) == (e.err == nil) {
			t.Errorf("mtu %d and error %v", e.mtu, e.err)
		}
	})
}

// What is not TCP, UDP or an ICMP error about our flow is counted, and never
// answered.
func TestGuardDropsAndCounts(t *testing.T) {
	l := newLab(t)
	answers := &capture{}
	l.edgeEnd.setFilter(answers.filter)
	echo := func() []byte {
		b := unreachablePacket(syntheticUDP(icmpFlows()[0]), nil)
		b[20], b[21], b[22], b[23] = 8, 0, 0, 0
		s := ^sum(b[20:])
		b[22], b[23] = byte(s>>8), byte(s)
		return b
	}
	protocol := func(b []byte, at int, p byte) []byte { b[at] = p; return b }
	for _, tt := range []struct {
		name string
		pkt  []byte
		why  string
	}{
		{"echo request", echo(), whyProtocol},
		{"SCTP", protocol(syntheticUDP(icmpFlows()[0]), 9, 132), whyProtocol},
		{"hop-by-hop", protocol(syntheticUDP(icmpFlows()[1]), 6, 0), whyProtocol},
		{"unknown flow", unreachablePacket(syntheticUDP(icmpFlows()[0]), nil), whyICMPUnknown},
		{"unknown flow v6", unreachablePacket(syntheticUDP(icmpFlows()[1]), nil), whyICMPUnknown},
		{"ICMP fragment", func() []byte { b := echo(); b[6] = 0x20; return b }(), whyICMPFragment},
		{"ICMPv6 fragment", append(protocol(syntheticUDP(icmpFlows()[1]), 6, protoFragment)[:40], 58, 0, 0, 1, 0, 0, 0, 1), whyICMPFragment},
		{"short", []byte{0x45, 0, 0, 3}, whyMalformed},
		{"short v6", []byte{0x60, 0, 0, 0}, whyMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := l.edge.drops.Count(tt.why)
			l.edgeEnd.deliver(tt.pkt)
			if n := l.edge.drops.Count(tt.why) - before; n != 1 {
				t.Errorf("%d drops for %q, want 1", n, tt.why)
			}
		})
	}
	if len(answers.pkts) > 0 {
		t.Errorf("%d answers were sent", len(answers.pkts))
	}
	var reported uint64
	l.edge.Drops(func(where, why string, n uint64) {
		if where != "netstack" {
			t.Errorf("drops at %q", where)
		}
		reported += n
	})
	if reported != l.edge.drops.Total() {
		t.Errorf("%d drops were reported, %d counted", reported, l.edge.drops.Total())
	}
}
