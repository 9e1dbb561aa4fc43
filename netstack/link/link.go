// Package link is the gVisor link endpoint of one NIC: the doorway between a
// network's stack and the tunnel. Outgoing packets wait in a bounded queue,
// where flows take turns, until the tunnel reads them, many a call, straight
// into WireGuard's buffers; incoming packets are copied once into gVisor's own.
// TCP leaves the stack in packets of up to 64 KiB (gVisor's host GSO), and Read
// cuts them into segments, filling one with the next packet's first bytes;
// Deliver puts such segments together again.
//
// Two rules keep the tunnel from deadlock (the stack's locks are held while
// it writes, and the tunnel's while it delivers):
//
//   - Deliver never blocks. Answers that the stack makes inside it do not wait
//     when the queue is full: RSTs have room of their own beyond it, ICMP that
//     has none is dropped and counted. ICMP errors that come in, whose handling takes the
//     locks of sockets, are handed to a Deferrer.
//   - Nothing else is dropped for want of room, so that a sender feels the
//     tunnel's pace instead of losses. A datagram, but for a small one of a
//     flow that has no other there, waits while the queue is over its mark; data
//     for a TCP conn waits in front of the stack then (see Place), and what the
//     stack has sent only at a bound that it hardly ever meets. Close, and a
//     session that is lost, wake who waits. A Lossy endpoint, whose peers are
//     many, drops.
//
// The package must never change a byte of what TCP or UDP carries, and never
// drop a packet without counting it.
package link

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/drops"
)

// Why a packet was dropped.
const (
	WhyQueueFull  = "queue_full"   // an answer made inside Deliver found the queue full, or anything a Lossy one
	WhyNoSession  = "no_session"   // the peer has no live session; staged packets would only be late
	WhyClosed     = "closed"       // the NIC is going
	WhyOversize   = "oversize"     // larger than the buffer it was to be read into, or TCP's in a shape that Read cannot cut
	WhyDetached   = "detached"     // no stack is attached
	WhyVersion    = "version"      // neither IPv4 nor IPv6
	WhyErrorQueue = "icmp_backlog" // too many ICMP errors wait for the Deferrer
)

// Defaults of Config. What TCP has sent is bounded by its conns' buffers, and
// its memory is theirs; only where the queue's own, some 500 bytes a packet,
// comes to megabytes do its writers wait.
const (
	defaultMaxPackets = 8192
	defaultMaxBytes   = 64 << 20
)

// The mark, from which on applications' data and datagrams wait (see Place):
// the bound, where Config has one, or the endpoint is Lossy, or else this.
// 1 MiB is 6 ms at 1.4 Gbit/s: long enough to keep the tunnel busy between two
// reads, short enough to add no delay that a person could feel to the flows
// that fill it; others do not wait behind them.
const (
	defaultMarkPackets = 1024
	defaultMarkBytes   = 1 << 20
)

// resetRoom is how many packets may wait beyond a full queue where they are
// RSTs. A RST is sent once: where it is lost, the other end keeps its conn,
// and the one to the origin, until a keepalive minutes later. 12,000 clients
// that connected and reset within 1.6 s left 981 of those behind.
const resetRoom = 16384

// sparseRoom is how many packets may wait beyond a full queue where each is the
// only one of its flow and small (see credit): together at most 2 MiB. So
// pings, requests and acknowledgements wait with no bulk writer. It is all
// taken only where as many flows begin at once.
const sparseRoom = 512

// Config of an Endpoint.
type Config struct {
	MTU        int       // largest IP packet, bytes; SetMTU changes it later
	MaxPackets int       // bound of the outgoing queue, packets; 0: the default, with a mark below it
	MaxBytes   int       // bound of the outgoing queue, bytes; the same
	Lossy      bool      // writes never wait: what finds the queue full is dropped and counted
	Deferrer   *Deferrer // runs the handling of ICMP errors; required

	// Ready is called, without a lock of the endpoint held, each time the
	// queue goes from empty to not empty. It must not block.
	Ready func()
}

// Endpoint is a stack.LinkEndpoint with a bounded outgoing queue. It carries
// bare IP packets: no link header, no address. It starts closed to traffic:
// until SetOpen(true), outgoing packets are dropped and counted.
type Endpoint struct {
	mtu   atomic.Uint32
	cfg   Config
	drops drops.Counter

	dispatcherMu sync.RWMutex
	dispatcher   stack.NetworkDispatcher

	own     atomic.Bool // see SetOwn
	trusted atomic.Bool // see SetTrusted

	// readMu is held for the whole of Read, and by who takes from the reader
	// what it has not read to the end. It is locked before mu, never after.
	readMu sync.Mutex
	split  splitter
	tcpID  uint16      // IPv4 id of the last TCP segment; begins anywhere
	rest   atomic.Bool // split holds a packet; for Len

	markPackets, markBytes int

	mu      sync.Mutex
	queue   queue
	places  places
	granted int // bytes that have had their turn and may not be in the queue yet
	open    bool
	closed  bool
}

var (
	_ stack.LinkEndpoint = (*Endpoint)(nil)
	_ stack.GSOEndpoint  = (*Endpoint)(nil)
)

