package netstack

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Why a packet was dropped at the NIC, before gVisor saw it.
const (
	whyMalformed     = "malformed"      // too short for what it says it is
	whyChecksum      = "checksum"       // TCP with a wrong checksum, its own or that of its IPv4 header
	whyProtocol      = "protocol"       // neither TCP, UDP, an ICMP error nor an echo that somebody takes
	whyICMPUnknown   = "icmp_unknown"   // an ICMP error that is about no flow of this NIC
	whyICMPFragment  = "icmp_fragment"  // an ICMP message in fragments
	whyICMPBacklog   = "icmp_backlog"   // "packet too big" while the last one is still being heeded
	whyICMPMalformed = "icmp_malformed" // an ICMP error that quotes nothing usable
)

// linkGuard stands between a link and gVisor. On the way in it takes out what
// gVisor would handle for the whole stack instead of for the NIC that it came
// from. It verifies TCP's checksums where the link has not.
type linkGuard struct {
	stack.LinkEndpoint
	nic *NIC
}

// Capabilities are the link's, but for checksums. On the way out gVisor makes
// them all (host GSO skips TCP's by itself). On the way in it need not look at
// any: what it is given is TCP, and inbound has looked at that.
func (g *linkGuard) Capabilities() stack.LinkEndpointCapabilities {
	return g.LinkEndpoint.Capabilities()&^stack.CapabilityTXChecksumOffload | stack.CapabilityRXChecksumOffload
}

// GSOMaxSize and SupportedGSO pass on what the link says, where it does:
// embedding hides interfaces that are not part of LinkEndpoint.
func (g *linkGuard) GSOMaxSize() uint32 {
	if gso, ok := g.LinkEndpoint.(stack.GSOEndpoint); ok {
		return gso.GSOMaxSize()
	}
	return 0
}

// SupportedGSO is explained at GSOMaxSize.
func (g *linkGuard) SupportedGSO() stack.SupportedGSO {
	if gso, ok := g.LinkEndpoint.(stack.GSOEndpoint); ok {
		return gso.SupportedGSO()
	}
	return stack.GSONotSupported
}

// SetOnCloseAction is ignored: a NIC ends by Remove alone.
func (g *linkGuard) SetOnCloseAction(func()) {}

// Attach gives the link a dispatcher that checks first.
func (g *linkGuard) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		g.LinkEndpoint.Attach(nil)
		return
	}
	g.LinkEndpoint.Attach(&inbound{next: d, nic: g.nic})
}

// inbound is the dispatcher that the link of a NIC delivers to.
type inbound struct {
	next stack.NetworkDispatcher
	nic  *NIC
}

// DeliverLinkPacket is for packet sockets, which Warren has none of.
func (in *inbound) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// DeliverNetworkPacket passes TCP on, takes UDP to its flow (both whole:
// fragments wait for the rest), handles ICMP errors and echoes, and drops and
// counts everything else. It never blocks.
func (in *inbound) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	why := whyProtocol
	switch protocol {
	case header.IPv4ProtocolNumber:
		why = in.deliver4(pkt)
	case header.IPv6ProtocolNumber:
		why = in.deliver6(pkt)
	}
	if why != "" {
		in.nic.stack.drops.Add(why, 1)
	}
}

func (in *inbound) deliver4(pkt *stack.PacketBuffer) (why string) {
	b, ok := pkt.Data().PullUp(header.IPv4MinimumSize)
	if !ok {
		return whyMalformed
	}
	fragment := binary.BigEndian.Uint16(b[6:])&0x3fff != 0 // more fragments, or an offset
	switch b[9] {
	case protoTCP, protoUDP:
		if fragment {
			return in.fragment4(pkt)
		}
		if b[9] == protoUDP {
			return in.nic.takeUDP(pkt)
		}
		if !pkt.RXChecksumValidated && !valid4(pkt) {
			return whyChecksum
		}
		in.next.DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
		return ""
	case protoICMPv4:
		if fragment {
			return whyICMPFragment
		}
		return in.nic.takeICMP(pkt.Data().AsRange().ToSlice())
	}
	return whyProtocol
}

