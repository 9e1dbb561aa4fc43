package netstack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// UDP goes past gVisor's endpoints: what leaves is built here and handed to the
// link, what arrives is taken apart here and handed to the flow of its NIC.

const (
	udpHeaderLen = 8
	udpTTL       = 64 // RFC 1700's advice, and gVisor's default

	// The largest payloads: what 16 bits of length leave (RFC 791, RFC 768).
	maxUDPPayload4 = 65535 - ip4HeaderLen - udpHeaderLen
	maxUDPPayload6 = 65535 - udpHeaderLen

	// The smallest MTU that a link may have (RFC 791, RFC 8200 section 5).
	minMTU4, minMTU6 = 68, 1280

	fragmentHeaderLen = header.IPv6FragmentHeaderSize
	moreFragments4    = 0x2000
)

// Why a datagram was dropped on its way in.
const (
	whyUDPChecksum = "udp_checksum" // its checksum is wrong
	whyUDPAddress  = "udp_address"  // its source or destination cannot be an end of a flow
)

// datagram is one that arrived, whole and checked. Its slices lie in the
// packet's memory.
type datagram struct {
	src, dst netip.AddrPort
	ip       []byte // from the IP header on
	payload  []byte
}

// quote copies what an ICMP error must hold of d: its IP header and 8 bytes.
func (d *datagram) quote() []byte {
	n := ip6HeaderLen
	if d.ip[0]>>4 == 4 {
		n = int(d.ip[0]&0x0f) * 4
	}
	return append([]byte(nil), d.ip[:n+quotedPorts]...)
}

