package link

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxBatch is how many packets are looked at together; wireguard-go
	// never decrypts more at once.
	maxBatch = 128
	// maxRuns is how many flows of a batch may have an open run. A sender
	// cuts each of its packets into segments that follow one another, so that
	// even of 128 flows few are mixed within a batch.
	maxRuns = 16
	// maxMerged is the largest IP packet that a run may become.
	maxMerged = 65535
)

// merger puts the TCP segments of one batch together again: those of a flow
// that follow one another without a gap, and say the same but for their
// payload, become one packet. What may be merged is what Linux's GRO merges,
// except that segments need not be of one length, nor FIN the end of a run:
//
//   - IPv4 without options or fragmentation, IPv6 without extension headers;
//   - equal TOS and TTL (traffic class, flow label and hop limit), DF, ack
//     number, window and TCP options, timestamps included;
//   - flags ACK alone; PSH ends the run and is kept;
//   - each with a right checksum, but from a trusted peer.
//
// All else goes on at once, behind what its flow has open. So the stack sees
// the segments of a flow in the order in which they came.
type merger struct {
	e       *Endpoint
	to      stack.NetworkDispatcher
	trusted bool
	packets [][]byte
	behind  [maxBatch]uint8 // the next segment of packet i's run
	runs    [maxRuns]run    // the first n are open, the oldest first
	n       int
	wakers  wakers // of datagrams
}

// run is a sequence of segments that will be one packet.
type run struct {
	key         uint64 // see flowKey
	first, last uint8  // indexes of packets, chained by behind
	count       uint8
	ip, headers int // lengths of the IP header, and of both headers
	total       int // bytes so far, with one pair of headers
	next        uint32
}

// deliver gives all packets to the stack, merged where that can be.
func (m *merger) deliver() {
	for i, b := range m.packets {
		protocol, ok := networkProtocol(b)
		if !ok {
			m.e.drops.Add(WhyVersion, 1)
			continue
		}
		ip, headers, ok := parseTCP(b)
		if !ok {
			if isTCP(b) { // of whatever flow
				m.flushAll()
			}
			if !m.datagram(b) {
				m.e.deliverOne(m.to, protocol, b, false)
			}
			continue
		}
		key := flowKey(b, ip)
		at := m.find(key, b, ip)
		if at >= 0 && !m.extend(&m.runs[at], i, b) {
			m.flush(at)
			at = -1
		}
		switch pushed := b[ip+tcpFlags]&flagPSH != 0; {
		case at >= 0:
			if pushed {
				m.flush(at)
			}
		case pushed || !mayMerge(b, ip, headers):
			m.e.deliverOne(m.to, protocol, b, m.trusted)
		default:
			m.open(i, key, b, ip, headers)
		}
	}
	m.flushAll()
	m.wakeAll()
}

// parseTCP returns the length of the IP header and of both headers of a whole
// TCP packet. It is not ok with IP options, extension headers, fragments or
// bytes behind the packet.
func parseTCP(b []byte) (ip, headers int, ok bool) {
	switch {
	case len(b) >= header.IPv4MinimumSize+header.TCPMinimumSize && b[0] == 0x45:
		ip = header.IPv4MinimumSize
		ok = b[9] == uint8(header.TCPProtocolNumber) && int(binary.BigEndian.Uint16(b[ip4Length:])) == len(b) &&
			binary.BigEndian.Uint16(b[ip4Fragment:])&^0x4000 == 0
	case len(b) >= header.IPv6MinimumSize+header.TCPMinimumSize && b[0]>>4 == 6:
		ip = header.IPv6MinimumSize
		ok = b[6] == uint8(header.TCPProtocolNumber) && int(binary.BigEndian.Uint16(b[4:])) == len(b)-ip
	}
	if !ok {
		return 0, 0, false
	}
	size := int(b[ip+tcpOffset]>>4) * 4
	return ip, ip + size, size >= header.TCPMinimumSize && ip+size <= len(b)
}

// isTCP reports whether b, which parseTCP refused, may be TCP's all the same.
func isTCP(b []byte) bool {
	if b[0]>>4 == 4 {
		return len(b) > 9 && b[9] == uint8(header.TCPProtocolNumber)
	}
	return len(b) > 6 && b[6] != uint8(header.UDPProtocolNumber) && b[6] != uint8(header.ICMPv6ProtocolNumber)
}

// flowKey is equal for segments of one flow, and nearly never for others.
func flowKey(b []byte, ip int) uint64 {
	_, src := addresses(b, ip)
	return uint64(binary.BigEndian.Uint32(b[ip:]))<<32 | uint64(src)
}

// addresses returns both addresses of a packet, and the end of the source's.
func addresses(b []byte, ip int) (both []byte, src uint32) {
	if ip == header.IPv4MinimumSize {
		return b[12:20], binary.BigEndian.Uint32(b[12:])
	}
	return b[8:40], binary.BigEndian.Uint32(b[20:])
}

