package tunnel

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/link"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/shim"
)

const shimLen = shim.HeaderLen

// Peer is a connector, seen from the edge, or an edge, seen from the connector:
// the other end of a WireGuard session, or of several while a connector changes
// its key. It has a NIC in the stack of its network. Its methods may be called
// concurrently.
type Peer struct {
	tunnel   *Tunnel
	name     string
	cur      atomic.Pointer[session] // the key in use: what we send in
	initiate bool                    // it is ours to begin handshakes: we are the connector

	network *Network                     // the edge's side; nil at a connector
	stack   *netstack.Stack              // the connector's side: this edge's own
	nic     atomic.Pointer[netstack.NIC] // nil: the network is at rest (rest.go)
	link    *link.Endpoint
	lane    *lane
	routes  atomic.Pointer[routeSet] // the edge's side: what the connector may speak for

	heardAt    atomic.Int64 // nanoseconds since tunnel.started, 0: never
	rxBytes    atomic.Uint64
	open       atomic.Bool // the link is open
	suspect    atomic.Bool // the last echo was missed
	boot       atomic.Uint64
	bootBefore atomic.Uint64
	shared     atomic.Bool               // two machines use the peer's key
	draining   atomic.Bool               // the other end takes no new flows
	held       atomic.Bool               // our operator wants none for it
	left       atomic.Bool               // the other end said farewell
	known      atomic.Int64              // when acquainted was told that it is ours, nanoseconds since tunnel.started; 0: it is not
	rebooted   atomic.Bool               // news for watch
	news       atomic.Bool               // for OnPeer: draining or shared changed
	moved      atomic.Bool               // news for watch: the endpoint changed
	changed    atomic.Bool               // news for watch: another key is in use
	rekeyed    atomic.Pointer[time.Time] // news for watch: our key changed; the last handshake with the one before

	// Watch's own.
	forgot  bool      // renewHandshake forgot the session, and there is no other yet
	shaken  time.Time // the handshake of the session that was forgotten
	recall  time.Time // when to call again a peer that is alive and whose session was forgotten
	recalls int       // how often that was done

	// here ends, with errLost, when the peer dies; dials wait on it. Only
	// watch replaces it; nil before the peer first came up.
	here atomic.Pointer[presence]

	mu    sync.Mutex
	life  life
	mtu   pathMTU
	seq   uint16
	asked uint16        // seq of the last echo for liveness
	rtt   time.Duration // smoothed; 0: not measured

	changing sync.Mutex // held while keys come and go, and by Remove
	removed  bool
	detached bool // no NIC is made any more; guarded by network.stackMu

	keysMu sync.Mutex
	keys   keys // besides cur, which changes with it held

	before traffic // guarded by tunnel.deviceMu: what was counted with keys that were dropped
}

// presence is a peer's time from coming up to its death.
type presence struct {
	context.Context
	end context.CancelCauseFunc
}

func newPresence() *presence {
	p := new(presence)
	p.Context, p.end = context.WithCancelCause(context.Background())
	return p
}

// errLost is why a dial ends whose peer died under it.
var errLost = fmt.Errorf("the other end of the tunnel fell silent: %w", netx.ErrNoRoute)

// PeerState is what is known of a peer at a moment.
type PeerState struct {
	Alive         bool
	Left          bool           // it is not Alive because it said farewell
	Draining      bool           // the other end asked for no new flows
	Held          bool           // SetHeld: our operator wants no new flows there
	KeyShared     bool           // two machines use this key, in turns
	Since         time.Time      // when Alive last changed; zero: never alive
	Heard         time.Time      // last authenticated packet; zero: never
	RTT           time.Duration  // smoothed round trip of echoes; 0: not measured
	PathMTU       int            // largest inner packet proved both ways, bytes; 0: not probed
	BootID        uint64         // 0: unknown, or not Warren
	Endpoint      netip.AddrPort // UDP address that WireGuard sends to; zero: unknown
	LastHandshake time.Time      // zero: never
	RxBytes       uint64         // WireGuard's count of what came, bytes
	TxBytes       uint64         // WireGuard's count of what went, bytes
	Flows         int
}

