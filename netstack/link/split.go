package link

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Offsets in a TCP header (RFC 9293 section 3.1), and its flags.
const (
	tcpSeq      = 4
	tcpAck      = 8
	tcpOffset   = 12
	tcpFlags    = 13
	tcpWindow   = 14
	tcpChecksum = 16
	tcpUrgent   = 18

	flagFIN = 0x01
	flagSYN = 0x02
	flagPSH = 0x08
	flagACK = 0x10
	flagURG = 0x20
	flagCWR = 0x80
)

// Offsets in an IPv4 header.
const (
	ip4Length   = 2
	ip4ID       = 4
	ip4Fragment = 6
	ip4Checksum = 10
)

// maxHeaders is the largest sum of an IP header and a TCP header.
const maxHeaders = header.TCPTotalHeaderMaximumSize

// splitter cuts TCP packets of the stack into segments, one after the other. The
// zero value holds no packet. What is left of a packet and makes no full segment
// may leave with the first bytes of the packet behind it: gVisor cuts 128 KiB
// that were written into 65,374 bytes twice and 324, and a segment that is not
// full ends the message of the kernel's that it travels in. Without joining
// messages over a path of 1500 bytes held 20 segments, and with it 28.
//
// gVisor leaves such a packet with one IP header and one TCP header for the
// whole, and the pseudo header's sum in the place of the checksum. All sums
// here are of 16-bit words in network order, folded late: the parts that are
// the same in each segment are added up once a packet.
type splitter struct {
	pkt   *stack.PacketBuffer // nil: none
	at    cursor              // the payload that is not cut yet
	left  int                 // its length, with tail's
	mss   int                 // the flow's segment size, 0: unlimited
	done  bool                // the last segment was cut
	first bool

	hdr     [maxHeaders]byte // both headers, as the stack made them
	ip      int              // length of the IP header
	headers int              // and of both
	v4      bool
	df      bool // IPv4: the path must not fragment, so the id means nothing
	ids     *uint16
	own     bool // see Endpoint.SetOwn

	tail *stack.PacketBuffer // the packet before, whose last bytes come first; nil: none
	rest cursor              // these bytes
	over int                 // and how many they are

	seq    uint32
	urgent int // bytes from seq to the end of urgent data, where URG is set

	ipSum  uint32 // IPv4 header without length, id and checksum
	tcpSum uint32 // pseudo header without length, TCP header without what next writes
}

// begin takes over pkt, unless its headers are none that TCP writes. What is
// left of the packet before, which pkt joins, comes first. ids counts the ids of
// IPv4 segments, which gVisor numbers once a packet.
func (s *splitter) begin(pkt *stack.PacketBuffer, ids *uint16) bool {
	ip := len(pkt.NetworkHeader().Slice())
	headers := ip + len(pkt.TransportHeader().Slice())
	v4 := pkt.GSOOptions.Type == stack.GSOTCPv4
	minimum := header.IPv6MinimumSize
	if v4 {
		minimum = header.IPv4MinimumSize
	}
	if ip < minimum || headers < ip+header.TCPMinimumSize || headers > maxHeaders {
		return false
	}
	*s = splitter{pkt: pkt, at: start(pkt), left: s.left + pkt.Size() - headers, mss: segmentSize(pkt, s.own),
		first: true, ip: ip, headers: headers, v4: v4, ids: ids, own: s.own, tail: s.pkt, rest: s.at, over: s.left}
	s.at.copy(s.hdr[:headers])
	b := s.hdr[:headers]
	addresses := b[8:40]
	if v4 {
		addresses = b[12:20]
		s.df = b[ip4Fragment]&0x40 != 0
		clear(b[ip4Length : ip4Length+2])
		clear(b[ip4Checksum : ip4Checksum+2])
		if !s.df {
			clear(b[ip4ID : ip4ID+2])
		}
		s.ipSum = uint32(checksum.Checksum(b[:ip], 0))
	}
	t := b[ip:]
	s.seq = binary.BigEndian.Uint32(t[tcpSeq:]) - uint32(s.over)
	s.urgent = int(binary.BigEndian.Uint16(t[tcpUrgent:]))
	flags := t[tcpFlags]
	if flags&flagSYN == 0 { // whose window is not scaled
		narrow(t)
	}
	clear(t[tcpSeq : tcpSeq+4])
	clear(t[tcpChecksum : tcpUrgent+2])
	t[tcpFlags] = 0
	s.tcpSum = uint32(checksum.Checksum(addresses, 0)) + uint32(header.TCPProtocolNumber) + uint32(checksum.Checksum(t, 0))
	t[tcpFlags] = flags
	return true
}

// narrow offers one unit less of window than gVisor says. gVisor keeps its
// window in bytes, rounds it down to the unit of the window scale for each
// segment that it sends, and then takes in what fits that last, rounded window
// alone. As the window falls, its right edge so goes back by up to a unit (RFC
// 7323 section 2.4 warns of it): data that the edge before had allowed is
// refused, and with it each later ACK of that sender, whose sequence number
// lies beyond. Two ends that each wait for the other's ACKs wait for ever: so
// did a third of the flows of an echo once segments came and were acknowledged
// by the window. One unit is the most that rounding takes, so no edge that was
// offered is ever beyond what is taken in.
func narrow(t []byte) {
	if w := binary.BigEndian.Uint16(t[tcpWindow:]); w > 0 {
		binary.BigEndian.PutUint16(t[tcpWindow:], w-1)
	}
}

// waits reports whether what is left of the packet makes no full segment, and
// may wait for the packet behind: at most two have part in a segment.
func (s *splitter) waits(mtu int) bool {
	return s.left > 0 && s.tail == nil && s.left < limit(s.mss, mtu, s.headers)
}

