package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/netx"
)

// whyUDPUnknown: a datagram of no flow, at a stack that takes no new ones. A
// peer that was slower than the end of its flow sends such.
const whyUDPUnknown = "udp_unknown"

// DeliverDatagram takes a packet as bytes, of which it keeps none, where that
// spares gVisor's packet: a whole small datagram of a flow that is there. It
// reports false for all others, which then come through DeliverNetworkPacket.
// wake, where not nil, is to be called when the caller has delivered what it
// has: so who reads the flow finds more at once.
func (in *inbound) DeliverDatagram(b []byte) (taken bool, wake interface{ Wake() }) {
	var (
		d   datagram
		why string
	)
	switch {
	case len(b) >= ip4HeaderLen && b[0]>>4 == 4 && b[9] == protoUDP && b[6]&0x3f == 0 && b[7] == 0:
		d, why = parseUDP4(b)
	case len(b) >= ip6HeaderLen && b[0]>>4 == 6 && b[6] == protoUDP:
		d, why = parseUDP6(b)
	default:
		return false, nil
	}
	if why != "" {
		in.nic.stack.drops.Add(why, 1)
		return true, nil
	}
	if len(d.payload) > len(smallBuffer{}) {
		return false, nil
	}
	c, ok := in.nic.index.find(flowKey{proto: protoUDP, local: d.dst, remote: d.src}).(*UDPConn)
	if !ok {
		return false, nil
	}
	first, why, err := c.in.putCopy(&d)
	switch {
	case err != nil: // it closed just now: the datagram begins another
		return false, nil
	case why != "":
		in.nic.stack.drops.Add(why, 1)
	case first:
		return true, &c.in
	}
	return true, nil
}

// takeUDP takes a packet that holds a whole datagram to the flow of this NIC
// that it belongs to, or to whoever takes new flows. It returns why it dropped
// it, "" where it did not, or has counted it. It never blocks.
func (n *NIC) takeUDP(pkt *stack.PacketBuffer) string {
	b, ok := pkt.Data().PullUp(pkt.Data().Size()) // in place, but for what came in fragments
	if !ok || len(b) == 0 {
		return whyMalformed
	}
	var (
		d   datagram
		why string
	)
	if b[0]>>4 == 4 {
		d, why = parseUDP4(b)
	} else {
		d, why = parseUDP6(b)
	}
	if why != "" {
		return why
	}
	if c, ok := n.index.find(flowKey{proto: protoUDP, local: d.dst, remote: d.src}).(*UDPConn); ok {
		// One that closed just now is none: the datagram begins another.
		if why, err := c.in.put(&d, pkt); err == nil {
			return why
		}
	}
	if n.stack.cfg.Promiscuous {
		n.stack.udp.handle(n, &d, pkt)
		return ""
	}
	if s := n.socketAt(d.dst); s != nil {
		if why, err := s.in.put(&d, pkt); err == nil {
			return why
		}
	}
	// Who still sends to a flow that is over is told so: the farewell that ended
	// it may have been lost.
	if n.owns(d.dst.Addr()) && n.stack.gv.AllowICMPMessage() {
		n.writeUnreachable(d.quote(), netx.ErrRefused)
	}
	return whyUDPUnknown
}

// owns reports whether addr is one of our own on this NIC.
func (n *NIC) owns(addr netip.Addr) bool {
	for _, a := range n.index.sources[family(addr)] {
		if a == addr {
			return true
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, assigned := n.assigned[addr]
	return assigned
}
