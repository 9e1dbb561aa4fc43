package tunnel

import (
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/warrenmesh/warren/netstack/link"
	"github.com/warrenmesh/warren/netstack/shim"
)

// wire is the tun.Device that wireguard-go reads from and writes to: on one
// side the peers' packets, on the other the outbox and the links.
//
// Write must never block: wireguard-go waits for it while it holds the lock
// that senders need.
type wire struct {
	t      *Tunnel
	events chan tun.Event
	once   sync.Once
}

var _ tun.Device = (*wire)(nil)

func newWire(t *Tunnel) *wire { return &wire{t: t, events: make(chan tun.Event)} }

// batchSize is how many packets wireguard-go reads and writes a call, at most.
// Its receiving goroutines hold this many buffers of 64 KiB each.
const batchSize = 128

func (w *wire) File() *os.File           { return nil }
func (w *wire) MTU() (int, error)        { return maxPathMTU - outerOverhead4, nil }
func (w *wire) Name() (string, error)    { return "warren", nil }
func (w *wire) Events() <-chan tun.Event { return w.events }
func (w *wire) BatchSize() int           { return batchSize }

// Close ends Read. wireguard-go calls it once, Tunnel.Close through it.
func (w *wire) Close() error {
	w.once.Do(func() {
		close(w.events)
		w.t.outbox.close()
	})
	return nil
}

// Read waits for packets to send.
func (w *wire) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return w.t.outbox.read(bufs, sizes, offset)
}

// Write takes packets that wireguard-go decrypted; their outer source is
// authenticated as the peer's. Consecutive packets for one stack are delivered
// together.
func (w *wire) Write(bufs [][]byte, offset int) (int, error) {
	now := time.Now()
	var (
		start, n int // of the run, which takes the place of what was looked at
		to       *link.Endpoint
		last     admission
	)
	flush := func() {
		if n > start {
			to.Deliver(bufs[start:n])
			start = n
		}
	}
	for _, b := range bufs {
		b = b[offset:]
		packet := last.next(b)
		if packet == nil {
			last.settle()
			last = w.t.admit(b, now)
			packet = last.packet
		}
		if packet == nil {
			continue
		}
		if last.link != to {
			flush()
			to = last.link
		}
		bufs[n] = packet
		n++
	}
	last.settle()
	flush()
	clear(bufs) // or the peer's receiver pins them: see unpinned
	return len(bufs), nil
}

// admit takes one decrypted packet apart. It returns a packet and the link of
// the stack that it may enter, or deals with it itself and returns nothing.
func (t *Tunnel) admit(b []byte, now time.Time) admission {
	outer, why := shim.Parse(b)
	if why != shim.OK {
		t.refused.Add(string(why), 1)
		return admission{}
	}
	s := t.sessionAt(outer.Src)
	if s == nil {
		t.refused.Add(string(WhyUnknownPeer), 1)
		return admission{}
	}
	s.heard(now, len(b))
	self := t.self.Load()
	if !self.is(outer.Dst, now) {
		t.refused.Add(string(WhyNotForUs), 1)
		return admission{}
	}
	if !outer.Shimmed() {
		return t.overlayPacket(s, self, outer, b[:shim.HeaderLen+len(outer.Payload)], now)
	}
	p := s.peer
	if p == nil {
		t.refused.Add(string(WhyGuest), 1)
		return admission{}
	}
	in, why := shim.ParseInner(outer.Inner)
	if why == shim.OK {
		why = t.check(p, in)
	}
	if why != shim.OK {
		t.refused.Add(string(why), 1)
		return admission{}
	}
	t.admitted.Add(1)
	a := admission{link: p.link, packet: outer.Inner}
	if plain(b) && p.session() == s { // what comes in a key that was left is not counted, see session.heard
		a.peer, a.like = p, b
	}
	return a
}

// overlayPacket handles what came without a shim: echoes are served here, TCP
// goes to the overlay's stack where the sender may reach it. An overlay packet
// never reaches a network's stack.
func (t *Tunnel) overlayPacket(s *session, self *identity, outer shim.Packet, b []byte, now time.Time) admission {
	why := WhyOverlay
	switch outer.NextHeader {
	case protoICMP6:
		e, ok := parseEcho(b, outer.Src, outer.Dst)
		if !ok || e.reply && s.guest != nil { // whom nobody asks
			break
		}
		t.echoed(s, self, e, b, now)
		return admission{}
	case protoTCP:
		if outer.Dst != self.overlay {
			why = WhyNotForUs
		} else if why = t.overlayTCP(s, outer.Payload, now); why == shim.OK {
			return admission{link: self.stack.link, packet: b}
		}
	}
	t.refused.Add(string(why), 1)
	return admission{}
}

// echoed takes an echo that s sent, b as it came.
func (t *Tunnel) echoed(s *session, self *identity, e echo, b []byte, now time.Time) {
	if e.reply {
		s.peer.echoReply(e, len(b), now)
		return
	}
	if e.ours && s.peer != nil {
		s.peer.introduced(e)
	}
	// The answer goes to the key in use, and that may be another by now.
	to := s.overlay
	if s.peer != nil {
		to = s.peer.Overlay()
	}
	t.outbox.control(appendReply(nil, b, self.overlay, to))
}
