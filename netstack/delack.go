package netstack

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// ackTick is how often held acknowledgements are looked after: one waits for
// company for that long at least and for twice as long at most. RFC 5681
// section 4.2 allows 500 ms, Linux waits 40; gVisor's loss probe counts on 200
// at the far end while one segment is out.
//
// gVisor itself acknowledges each segment at once, which makes four packets of
// a request and its answer where two do, and each packet costs both ends of
// the tunnel more than all the TCP in it.
const ackTick = 5 * time.Millisecond

// delayedACK is the part of a TCPConn that holds acknowledgements back, until
// data goes the same way or a tick comes. The link's side of the stack asks it
// about each packet of the endpoint, one after the other, under the endpoint's
// lock, which guards state and sent.
type delayedACK struct {
	state ackState
	sent  uint32 // the last acknowledgement that left, or is held

	// opening: the end of our handshake may be held, or is. The owner has not
	// waited for the peer's data yet.
	opening atomic.Bool

	held   atomic.Pointer[stack.PacketBuffer] // owns a reference
	times  atomic.Uint32                      // how often one was held
	listed atomic.Bool                        // the next tick will look
	seen   uint32                             // times at the last tick; whoever sets listed, and then the tick
}

type ackState uint8

const (
	ackUnknown ackState = iota // sent is
	ackDelay
	ackOver // our FIN is out: no data follows that an acknowledgement could go with
)

// KUID makes a TCPConn a tcpip.PacketOwner, so that a packet names its conn.
func (*TCPConn) KUID() uint32 { return 0 }

// KGID is explained at KUID.
func (*TCPConn) KGID() uint32 { return 0 }

// delayACKs lets an accepted conn hold acknowledgements. first is what the
// handshake has acknowledged; of a conn that dials, the stack will say.
func (c *TCPConn) delayACKs(first uint32) {
	ep, ok := c.ep.(*tcp.Endpoint)
	if !ok {
		return
	}
	ep.LockUser() // packets may arrive, and be acknowledged, already
	defer ep.UnlockUser()
	c.ack.state, c.ack.sent = ackDelay, first
	ep.SetOwner(c)
}

// WritePackets passes packets on to the link, but for an acknowledgement that
// may wait.
func (g *linkGuard) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	all := pkts.AsSlice()
	for _, pkt := range all {
		if c, ok := pkt.Owner.(*TCPConn); ok && c.hold(pkt, len(all) == 1) {
			g.nic.acks.list(c)
			return 1, nil
		}
	}
	return g.LinkEndpoint.WritePackets(pkts)
}

// hold takes pkt back if it may wait, and reports whether it did. What has
// waited goes: pkt says the same and more.
func (c *TCPConn) hold(pkt *stack.PacketBuffer, alone bool) bool {
	if c.ack.state == ackOver {
		return false
	}
	waits := c.note(header.TCP(pkt.TransportHeader().Slice())) && alone && pkt.Data().Size() == 0
	if c.ack.drop() || !waits {
		return false // every second one goes at once (RFC 5681 section 4.2)
	}
	c.ack.times.Add(1)
	c.ack.held.Store(pkt.IncRef())
	return true
}

// opened lets go of the end of our handshake: the owner waits for the peer's
// data, so none of its own will go with it.
func (c *TCPConn) opened() {
	if !c.ack.opening.Load() || !c.ack.opening.Swap(false) {
		return
	}
	if ep, ok := c.ep.(*tcp.Endpoint); ok { // who is about to hold it has done so
		ep.LockUser()
		ep.UnlockUser()
	}
	if pkt := c.ack.held.Swap(nil); pkt != nil {
		var now stack.PacketBufferList
		now.PushBack(pkt)
		c.nic.link.WritePackets(now)
		now.DecRef()
	}
}

