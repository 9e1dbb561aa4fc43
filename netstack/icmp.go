package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/warrenmesh/warren/netstack/netx"
)

// ICMP types and codes that carry an answer to a dial (RFC 792, RFC 4443
// section 3.1). Between our own ends code 0 says "timed out", and the host or
// address code "unreachable".
const (
	icmp4Unreachable = 3
	icmp4Net         = 0
	icmp4Host        = 1
	icmp4Port        = 3
	icmp4TooBig      = 4

	icmp6Unreachable = 1
	icmp6NoRoute     = 0
	icmp6Address     = 3
	icmp6Port        = 4
	icmp6TooBig      = 2
)

const (
	ip4HeaderLen  = 20
	ip6HeaderLen  = 40
	icmpHeaderLen = 8
	quotedPorts   = 8 // bytes of the transport header that are always quoted (RFC 792)

	icmpTTL = 64
)

// icmpError is what an ICMP error says about one of our flows, or pings.
type icmpError struct {
	flow flowKey
	err  error // netx.ErrRefused, ErrUnreachable or ErrTimedOut
	mtu  int   // not zero: the path takes packets of this size; err is nil
}

// parseICMPv4 reads an IPv4 packet that carries ICMP, whole and unfragmented.
// It trusts no length.
func parseICMPv4(b []byte) (icmpError, string) {
	if len(b) < ip4HeaderLen {
		return icmpError{}, whyMalformed
	}
	hlen := int(b[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if hlen < ip4HeaderLen || total > len(b) || total < hlen+icmpHeaderLen {
		return icmpError{}, whyMalformed
	}
	msg := b[hlen:total]
	if checksum.Checksum(msg, 0) != 0xffff {
		return icmpError{}, whyICMPMalformed
	}
	if msg[0] != icmp4Unreachable {
		return icmpError{}, whyProtocol
	}
	flow, ok := quoted4(msg[icmpHeaderLen:])
	if !ok {
		return icmpError{}, whyICMPMalformed
	}
	e := icmpError{flow: flow, err: netx.ErrUnreachable}
	switch msg[1] {
	case icmp4Net:
		e.err = netx.ErrTimedOut
	case icmp4Port:
		e.err = netx.ErrRefused
	case icmp4TooBig:
		e.err, e.mtu = nil, int(binary.BigEndian.Uint16(msg[6:])) // RFC 1191 section 4
		if e.mtu == 0 {
			return icmpError{}, whyICMPMalformed
		}
	}
	return e, ""
}

// quoted4 reads the flow out of the start of a packet that we had sent.
func quoted4(b []byte) (flowKey, bool) {
	if len(b) < ip4HeaderLen || b[0]>>4 != 4 {
		return flowKey{}, false
	}
	hlen := int(b[0]&0x0f) * 4
	if hlen < ip4HeaderLen || len(b) < hlen+4 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return flowKey{}, false
	}
	return quotedFlow(b[9], netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[hlen:])
}

// parseICMPv6 is parseICMPv4 for IPv6 without extension headers.
func parseICMPv6(b []byte) (icmpError, string) {
	if len(b) < ip6HeaderLen {
		return icmpError{}, whyMalformed
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < icmpHeaderLen || ip6HeaderLen+length > len(b) {
		return icmpError{}, whyMalformed
	}
	msg := b[ip6HeaderLen : ip6HeaderLen+length]
	if checksum.Checksum(msg, pseudo6(b[8:24], b[24:40], length)) != 0xffff {
		return icmpError{}, whyICMPMalformed
	}
	if msg[0] != icmp6Unreachable && msg[0] != icmp6TooBig {
		return icmpError{}, whyProtocol
	}
	flow, ok := quoted6(msg[icmpHeaderLen:])
	if !ok {
		return icmpError{}, whyICMPMalformed
	}
	e := icmpError{flow: flow, err: netx.ErrUnreachable}
	switch {
	case msg[0] == icmp6TooBig:
		e.err, e.mtu = nil, int(min(binary.BigEndian.Uint32(msg[4:]), 65535))
		if e.mtu == 0 {
			return icmpError{}, whyICMPMalformed
		}
	case msg[1] == icmp6NoRoute:
		e.err = netx.ErrTimedOut
	case msg[1] == icmp6Port:
		e.err = netx.ErrRefused
	}
	return e, ""
}

func quoted6(b []byte) (flowKey, bool) {
	if len(b) < ip6HeaderLen+4 || b[0]>>4 != 6 {
		return flowKey{}, false
	}
	proto, rest := b[6], b[ip6HeaderLen:]
	if proto == protoFragment {
		if len(rest) < 8+4 || binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0 {
			return flowKey{}, false
		}
		proto, rest = rest[0], rest[8:]
	}
	return quotedFlow(proto, netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), rest)
}

// quotedFlow names the flow of a packet that we sent from src to dst.
func quotedFlow(proto uint8, src, dst netip.Addr, transport []byte) (flowKey, bool) {
	switch proto {
	case protoTCP, protoUDP:
	case protoICMPv4, protoICMPv6:
		return quotedPing(proto, src, dst, transport)
	default:
		return flowKey{}, false
	}
	return flowKey{
		proto:  proto,
		local:  netip.AddrPortFrom(src, binary.BigEndian.Uint16(transport)),
		remote: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(transport[2:])),
	}, true
}

