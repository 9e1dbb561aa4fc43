package tunnel

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/warrenmesh/warren/netstack/drops"
	"github.com/warrenmesh/warren/netstack/shim"
)

// Bounds of what is in flight inside wireguard-go, between the read that
// handed a packet over and the send of its datagram. Its own queues would hold
// 1,024 batches a peer, in buffers of 64 KiB from pools without a limit.
const (
	maxInFlight     = 1024
	maxInFlightPeer = 256
	// creditExpiry bounds how long a packet that wireguard-go dropped
	// silently (no session, peer stopped) counts as in flight.
	creditExpiry = 100 * time.Millisecond
	// quantum is how many packets one peer gives before the next has a turn.
	quantum = 64
	// maxControl bounds the echoes that wait to be sent, maxEchoes those in
	// flight: a thousand peers that are due at once would otherwise take a
	// thousand buffers of 64 KiB for packets of 72 bytes.
	maxControl = 1024
	maxEchoes  = 64
)

// Why the outbox dropped.
const (
	whyControlFull = "control_full"
	whyNoSession   = "no_session" // a packet of the overlay for a peer that is not there
)

// outbox is the way out: it decides which packets wireguard-go reads next.
// Echoes go first, then the peers whose links hold packets, in turn, each
// within its credit.
//
// Ownership: read is called by wireguard-go's one reading goroutine; ready and
// control by anyone; sent by the goroutines that send. None of them blocks but
// read.
type outbox struct {
	magic uint16                // marks the tags of this tunnel
	there func(netip.Addr) bool // whether a peer has a live session; for bare lanes, whose links do not know
	drops drops.Counter

	wake   chan struct{} // capacity 1: there may be something to read
	closed chan struct{}

	expireAt time.Time // read's own: when to look for lost credit; zero: nobody waits for any

	mu       sync.Mutex
	self     netip.Addr // our overlay address: the outer source
	turn     []*lane    // lanes with packets and credit, the next first
	parked   []*lane    // lanes with packets that wait for credit
	echoes   [][]byte
	echoLane *lane // accounts for the echoes in flight; it is never in turn
	lanes    map[uint32]*lane
	lastSlot uint32
	inFlight int
	reading  bool // a lane has its turn
	held     bool // nothing is read
}

// lane is one peer's place in the outbox, or the overlay stack's, which takes
// turns as any peer. Its fields belong to outbox.mu, but link and bare, which
// do not change.
type lane struct {
	link    packetSource
	bare    bool       // packets leave as they are, without an outer header
	overlay netip.Addr // where the outer header says that they go
	slot    uint32

	listed   bool // in turn or parked, or being read
	inFlight int
	epoch    uint16    // raised when credit expires, so that late returns are ignored
	progress time.Time // of the last packet handed over or sent
}

// packetSource is what a lane reads: link.Endpoint.
type packetSource interface {
	Read(bufs [][]byte, sizes []int, offset int) int
}

func newOutbox(self netip.Addr, magic uint16) *outbox {
	o := &outbox{
		self:     self,
		magic:    magic,
		wake:     make(chan struct{}, 1),
		closed:   make(chan struct{}),
		echoLane: &lane{slot: echoSlot},
	}
	o.lanes = map[uint32]*lane{echoSlot: o.echoLane}
	return o
}

// echoSlot is the slot of the echoes' lane; lanes of peers begin at 1.
const echoSlot = 0

// add gives l a place and returns it.
func (o *outbox) add(l *lane) *lane {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		o.lastSlot++
		if _, taken := o.lanes[o.lastSlot]; !taken {
			break
		}
	}
	l.slot = o.lastSlot
	o.lanes[l.slot] = l
	return l
}

// remove forgets a lane and gives back its credit.
func (o *outbox) remove(l *lane) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.lanes, l.slot)
	o.inFlight -= l.inFlight
	l.inFlight = 0
	o.unparkLocked()
}

// redirect changes where l's outer headers say that its packets go.
func (o *outbox) redirect(l *lane, overlay netip.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.overlay = overlay
}

// hold keeps all packets back until resume, and waits until those that were
// read have been sent, at most limit.
func (o *outbox) hold(limit time.Duration) {
	o.mu.Lock()
	o.held = true
	o.mu.Unlock()
	o.poll(limit, func() bool { return !o.reading && o.inFlight == 0 })
}

// resume ends hold; self is our overlay address from now on. Echoes that wait
// were made for the one before.
func (o *outbox) resume(self netip.Addr) {
	o.mu.Lock()
	if o.self != self {
		o.self, o.echoes = self, nil
	}
	o.held = false
	o.mu.Unlock()
	o.signal()
}

// poll waits until done, which is called with o.mu held, at most limit.
func (o *outbox) poll(limit time.Duration, done func() bool) {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		o.mu.Lock()
		ok := done()
		o.mu.Unlock()
		if ok {
			return
		}
	}
}