// New returns an endpoint to give to the stack's AddNIC.
func New(cfg Config) *Endpoint {
	e := &Endpoint{cfg: cfg, tcpID: uint16(rand.Uint32())}
	e.markPackets, e.cfg.MaxPackets = bounds(cfg.MaxPackets, defaultMarkPackets, defaultMaxPackets, cfg.Lossy)
	e.markBytes, e.cfg.MaxBytes = bounds(cfg.MaxBytes, defaultMarkBytes, defaultMaxBytes, cfg.Lossy)
	e.mtu.Store(uint32(cfg.MTU))
	return e
}

// bounds returns where the mark is and where the bound.
func bounds(set, mark, most int, lossy bool) (int, int) {
	switch {
	case set > 0:
		return set, set
	case lossy:
		return mark, mark
	}
	return mark, most
}

// WritePackets queues pkts for the tunnel; the stack calls it. It takes a
// reference to each packet that it keeps and always reports all of them as
// written: what it drops is counted here.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range pkts.AsSlice() {
		e.enqueue(pkt)
	}
	return pkts.Len(), nil
}

// enqueue queues pkt, and waits until there is room for it unless it is an
// answer. Full or not, nothing keeps a RST out but a flood of them, nor the
// small packet of a flow that has no other but hundreds of such.
func (e *Endpoint) enqueue(pkt *stack.PacketBuffer) {
	key, size := turnKey(pkt), pkt.Size()
	tcp := pkt.TransportProtocolNumber == header.TCPProtocolNumber
	e.mu.Lock()
	why, wait := "", false
	switch {
	case e.closed:
		why = WhyClosed
	case !e.open:
		why = WhyNoSession
	case (tcp || e.queue.waiting.first == nil) && !e.fullLocked(size, tcp):
	case isReset(pkt) && e.roomLocked(resetRoom, tcp):
	case isAnswer(pkt): // one that is small and alone has TCP's room
		if e.fullLocked(size, e.queue.sparse(key, size)) {
			why = WhyQueueFull
		}
	case e.queue.sparse(key, size) && e.roomLocked(sparseRoom, tcp):
	case e.cfg.Lossy:
		why = WhyQueueFull
	default:
		wait = true
	}
	if why != "" {
		e.mu.Unlock()
		e.drops.Add(why, 1)
		return
	}
	pkt.IncRef()
	if wait { // there is a packet before it, for which Ready was called
		e.waitLocked(key, pkt, tcp)
		e.mu.Unlock()
		return
	}
	wasEmpty := e.queue.len() == 0
	e.queue.push(key, pkt)
	e.mu.Unlock()
	if wasEmpty && e.cfg.Ready != nil {
		e.cfg.Ready()
	}
}

// isAnswer reports whether pkt is of a kind that the stack makes while it
// handles an incoming packet: RST and ICMP. Only these must not block, since
// the goroutine that wrote them may be the one that delivers.
func isAnswer(pkt *stack.PacketBuffer) bool {
	switch pkt.TransportProtocolNumber {
	case header.ICMPv4ProtocolNumber, header.ICMPv6ProtocolNumber:
		return true
	case header.TCPProtocolNumber:
		return isReset(pkt)
	case header.UDPProtocolNumber:
		return false
	}
	// A packet that was written raw: nobody waits for it.
	return true
}

func isReset(pkt *stack.PacketBuffer) bool {
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber {
		return false
	}
	tcp := header.TCP(pkt.TransportHeader().Slice())
	return len(tcp) >= header.TCPMinimumSize && tcp.Flags().Contains(header.TCPFlagRst)
}

// Len returns how many packets wait, one that was read in part included.
func (e *Endpoint) Len() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.queue.len()
	if e.rest.Load() {
		n++
	}
	return n
}

// SetOpen tells the endpoint whether the peer has a live session. While it
// has none, what waits is dropped and so is what comes: packets staged for a
// peer that is gone would only be late.
func (e *Endpoint) SetOpen(open bool) {
	e.mu.Lock()
	e.open = open
	dropped := 0
	if !open {
		dropped = e.drainLocked()
		e.dismissLocked()
	}
	e.mu.Unlock()
	if !open {
		dropped += e.dropRest()
	}
	if dropped > 0 {
		e.drops.Add(WhyNoSession, uint64(dropped))
	}
}

// Close wakes blocked writers and drops what waits. The stack calls it when
// the NIC is removed; calling it again does nothing.
func (e *Endpoint) Close() {
	e.mu.Lock()
	e.closed = true
	dropped := e.drainLocked()
	e.dismissLocked()
	e.mu.Unlock()
	dropped += e.dropRest()
	if dropped > 0 {
		e.drops.Add(WhyClosed, uint64(dropped))
	}
}

func (e *Endpoint) drainLocked() int {
	n := e.queue.len()
	for e.queue.len() > 0 {
		e.queue.pop().DecRef()
	}
	return n
}

// Drops calls yield with every reason for which this endpoint dropped.
func (e *Endpoint) Drops(yield func(why string, n uint64)) { e.drops.Each(yield) }