// fragment4 takes a fragment, and delivers the datagram if it completes one.
func (in *inbound) fragment4(pkt *stack.PacketBuffer) (why string) {
	b, _ := pkt.Data().PullUp(ip4HeaderLen)
	hlen, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	b, ok := pkt.Data().PullUp(hlen)
	if !ok || hlen < ip4HeaderLen || total < hlen || total > pkt.Data().Size() {
		return whyMalformed
	}
	flags := binary.BigEndian.Uint16(b[6:])
	key := fragmentKey{
		src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20])),
		id: uint32(binary.BigEndian.Uint16(b[4:])), proto: b[9],
	}
	data := pkt.Data().ToBuffer()
	data.TrimFront(int64(hlen))
	data.Truncate(int64(total - hlen))
	head, whole, complete := in.nic.fragments.add(key, int(flags&0x1fff)*8, flags&0x2000 != 0, b, data, 65535-ip4HeaderLen)
	if !complete {
		return ""
	}
	length := len(head) + int(whole.Size())
	if length > 65535 {
		whole.Release()
		return whyFragment
	}
	binary.BigEndian.PutUint16(head[2:], uint16(length))
	binary.BigEndian.PutUint32(head[4:], 0) // id, flags and offset
	binary.BigEndian.PutUint16(head[10:], 0)
	binary.BigEndian.PutUint16(head[10:], ^checksum.Checksum(head, 0))
	return in.deliverWhole(header.IPv4ProtocolNumber, key.proto, head, whole)
}

func (in *inbound) deliver6(pkt *stack.PacketBuffer) (why string) {
	b, ok := pkt.Data().PullUp(header.IPv6MinimumSize)
	if !ok {
		return whyMalformed
	}
	switch b[6] {
	case protoUDP:
		return in.nic.takeUDP(pkt)
	case protoTCP:
		if !pkt.RXChecksumValidated && !valid6(pkt) {
			return whyChecksum
		}
		in.next.DeliverNetworkPacket(header.IPv6ProtocolNumber, pkt)
		return ""
	case protoFragment:
		return in.fragment6(pkt)
	case protoICMPv6:
		return in.nic.takeICMP(pkt.Data().AsRange().ToSlice())
	}
	return whyProtocol // extension headers too: nothing that Warren carries has them
}

// fragment6 is fragment4 for IPv6 (RFC 8200 section 4.5).
func (in *inbound) fragment6(pkt *stack.PacketBuffer) (why string) {
	const headers = ip6HeaderLen + header.IPv6FragmentHeaderSize
	b, ok := pkt.Data().PullUp(headers)
	if !ok {
		return whyMalformed
	}
	length := int(binary.BigEndian.Uint16(b[4:])) + ip6HeaderLen
	if length < headers || length > pkt.Data().Size() {
		return whyMalformed
	}
	frag := b[ip6HeaderLen:]
	if frag[0] != protoTCP && frag[0] != protoUDP {
		return whyICMPFragment
	}
	flags := binary.BigEndian.Uint16(frag[2:])
	key := fragmentKey{
		src: netip.AddrFrom16([16]byte(b[8:24])), dst: netip.AddrFrom16([16]byte(b[24:40])),
		id: binary.BigEndian.Uint32(frag[4:]), proto: frag[0],
	}
	data := pkt.Data().ToBuffer()
	data.TrimFront(headers)
	data.Truncate(int64(length - headers))
	head, whole, complete := b[:ip6HeaderLen], data, true
	if flags&0xfff9 != 0 { // else it is the only fragment: by itself (RFC 6946)
		head, whole, complete = in.nic.fragments.add(key, int(flags&0xfff8), flags&1 != 0, head, data, 65535)
		if !complete {
			return ""
		}
	} else {
		head = slices.Clone(head)
	}
	head[6] = key.proto
	binary.BigEndian.PutUint16(head[4:], uint16(whole.Size()))
	return in.deliverWhole(header.IPv6ProtocolNumber, key.proto, head, whole)
}