// ready says that l's link has packets.
func (o *outbox) ready(l *lane) {
	o.mu.Lock()
	if !l.listed {
		l.listed = true
		o.turn = append(o.turn, l)
	}
	o.mu.Unlock()
	o.signal()
}

// control queues one whole overlay packet, which must not be used afterwards.
func (o *outbox) control(packet []byte) {
	o.mu.Lock()
	full := len(o.echoes) >= maxControl
	if !full {
		o.echoes = append(o.echoes, packet)
	}
	o.mu.Unlock()
	if full {
		o.drops.Add(whyControlFull, 1)
		return
	}
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// flushed waits until the echoes have been read, at most limit.
func (o *outbox) flushed(limit time.Duration) {
	o.poll(limit, func() bool { return len(o.echoes) == 0 })
}

// close makes read return os.ErrClosed; call it once.
func (o *outbox) close() { close(o.closed) }

// read waits until there is something to send and fills bufs, as tun.Device's
// Read does: each packet whole, with its outer header, from offset on.
func (o *outbox) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		select {
		case <-o.closed:
			return 0, os.ErrClosed
		default:
		}
		n, starved := o.fill(bufs, sizes, offset)
		expiry := o.expireDue(starved)
		if n > 0 {
			return n, nil
		}
		select {
		case <-o.wake:
		case <-expiry:
		case <-o.closed:
		}
	}
}

// expireDue expires lost credit once packets have waited for some for
// creditExpiry, whatever else was read meanwhile. It returns when to call it
// again, nil where nobody waits.
func (o *outbox) expireDue(starved bool) <-chan time.Time {
	if !starved {
		o.expireAt = time.Time{}
		return nil
	}
	now := time.Now()
	switch {
	case o.expireAt.IsZero():
		o.expireAt = now.Add(creditExpiry)
	case !now.Before(o.expireAt):
		o.expire(now)
		o.expireAt = now.Add(creditExpiry)
	}
	return time.After(o.expireAt.Sub(now))
}

// fill reads what there is, without waiting. starved reports that packets wait
// for credit.
func (o *outbox) fill(bufs [][]byte, sizes []int, offset int) (n int, starved bool) {
	n = o.fillEchoes(bufs, sizes, offset)
	for n < len(bufs) {
		t := o.next(len(bufs) - n)
		l := t.lane
		if l == nil {
			break
		}
		room, lens := bufs[n:n+t.budget], sizes[n:n+t.budget]
		got, gone := 0, 0
		if l.bare {
			got, gone = o.readBare(l, room, lens, offset)
		} else {
			got = l.link.Read(room, lens, offset+shim.HeaderLen)
			for i := range got {
				b := room[i][offset:]
				shim.Put(b, t.src, t.dst, lens[i], b[shim.HeaderLen]>>4 == 4)
				lens[i] += shim.HeaderLen
				o.tag(room[i], offset+lens[i], l)
			}
		}
		o.handed(l, got-gone, got == t.budget)
		n += got
	}
	o.mu.Lock()
	starved = !o.held && (len(o.parked) > 0 || len(o.echoes) > 0)
	o.mu.Unlock()
	return n, starved
}

// readBare reads packets that leave as they are. gone of them are for peers
// without a session, and are left with length 0, which wireguard-go passes
// over: it would keep them, in 64 KiB each, until there is one.
func (o *outbox) readBare(l *lane, bufs [][]byte, sizes []int, offset int) (got, gone int) {
	got = l.link.Read(bufs, sizes, offset)
	for i := range got {
		if b := bufs[i][offset:]; !o.there(netip.AddrFrom16([16]byte(b[24:40]))) { // an IPv6 header's destination
			sizes[i] = 0
			gone++
			continue
		}
		o.tag(bufs[i], offset+sizes[i], l)
	}
	if gone > 0 {
		o.drops.Add(whyNoSession, uint64(gone))
	}
	return got, gone
}

func (o *outbox) fillEchoes(bufs [][]byte, sizes []int, offset int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held {
		return 0
	}
	n := min(len(o.echoes), len(bufs), maxEchoes-o.echoLane.inFlight)
	for i := range n {
		sizes[i] = copy(bufs[i][offset:], o.echoes[i])
		o.tag(bufs[i], offset+sizes[i], o.echoLane)
		o.echoes[i] = nil
	}
	o.echoes = o.echoes[n:]
	if len(o.echoes) == 0 {
		o.echoes = nil
	}
	if n > 0 {
		o.echoLane.inFlight += n
		o.inFlight += n
		o.echoLane.progress = time.Now()
	}
	return n
}

// turn is a lane's turn: how many packets it may give, and the addresses of
// their outer header.
type turn struct {
	lane     *lane
	budget   int
	src, dst netip.Addr
}

