package relay

import (
	"net/netip"

	"github.com/warrenmesh/warren/netstack/netx"
)

// ControlSpace is the room for the control messages of one datagram that came
// in, and the most that SendTo takes for one that leaves.
const ControlSpace = 64

// Received is datagrams that came in, with where each is from. The zero value
// is empty; Release, of the Batch, empties it.
type Received struct {
	netx.Batch
	from    [netx.BatchSize]netip.AddrPort
	control [netx.BatchSize][]byte
}

// From is who sent datagram i.
func (r *Received) From(i int) netip.AddrPort { return r.from[i] }

// Control is what the kernel says of datagram i, where it was asked: control
// messages, valid as long as the datagram.
func (r *Received) Control(i int) []byte { return r.control[i] }

// Bounds of one message that the kernel cuts into datagrams (UDP_SEGMENT).
const (
	// maxMessage keeps it, with its headers, below the 64 KiB that a device
	// takes: beyond, the kernel cuts in software, before the device.
	maxMessage = 60_000
	// maxSegments is what every kernel since 4.18 takes (UDP_MAX_SEGMENTS).
	maxSegments = 64
)

// runOf returns how many of the datagrams can leave as one message: all of one
// size, at most segment, but for the last, which may be smaller. It is at
// least 1.
func runOf(datagrams [][]byte, segment int) int {
	size := len(datagrams[0])
	if size == 0 || size > segment {
		return 1
	}
	n, total := 1, size
	for n < len(datagrams) && n < maxSegments {
		next := len(datagrams[n])
		if next == 0 || next > size || total+next > maxMessage {
			break
		}
		n++
		total += next
		if next < size {
			break
		}
	}
	return n
}
