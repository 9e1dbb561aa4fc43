package link

import (
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Deliver gives packets that came through the tunnel to the stack. Each is
// one IP packet, already checked; it is copied, so the caller keeps the
// slices. Segments of a TCP flow that follow one another are given to the
// stack as one packet. Deliver never blocks, and keeps nothing back.
//
// A TCP packet whose checksums need not be looked at again has
// RXChecksumValidated set: one that was merged, and each of a trusted peer. The
// dispatcher must heed it.
func (e *Endpoint) Deliver(packets [][]byte) {
	e.dispatcherMu.RLock()
	dispatcher := e.dispatcher
	e.dispatcherMu.RUnlock()
	if dispatcher == nil {
		e.drops.Add(WhyDetached, uint64(len(packets)))
		return
	}
	for len(packets) > 0 {
		n := min(len(packets), maxBatch)
		m := merger{e: e, to: dispatcher, trusted: e.trusted.Load(), packets: packets[:n]}
		m.deliver()
		packets = packets[n:]
	}
}

// deliverOne gives the stack a packet as it came.
func (e *Endpoint) deliverOne(to stack.NetworkDispatcher, protocol tcpip.NetworkProtocolNumber, b []byte, validated bool) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	pkt.RXChecksumValidated = validated
	if isICMPError(protocol, b) {
		e.deferPacket(to, protocol, pkt)
		return
	}
	to.DeliverNetworkPacket(protocol, pkt)
	pkt.DecRef()
}

// deferPacket has the Deferrer give an ICMP error to the stack.
func (e *Endpoint) deferPacket(to stack.NetworkDispatcher, protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if !e.cfg.Deferrer.try(func() {
		to.DeliverNetworkPacket(protocol, pkt)
		pkt.DecRef()
	}) {
		pkt.DecRef()
		e.drops.Add(WhyErrorQueue, 1)
	}
}

func networkProtocol(b []byte) (tcpip.NetworkProtocolNumber, bool) {
	switch header.IPVersion(b) {
	case header.IPv4Version:
		return header.IPv4ProtocolNumber, true
	case header.IPv6Version:
		return header.IPv6ProtocolNumber, true
	}
	return 0, false
}

// isICMPError reports whether b may be an ICMP error. It looks only where one
// normally is (no IPv6 extension headers): the check before Deliver has
// refused the rest.
func isICMPError(protocol tcpip.NetworkProtocolNumber, b []byte) bool {
	if protocol == header.IPv4ProtocolNumber {
		ip := header.IPv4(b)
		if len(b) < header.IPv4MinimumSize {
			return false
		}
		hlen := int(ip.HeaderLength())
		if len(b) <= hlen || ip.TransportProtocol() != header.ICMPv4ProtocolNumber {
			return false
		}
		switch header.ICMPv4Type(b[hlen]) {
		case header.ICMPv4Echo, header.ICMPv4EchoReply:
			return false
		}
		return true
	}
	if len(b) <= header.IPv6MinimumSize || header.IPv6(b).NextHeader() != uint8(header.ICMPv6ProtocolNumber) {
		return false
	}
	return b[header.IPv6MinimumSize] < 128 // RFC 4443 section 2.1: errors have the high bit clear
}

// Deferrer runs, on one goroutine of its own, what must not run inside
// Deliver. One serves all endpoints of a tunnel.
type Deferrer struct {
	mu     sync.RWMutex // held for reading while sending, so that Close may close work
	closed bool
	work   chan func()
	done   chan struct{}
}

// NewDeferrer starts a Deferrer whose backlog is at most backlog functions.
func NewDeferrer(backlog int) *Deferrer {
	d := &Deferrer{work: make(chan func(), backlog), done: make(chan struct{})}
	go func() {
		defer close(d.done)
		for f := range d.work {
			f()
		}
	}()
	return d
}

// try queues f, or reports that the backlog is full or the Deferrer closed.
func (d *Deferrer) try(f func()) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return false
	}
	select {
	case d.work <- f:
		return true
	default:
		return false
	}
}

// Close runs what waits, then stops the goroutine and waits for it.
func (d *Deferrer) Close() {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		close(d.work)
	}
	d.mu.Unlock()
	<-d.done
}
