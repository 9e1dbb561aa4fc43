package link

import (
	"encoding/binary"
	"hash/maphash"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// flowSeed keeps strangers from choosing addresses and ports that meet in one
// flow.
var flowSeed = maphash.MakeSeed()

// turnKey names the flow, for its turns, of a packet: a hash of addresses,
// protocol and ports. Two flows that meet in one of its 2^64 values only share
// a turn. It is never sharedFlow.
func turnKey(pkt *stack.PacketBuffer) uint64 {
	var headers [header.IPv4MaximumHeaderSize + 4]byte
	at := start(pkt)
	var tuple [37]byte
	n := flowTuple(&tuple, headers[:at.copy(headers[:])])
	return hashed(tuple[:n])
}

func hashed(tuple []byte) uint64 {
	if key := maphash.Bytes(flowSeed, tuple); key != sharedFlow {
		return key
	}
	return sharedFlow + 1
}

// flowTuple writes to tuple what the packets of a flow have in common, and
// returns how long it is. b begins with the IP header and holds the ports, if
// there are any. Ports are only those of TCP and UDP. Fragments, of which only
// the first has them, are known by addresses and protocol, and so are packets
// with extension headers, whose protocol is then that of the first of these.
func flowTuple(tuple *[37]byte, b []byte) int {
	var n, at int // at: where the ports are, if they are
	var protocol byte
	whole := true
	switch {
	case len(b) >= header.IPv4MinimumSize && b[0]>>4 == header.IPv4Version:
		n = copy(tuple[:], b[12:20])
		at, protocol = int(b[0]&0x0f)*4, b[9]
		whole = binary.BigEndian.Uint16(b[ip4Fragment:])&0x3fff == 0 // no offset, and none to follow
	case len(b) >= header.IPv6MinimumSize && b[0]>>4 == header.IPv6Version:
		n = copy(tuple[:], b[8:40])
		at, protocol = header.IPv6MinimumSize, b[6]
	default:
		return 0
	}
	tuple[n] = protocol
	n++
	if whole && len(b) >= at+4 && (protocol == uint8(header.TCPProtocolNumber) || protocol == uint8(header.UDPProtocolNumber)) {
		n += copy(tuple[n:], b[at:at+4])
	}
	return n
}
