// Package tunnel is one WireGuard device that carries every virtual network
// of an edge, or every edge of a connector, over one UDP port.
//
// The edge makes a Network for each virtual network and adds the network's
// connectors to it as peers; Network.Dial then opens flows through whichever
// live connector serves the address. A connector adds each of its edges, and
// gets for each a stack on which it accepts whatever the edge asks for.
//
//	  Network "berlin"            Network "tokyo"    overlay
//	   netstack.Stack              netstack.Stack    netstack.Stack   control, enrolment
//	 NIC      NIC                   NIC                NIC            one NIC a connector
//	link     link                  link               link            bounded queues
//	  └────────┴───────── outbox ────┴─────────────────┘              turns, credit, the outer header
//	                        ↓ ↑ admit                                 outer source → peer → check → its NIC
//	                  wireguard-go device
//	                        ↓ ↑
//	                     one UDP port
//
// A peer's only AllowedIPs is its overlay address, an IPv6 address made from
// its public key (OverlayAddr). So WireGuard itself vouches for the outer
// source of every packet; admit maps it to the peer and checks the inner
// packet before it may enter that peer's stack: a connector can speak neither
// into another network, nor for routes that it was not granted, nor for
// another connector of its own network.
//
// A packet without an inner one is the overlay's own: TCP between the overlay
// addresses (overlay.go), of which a peer reaches one port and no network. A
// guest is a peer without a NIC: that port is all it reaches (guest.go).
//
// A session is one WireGuard key and whose it is. A connector that changes its
// key has several for a while (keys.go), and keeps its NIC and its flows; our
// own key is in identity.go. What is silent is renewed, so that a clock which
// went back locks nobody out (renew.go).
//
// Network.Ping is an echo inside, to a private host; how new flows choose
// between connectors is in steering.go. Liveness, boot detection and path MTU
// all are ICMPv6 echoes between overlay addresses (echo.go), which any WireGuard
// router answers.
//
// The package must never let an inner packet into a stack unchecked, block
// inside the device's Write, or call into the device's configuration from its
// Read or Write.
package tunnel

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/bind"
	"github.com/warrenmesh/warren/netstack/drops"
	"github.com/warrenmesh/warren/netstack/link"
	"github.com/warrenmesh/warren/netstack/shim"
)

// Config of a Tunnel.
type Config struct {
	// PrivateKey is this end's WireGuard key. Required.
	PrivateKey wgtypes.Key

	// Listen is where the UDP socket listens. The zero address means every
	// address of both families; port 0 means any.
	Listen netip.AddrPort

	// InnerSources is the IPv4 block of the sources that private hosts see;
	// default DefaultInnerSources. Both ends must agree on it.
	InnerSources netip.Prefix

	// ControlPort is the one TCP port of our overlay address that connectors
	// may reach; 0: none. It is the edge's side: an edge reaches at a connector
	// only what that dialled.
	ControlPort uint16

	// OnPeer is told that a peer came up, went down, began or ceased to drain,
	// or that two machines use its key. It is called on one goroutine, in
	// order, and must not block or call Close. Optional.
	OnPeer func(*Peer, PeerState)

	// Log gets a line when the UDP socket dies and one when it is back, and
	// at debug level what the device itself has to say; default none.
	Log *slog.Logger
}

// Errors of adding peers and networks.
var (
	ErrKnownKey = errors.New("the public key is in use already")
	ErrClosed   = errors.New("the tunnel is closed")
)

