package tunnel

import (
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A connector changes its key while it serves. Each of its keys is a session
// of its own, all of them are the one Peer's, with its NIC and its flows:
//
//	AddKey          next ─┐ its first packet        DropKey
//	                      ↓
//	            cur ←── follow ──→ old ──────────→ gone
//
// We send in cur. What comes in any of the three is taken; what comes in old
// does not turn us back, and does not prove that the peer is there.
type keys struct {
	next, old *session // nil: none
}

// AddKey lets the connector change to the key next: once a packet comes from
// it, next is the peer's PublicKey. The preshared key stays as it is. What is
// left of an earlier change is dropped; the same next again does nothing. next
// must be new in the whole tunnel (ErrKnownKey).
func (p *Peer) AddKey(next wgtypes.Key) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	t := p.tunnel
	switch {
	case p.removed:
		return fmt.Errorf("adding a key to %q: %w", p.name, errGone)
	case p.network == nil:
		return fmt.Errorf("adding a key to %q: it is no connector", p.name)
	}
	if now := p.otherKeys(); now.next != nil && now.next.key == next {
		return nil
	}
	if err := t.reserve(p.name, next); err != nil {
		return err
	}
	s := t.newSession(next, p.session().psk)
	s.peer = p
	p.keysMu.Lock()
	left := p.keys
	p.keys = keys{next: s}
	p.keysMu.Unlock()
	left.drop()
	t.byOverlay.Store(s.overlay, s)
	if err := s.install(netip.AddrPort{}); err != nil {
		p.dropChanging(next)
		return fmt.Errorf("adding a key to %q: %w", p.name, err)
	}
	return nil
}

// DropKey forgets a key of the connector that is not in use: the old one after
// a change, or a next one that it shall not change to. Any other key is left
// alone.
func (p *Peer) DropKey(key wgtypes.Key) {
	p.changing.Lock()
	defer p.changing.Unlock()
	p.dropChanging(key)
}

// dropChanging is DropKey; the caller holds p.changing.
func (p *Peer) dropChanging(key wgtypes.Key) {
	var left keys
	p.keysMu.Lock()
	if s := p.keys.next; s != nil && s.key == key {
		left.next, p.keys.next = s, nil
	}
	if s := p.keys.old; s != nil && s.key == key {
		left.old, p.keys.old = s, nil
	}
	p.keysMu.Unlock()
	left.drop()
}

// dropOtherKeys leaves the peer with the key in use; the caller holds
// p.changing.
func (p *Peer) dropOtherKeys() {
	p.keysMu.Lock()
	left := p.keys
	p.keys = keys{}
	p.keysMu.Unlock()
	left.drop()
}

// otherKeys returns those that are not in use.
func (p *Peer) otherKeys() keys {
	p.keysMu.Lock()
	defer p.keysMu.Unlock()
	return p.keys
}

// sessions returns those of all keys, the one in use first.
func (p *Peer) sessions() []*session {
	p.keysMu.Lock()
	defer p.keysMu.Unlock()
	all := []*session{p.cur.Load()}
	for _, s := range []*session{p.keys.next, p.keys.old} {
		if s != nil {
			all = append(all, s)
		}
	}
	return all
}

// follow is called for a packet that came in s, which is not the session in
// use: if it is the next one, it is from now on, and follow reports true. It
// runs inside the device's Write, so keysMu is never held while the device
// loses a peer.
func (p *Peer) follow(s *session) bool {
	p.keysMu.Lock()
	if p.keys.next != s {
		p.keysMu.Unlock()
		return p.session() == s // another packet was quicker
	}
	p.keys = keys{old: p.cur.Swap(s)}
	p.keysMu.Unlock()
	p.tunnel.outbox.redirect(p.lane, s.overlay)
	p.changed.Store(true)
	p.tunnel.nudge()
	return true
}

// drop ends what k holds.
func (k keys) drop() {
	for _, s := range []*session{k.next, k.old} {
		if s != nil {
			s.drop()
		}
	}
}

// drop ends a session: its overlay conns, its WireGuard peer, its claim on the
// key.
func (s *session) drop() {
	t := s.tunnel
	t.byOverlay.Delete(s.overlay)
	t.self.Load().stack.abort(s.overlay, 0)
	s.uninstall()
	t.release(s.key)
}

// totals returns what the device knows of the session in use, and the bytes
// that it counted for the peer, whatever the key.
func (p *Peer) totals() (wgState, traffic) {
	sessions := p.sessions()
	t := p.tunnel
	t.deviceMu.Lock()
	defer t.deviceMu.Unlock()
	sum := p.before
	for _, s := range sessions {
		if !s.gone { // else p.before has it
			state := s.stateLocked()
			sum.add(s.before)
			sum.add(state.traffic)
		}
	}
	return sessions[0].stateLocked(), sum
}
