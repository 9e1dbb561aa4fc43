package tunnel

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/warrenmesh/warren/netstack/shim"
)

// supply is a packetSource that holds packets of one size.
type supply struct {
	mu   sync.Mutex
	left int
	size int
	read int
}

func (s *supply) Read(bufs [][]byte, sizes []int, offset int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(s.left, len(bufs))
	for i := range n {
		bufs[i][offset] = 0x45
		sizes[i] = s.size
	}
	s.left -= n
	s.read += n
	return n
}

const wgHeader = device.MessageTransportHeaderSize

// pump stands for wireguard-go: it reads batches and, if sends, gives each
// packet back as the datagram that it becomes.
type pump struct {
	bufs  [][]byte
	sizes []int
}

func newPump(batch int) *pump {
	p := &pump{sizes: make([]int, batch)}
	for range batch {
		p.bufs = append(p.bufs, make([]byte, device.MaxMessageSize))
	}
	return p
}

func (p *pump) read(t *testing.T, o *outbox) int {
	t.Helper()
	n, err := o.read(p.bufs, p.sizes, wgHeader)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (p *pump) send(o *outbox, n int) {
	datagrams := make([][]byte, n)
	for i := range n {
		padded := (p.sizes[i] + 15) &^ 15
		datagrams[i] = p.bufs[i][:wgHeader+padded+16]
	}
	o.sent(datagrams)
}

func newTestOutbox(t *testing.T) *outbox {
	t.Helper()
	return newOutbox(echoA, 0xbeef)
}

func TestOutboxWrapsPackets(t *testing.T) {
	o := newTestOutbox(t)
	l := o.add(&lane{link: &supply{left: 3, size: 100}, overlay: echoB})
	o.ready(l)
	p := newPump(8)
	n := p.read(t, o)
	if n != 3 {
		t.Fatalf("read %d packets, want 3", n)
	}
	for i := range n {
		outer, why := shim.Parse(p.bufs[i][wgHeader : wgHeader+p.sizes[i]])
		if why != shim.OK || outer.Src != echoA || outer.Dst != echoB || len(outer.Inner) != 100 {
			t.Errorf("packet %d: %v to %v with %d bytes (%q)", i, outer.Src, outer.Dst, len(outer.Inner), why)
		}
	}
}

// TestCreditBoundsWhatIsInFlight: a peer whose datagrams do not leave stops
// giving packets at its bound, goes on when they leave, and others go on
// meanwhile.
func TestCreditBoundsWhatIsInFlight(t *testing.T) {
	for _, size := range []int{100, 1200, 1399, 1840, 1900, 9000, 60000} {
		o := newTestOutbox(t)
		slow := &supply{left: 10_000, size: size}
		o.ready(o.add(&lane{link: slow, overlay: echoB}))
		p := newPump(128)
		last := 0
		for slow.read < maxInFlightPeer {
			last = p.read(t, o)
		}
		if n, _ := o.fill(p.bufs, p.sizes, wgHeader); n != 0 {
			t.Errorf("size %d: %d more packets beyond the peer's credit", size, n)
		}
		other := &supply{left: 5, size: size}
		o.ready(o.add(&lane{link: other, overlay: netip.MustParseAddr("fd77:6172:7265::c")}))
		q := newPump(128)
		if n := q.read(t, o); n != 5 {
			t.Errorf("size %d: another peer gave %d packets, want 5", size, n)
		}
		p.send(o, last)
		if n := q.read(t, o); n != last {
			t.Errorf("size %d: %d packets after %d were sent", size, n, last)
		}
	}
}

func TestCreditBoundsAllPeersTogether(t *testing.T) {
	o := newTestOutbox(t)
	total := 0
	for i := range 10 {
		a := echoB.As16()
		a[14] = byte(i)
		o.ready(o.add(&lane{link: &supply{left: 10_000, size: 500}, overlay: netip.AddrFrom16(a)}))
	}
	p := newPump(128)
	for {
		n, starved := o.fill(p.bufs, p.sizes, wgHeader)
		total += n
		if n == 0 && starved {
			break
		}
	}
	if total != maxInFlight {
		t.Errorf("%d packets in flight, want %d", total, maxInFlight)
	}
}

// TestLostCreditExpires: what wireguard-go drops without a word stops counting
// after a while, and a late return of it counts for nothing.
func TestLostCreditExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOutbox(t)
		s := &supply{left: 2 * maxInFlightPeer, size: 300}
		o.ready(o.add(&lane{link: s, overlay: echoB}))
		p := newPump(maxInFlightPeer)
		for s.read < maxInFlightPeer {
			p.read(t, o)
		}
		begin := time.Now()
		q := newPump(128)
		q.read(t, o) // waits for the expiry
		if waited := time.Since(begin); waited < creditExpiry || waited > 2*creditExpiry {
			t.Errorf("waited %v for lost credit, want %v", waited, creditExpiry)
		}
		before := o.inFlight
		p.send(o, quantum) // the marks are of the epoch before
		if o.inFlight != before {
			t.Errorf("late returns changed the count from %d to %d", before, o.inFlight)
		}
	})
}