// Name is what the peer was added as.
func (p *Peer) Name() string { return p.name }

// PublicKey is the peer's public key; of several, the one in use.
func (p *Peer) PublicKey() wgtypes.Key { return p.session().key }

// Overlay is the peer's overlay address: that of its PublicKey.
func (p *Peer) Overlay() netip.Addr { return p.session().overlay }

// session is the one that we send in.
func (p *Peer) session() *session { return p.cur.Load() }

// NetworkName is the name of the peer's network; empty at a connector.
func (p *Peer) NetworkName() string {
	if p.network == nil {
		return ""
	}
	return p.network.name
}

// Stack is, at a connector, the stack that this edge's packets enter, which
// accepts every destination: set its forwarders. At an edge it is nil: the
// stack of a network comes and goes.
func (p *Peer) Stack() *netstack.Stack { return p.stack }

// Alive reports whether authenticated packets come from the peer.
func (p *Peer) Alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.life.alive
}

// RTT is the smoothed round trip of echoes; 0: not measured.
func (p *Peer) RTT() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rtt
}

// Draining reports whether the peer asked for no new flows.
func (p *Peer) Draining() bool { return p.draining.Load() }

// SetHeld says whether our operator wants no new flows for the peer: Pick
// passes it over then. What it carries goes on. OnPeer is not told.
func (p *Peer) SetHeld(held bool) { p.held.Store(held) }

// Flows returns how many flows the peer carries.
func (p *Peer) Flows() int {
	if nic := p.nic.Load(); nic != nil {
		return nic.Flows()
	}
	return 0
}

// State returns all of it. It asks the device, whose answer for all peers is
// kept for a second.
func (p *Peer) State() PeerState {
	dev, bytes := p.totals()
	p.mu.Lock()
	defer p.mu.Unlock()
	return PeerState{
		Alive: p.life.alive, Left: !p.life.alive && p.left.Load(), Draining: p.draining.Load(), Held: p.held.Load(), KeyShared: p.shared.Load(), Since: p.life.since,
		Heard: p.lastHeard(), RTT: p.rtt, PathMTU: p.mtu.working, BootID: p.boot.Load(),
		Endpoint: dev.endpoint, LastHandshake: dev.handshake, RxBytes: bytes.rx, TxBytes: bytes.tx,
		Flows: p.Flows(),
	}
}

// newPeer makes the lane, the WireGuard peer and, at a connector, the NIC; at an
// edge the first flow does. endpoint may be zero.
func (t *Tunnel) newPeer(p *Peer, s *session, endpoint netip.AddrPort) error {
	if err := t.reserve(p.name, s.key); err != nil {
		return err
	}
	s.peer = p
	p.cur.Store(s)
	p.link = link.New(link.Config{MTU: minInnerMTU, Deferrer: t.deferrer, Ready: func() { t.outbox.ready(p.lane) }})
	p.link.SetTrusted(p.initiate)
	p.lane = t.outbox.add(&lane{link: p.link, overlay: s.overlay})
	if p.stack != nil {
		nic, err := p.stack.AddNIC(netstack.NICConfig{Name: p.name, Link: p.link})
		if err != nil {
			t.outbox.remove(p.lane)
			t.release(s.key)
			return fmt.Errorf("adding a NIC for %q: %w", p.name, err)
		}
		p.nic.Store(nic)
	}
	t.byOverlay.Store(s.overlay, s)
	if err := s.install(endpoint); err != nil {
		p.Remove()
		return fmt.Errorf("adding WireGuard peer %q: %w", p.name, err)
	}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.peers[p] = struct{}{} // visible to watch only now that it is whole
	}
	t.mu.Unlock()
	if closed { // meanwhile
		p.Remove()
		return ErrClosed
	}
	t.nudge()
	return nil
}