// Tunnel is one WireGuard device and all that hangs on it. Its methods may be
// called concurrently.
type Tunnel struct {
	cfg     Config
	self    atomic.Pointer[identity]
	boot    uint64
	started time.Time
	checker checker

	bind     *bind.Bind
	device   *device.Device
	outbox   *outbox
	deferrer *link.Deferrer
	check    func(*Peer, shim.Inner) shim.Why // (*Peer).check; a test shows what it is worth
	refused  drops.Counter                    // packets that admit refused
	admitted atomic.Uint64                    // packets that it let into a stack
	shared   *netstack.Shared

	goneMu     sync.Mutex    // held while counts go over from what goes, and while all are read
	goneLinks  drops.Counter // what the links of peers that are gone had dropped
	goneStacks drops.Counter // likewise the stacks of networks and edges

	answering atomic.Bool // there are, or were, peers whom it is to begin handshakes

	overlayRate *rate.Limiter // of packets into the overlay's stack, of all peers

	byOverlay sync.Map // netip.Addr → *session

	changing sync.Mutex // held while our key changes, and by Close

	wake  chan struct{} // capacity 1: a peer has news for watch
	stop  context.CancelFunc
	ended sync.WaitGroup

	deviceMu sync.Mutex // held while the device is asked, loses peers, or takes our next key
	answer   map[wgtypes.Key]wgState
	answered time.Time

	mu       sync.Mutex
	keys     map[wgtypes.Key]struct{} // of all sessions, those in the making included, and our own
	peers    map[*Peer]struct{}
	guests   map[*Guest]struct{}
	overlays map[*overlayStack]struct{}
	networks map[string]*Network
	flags    byte // of our own echoes
	closed   bool
}

// New opens the UDP port and starts the device. It fails where the port is
// taken, with an error that says so. The caller must Close it.
func New(cfg Config) (*Tunnel, error) {
	if !cfg.InnerSources.IsValid() {
		cfg.InnerSources = DefaultInnerSources
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	t := &Tunnel{
		cfg:     cfg,
		boot:    rand.Uint64() | 1, // never 0, which means unknown
		started: time.Now(),
		checker: checker{sources4: cfg.InnerSources, sources6: InnerSources6},
		check:   (*Peer).check,
		shared:  netstack.NewShared(),

		overlayRate: rate.NewLimiter(overlayRateAll, overlayBurstAll),

		deferrer: link.NewDeferrer(maxDeferred),
		wake:     make(chan struct{}, 1),
		stop:     stop,
		keys:     make(map[wgtypes.Key]struct{}),
		peers:    make(map[*Peer]struct{}),
		guests:   make(map[*Guest]struct{}),
		overlays: make(map[*overlayStack]struct{}),
		networks: make(map[string]*Network),
	}
	public := cfg.PrivateKey.PublicKey()
	t.keys[public] = struct{}{}
	t.outbox = newOutbox(OverlayAddr(public), uint16(rand.Uint32())|1)
	t.outbox.there = func(a netip.Addr) bool { s := t.sessionAt(a); return s != nil && s.live() }
	self, err := t.newIdentity(public)
	if err != nil {
		stop()
		t.deferrer.Close()
		return nil, err
	}
	t.self.Store(self)
	t.bind = bind.New(bind.Config{Listen: cfg.Listen, Answer: t.answering.Load, OnSent: t.outbox.sent, Log: cfg.Log})
	t.device = device.NewDevice(newWire(t), t.bind, deviceLogger(cfg.Log))
	err = t.device.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(cfg.PrivateKey[:]), cfg.Listen.Port()))
	if err == nil {
		err = t.device.Up()
	}
	if err != nil {
		stop()
		t.device.Close()
		self.stack.close(t)
		t.deferrer.Close()
		return nil, fmt.Errorf("starting WireGuard: %w", err)
	}
	t.ended.Go(func() { t.watch(ctx) })
	return t, nil
}

// maxDeferred bounds the ICMP errors that wait to be handled.
const maxDeferred = 1024

// deviceLogger passes wireguard-go's words on at debug level: what of them
// matters to an operator, liveness says in our own.
func deviceLogger(log *slog.Logger) *device.Logger {
	say := func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...), "from", "wireguard") }
	if !log.Enabled(context.Background(), slog.LevelDebug) {
		say = func(string, ...any) {}
	}
	return &device.Logger{Verbosef: say, Errorf: say}
}

// OverlayAddr returns the overlay address of the holder of public: the prefix
// fd77:6172:7265::/48 and 80 bits of BLAKE2s of the key.
func OverlayAddr(public wgtypes.Key) netip.Addr {
	a := OverlayPrefix.Addr().As16()
	sum := blake2s.Sum256(public[:])
	copy(a[6:], sum[:10])
	return netip.AddrFrom16(a)
}