// parseUDP4 reads an IPv4 packet that carries a whole datagram. It trusts no
// length and no checksum.
func parseUDP4(b []byte) (d datagram, why string) {
	if len(b) < ip4HeaderLen+udpHeaderLen {
		return d, whyMalformed
	}
	hlen, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if b[0]>>4 != 4 || hlen < ip4HeaderLen || total > len(b) || total < hlen+udpHeaderLen {
		return d, whyMalformed
	}
	if checksum.Checksum(b[:hlen], 0) != 0xffff {
		return d, whyMalformed
	}
	udp := b[hlen:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if length < udpHeaderLen || length > len(udp) {
		return d, whyMalformed
	}
	udp = udp[:length]
	// No checksum at all is the sender's right in IPv4 (RFC 768).
	if binary.BigEndian.Uint16(udp[6:]) != 0 && checksum.Checksum(udp, pseudoUDP(b[12:20], length)) != 0xffff {
		return d, whyUDPChecksum
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	return finishParse(b[:total], udp, src, dst)
}

// parseUDP6 is parseUDP4 for IPv6 without extension headers.
func parseUDP6(b []byte) (d datagram, why string) {
	if len(b) < ip6HeaderLen+udpHeaderLen {
		return d, whyMalformed
	}
	size := int(binary.BigEndian.Uint16(b[4:]))
	if b[0]>>4 != 6 || size < udpHeaderLen || ip6HeaderLen+size > len(b) {
		return d, whyMalformed
	}
	udp := b[ip6HeaderLen : ip6HeaderLen+size]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if length < udpHeaderLen || length > len(udp) {
		return d, whyMalformed
	}
	udp = udp[:length]
	// A sum of zero is none, and IPv6 wants one (RFC 8200 section 8.1).
	if binary.BigEndian.Uint16(udp[6:]) == 0 || checksum.Checksum(udp, pseudoUDP(b[8:40], length)) != 0xffff {
		return d, whyUDPChecksum
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	return finishParse(b[:ip6HeaderLen+size], udp, src, dst)
}

func finishParse(ip, udp []byte, src, dst netip.Addr) (d datagram, why string) {
	d = datagram{
		src:     netip.AddrPortFrom(src, binary.BigEndian.Uint16(udp)),
		dst:     netip.AddrPortFrom(dst, binary.BigEndian.Uint16(udp[2:])),
		ip:      ip,
		payload: udp[udpHeaderLen:],
	}
	if !isHost(src) || !isHost(dst) || d.src.Port() == 0 || src.Is4In6() || dst.Is4In6() {
		return datagram{}, whyUDPAddress
	}
	return d, ""
}

// isHost reports whether a may be one end of a flow.
func isHost(a netip.Addr) bool {
	return !a.IsMulticast() && !a.IsLoopback() && !a.IsUnspecified() && a != broadcast4
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// pseudoUDP is the sum over the pseudo-header: addrs is the source address and
// behind it the destination (RFC 768, RFC 8200 section 8.1).
func pseudoUDP(addrs []byte, length int) uint16 {
	return checksum.Combine(checksum.Checksum(addrs, 0), checksum.Combine(protoUDP, uint16(length)))
}

// udpOut is one datagram on its way out.
type udpOut struct {
	src, dst netip.AddrPort // of one family, IPv4 never in IPv6's form
	payload  []byte
	mtu      int    // of the link
	id       uint32 // of the IP packet, or of its fragments; not zero
}

// fits reports whether o can be sent at all.
func (o *udpOut) fits() bool {
	if o.src.Addr().Is4() {
		return len(o.payload) <= maxUDPPayload4
	}
	return len(o.payload) <= maxUDPPayload6
}

// fragmented reports whether o needs more than one packet.
func (o *udpOut) fragmented() bool {
	if o.src.Addr().Is4() {
		return ip4HeaderLen+udpHeaderLen+len(o.payload) > max(o.mtu, minMTU4)
	}
	return ip6HeaderLen+udpHeaderLen+len(o.payload) > max(o.mtu, minMTU6)
}

// appendTo builds the datagram, in as many packets as the MTU asks for, and
// appends them to list, which then owns them.
//
// DF stays off and the id is never 0, whole or not: a router on the way may
// have to cut what fitted here, and with id 0 all fragments would look like
// one datagram's.
func (o *udpOut) appendTo(list *stack.PacketBufferList) {
	var udp [udpHeaderLen]byte
	length := udpHeaderLen + len(o.payload)
	binary.BigEndian.PutUint16(udp[0:], o.src.Port())
	binary.BigEndian.PutUint16(udp[2:], o.dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(length))
	binary.BigEndian.PutUint16(udp[6:], o.checksum(udp[:]))
	if !o.fragmented() {
		b := o.packet(list, length, 0, false, false)
		copy(b, udp[:])
		copy(b[udpHeaderLen:], o.payload)
		return
	}
	room := (max(o.mtu, minMTU4) - ip4HeaderLen) &^ 7
	if !o.src.Addr().Is4() {
		room = (max(o.mtu, minMTU6) - ip6HeaderLen - fragmentHeaderLen) &^ 7
	}
	for off := 0; off < length; off += room {
		size := min(room, length-off)
		b := o.packet(list, size, off, off+size < length, true)
		if off == 0 {
			b = b[copy(b, udp[:]):]
			copy(b, o.payload)
			continue
		}
		copy(b, o.payload[off-udpHeaderLen:])
	}
}

// checksum is what the UDP header holds; udp is that header, with 0 there.
func (o *udpOut) checksum(udp []byte) uint16 {
	sum := pseudoUDP(o.addrs(new([32]byte)), udpHeaderLen+len(o.payload))
	sum = ^checksum.Checksum(o.payload, checksum.Checksum(udp, sum))
	if sum == 0 {
		return 0xffff // 0 would say that there is none (RFC 768)
	}
	return sum
}

// addrs writes the source and behind it the destination to into.
func (o *udpOut) addrs(into *[32]byte) []byte {
	if o.src.Addr().Is4() {
		src, dst := o.src.Addr().As4(), o.dst.Addr().As4()
		copy(into[0:4], src[:])
		copy(into[4:8], dst[:])
		return into[:8]
	}
	src, dst := o.src.Addr().As16(), o.dst.Addr().As16()
	copy(into[:16], src[:])
	copy(into[16:], dst[:])
	return into[:]
}

// packet appends a packet with size bytes behind its headers, which it fills
// in, and returns those bytes for the caller to fill. fragment makes it one;
// off and more are then its place.
func (o *udpOut) packet(list *stack.PacketBufferList, size, off int, more, fragment bool) []byte {
	is4 := o.src.Addr().Is4()
	hlen := ip4HeaderLen
	if !is4 {
		hlen = ip6HeaderLen
		if fragment {
			hlen += fragmentHeaderLen
		}
	}
	view := buffer.NewViewSize(hlen + size) // pooled, and all zero
	b := view.AsSlice()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	pkt.NetworkProtocolNumber = networkProtocol(is4)
	pkt.TransportProtocolNumber = header.UDPProtocolNumber // a link makes it wait for room
	list.PushBack(pkt)
	if is4 {
		o.header4(b, off, more)
	} else {
		o.header6(b, off, more, fragment)
	}
	return b[hlen:]
}

func (o *udpOut) header4(b []byte, off int, more bool) {
	b[0] = 4<<4 | ip4HeaderLen/4
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], uint16(o.id))
	flags := uint16(off / 8)
	if more {
		flags |= moreFragments4
	}
	binary.BigEndian.PutUint16(b[6:], flags)
	b[8], b[9] = udpTTL, protoUDP
	src, dst := o.src.Addr().As4(), o.dst.Addr().As4()
	copy(b[12:16], src[:])
	copy(b[16:20], dst[:])
	binary.BigEndian.PutUint16(b[10:], ^checksum.Checksum(b[:ip4HeaderLen], 0))
}

func (o *udpOut) header6(b []byte, off int, more, fragment bool) {
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ip6HeaderLen))
	b[6], b[7] = protoUDP, udpTTL
	src, dst := o.src.Addr().As16(), o.dst.Addr().As16()
	copy(b[8:24], src[:])
	copy(b[24:40], dst[:])
	if !fragment {
		return
	}
	b[6] = protoFragment // RFC 8200 section 4.5
	frag := b[ip6HeaderLen:]
	frag[0] = protoUDP
	flags := uint16(off)
	if more {
		flags |= 1
	}
	binary.BigEndian.PutUint16(frag[2:], flags)
	binary.BigEndian.PutUint32(frag[4:], o.id)
}