// note takes in what a segment acknowledges. It reports whether the segment
// may wait if it is empty: it acknowledges something new, but not more than one
// segment, and has nothing urgent in its options.
func (c *TCPConn) note(h header.TCP) bool {
	flags, ack := h.Flags(), h.AckNumber()
	switch {
	case flags&(header.TCPFlagFin|header.TCPFlagRst) != 0:
		c.ack.state = ackOver
		return false
	case flags&header.TCPFlagSyn != 0:
		return false
	case c.ack.state == ackUnknown: // the end of our handshake: the far end waits for it, or for data
		c.ack.state, c.ack.sent = ackDelay, ack
		return flags == header.TCPFlagAck && c.ack.opening.Load() && plainOptions(h)
	}
	news := ack - c.ack.sent
	c.ack.sent = ack
	return flags == header.TCPFlagAck && news > 0 && news <= c.nic.link.MTU() && plainOptions(h)
}

// plainOptions reports whether a segment has no option but a timestamp, as
// gVisor writes it: after two bytes of padding.
func plainOptions(h header.TCP) bool {
	switch n := int(h.DataOffset()); n {
	case header.TCPMinimumSize:
		return true
	case header.TCPMinimumSize + 12:
		return len(h) >= n && h[header.TCPMinimumSize+2] == header.TCPOptionTS
	}
	return false
}

// drop lets go of what is held, and reports whether something was.
func (a *delayedACK) drop() bool {
	if a.held.Load() == nil {
		return false
	}
	pkt := a.held.Swap(nil)
	if pkt == nil {
		return false
	}
	pkt.DecRef()
	return true
}

// ackList is the conns of a NIC that hold an acknowledgement, or did lately.
type ackList struct {
	nic *NIC

	mu      sync.Mutex // guards what follows
	conns   []*TCPConn
	timer   *time.Timer
	ticking bool // a tick is due, or at work
	closed  bool
}

// list has the next tick look at c, which has just held an acknowledgement.
func (l *ackList) list(c *TCPConn) {
	if c.ack.listed.Swap(true) {
		return
	}
	c.ack.seen = c.ack.times.Load() - 1
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.ack.drop()
		return
	}
	l.conns = append(l.conns, c)
	l.nextLocked()
}

// nextLocked sees to it that a tick comes where one is needed.
func (l *ackList) nextLocked() {
	switch {
	case l.ticking || len(l.conns) == 0:
		return
	case l.timer == nil:
		l.timer = time.AfterFunc(ackTick, l.tick)
	default:
		l.timer.Reset(ackTick)
	}
	l.ticking = true
}

// tick sends what has been held since the tick before. It runs on the timer's
// goroutine, one at a time, and may wait for room in the link.
func (l *ackList) tick() {
	if !l.nic.stack.enter() {
		return // close lets go of the rest
	}
	defer l.nic.stack.wg.Done()
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	var due stack.PacketBufferList
	kept := conns[:0]
	for _, c := range conns {
		if pkt := c.ack.due(); pkt != nil {
			due.PushBack(pkt)
		}
		if c.ack.waits() {
			kept = append(kept, c)
		}
	}
	clear(conns[len(kept):])
	if due.Len() > 0 {
		l.nic.link.WritePackets(due)
		due.DecRef()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ticking = false
	l.conns = append(kept, l.conns...)
	if l.closed {
		l.dropLocked()
		return
	}
	l.nextLocked()
}

// due takes out what is held, if it was at the last tick already.
func (a *delayedACK) due() *stack.PacketBuffer {
	times := a.times.Load()
	old := times == a.seen
	a.seen = times
	if !old {
		return nil
	}
	return a.held.Swap(nil)
}

// waits reports whether the next tick must look, and unlists the conn if not.
func (a *delayedACK) waits() bool {
	if a.held.Load() != nil {
		return true
	}
	a.listed.Store(false)
	// One that was held just before that store did not list itself.
	return a.held.Load() != nil && !a.listed.Swap(true)
}

// close lets go of everything: the NIC goes.
func (l *ackList) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.dropLocked()
}

func (l *ackList) dropLocked() {
	for _, c := range l.conns {
		c.ack.drop()
	}
	l.conns = nil
}