// TestLostCreditExpiresBesideOtherTraffic: echoes and other peers' packets,
// which come at all times, do not put the expiry off.
func TestLostCreditExpiresBesideOtherTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOutbox(t)
		s := &supply{left: 2 * maxInFlightPeer, size: 300}
		o.ready(o.add(&lane{link: s, overlay: echoB}))
		p := newPump(maxInFlightPeer)
		for s.read < maxInFlightPeer {
			p.read(t, o)
		}
		begin := time.Now()
		for s.read == maxInFlightPeer && time.Since(begin) < 10*creditExpiry {
			o.control([]byte("echo"))
			p.read(t, o)
			time.Sleep(creditExpiry / 4)
		}
		if waited := time.Since(begin); s.read == maxInFlightPeer || waited > 2*creditExpiry {
			t.Errorf("%d packets after %v, want more than %d within %v", s.read, waited, maxInFlightPeer, 2*creditExpiry)
		}
	})
}

func TestEchoesGoFirstAndAreBounded(t *testing.T) {
	o := newTestOutbox(t)
	o.ready(o.add(&lane{link: &supply{left: 3, size: 100}, overlay: echoB}))
	for range maxControl + 2 {
		o.control(make([]byte, echoMinLen))
	}
	if n := o.drops.Count(whyControlFull); n != 2 {
		t.Errorf("%d echoes dropped, want 2", n)
	}
	p := newPump(128)
	if n := p.read(t, o); n != maxEchoes+3 || p.sizes[0] != echoMinLen || p.sizes[n-1] != shimLen+100 {
		t.Fatalf("read %d packets, the first of %d bytes; want the echoes that may be in flight, then the peer's", n, p.sizes[0])
	}
	q := newPump(128)
	if n, starved := o.fill(q.bufs, q.sizes, wgHeader); n != 0 || !starved {
		t.Errorf("%d more echoes beyond their bound", n)
	}
	p.send(o, 10)
	if n := q.read(t, o); n != 10 {
		t.Errorf("%d echoes after ten were sent, want ten", n)
	}
}

func TestRemovedPeerGivesCreditBack(t *testing.T) {
	o := newTestOutbox(t)
	l := o.add(&lane{link: &supply{left: 200, size: 100}, overlay: echoB})
	o.ready(l)
	p := newPump(128)
	n := p.read(t, o)
	o.remove(l)
	if o.inFlight != 0 {
		t.Errorf("%d in flight after the only peer was removed", o.inFlight)
	}
	p.send(o, n)
	if o.inFlight != 0 {
		t.Errorf("%d in flight after its datagrams were sent", o.inFlight)
	}
}

func TestClosedOutbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOutbox(t)
		result := make(chan error)
		go func() {
			p := newPump(1)
			_, err := o.read(p.bufs, p.sizes, wgHeader)
			result <- err
		}()
		synctest.Wait()
		o.close()
		if err := <-result; !errors.Is(err, os.ErrClosed) {
			t.Errorf("read after close = %v, want os.ErrClosed", err)
		}
	})
}