// PublicKey is this end's public key.
func (t *Tunnel) PublicKey() wgtypes.Key { return t.self.Load().public }

// Overlay is this end's overlay address.
func (t *Tunnel) Overlay() netip.Addr { return t.self.Load().overlay }

// ListenPort is the UDP port in use.
func (t *Tunnel) ListenPort() int { return int(t.bind.LocalPort()) }

// SetDraining tells every peer, with the next echo, that this end takes no
// new flows (or takes them again).
func (t *Tunnel) SetDraining(draining bool) {
	t.mu.Lock()
	if draining {
		t.flags |= flagDraining
	} else {
		t.flags &^= flagDraining
	}
	t.mu.Unlock()
	t.greetAll()
}

// greetAll sends an echo to every peer that is alive.
func (t *Tunnel) greetAll() {
	for _, p := range t.allPeers() {
		if p.State().Alive {
			p.sendEcho(echoIDLiveness, 0)
		}
	}
}

func (t *Tunnel) ourFlags() byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flags
}

// allPeers returns the peers of the moment, in no order.
func (t *Tunnel) allPeers() []*Peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	peers := make([]*Peer, 0, len(t.peers))
	for p := range t.peers {
		peers = append(peers, p)
	}
	return peers
}

// Drops calls yield with what was dropped, where and why: refused by the
// checks, at the links, in the stacks, in the socket, in the outbox. A place
// and reason may come more than once; the sum counts, and never falls. yield
// must not call the tunnel.
func (t *Tunnel) Drops(yield func(where, why string, n uint64)) {
	t.goneMu.Lock()
	defer t.goneMu.Unlock()
	t.refused.Each(func(why string, n uint64) { yield("tunnel", why, n) })
	t.outbox.drops.Each(func(why string, n uint64) { yield("tunnel", why, n) })
	t.bind.Drops(yield)
	t.shared.Drops(yield)
	t.goneLinks.Each(func(why string, n uint64) { yield("link", why, n) })
	t.goneStacks.Each(func(why string, n uint64) { yield("netstack", why, n) })
	for _, p := range t.allPeers() {
		p.link.Drops(func(why string, n uint64) { yield("link", why, n) })
	}
	for _, o := range t.overlayStacks() {
		o.link.Drops(func(why string, n uint64) { yield("link", why, n) })
	}
	for _, st := range t.stacks() {
		st.Drops(yield)
	}
}

// stacks returns the stacks of the moment: one a network, or one an edge, and
// the overlay's.
func (t *Tunnel) stacks() []*netstack.Stack {
	t.mu.Lock()
	defer t.mu.Unlock()
	var stacks []*netstack.Stack
	for _, n := range t.networks {
		if st := n.stack.Load(); st != nil {
			stacks = append(stacks, st)
		}
	}
	for p := range t.peers {
		if p.network == nil {
			stacks = append(stacks, p.stack)
		}
	}
	for o := range t.overlays {
		stacks = append(stacks, o.stack)
	}
	return stacks
}

func (t *Tunnel) overlayStacks() []*overlayStack {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.overlays))
}

// leaveGrace bounds how long Close waits for its farewell to be sent.
const leaveGrace = 100 * time.Millisecond

// Close says farewell to the peers, aborts every flow, and stops the device
// and all goroutines. Later calls do nothing.
func (t *Tunnel) Close() {
	t.changing.Lock()
	defer t.changing.Unlock()
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.closed = true
	t.flags |= flagLeaving
	t.mu.Unlock()

	t.stop()
	t.ended.Wait()
	t.greetAll()
	t.outbox.flushed(leaveGrace)
	t.self.Load().stack.close(t)
	for _, n := range t.allNetworks() {
		n.Close()
	}
	for _, p := range t.allPeers() {
		p.Remove()
	}
	for _, g := range t.allGuests() {
		g.Remove()
	}
	t.device.Close()
	t.deferrer.Close()
}

// Abbreviate shortens a key for logs, as wireguard-go does: "abcd…wxyz".
func Abbreviate(key wgtypes.Key) string {
	s := base64.StdEncoding.EncodeToString(key[:])
	return s[:4] + "…" + s[39:43]
}
