package edge

import (
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// networks is the tunnel as the registry of enrolments sees it.
var _ enroll.Peers = (*networks)(nil)

// KeyAt implements enroll.Peers.
func (n *networks) KeyAt(overlay netip.Addr) (wgtypes.Key, bool) { return n.tunnel.KeyAt(overlay) }

// AddGuest implements enroll.Peers.
func (n *networks) AddGuest(g enroll.Guest) error {
	guest, err := n.tunnel.AddGuest(tunnel.GuestConfig{Name: g.Name, PublicKey: g.PublicKey, PresharedKey: g.PresharedKey, Port: g.Port})
	if err != nil {
		return err
	}
	n.keepGuest(guest)
	return nil
}

func (n *networks) keepGuest(g *tunnel.Guest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.guests[g.PublicKey()] = g
}

func (n *networks) guest(key wgtypes.Key) *tunnel.Guest {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.guests[key]
}

// RemoveGuest implements enroll.Peers.
func (n *networks) RemoveGuest(key wgtypes.Key) {
	n.mu.Lock()
	g := n.guests[key]
	delete(n.guests, key)
	n.mu.Unlock()
	if g != nil {
		g.Remove()
	}
}

// RenewGuest implements enroll.Peers.
func (n *networks) RenewGuest(key wgtypes.Key) {
	if g := n.guest(key); g != nil {
		_ = g.Renew() // it fails where the tunnel closes
	}
}

// AddConnector implements enroll.Peers.
func (n *networks) AddConnector(m enroll.Member) error {
	_, err := n.join(m, true)
	return err
}

// RemoveConnector implements enroll.Peers.
func (n *networks) RemoveConnector(name string) {
	if p := n.take(name); p != nil {
		p.Remove()
	}
}

// Demote implements enroll.Peers.
func (n *networks) Demote(name string, port uint16) error {
	p := n.take(name)
	if p == nil {
		return errNoConnector(name)
	}
	g, err := p.Demote(port)
	if err != nil {
		return err
	}
	n.keepGuest(g)
	return nil
}

// SetRoutes implements enroll.Peers.
func (n *networks) SetRoutes(name string, routes []netip.Prefix) error {
	p := n.peer(name)
	if p == nil {
		return errNoConnector(name)
	}
	defer n.moved(name, false)
	return p.SetRoutes(routes)
}

// AddKey implements enroll.Peers.
func (n *networks) AddKey(name string, next wgtypes.Key) error {
	p := n.peer(name)
	if p == nil {
		return errNoConnector(name)
	}
	return p.AddKey(next)
}

// DropKey implements enroll.Peers.
func (n *networks) DropKey(name string, key wgtypes.Key) {
	if p := n.peer(name); p != nil {
		p.DropKey(key)
	}
}

// SetHeld implements enroll.Peers.
func (n *networks) SetHeld(name string, held bool) {
	if p := n.peer(name); p != nil {
		p.SetHeld(held)
		n.moved(name, false)
	}
}

// State implements enroll.Peers.
func (n *networks) State(name string) (enroll.State, bool) {
	p := n.peer(name)
	if p == nil {
		return enroll.State{}, false
	}
	s := p.State()
	return enroll.State{Alive: s.Alive, Left: s.Left}, true
}

func errNoConnector(name string) error {
	return fmt.Errorf("looking for connector %q: it is not in the tunnel", name)
}