// next takes the lane whose turn it is, for at most room packets; a turn
// without a lane says that there is none. handed must be called afterwards.
func (o *outbox) next(room int) turn {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.turn) > 0 && !o.held {
		l := o.turn[0]
		o.turn = o.turn[1:]
		budget := min(room, quantum, maxInFlightPeer-l.inFlight, maxInFlight-o.inFlight)
		if budget > 0 {
			// Cleared before the link is read: a packet that arrives behind
			// the read lists the lane again.
			l.listed = false
			o.reading = true
			return turn{lane: l, budget: budget, src: o.self, dst: l.overlay}
		}
		o.parked = append(o.parked, l)
	}
	if len(o.turn) == 0 {
		o.turn = nil
	}
	return turn{}
}

// handed accounts for n packets read from l and, where there may be more,
// queues the lane for another turn.
func (o *outbox) handed(l *lane, n int, more bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reading = false
	if o.lanes[l.slot] == l {
		l.inFlight += n
		o.inFlight += n
		l.progress = time.Now()
	}
	if more && !l.listed {
		l.listed = true
		o.turn = append(o.turn, l)
	}
}

// unpinned stands for a datagram that was sent. wireguard-go's sequential
// sender keeps its list of a batch's datagrams until the next batch overwrites
// it, and so a buffer of 64 KiB or more for each idle peer, which no garbage
// collection can take: half of what a thousand networks weighed. It looks at
// nothing but their lengths once Send has returned.
var unpinned [device.MaxMessageSize]byte

// sent gives back the credit of datagrams that were handed to the kernel, and
// takes them out of the list; the Bind calls it for every send.
func (o *outbox) sent(datagrams [][]byte) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	returned := false
	for i, b := range datagrams {
		datagrams[i] = unpinned[:len(b)]
		if slot, epoch, ok := o.readTag(b); ok {
			l := o.lanes[slot]
			if l == nil || l.epoch != epoch || l.inFlight == 0 {
				continue
			}
			l.inFlight--
			o.inFlight--
			l.progress = now
			returned = true
		}
	}
	if returned {
		o.unparkLocked()
	}
}

// expire gives back the credit of lanes that made no progress lately.
func (o *outbox) expire(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.lanes {
		if l.inFlight > 0 && now.Sub(l.progress) >= creditExpiry {
			o.inFlight -= l.inFlight
			l.inFlight = 0
			l.epoch++
		}
	}
	o.unparkLocked()
}

func (o *outbox) unparkLocked() {
	if len(o.parked) == 0 {
		if len(o.echoes) > 0 {
			o.signal()
		}
		return
	}
	o.turn = append(o.turn, o.parked...)
	o.parked = nil
	o.signal()
}

// Tags. The Bind's Send is told neither peer nor packet, only slices; but each
// slice is the very buffer that read filled, since wireguard-go encrypts in
// place. So read leaves a mark in the buffer, beyond what encryption will
// write, and sent finds it there:
//
//	0     2     4          8
//	magic epoch slot of the lane
//
// Where the mark lies follows from the datagram's length alone. It is close
// behind small packets so as not to touch a further page. A mark that is lost
// (a future wireguard-go that copies) only means that credit expires instead.
const (
	tagLen       = 8
	tagNear      = 2048
	tagFar       = device.MaxMessageSize - tagLen
	tagThreshold = 1920 // longest packet, header room included, whose mark is near
	// tagGrowth is by how much a datagram is longer than offset + packet at
	// most: padding to 16 and the Poly1305 tag.
	tagGrowth = 15 + 16
)

// tagAt returns where the mark of a packet that ends at end lies.
func tagAt(end int) int {
	if end <= tagThreshold {
		return tagNear
	}
	return tagFar
}

func (o *outbox) tag(buf []byte, end int, l *lane) {
	at := tagAt(end)
	if len(buf) < at+tagLen {
		return
	}
	binary.LittleEndian.PutUint16(buf[at:], o.magic)
	binary.LittleEndian.PutUint16(buf[at+2:], l.epoch)
	binary.LittleEndian.PutUint32(buf[at+4:], l.slot)
}

// readTag finds and removes the mark of a datagram, and reports whether there
// was one.
func (o *outbox) readTag(datagram []byte) (slot uint32, epoch uint16, ok bool) {
	if len(datagram) <= device.MessageKeepaliveSize || cap(datagram) < device.MaxMessageSize {
		return 0, 0, false
	}
	buf := datagram[:device.MaxMessageSize]
	for _, at := range [...]int{tagNear, tagFar} {
		if at == tagNear && len(datagram) > tagThreshold+tagGrowth || at == tagFar && len(datagram) <= tagThreshold {
			continue
		}
		if binary.LittleEndian.Uint16(buf[at:]) == o.magic {
			epoch, slot = binary.LittleEndian.Uint16(buf[at+2:]), binary.LittleEndian.Uint32(buf[at+4:])
			clear(buf[at : at+tagLen])
			return slot, epoch, true
		}
	}
	return 0, 0, false
}
