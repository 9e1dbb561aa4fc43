package shim

import (
	"encoding/binary"
	"net/netip"
)

const (
	ip4HeaderLen = 20
	ip6HeaderLen = 40

	// minTransport is the least that the first fragment of a packet, and an
	// ICMP error's quote, must hold of the transport header: ports, or type
	// and code (RFC 792; RFC 7112 section 5 asks for all of it).
	minTransport = 8

	// maxExtensions bounds the walk along IPv6 extension headers. Hop-by-hop,
	// destination options, fragment, destination options are four; more has no
	// use.
	maxExtensions = 6
)

// Inner is an inner IPv4 or IPv6 packet, taken apart.
type Inner struct {
	Src, Dst netip.Addr // never IPv4-mapped; Src.Is4 tells the version
	// Proto is the transport protocol (IANA number), behind any extension
	// headers. In a fragment that is not the first it is what that fragment
	// claims.
	Proto     byte
	Fragment  Fragment
	HeaderLen int    // bytes before Payload: IP header, options, extension headers
	Payload   []byte // from the transport header on; in a later fragment, its bytes
}

// Fragment is a packet's place in the packet it was cut from. The zero value
// is a whole packet that needs no reassembly.
type Fragment struct {
	ID     uint32 // 16 bits in IPv4
	Offset uint16 // of Payload's first fragmentable byte, in bytes
	More   bool   // others follow
}

// Fragmented reports whether in is a piece of a larger packet. An IPv6 atomic
// fragment (RFC 6946) is not.
func (in Inner) Fragmented() bool { return in.Fragment.Offset != 0 || in.Fragment.More }

// Ports returns the ports of a TCP or UDP packet. ok is false for every other
// protocol, for fragments other than the first, and where the packet ends
// before them.
func (in Inner) Ports() (src, dst uint16, ok bool) {
	if in.Proto != protoTCP && in.Proto != protoUDP {
		return 0, 0, false
	}
	if in.Fragment.Offset != 0 || len(in.Payload) < 4 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(in.Payload), binary.BigEndian.Uint16(in.Payload[2:]), true
}

// ParseInner takes the header off b, which must be one whole packet and
// nothing else: its declared length has to be exactly len(b). The Inner means
// something only where Why is OK.
//
// Refused are lengths that lie, source routing, headers that do not add up,
// fragments that reach beyond what an IP packet can be, a packet in the packet
// (protocols 4 and 41), IPv4-mapped addresses, and sources that no single host
// can have. IPv4 options other than source routes are let through. Header and
// transport checksums are not looked at: WireGuard has authenticated the
// bytes, and the stack behind verifies them where it must. Nothing is said
// about the destination.
func ParseInner(b []byte) (Inner, Why) {
	in, why := parse(b, false)
	if why != OK {
		return Inner{}, why
	}
	if !sendable(in.Src) {
		return Inner{}, InnerSource
	}
	return in, OK
}

// sendable reports whether a host may have a as its source.
func sendable(a netip.Addr) bool {
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return false
	}
	if a.Is4() {
		// RFC 1122 section 3.2.1.3: 0/8 is "this network", and the limited
		// broadcast is no source.
		v4 := a.As4()
		return v4[0] != 0 && v4 != [4]byte{255, 255, 255, 255}
	}
	return true
}

// parse does the work for ParseInner (quoted false: lengths are exact) and
// Quoted (quoted true: b may end anywhere behind the header, as RFC 792 and
// RFC 4443 let it).
func parse(b []byte, quoted bool) (Inner, Why) {
	if len(b) == 0 {
		return Inner{}, InnerShort
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b, quoted)
	case 6:
		return parse6(b, quoted)
	}
	return Inner{}, InnerVersion
}

func parse4(b []byte, quoted bool) (Inner, Why) {
	if len(b) < ip4HeaderLen {
		return Inner{}, InnerShort
	}
	header, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < ip4HeaderLen || header > len(b) {
		return Inner{}, InnerHeaderLength
	}
	switch {
	case total == len(b):
	case !quoted || total < header:
		return Inner{}, InnerLength
	case total < len(b):
		b = b[:total] // RFC 4884: padding and extensions follow the quote
	}
	if why := checkOptions4(b[ip4HeaderLen:header]); why != OK {
		return Inner{}, why
	}
	flags := binary.BigEndian.Uint16(b[6:])
	in := Inner{
		Src:       netip.AddrFrom4([4]byte(b[12:16])),
		Dst:       netip.AddrFrom4([4]byte(b[16:20])),
		Proto:     b[9],
		HeaderLen: header,
		Payload:   b[header:len(b):len(b)],
	}
	if more, offset := flags&0x2000 != 0, (flags&0x1fff)*8; more || offset != 0 {
		in.Fragment = Fragment{ID: uint32(binary.BigEndian.Uint16(b[4:])), Offset: offset, More: more}
		if !quoted && !plausible(in.Fragment, header, len(in.Payload)) {
			return Inner{}, InnerFragment
		}
	}
	if nested(in.Proto) {
		return Inner{}, InnerNested
	}
	return in, OK
}

