package netstack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// ICMP types of an echo (RFC 792, RFC 4443 section 4).
const (
	icmp4EchoReply   = 0
	icmp4EchoRequest = 8
	icmp6EchoRequest = 128
	icmp6EchoReply   = 129
)

// echo is an echo request or reply, whole. Of one that arrived, data lies in
// the packet's memory.
type echo struct {
	src, dst netip.Addr // of one family, never IPv4-mapped
	reply    bool
	id, seq  uint16
	data     []byte
}

// isEcho reports whether b, an IP packet whose protocol is ICMP, is an echo by
// its type. It says nothing about the rest.
func isEcho(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	at, request, reply := ip6HeaderLen, byte(icmp6EchoRequest), byte(icmp6EchoReply)
	if b[0]>>4 == 4 {
		at, request, reply = int(b[0]&0x0f)*4, icmp4EchoRequest, icmp4EchoReply
	}
	return len(b) > at && (b[at] == request || b[at] == reply)
}

// parseEcho reads a whole IP packet that is an echo, of either family. It
// trusts no length and no checksum.
func parseEcho(b []byte) (e echo, why string) {
	if len(b) > 0 && b[0]>>4 == 4 {
		return parseEcho4(b)
	}
	return parseEcho6(b)
}

func parseEcho4(b []byte) (e echo, why string) {
	if len(b) < ip4HeaderLen {
		return echo{}, whyMalformed
	}
	hlen, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if hlen < ip4HeaderLen || total > len(b) || total < hlen+icmpHeaderLen || b[9] != protoICMPv4 {
		return echo{}, whyMalformed
	}
	if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return echo{}, whyICMPFragment
	}
	if checksum.Checksum(b[:hlen], 0) != 0xffff {
		return echo{}, whyMalformed
	}
	msg := b[hlen:total]
	if checksum.Checksum(msg, 0) != 0xffff {
		return echo{}, whyICMPMalformed
	}
	e.src, e.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	return e.finish(msg, icmp4EchoRequest, icmp4EchoReply)
}

func parseEcho6(b []byte) (e echo, why string) {
	if len(b) < ip6HeaderLen || b[0]>>4 != 6 || b[6] != protoICMPv6 {
		return echo{}, whyMalformed
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < icmpHeaderLen || ip6HeaderLen+length > len(b) {
		return echo{}, whyMalformed
	}
	msg := b[ip6HeaderLen : ip6HeaderLen+length]
	if checksum.Checksum(msg, pseudo6(b[8:24], b[24:40], length)) != 0xffff {
		return echo{}, whyICMPMalformed
	}
	e.src, e.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	return e.finish(msg, icmp6EchoRequest, icmp6EchoReply)
}

// finish reads the ICMP message of a packet whose addresses are known.
func (e *echo) finish(msg []byte, request, reply byte) (echo, string) {
	if msg[0] != request && msg[0] != reply || msg[1] != 0 {
		return echo{}, whyICMPMalformed
	}
	if !isHost(e.src) || !isHost(e.dst) || e.src.Is4In6() || e.dst.Is4In6() {
		return echo{}, whyICMPMalformed
	}
	e.reply = msg[0] == reply
	e.id, e.seq = binary.BigEndian.Uint16(msg[4:]), binary.BigEndian.Uint16(msg[6:])
	e.data = msg[icmpHeaderLen:]
	return *e, ""
}

// packet is e as a whole IP packet.
func (e *echo) packet() []byte {
	if e.src.Is4() {
		b := make([]byte, ip4HeaderLen+icmpHeaderLen+len(e.data))
		b[0] = 4<<4 | ip4HeaderLen/4
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[6:], 0x4000) // do not fragment; the id may then be 0 (RFC 6864)
		b[8], b[9] = icmpTTL, protoICMPv4
		src, dst := e.src.As4(), e.dst.As4()
		copy(b[12:16], src[:])
		copy(b[16:20], dst[:])
		binary.BigEndian.PutUint16(b[10:], ^checksum.Checksum(b[:ip4HeaderLen], 0))
		e.put(b[ip4HeaderLen:], icmp4EchoRequest, icmp4EchoReply, 0)
		return b
	}
	length := icmpHeaderLen + len(e.data)
	b := make([]byte, ip6HeaderLen+length)
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	b[6], b[7] = protoICMPv6, icmpTTL
	src, dst := e.src.As16(), e.dst.As16()
	copy(b[8:24], src[:])
	copy(b[24:40], dst[:])
	e.put(b[ip6HeaderLen:], icmp6EchoRequest, icmp6EchoReply, pseudo6(b[8:24], b[24:40], length))
	return b
}

// put writes e's ICMP message, which begins with sum as its checksum.
func (e *echo) put(msg []byte, request, reply byte, sum uint16) {
	msg[0] = request
	if e.reply {
		msg[0] = reply
	}
	binary.BigEndian.PutUint16(msg[4:], e.id)
	binary.BigEndian.PutUint16(msg[6:], e.seq)
	copy(msg[icmpHeaderLen:], e.data)
	binary.BigEndian.PutUint16(msg[2:], ^checksum.Checksum(msg, sum))
}

// answer is the reply to e: the same identifier, sequence number and data.
func (e *echo) answer() *echo {
	return &echo{src: e.dst, dst: e.src, reply: true, id: e.id, seq: e.seq, data: e.data}
}

// writeEcho hands the link an echo, and waits for room in it as a datagram
// does: what the stack makes as ICMP is dropped where the link is full, and an
// echo would be lost whenever bulk flows are busy. So it must not be called
// from the goroutine that delivers.
func (n *NIC) writeEcho(e *echo) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(e.packet())})
	pkt.NetworkProtocolNumber = networkProtocol(e.src.Is4())
	pkt.TransportProtocolNumber = header.UDPProtocolNumber // not an answer, to the link
	list := outgoing.Get().(*stack.PacketBufferList)
	defer outgoing.Put(list)
	list.PushBack(pkt)
	n.writeList(list)
}

// takeICMP deals with a whole packet that carries ICMP, of which it may keep
// the bytes. It returns why it dropped it, "" where it did not, or has counted
// it. It never blocks.
func (n *NIC) takeICMP(b []byte) string {
	if !isEcho(b) {
		if len(b) > 0 && b[0]>>4 == 4 {
			return n.handleICMP(parseICMPv4(b))
		}
		return n.handleICMP(parseICMPv6(b))
	}
	e, why := parseEcho(b)
	switch {
	case why != "":
		return why
	case e.reply:
		return n.pings.answered(&e)
	case !n.stack.cfg.Promiscuous:
		return whyProtocol // nobody pings an edge's stack
	}
	return n.stack.ping.handle(n, b, &e)
}
