package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Why a packet was dropped at the NIC, before gVisor saw it.
const (
	whyMalformed     = "malformed"      // too short for what it says it is
	whyProtocol      = "protocol"       // neither TCP, UDP nor an ICMP error
	whyICMPUnknown   = "icmp_unknown"   // an ICMP error that is about no flow of this NIC
	whyICMPFragment  = "icmp_fragment"  // an ICMP message in fragments
	whyICMPMalformed = "icmp_malformed" // an ICMP error that quotes nothing usable
)

// linkGuard stands between a link and gVisor. On the way in it takes out what
// gVisor would handle for the whole stack instead of for the NIC that it came
// from. On the way out it hides what would let gVisor skip checksums.
type linkGuard struct {
	stack.LinkEndpoint
	nic *NIC
}

// Capabilities hides checksum offload: UDP's reassembly relies on checksums
// (host GSO skips TCP's by itself).
func (g *linkGuard) Capabilities() stack.LinkEndpointCapabilities {
	return g.LinkEndpoint.Capabilities() &^ (stack.CapabilityTXChecksumOffload | stack.CapabilityRXChecksumOffload)
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

// DeliverNetworkPacket passes TCP and UDP on, handles ICMP errors, and drops
// and counts the rest. It never blocks.
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
		in.next.DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
		return ""
	case protoICMPv4:
		if fragment {
			return whyICMPFragment
		}
		return in.nic.handleICMP(parseICMPv4(pkt.Data().AsRange().ToSlice()))
	}
	return whyProtocol
}

func (in *inbound) deliver6(pkt *stack.PacketBuffer) (why string) {
	b, ok := pkt.Data().PullUp(header.IPv6MinimumSize)
	if !ok {
		return whyMalformed
	}
	switch b[6] {
	case protoTCP, protoUDP:
		in.next.DeliverNetworkPacket(header.IPv6ProtocolNumber, pkt)
		return ""
	case protoFragment:
		b, ok := pkt.Data().PullUp(header.IPv6MinimumSize + header.IPv6FragmentHeaderSize)
		if !ok {
			return whyMalformed
		}
		if b[header.IPv6MinimumSize] != protoTCP && b[header.IPv6MinimumSize] != protoUDP {
			return whyICMPFragment
		}
		in.next.DeliverNetworkPacket(header.IPv6ProtocolNumber, pkt)
		return ""
	case protoICMPv6:
		return in.nic.handleICMP(parseICMPv6(pkt.Data().AsRange().ToSlice()))
	}
	return whyProtocol
}

// handleICMP tells the flow that an ICMP error is about. Only flows of this
// NIC are looked at: what a connector quotes of another's flows is dropped.
func (n *NIC) handleICMP(e icmpError, why string) string {
	if why != "" {
		return why
	}
	ep := n.index.find(e.flow)
	if ep == nil {
		return whyICMPUnknown
	}
	if e.mtu == 0 {
		ep.unreachable(e.err)
		return ""
	}
	// Lowering takes the endpoint's lock, which its sender may hold while it
	// waits for room in the link: not on this goroutine.
	n.stack.spawn(func() { ep.pathMTU(e.mtu) })
	return ""
}
