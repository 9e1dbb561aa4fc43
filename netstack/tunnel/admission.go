package tunnel

import (
	"bytes"
	"encoding/binary"

	"github.com/warrenmesh/warren/netstack/link"
	"github.com/warrenmesh/warren/netstack/shim"
)

// admission is what admit said of one packet, and so of those of its flow that
// follow in the same Write: admit looks at nothing of a packet but its shape,
// its addresses and its ports, and what it holds these against can as well be
// as it was a few microseconds ago. The zero value admits nothing.
type admission struct {
	link   *link.Endpoint
	packet []byte // the one that was looked at, as it may enter

	peer *Peer  // who sent it; nil: it speaks for no other
	like []byte // the packet as it was decrypted

	packets, bytes int // of those that followed, which settle counts
}

// next returns the inner packet of b where b follows, or nil.
func (a *admission) next(b []byte) []byte {
	if a.peer == nil || !plain(b) || !alike(a.like, b) {
		return nil
	}
	a.packets++
	a.bytes += len(b)
	size := shim.HeaderLen + int(binary.BigEndian.Uint16(b[outerLength:]))
	return b[shim.HeaderLen:size:size]
}

// settle counts what followed.
func (a *admission) settle() {
	if a.packets > 0 {
		a.peer.rxBytes.Add(uint64(a.bytes))
		a.peer.tunnel.admitted.Add(uint64(a.packets))
	}
}

// Offsets in a decrypted packet: of the outer header, and of an inner one.
const (
	outerLength = 4
	outerNext   = 6
	outerSource = 8

	innerAt    = shim.HeaderLen
	inner4End  = innerAt + 20
	inner6End  = innerAt + ipv6HeaderLen
	innerPorts = 4 // bytes that both ports take
)

// plain reports whether b is a packet of the commonest shape: behind the outer
// header IPv4 without options, or IPv6 without extension headers, no fragment,
// of TCP or UDP with both ports, whose lengths agree.
func plain(b []byte) bool {
	if len(b) < inner4End+innerPorts || b[0]>>4 != 6 {
		return false
	}
	length := int(binary.BigEndian.Uint16(b[outerLength:]))
	if length > len(b)-shim.HeaderLen {
		return false
	}
	in := b[innerAt:]
	switch b[outerNext] {
	case protoIPv4:
		return in[0] == 0x45 && int(binary.BigEndian.Uint16(in[2:])) == length && length >= inner4End+innerPorts-innerAt &&
			in[6]&0x3f == 0 && in[7] == 0 && (in[9] == protoTCP || in[9] == protoUDP)
	case protoIPv6:
		return in[0]>>4 == 6 && int(binary.BigEndian.Uint16(in[4:]))+ipv6HeaderLen == length && length >= inner6End+innerPorts-innerAt &&
			(in[6] == protoTCP || in[6] == protoUDP)
	}
	return false
}

// alike reports whether two plain packets have the same addresses, protocol and
// ports, outside and inside.
func alike(a, b []byte) bool {
	if a[outerNext] != b[outerNext] || !bytes.Equal(a[outerSource:innerAt], b[outerSource:innerAt]) {
		return false
	}
	if b[outerNext] == protoIPv4 {
		return a[innerAt+9] == b[innerAt+9] && bytes.Equal(a[innerAt+12:inner4End+innerPorts], b[innerAt+12:inner4End+innerPorts])
	}
	return a[innerAt+6] == b[innerAt+6] && bytes.Equal(a[innerAt+8:inner6End+innerPorts], b[innerAt+8:inner6End+innerPorts])
}
