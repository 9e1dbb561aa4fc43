package tunnel

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// An echo is an ICMPv6 Echo Request or Reply (RFC 4443 sections 4.1 and 4.2)
// between two overlay addresses. Any WireGuard router answers it, ours or the
// kernel's; a request of ours carries, besides, who we are:
//
//	0      4       5       6        8        16       24
//	"WRN1" version flags   reserved boot id  sent     zeros up to the probed size
//
// The boot id is drawn when a tunnel starts, so a change of it means that the
// other end has forgotten every flow. sent is the sender's own clock.
const (
	echoMagic       = "WRN1"
	echoVersion     = 1
	echoPayloadLen  = 24
	echoMinLen      = header.IPv6MinimumSize + header.ICMPv6EchoMinimumSize + echoPayloadLen
	echoHopLimit    = 64
	echoIDLiveness  = 1      // identifier of an echo that asks "are you there?"
	echoIDPathMTU   = 2      // identifier of an echo that is padded to a size in question
	flagDraining    = 1 << 0 // takes no new flows
	flagLeaving     = 1 << 1 // says farewell
	flagTrusting    = 1 << 2 // looks at no TCP checksum of what the other end sends
	echoICMPOffset  = header.IPv6MinimumSize
	echoDataOffset  = header.IPv6MinimumSize + header.ICMPv6EchoMinimumSize
	echoSentOffset  = echoDataOffset + 16
	echoBootOffset  = echoDataOffset + 8
	echoFlagsOffset = echoDataOffset + 5
)

// echo is a decoded Echo Request or Reply.
type echo struct {
	reply bool
	id    uint16
	seq   uint16

	// Ours reports whether the payload is Warren's; the rest is zero if not.
	ours  bool
	flags byte
	boot  uint64
	sent  int64 // sender's clock, nanoseconds
}

// appendEcho appends to b a request of size bytes in all, IPv6 header
// included; a size below echoMinLen means the smallest.
func appendEcho(b []byte, src, dst netip.Addr, e echo, size int) []byte {
	size = max(size, echoMinLen)
	start := len(b)
	b = append(b, make([]byte, size)...)
	p := b[start:]

	data := p[echoDataOffset:]
	copy(data, echoMagic)
	data[4] = echoVersion
	data[5] = e.flags
	binary.BigEndian.PutUint64(data[8:], e.boot)
	binary.BigEndian.PutUint64(data[16:], uint64(e.sent))

	icmp := header.ICMPv6(p[echoICMPOffset:])
	icmp.SetType(header.ICMPv6EchoRequest)
	icmp.SetIdent(e.id)
	icmp.SetSequence(e.seq)
	finishEcho(p, src, dst)
	return b
}

// appendReply appends to b the reply to request, which parseEcho accepted.
func appendReply(b, request []byte, src, dst netip.Addr) []byte {
	start := len(b)
	b = append(b, request...)
	header.ICMPv6(b[start+echoICMPOffset:]).SetType(header.ICMPv6EchoReply)
	finishEcho(b[start:], src, dst)
	return b
}

// finishEcho writes the IPv6 header and the ICMPv6 checksum (RFC 4443
// section 2.3) of the packet p, whose ICMPv6 message is in place.
func finishEcho(p []byte, src, dst netip.Addr) {
	s, d := tcpip.AddrFrom16(src.As16()), tcpip.AddrFrom16(dst.As16())
	header.IPv6(p).Encode(&header.IPv6Fields{
		PayloadLength:     uint16(len(p) - header.IPv6MinimumSize),
		TransportProtocol: header.ICMPv6ProtocolNumber,
		HopLimit:          echoHopLimit,
		SrcAddr:           s,
		DstAddr:           d,
	})
	icmp := header.ICMPv6(p[echoICMPOffset:])
	icmp.SetChecksum(0)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: s, Dst: d}))
}

// parseEcho decodes p, one whole IPv6 packet of next header 58 whose length
// has been checked. It refuses what is no echo and what has a wrong checksum.
func parseEcho(p []byte, src, dst netip.Addr) (echo, bool) {
	if len(p) < echoDataOffset {
		return echo{}, false
	}
	icmp := header.ICMPv6(p[echoICMPOffset:])
	kind := icmp.Type()
	if kind != header.ICMPv6EchoRequest && kind != header.ICMPv6EchoReply || icmp.Code() != 0 {
		return echo{}, false
	}
	sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber,
		tcpip.AddrFrom16(src.As16()), tcpip.AddrFrom16(dst.As16()), uint16(len(icmp)))
	if checksum.Checksum(icmp, sum) != 0xffff {
		return echo{}, false
	}
	e := echo{reply: kind == header.ICMPv6EchoReply, id: icmp.Ident(), seq: icmp.Sequence()}
	if data := p[echoDataOffset:]; len(data) >= echoPayloadLen && string(data[:4]) == echoMagic && data[4] == echoVersion {
		e.ours = true
		e.flags = p[echoFlagsOffset]
		e.boot = binary.BigEndian.Uint64(p[echoBootOffset:])
		e.sent = int64(binary.BigEndian.Uint64(p[echoSentOffset:]))
	}
	return e, true
}