// joins reports whether what is left, if anything is, may leave in one segment
// with the first bytes of pkt: these follow in the same flow, and both packets
// carry data and nothing else. Of what a header says beside, acknowledgement,
// window and options, the later word holds. The headers are as long and the
// segments as large, or both together might make more segments than Read has
// room for.
func (s *splitter) joins(pkt *stack.PacketBuffer) bool {
	if s.pkt == nil {
		return true
	}
	a, b := s.pkt.TransportHeader().Slice(), pkt.TransportHeader().Slice()
	return s.left > 0 && s.tail == nil && pkt.GSOOptions == s.pkt.GSOOptions && pkt.Data().Size() > 0 &&
		len(a) == len(b) && s.mss == segmentSize(pkt, s.own) && bytes.Equal(a[:tcpSeq], b[:tcpSeq]) &&
		binary.BigEndian.Uint32(b[tcpSeq:]) == s.seq+uint32(s.left) &&
		a[tcpFlags]&^flagPSH == flagACK && b[tcpFlags]&^flagPSH == flagACK &&
		sameRoute(s.pkt.NetworkHeader().Slice(), pkt.NetworkHeader().Slice())
}

// sameRoute reports whether two IP headers without options say the same but for
// lengths, ids and checksums.
func sameRoute(a, b []byte) bool {
	switch {
	case len(a) != len(b):
		return false
	case len(a) == header.IPv4MinimumSize:
		return bytes.Equal(a[:ip4Length], b[:ip4Length]) && bytes.Equal(a[ip4Fragment:ip4Checksum], b[ip4Fragment:ip4Checksum]) &&
			bytes.Equal(a[12:], b[12:])
	case len(a) == header.IPv6MinimumSize:
		return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[6:], b[6:])
	}
	return false
}

// end gives the packets back, and returns how many there were.
func (s *splitter) end() int {
	n := 1
	s.pkt.DecRef()
	if s.tail != nil {
		s.tail.DecRef()
		n++
	}
	*s = splitter{own: s.own}
	return n
}

// limit returns how much payload one segment takes.
func limit(mss, mtu, headers int) int {
	n := max(1, mtu-headers)
	if mss > 0 {
		n = min(n, mss)
	}
	return n
}

// segmentSize is the size of the segments of pkt's flow, 0 where only the MTU
// bounds it.
func segmentSize(pkt *stack.PacketBuffer, own bool) int {
	if own {
		return 0
	}
	return int(pkt.GSOOptions.MSS)
}

// segments returns how many segments pkt makes.
func segments(pkt *stack.PacketBuffer, mtu int, own bool) int {
	if pkt.GSOOptions.Type == stack.GSONone {
		return 1
	}
	payload := pkt.Data().Size()
	each := limit(segmentSize(pkt, own), mtu, pkt.Size()-payload)
	return max(1, (payload+each-1)/each)
}

// next writes one segment to b and returns its length, 0 where b is too small.
// It sets done with the last.
func (s *splitter) next(b []byte, mtu int) int {
	n := min(s.left, limit(s.mss, mtu, s.headers))
	size := s.headers + n
	if size > len(b) {
		return 0
	}
	copy(b, s.hdr[:s.headers])
	if !s.copy(b[s.headers:size]) {
		return 0 // the packet is shorter than it said
	}
	s.left -= n
	s.done = s.left == 0
	if s.v4 {
		s.putIPv4(b, size)
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(size-header.IPv6MinimumSize))
	}
	t := b[s.ip:size]
	if !s.done {
		t[tcpFlags] &^= flagFIN | flagPSH
	}
	if !s.first {
		t[tcpFlags] &^= flagCWR // RFC 3168 section 6.1.2: once
	}
	if t[tcpFlags]&flagURG != 0 {
		if s.urgent > 0 {
			binary.BigEndian.PutUint16(t[tcpUrgent:], uint16(s.urgent))
		} else {
			t[tcpFlags] &^= flagURG
		}
	}
	binary.BigEndian.PutUint32(t[tcpSeq:], s.seq)
	if !s.own {
		sum := s.tcpSum + uint32(len(t)) + s.seq>>16 + s.seq&0xffff + uint32(t[tcpFlags]) +
			uint32(binary.BigEndian.Uint16(t[tcpUrgent:])) + uint32(checksum.Checksum(b[s.headers:size], 0))
		binary.BigEndian.PutUint16(t[tcpChecksum:], ^fold(sum))
	}
	s.seq += uint32(n)
	s.urgent -= n
	s.first = false
	return size
}

// copy fills payload with what comes next; false where there is less.
func (s *splitter) copy(payload []byte) bool {
	if s.tail != nil {
		n := min(len(payload), s.over)
		if s.rest.copy(payload[:n]) != n {
			return false
		}
		payload = payload[n:]
		if s.over -= n; s.over == 0 {
			s.tail.DecRef()
			s.tail = nil
		}
	}
	return s.at.copy(payload) == len(payload)
}

// putIPv4 completes the IPv4 header at the front of b.
func (s *splitter) putIPv4(b []byte, size int) {
	sum := s.ipSum + uint32(size)
	binary.BigEndian.PutUint16(b[ip4Length:], uint16(size))
	if !s.df {
		if *s.ids++; *s.ids == 0 { // as in packets that have none
			*s.ids = 1
		}
		binary.BigEndian.PutUint16(b[ip4ID:], *s.ids)
		sum += uint32(*s.ids)
	}
	binary.BigEndian.PutUint16(b[ip4Checksum:], ^fold(sum))
}

// fold adds the carries of a sum of 16-bit words.
func fold(sum uint32) uint16 {
	sum = sum>>16 + sum&0xffff
	return uint16(sum + sum>>16)
}