// quotedPing names the ping whose echo request we sent from src to dst.
func quotedPing(proto uint8, src, dst netip.Addr, msg []byte) (flowKey, bool) {
	request := byte(icmp6EchoRequest)
	if src.Is4() {
		request = icmp4EchoRequest
	}
	key := pingKey(src, dst, 0, 0)
	if len(msg) < icmpHeaderLen || msg[0] != request || proto != key.proto {
		return flowKey{}, false
	}
	return pingKey(src, dst, binary.BigEndian.Uint16(msg[4:]), binary.BigEndian.Uint16(msg[6:])), true
}

// unreachablePacket builds the whole IP packet that tells the sender of the
// quoted one what became of it. It comes from the address that the quoted
// packet went to. quoted is the packet's IP header and at least 8 bytes of
// what follows it.
func unreachablePacket(quoted []byte, cause error) []byte {
	if quoted[0]>>4 == 4 {
		return unreachable4(quoted, cause)
	}
	return unreachable6(quoted, cause)
}

func unreachable4(quoted []byte, cause error) []byte {
	b := make([]byte, ip4HeaderLen+icmpHeaderLen+len(quoted))
	b[0] = 4<<4 | ip4HeaderLen/4
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], 0x4000) // do not fragment; the id may then be 0 (RFC 6864)
	b[8], b[9] = icmpTTL, protoICMPv4
	copy(b[12:16], quoted[16:20])
	copy(b[16:20], quoted[12:16])
	binary.BigEndian.PutUint16(b[10:], ^checksum.Checksum(b[:ip4HeaderLen], 0))

	msg := b[ip4HeaderLen:]
	msg[0], msg[1] = icmp4Unreachable, icmp4Host
	switch {
	case errors.Is(cause, netx.ErrRefused):
		msg[1] = icmp4Port
	case errors.Is(cause, netx.ErrTimedOut):
		msg[1] = icmp4Net
	}
	copy(msg[icmpHeaderLen:], quoted)
	binary.BigEndian.PutUint16(msg[2:], ^checksum.Checksum(msg, 0))
	return b
}

func unreachable6(quoted []byte, cause error) []byte {
	length := icmpHeaderLen + len(quoted)
	b := make([]byte, ip6HeaderLen+length)
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	b[6], b[7] = protoICMPv6, icmpTTL
	copy(b[8:24], quoted[24:40])
	copy(b[24:40], quoted[8:24])

	msg := b[ip6HeaderLen:]
	msg[0], msg[1] = icmp6Unreachable, icmp6Address
	switch {
	case errors.Is(cause, netx.ErrRefused):
		msg[1] = icmp6Port
	case errors.Is(cause, netx.ErrTimedOut):
		msg[1] = icmp6NoRoute
	}
	copy(msg[icmpHeaderLen:], quoted)
	binary.BigEndian.PutUint16(msg[2:], ^checksum.Checksum(msg, pseudo6(b[8:24], b[24:40], length)))
	return b
}

// pseudo6 is the sum over the pseudo-header of ICMPv6 (RFC 8200 section 8.1).
func pseudo6(src, dst []byte, length int) uint16 {
	sum := checksum.Checksum(dst, checksum.Checksum(src, 0))
	var tail [8]byte
	binary.BigEndian.PutUint32(tail[:], uint32(length))
	tail[7] = protoICMPv6
	return checksum.Checksum(tail[:], sum)
}

// syntheticUDP makes the start of a datagram of flow as its peer sent it, for
// an ICMP error to quote when the datagram itself is long gone.
func syntheticUDP(flow flowKey) []byte {
	src, dst := flow.remote, flow.local
	var b []byte
	if src.Addr().Is4() {
		b = make([]byte, ip4HeaderLen+quotedPorts)
		b[0] = 4<<4 | ip4HeaderLen/4
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[8], b[9] = icmpTTL, protoUDP
		copy(b[12:], src.Addr().AsSlice())
		copy(b[16:], dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^checksum.Checksum(b[:ip4HeaderLen], 0))
	} else {
		b = make([]byte, ip6HeaderLen+quotedPorts)
		b[0] = 6 << 4
		binary.BigEndian.PutUint16(b[4:], quotedPorts)
		b[6], b[7] = protoUDP, icmpTTL
		copy(b[8:], src.Addr().AsSlice())
		copy(b[24:], dst.Addr().AsSlice())
	}
	udp := b[len(b)-quotedPorts:]
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], quotedPorts)
	return b
}