// find returns the open run of b's flow, or -1.
func (m *merger) find(key uint64, b []byte, ip int) int {
	both, _ := addresses(b, ip)
	for i := m.n - 1; i >= 0; i-- {
		if r := &m.runs[i]; r.key == key && r.ip == ip {
			// The ports follow the addresses.
			if from, head := ip-len(both), m.packets[r.first]; bytes.Equal(head[from:ip+tcpSeq], b[from:ip+tcpSeq]) {
				return i
			}
		}
	}
	return -1
}

// mayMerge reports whether a segment may be part of a run.
func mayMerge(b []byte, ip, headers int) bool {
	return len(b) > headers && b[ip+tcpFlags]&^flagPSH == flagACK && b[ip+tcpOffset]&0x0f == 0
}

// extend appends packet i to r, if it belongs there.
func (m *merger) extend(r *run, i int, b []byte) bool {
	head := m.packets[r.first]
	t, h := b[r.ip:], head[r.ip:]
	payload := len(b) - r.headers
	if r.total+payload > maxMerged || t[tcpOffset] != h[tcpOffset] || !mayMerge(b, r.ip, r.headers) ||
		binary.BigEndian.Uint32(t[tcpSeq:]) != r.next ||
		!bytes.Equal(t[tcpAck:tcpOffset], h[tcpAck:tcpOffset]) ||
		!bytes.Equal(t[tcpWindow:tcpChecksum], h[tcpWindow:tcpChecksum]) ||
		!bytes.Equal(t[header.TCPMinimumSize:r.headers-r.ip], h[header.TCPMinimumSize:r.headers-r.ip]) ||
		!sameIP(head, b, r.ip) {
		return false
	}
	// Nobody has looked at the first one before there is a second.
	if !m.trusted && (!verify(b, r.ip, r.headers) || r.count == 1 && !verify(head, r.ip, r.headers)) {
		return false
	}
	m.behind[r.last] = uint8(i)
	r.last = uint8(i)
	r.count++
	r.total += payload
	r.next += uint32(payload)
	return true
}

// sameIP compares what two IP headers of one flow say beside addresses,
// lengths and ids.
func sameIP(a, b []byte, ip int) bool {
	if ip == header.IPv4MinimumSize {
		return a[1] == b[1] && a[6] == b[6] && a[8] == b[8]
	}
	return bytes.Equal(a[:4], b[:4]) && a[7] == b[7]
}

// verify checks the checksums of a whole TCP packet.
func verify(b []byte, ip, headers int) bool {
	if ip == header.IPv4MinimumSize && checksum.Checksum(b[:ip], 0) != 0xffff {
		return false
	}
	both, _ := addresses(b, ip)
	return fold(uint32(checksum.Checksum(both, 0))+uint32(header.TCPProtocolNumber)+uint32(len(b)-ip)+
		uint32(checksum.Checksum(b[ip:], 0))) == 0xffff
}

// open begins a run with packet i, where there is no room in the place of the
// oldest.
func (m *merger) open(i int, key uint64, b []byte, ip, headers int) {
	if m.n == maxRuns {
		m.flush(0)
	}
	m.runs[m.n] = run{key: key, first: uint8(i), last: uint8(i), count: 1, ip: ip, headers: headers, total: len(b),
		next: binary.BigEndian.Uint32(b[ip+tcpSeq:]) + uint32(len(b)-headers)}
	m.n++
}

func (m *merger) flushAll() {
	for i := range m.n {
		m.send(&m.runs[i])
	}
	m.n = 0
}

// flush delivers one run and closes it.
func (m *merger) flush(at int) {
	m.send(&m.runs[at])
	m.n--
	copy(m.runs[at:m.n], m.runs[at+1:m.n+1])
}

// send delivers a run as one packet.
func (m *merger) send(r *run) {
	head := m.packets[r.first]
	protocol, _ := networkProtocol(head)
	if r.count == 1 {
		m.e.deliverOne(m.to, protocol, head, m.trusted)
		return
	}
	// The headers in a view of their own: gVisor keeps a reference to the view
	// that they are in and then looks at them once more, which copies its chunk.
	headers, payload := buffer.NewViewSize(r.headers), buffer.NewViewSize(r.total-r.headers)
	b, data := headers.AsSlice(), payload.AsSlice() // nobody else has them yet
	copy(b, head)
	n := copy(data, head[r.headers:])
	for i := r.first; i != r.last; {
		i = m.behind[i]
		n += copy(data[n:], m.packets[i][r.headers:])
	}
	if r.ip == header.IPv4MinimumSize {
		binary.BigEndian.PutUint16(b[ip4Length:], uint16(r.total))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(r.total-r.ip))
	}
	b[r.ip+tcpFlags] |= m.packets[r.last][r.ip+tcpFlags] & flagPSH
	whole := buffer.MakeWithView(payload)
	_ = whole.Prepend(headers) // fails where it cannot grow
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: whole})
	pkt.RXChecksumValidated = true // what stands there is the first segment's
	m.to.DeliverNetworkPacket(protocol, pkt)
	pkt.DecRef()
}