// deliverWhole passes on a packet that came in fragments.
func (in *inbound) deliverWhole(protocol tcpip.NetworkProtocolNumber, transport uint8, head []byte, data buffer.Buffer) string {
	payload := buffer.MakeWithData(head)
	payload.Merge(&data)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payload})
	defer pkt.DecRef()
	if transport == protoUDP {
		return in.nic.takeUDP(pkt)
	}
	if protocol == header.IPv4ProtocolNumber && !valid4(pkt) || protocol == header.IPv6ProtocolNumber && !valid6(pkt) {
		return whyChecksum
	}
	in.next.DeliverNetworkPacket(protocol, pkt)
	return ""
}

// valid4 verifies the checksums of a whole IPv4 packet of TCP. A packet whose
// lengths do not add up is gVisor's to refuse.
func valid4(pkt *stack.PacketBuffer) bool {
	b, _ := pkt.Data().PullUp(header.IPv4MinimumSize)
	hlen, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if hlen < header.IPv4MinimumSize || total < hlen || total > pkt.Data().Size() {
		return true
	}
	b, _ = pkt.Data().PullUp(hlen)
	return checksum.Checksum(b, 0) == 0xffff && validTCP(pkt, b[12:20], hlen, total)
}

// valid6 is valid4 for IPv6 without extension headers.
func valid6(pkt *stack.PacketBuffer) bool {
	b, _ := pkt.Data().PullUp(header.IPv6MinimumSize)
	total := header.IPv6MinimumSize + int(binary.BigEndian.Uint16(b[4:]))
	return total > pkt.Data().Size() || validTCP(pkt, b[8:40], header.IPv6MinimumSize, total)
}

// validTCP verifies the checksum of what lies from hlen to total, between the
// hosts of those addresses (RFC 9293 section 3.1).
func validTCP(pkt *stack.PacketBuffer, addresses []byte, hlen, total int) bool {
	sum := uint32(checksum.Checksum(addresses, 0)) + uint32(header.TCPProtocolNumber) + uint32(total-hlen)
	pkt.Data().CapLength(total)
	sum += uint32(pkt.Data().ChecksumAtOffset(hlen))
	sum = sum>>16 + sum&0xffff
	return uint16(sum+sum>>16) == 0xffff
}

// handleLateICMP deals with an error about no flow of the index. The end of a
// UDP flow that the peer dialled is no such thing: it comes for each one, also
// where this side was quicker to forget it.
func (n *NIC) handleLateICMP(e icmpError) string {
	if !n.stack.cfg.Promiscuous || e.flow.proto != protoUDP || e.mtu != 0 {
		return whyICMPUnknown
	}
	if n.stack.udp.tell(n, e.flow, e.err) || e.err == netx.ErrRefused {
		return ""
	}
	return whyICMPUnknown
}

// handleICMP tells the flow that an ICMP error is about. Only flows of this
// NIC are looked at: what a connector quotes of another's flows is dropped.
func (n *NIC) handleICMP(e icmpError, why string) string {
	if why != "" {
		return why
	}
	if e.flow.proto == protoICMPv4 || e.flow.proto == protoICMPv6 {
		return n.pings.told(e)
	}
	ep := n.index.find(e.flow)
	if ep == nil {
		return n.handleLateICMP(e)
	}
	if e.mtu == 0 {
		ep.unreachable(e.err)
		return ""
	}
	// Lowering takes the endpoint's lock, which its sender may hold while it
	// waits for room in the link: not on this goroutine. One at a time will do,
	// since every packet that is too big brings another message.
	if !n.lowering.CompareAndSwap(false, true) {
		return whyICMPBacklog
	}
	if !n.stack.spawn(func() { ep.pathMTU(e.mtu); n.lowering.Store(false) }) {
		return whyGone
	}
	return ""
}