// checkOptions4 walks IPv4 options (RFC 791 section 3.1).
func checkOptions4(opts []byte) Why {
	const (
		end           = 0
		noOperation   = 1
		looseSourceRR = 131
		strictSrcRR   = 137
	)
	for len(opts) > 0 {
		switch opts[0] {
		case end:
			return OK
		case noOperation:
			opts = opts[1:]
			continue
		case looseSourceRR, strictSrcRR:
			return InnerSourceRoute
		}
		if len(opts) < 2 || opts[1] < 2 || int(opts[1]) > len(opts) {
			return InnerOptions
		}
		opts = opts[opts[1]:]
	}
	return OK
}

func parse6(b []byte, quoted bool) (Inner, Why) {
	if len(b) < ip6HeaderLen {
		return Inner{}, InnerShort
	}
	total := ip6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	switch {
	case total == ip6HeaderLen:
		return Inner{}, InnerLength // nothing inside, or a jumbogram (RFC 2675)
	case total == len(b):
	case !quoted:
		return Inner{}, InnerLength
	case total < len(b):
		b = b[:total]
	}
	in := Inner{
		Src: netip.AddrFrom16([16]byte(b[8:24])),
		Dst: netip.AddrFrom16([16]byte(b[24:40])),
	}
	if in.Src.Is4In6() || in.Dst.Is4In6() {
		return Inner{}, InnerMappedAddress
	}
	if why := in.walk6(b, quoted); why != OK {
		return Inner{}, why
	}
	if nested(in.Proto) {
		return Inner{}, InnerNested
	}
	in.Payload = b[in.HeaderLen:len(b):len(b)]
	// The transport header has to be in the first fragment, or no one could
	// judge the packet: a chain of extension headers would hide it.
	if !quoted && in.Fragment.More && in.Fragment.Offset == 0 && len(in.Payload) < minTransport {
		return Inner{}, InnerFragment
	}
	return in, OK
}

// walk6 follows the extension headers of b (RFC 8200 section 4) and sets
// Proto, HeaderLen and Fragment. Authentication and encapsulating payload
// headers end the walk: the stack knows neither.
func (in *Inner) walk6(b []byte, quoted bool) Why {
	next, at := b[6], ip6HeaderLen
	fragmented := false
	for range maxExtensions + 1 {
		switch next {
		case protoHopByHop:
			if at != ip6HeaderLen { // only directly behind the IPv6 header
				return InnerExtension
			}
		case protoDestOptions:
		case protoFragment:
			if fragmented {
				return InnerExtension
			}
		case protoRouting:
			return InnerSourceRoute
		default:
			in.Proto, in.HeaderLen = next, at
			return OK
		}
		if len(b)-at < 8 {
			return InnerShort
		}
		kind, length := next, 8+int(b[at+1])*8
		next = b[at]
		if kind == protoFragment {
			fragmented, length = true, 8 // the second byte is reserved there
			field := binary.BigEndian.Uint16(b[at+2:])
			f := Fragment{ID: binary.BigEndian.Uint32(b[at+4:]), Offset: field &^ 7, More: field&1 != 0}
			if f.Offset != 0 || f.More {
				in.Fragment = f
				if !quoted && !plausible(f, at-ip6HeaderLen, len(b)-at-8) {
					return InnerFragment
				}
			}
		}
		if len(b)-at < length {
			return InnerShort
		}
		at += length
		if in.Fragment.Offset != 0 { // what follows is the middle of something
			if next == protoRouting {
				return InnerSourceRoute
			}
			in.Proto, in.HeaderLen = next, at
			return OK
		}
	}
	return InnerExtension
}

// plausible reports whether a fragment with n bytes can be part of a packet
// whose header, as far as it counts against the 65,535 bytes that a length
// field can say, is header bytes long.
func plausible(f Fragment, header, n int) bool {
	if n == 0 || header+int(f.Offset)+n > maxPayload {
		return false
	}
	return !f.More || n%8 == 0 // RFC 791 section 3.2, RFC 8200 section 4.5
}

func nested(proto byte) bool { return proto == protoIPv4 || proto == protoIPv6 }
