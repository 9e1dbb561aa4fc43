package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// GuestConfig describes a guest.
type GuestConfig struct {
	Name         string // for errors
	PublicKey    wgtypes.Key
	PresharedKey wgtypes.Key // zero: none
	Port         uint16      // the one TCP port of our overlay address that it may reach
}

// Guest is the other end of a WireGuard session that is in no network: it
// reaches one TCP port of our overlay address, is answered its echoes, and
// nothing else. Several machines may use its key, in turns. Its methods may be
// called concurrently.
type Guest struct {
	tunnel  *Tunnel
	name    string
	port    uint16
	session *session
	heard   atomic.Bool // since it was added or renewed

	mu   sync.Mutex // held while the guest is renewed or removed
	gone bool
}

// errGone is the error of what comes too late.
var errGone = errors.New("it was removed")

// AddGuest adds a guest. Its key must be new in the whole tunnel (ErrKnownKey).
func (t *Tunnel) AddGuest(cfg GuestConfig) (*Guest, error) {
	if err := t.reserve(cfg.Name, cfg.PublicKey); err != nil {
		return nil, err
	}
	g := t.newGuest(cfg.Name, cfg.Port, t.newSession(cfg.PublicKey, cfg.PresharedKey))
	t.byOverlay.Store(g.session.overlay, g.session)
	if err := g.session.install(netip.AddrPort{}); err != nil {
		g.Remove()
		return nil, fmt.Errorf("adding WireGuard peer %q: %w", cfg.Name, err)
	}
	if !t.enter(g) { // closed meanwhile
		g.Remove()
		return nil, ErrClosed
	}
	return g, nil
}

func (t *Tunnel) newGuest(name string, port uint16, s *session) *Guest {
	g := &Guest{tunnel: t, name: name, port: port, session: s}
	s.guest = g
	return g
}

// enter shows g to watch; false where the tunnel is closed.
func (t *Tunnel) enter(g *Guest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.guests[g] = struct{}{}
	}
	return !t.closed
}

// allGuests returns the guests of the moment, in no order.
func (t *Tunnel) allGuests() []*Guest {
	t.mu.Lock()
	defer t.mu.Unlock()
	guests := make([]*Guest, 0, len(t.guests))
	for g := range t.guests {
		guests = append(guests, g)
	}
	return guests
}

// PublicKey is the guest's public key.
func (g *Guest) PublicKey() wgtypes.Key { return g.session.key }

// Remove aborts the guest's conns and forgets it. Later calls do nothing.
func (g *Guest) Remove() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone {
		return
	}
	g.gone = true
	g.session.drop()
	g.tunnel.mu.Lock()
	defer g.tunnel.mu.Unlock()
	delete(g.tunnel.guests, g)
}

// Renew lets the next machine in whatever its clock says: WireGuard refuses a
// handshake that is dated before the last one of the same key. The session
// goes, and the guest's conns are aborted. The tunnel itself renews a guest
// guestSilence after it was last heard.
func (g *Guest) Renew() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone {
		return fmt.Errorf("renewing guest %q: %w", g.name, errGone)
	}
	g.tunnel.self.Load().stack.abort(g.session.overlay, 0)
	if err := g.session.renew(func() { g.heard.Store(false) }); err != nil {
		return fmt.Errorf("renewing guest %q: %w", g.name, err)
	}
	return nil
}

// Demote takes a connector out of its network and makes it a guest that
// reaches port: its flows are aborted, its NIC goes, and packets that it sends
// for the network are refused, but the session stays, and with it the conns to
// port, so that a request that waits there can still be answered. Keys that it
// has not changed to, or has left, are dropped. It must not be called
// from OnPeer; it fails where the connector was removed.
func (p *Peer) Demote(port uint16) (*Guest, error) {
	if p.network == nil {
		return nil, fmt.Errorf("demoting %q: it is no connector", p.name)
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	if p.removed {
		return nil, fmt.Errorf("demoting connector %q: %w", p.name, errGone)
	}
	p.removed = true
	p.dropOtherKeys()
	t, s := p.tunnel, p.session()
	g := t.newGuest(p.name, port, s.handOver())
	g.heard.Store(p.open.Load())
	t.byOverlay.Store(s.overlay, g.session)
	t.self.Load().stack.abort(s.overlay, port)
	p.detach()
	if !t.enter(g) {
		g.Remove()
		return nil, fmt.Errorf("demoting connector %q: %w", p.name, ErrClosed)
	}
	return g, nil
}