// TestBuffersAreNotPinned: the lists that wireguard-go keeps of a batch hold
// none of its buffers afterwards, but the lengths that it counts.
func TestBuffersAreNotPinned(t *testing.T) {
	o := newTestOutbox(t)
	o.ready(o.add(&lane{link: &supply{left: 2, size: 100}, overlay: echoB}))
	p := newPump(2)
	p.read(t, o)
	datagrams := [][]byte{p.bufs[0][:160], p.bufs[1][:176]}
	o.sent(datagrams)
	for i, want := range []int{160, 176} {
		if len(datagrams[i]) != want || &datagrams[i][0] == &p.bufs[i][0] {
			t.Errorf("datagram %d: %d bytes, pinned %v", i, len(datagrams[i]), &datagrams[i][0] == &p.bufs[i][0])
		}
	}
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	written := [][]byte{make([]byte, 100), make([]byte, 100)}
	if n, err := newWire(e.Tunnel).Write(written, 16); n != 2 || err != nil {
		t.Errorf("Write = %d, %v", n, err)
	}
	if written[0] != nil || written[1] != nil {
		t.Error("Write leaves the buffers in the list")
	}
}

func TestFillDoesNotAllocate(t *testing.T) {
	o := newTestOutbox(t)
	s := &supply{size: 1200}
	l := o.add(&lane{link: s, overlay: echoB})
	p := newPump(64)
	datagrams := make([][]byte, 64)
	if n := testing.AllocsPerRun(100, func() {
		s.left = 64
		o.ready(l)
		o.fill(p.bufs, p.sizes, wgHeader)
		for i := range datagrams {
			datagrams[i] = p.bufs[i][:wgHeader+1240+16]
		}
		o.sent(datagrams)
	}); n > 1 { // the list of turns
		t.Errorf("a batch of 64 packets allocates %v times", n)
	}
}

// TestOverlayTakesTurns: the overlay's lane leaves its packets as they are, and
// neither it nor a peer can keep the other out.
func TestOverlayTakesTurns(t *testing.T) {
	o := newTestOutbox(t)
	there := true
	o.there = func(netip.Addr) bool { return there }
	overlay, peer := &supply{left: 10_000, size: 100}, &supply{left: 10_000, size: 100}
	o.ready(o.add(&lane{link: overlay, bare: true}))
	o.ready(o.add(&lane{link: peer, overlay: echoB}))
	o.control(make([]byte, echoMinLen))
	p := newPump(128)
	n := p.read(t, o)
	if p.sizes[0] != echoMinLen {
		t.Error("an echo did not go first")
	}
	for i := 1; i < n; i++ {
		want := 100
		if i > quantum {
			want = shimLen + 100
		}
		if p.sizes[i] != want {
			t.Fatalf("packet %d has %d bytes, want %d", i, p.sizes[i], want)
		}
	}
	if overlay.read != quantum || peer.read != n-1-quantum {
		t.Errorf("%d packets of the overlay and %d of the peer in a batch of %d", overlay.read, peer.read, n)
	}
	for range 6 { // nothing is sent: the overlay has no more credit than a peer
		o.fill(p.bufs, p.sizes, wgHeader)
	}
	if overlay.read > maxInFlightPeer || peer.read > maxInFlightPeer {
		t.Errorf("%d and %d packets in flight, want at most %d each", overlay.read, peer.read, maxInFlightPeer)
	}

	there = false
	o.expire(time.Now().Add(creditExpiry))
	before := o.inFlight
	n, _ = o.fill(p.bufs[:quantum], p.sizes, wgHeader)
	if n != quantum || p.sizes[0] != 0 || o.inFlight != before || o.drops.Count(whyNoSession) != uint64(n) {
		t.Errorf("%d packets of %d bytes for a peer that is not there, %d in flight", n, p.sizes[0], o.inFlight-before)
	}
}
