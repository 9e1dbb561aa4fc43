// Package shim is the outer IPv6 header that carries one inner IP packet
// between an edge and a connector inside the tunnel: plain RFC 2473, IPv4 or
// IPv6 in IPv6, so that a kernel router with an ip6tnl interface (mode any,
// encaplimit none) speaks it too.
//
// The sender calls Put over 40 bytes that it left free in front of the inner
// packet. The receiver calls Parse on what the tunnel decrypted, then
// ParseInner on Packet.Inner, and Quoted where IsICMPError says that the inner
// packet reports on another one. All of them are pure, keep no state and
// allocate nothing; what they return points into the slice that they were
// given.
//
// It must never trust a length that it reads: whoever holds a valid key
// chooses every byte. It does not know who may send what: that the outer
// source belongs to the peer, the inner source to its routes, and the inner
// destination to us, is the tunnel's to check.
//
// ECN and traffic class: the outer class is always 0 and the inner one
// travels untouched, both ways. That is RFC 6040's compatibility mode
// (section 4.3): WireGuard encrypts the outer header, so no router can mark
// it and there is nothing to copy back.
package shim

import (
	"encoding/binary"
	"net/netip"
)

// HeaderLen is the length in bytes of the outer header that Put writes.
const HeaderLen = 40

// maxPayload is what the payload length field of IPv6 can say (RFC 8200,
// section 3).
const maxPayload = 1<<16 - 1

// outerHopLimit is the hop limit of the outer header. No router sits inside
// the tunnel, so any value of at least 1 would do.
const outerHopLimit = 64

// Protocol numbers (IANA) that this package tells apart.
const (
	protoHopByHop    = 0
	protoICMP4       = 1
	protoIPv4        = 4
	protoTCP         = 6
	protoUDP         = 17
	protoIPv6        = 41
	protoRouting     = 43
	protoFragment    = 44
	protoESP         = 50
	protoAuth        = 51
	protoICMP6       = 58
	protoDestOptions = 60
	protoMobility    = 135
	protoHIP         = 139
	protoShim6       = 140
)

// Packet is a decrypted packet of the tunnel, taken apart.
type Packet struct {
	Src, Dst netip.Addr // outer addresses; WireGuard vouches for Src only
	// NextHeader is 4 or 41 for a shimmed packet. Anything else is a plain
	// packet of the overlay (58 ICMPv6, 17 UDP, 6 TCP).
	NextHeader byte
	// Inner is the inner packet of a shimmed packet, exactly as long as the
	// outer header declares and never empty; nil for a plain one.
	Inner []byte
	// Payload is what follows the outer header of a plain packet, exactly as
	// long as declared and never empty; nil for a shimmed one.
	Payload []byte
}

// Shimmed reports whether p carries an inner packet.
func (p Packet) Shimmed() bool { return p.Inner != nil }

// Put writes the outer header into b[:HeaderLen]; b must be that long. src
// and dst are overlay addresses (IPv6), innerLen is the length in bytes of the
// inner packet that follows, and inner4 says that it is IPv4.
//
// innerLen must be 1 to 65,535, which the link's MTU sees to. Any other value
// is written as 0, which Parse refuses at the far end: a wrong length must not
// pass for another, and must not end the process either.
func Put(b []byte, src, dst netip.Addr, innerLen int, inner4 bool) {
	b = b[:HeaderLen]
	if innerLen < 0 || innerLen > maxPayload {
		innerLen = 0
	}
	next := byte(protoIPv6)
	if inner4 {
		next = protoIPv4
	}
	b[0], b[1], b[2], b[3] = 6<<4, 0, 0, 0 // version 6, class 0, flow label 0
	binary.BigEndian.PutUint16(b[4:], uint16(innerLen))
	b[6] = next
	b[7] = outerHopLimit
	s, d := src.As16(), dst.As16()
	copy(b[8:24], s[:])
	copy(b[24:40], d[:])
}

// Parse takes the outer header off b, one whole packet as the tunnel decrypted
// it. The Packet means something only where Why is OK.
//
// b may be longer than the header declares (WireGuard pads to 16 bytes); the
// rest is cut off. b may also be shorter, down to nothing, because wireguard-go
// computes 40 + payload length in 16 bits: 65,496 wraps to an empty packet.
//
// No extension header is accepted (RFC 2473's tunnel encapsulation limit is
// one: a kernel's ip6tnl needs encaplimit none), and a shimmed packet's inner
// version has to match its next header.
func Parse(b []byte) (Packet, Why) {
	if len(b) < HeaderLen {
		return Packet{}, OuterShort
	}
	if b[0]>>4 != 6 {
		return Packet{}, OuterVersion
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length == 0 {
		return Packet{}, OuterEmpty
	}
	if length > len(b)-HeaderLen {
		return Packet{}, OuterTruncated
	}
	payload := b[HeaderLen : HeaderLen+length : HeaderLen+length]
	p := Packet{
		Src:        netip.AddrFrom16([16]byte(b[8:24])),
		Dst:        netip.AddrFrom16([16]byte(b[24:40])),
		NextHeader: b[6],
	}
	switch p.NextHeader {
	case protoIPv4, protoIPv6:
		want := byte(4)
		if p.NextHeader == protoIPv6 {
			want = 6
		}
		if payload[0]>>4 != want {
			return Packet{}, InnerVersion
		}
		p.Inner = payload
	case protoHopByHop, protoRouting, protoFragment, protoESP, protoAuth,
		protoDestOptions, protoMobility, protoHIP, protoShim6:
		return Packet{}, OuterExtension
	default:
		p.Payload = payload
	}
	return p, OK
}