// Remove aborts the peer's flows and forgets it. Later calls do nothing. It
// must not be called from OnPeer.
func (p *Peer) Remove() {
	p.changing.Lock()
	defer p.changing.Unlock()
	if p.removed {
		return
	}
	p.removed = true
	p.dropOtherKeys()
	s := p.session()
	p.tunnel.byOverlay.Delete(s.overlay)
	p.tunnel.self.Load().stack.abort(s.overlay, 0)
	p.detach()
	s.drop()
}

// detach takes the peer out of its network and ends its NIC. The session must
// be somebody else's by then, or nobody's, but still there for the RSTs.
func (p *Peer) detach() {
	t := p.tunnel
	if p.network != nil {
		p.withdraw()
		p.network.forget(p)
		defer p.leave()
	}
	if nic := p.nic.Load(); nic != nil {
		nic.Remove()
	}
	p.link.Close()
	t.outbox.remove(p.lane)
	if p.network == nil {
		p.stack.Close()
	}
	t.goneMu.Lock()
	defer t.goneMu.Unlock()
	p.link.Drops(t.goneLinks.Add)
	if p.network == nil {
		p.stack.Drops(func(_, why string, n uint64) { t.goneStacks.Add(why, n) })
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, p)
}

// SetEndpoint changes the UDP address that WireGuard sends to, and calls there
// at once. Use it at a connector, when its edge's address changed.
func (p *Peer) SetEndpoint(endpoint netip.AddrPort) error {
	key := p.PublicKey()
	err := p.tunnel.device.IpcSet(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n",
		hex.EncodeToString(key[:]), endpoint))
	if err != nil {
		return fmt.Errorf("setting the endpoint of %q: %w", p.name, err)
	}
	p.moved.Store(true)
	p.mu.Lock()
	if !p.life.alive {
		p.life.attempt, p.life.next = 0, time.Time{}
	}
	p.mu.Unlock()
	p.tunnel.nudge()
	return nil
}

// renewHandshake forgets the session, so that the next packet begins another.
func (p *Peer) renewHandshake() {
	if !p.forgot {
		p.forgot, p.shaken = true, p.session().lastHandshake()
	}
	p.session().forget()
}

// heardAnew is lastHeard, without what came in a session that renewHandshake
// forgot: such a packet can still be read, but not be answered. An edge that
// stood still for a while answers the echoes of that session first, and to
// call it alive for them would be to stop calling it, with no session to send
// in.
func (p *Peer) heardAnew() time.Time {
	heard := p.lastHeard()
	if !p.forgot {
		return heard
	}
	p.mu.Lock()
	since := p.life.since
	p.mu.Unlock()
	if !heard.After(since) {
		return heard
	}
	if p.session().lastHandshake().Equal(p.shaken) {
		return time.Time{}
	}
	p.forgot = false
	return heard
}

// ceiling is the largest inner packet that the local route to the peer takes.
func (p *Peer) ceiling() int {
	dst := p.session().state().endpoint.Addr().Unmap()
	path, overhead := maxPathMTU, outerOverhead4
	if dst.Is6() {
		overhead = outerOverhead6
	}
	if dst.IsValid() {
		if mtu, err := p.tunnel.bind.PathMTU(dst); err == nil {
			path = min(path, mtu)
		}
	}
	return path - overhead - shimLen
}

// sendEcho sends a request of id, size bytes long on the overlay (0: as short
// as it can be).
func (p *Peer) sendEcho(id uint16, size int) {
	p.sendEchoTo(p.session(), id, size)
}

// sendEchoTo is sendEcho, to the holder of one of the peer's keys.
func (p *Peer) sendEchoTo(s *session, id uint16, size int) {
	p.mu.Lock()
	p.seq++
	if id == echoIDLiveness {
		p.asked = p.seq
	}
	e := echo{id: id, seq: p.seq, flags: p.ourFlags(), boot: p.tunnel.boot, sent: p.tunnel.clock(time.Now())}
	p.mu.Unlock()
	p.tunnel.outbox.control(appendEcho(nil, p.tunnel.Overlay(), s.overlay, e, size))
}

// ourFlags are the flags of our echoes to p.
func (p *Peer) ourFlags() byte {
	flags := p.tunnel.ourFlags()
	if p.link.Trusted() {
		flags |= flagTrusting
	}
	return flags
}

