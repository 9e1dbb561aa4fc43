package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/netx"
)

// whyUDPUnknown: a datagram of no flow, at a stack that takes no new ones. A
// peer that was slower than the end of its flow sends such.
const whyUDPUnknown = "udp_unknown"

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