// acquainted is told, with each echo, whether p looks at no TCP checksum of what
// we send. Then it is one of ours, where flows end, and gets none; and what comes
// from it is not looked at either, since WireGuard's Poly1305 has authenticated
// it. Of a router of another make neither holds: what it forwards may have been
// changed before it came there. An edge promises to look at none once it knows
// that the other end is ours; a connector's other end always is.
//
// The word holds for trustFor: another machine with the same key may be back
// before anybody finds that the first is gone. What is sent without a checksum to
// an end that has just forgotten us is lost, and sent again by TCP.
func (p *Peer) acquainted(trusting bool) {
	p.link.SetOwn(trusting)
	if !p.initiate {
		p.link.SetTrusted(trusting)
	}
	at := int64(0)
	if trusting {
		at = p.tunnel.clock(time.Now())
	}
	p.known.Store(at)
}

// trustFor is a few times as long as a peer of ours is silent.
const trustFor = 5 * time.Second

// trustStale reports whether p has not said for long that it is ours.
func (p *Peer) trustStale(now time.Time) bool {
	at := p.known.Load()
	return at != 0 && p.tunnel.clock(now)-at > int64(trustFor)
}

// clock is the time that our echoes carry.
func (t *Tunnel) clock(now time.Time) int64 { return int64(now.Sub(t.started)) }

// heard notes an authenticated packet of n bytes.
func (p *Peer) heard(now time.Time, n int) {
	p.heardAt.Store(p.tunnel.clock(now))
	p.rxBytes.Add(uint64(n))
	if !p.open.Load() && !p.left.Load() {
		// Open before watch knows, so that the answer to this very packet
		// is not dropped.
		p.open.Store(true)
		p.link.SetOpen(true)
		p.tunnel.nudge()
	}
}

func (p *Peer) lastHeard() time.Time {
	at := p.heardAt.Load()
	if at == 0 {
		return time.Time{}
	}
	return p.tunnel.started.Add(time.Duration(at))
}

// introduced takes in what an echo request says of its sender.
func (p *Peer) introduced(e echo) {
	if old := p.boot.Swap(e.boot); old != 0 && old != e.boot {
		// A boot id never comes back, but from a second machine that has the
		// same key: the two take the session from each other in turns.
		if p.bootBefore.Swap(old) == e.boot && !p.shared.Swap(true) {
			p.news.Store(true)
		}
		p.rebooted.Store(true)
		p.tunnel.nudge()
	}
	draining := e.flags&flagDraining != 0
	if p.draining.Swap(draining) != draining {
		p.news.Store(true)
		p.tunnel.nudge()
	}
	p.acquainted(e.flags&flagTrusting != 0)
	leaving := e.flags&flagLeaving != 0
	if p.left.Swap(leaving) != leaving {
		p.tunnel.nudge()
	}
}

// freshEchoes is how many echoes may have been sent since the one whose answer
// counts as a measurement: a path of two seconds is still measured.
const freshEchoes = 2

// echoReply takes the answer to an echo of ours, n bytes long on the overlay.
func (p *Peer) echoReply(e echo, n int, now time.Time) {
	if !e.ours || e.boot != p.tunnel.boot {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e.id {
	case echoIDPathMTU:
		p.mtu.answered(now, n-shimLen)
		p.tunnel.nudge()
	case echoIDLiveness:
		sample := time.Duration(p.tunnel.clock(now) - e.sent)
		// After a pause the other end answers all that had queued up; only
		// the newest echoes tell of the path.
		if sample < 0 || p.asked-e.seq > freshEchoes {
			return
		}
		if p.rtt == 0 {
			p.rtt = sample
		} else {
			p.rtt += (sample - p.rtt) / 8 // RFC 6298 section 2's alpha
		}
	}
}

// flowMatch chooses flows by their two ends.
type flowMatch = func(local, remote netip.AddrPort) bool

// allFlows matches every flow.
func allFlows(netip.AddrPort, netip.AddrPort) bool { return true }
