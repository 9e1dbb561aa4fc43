package tunnel

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// session is one WireGuard key that the device knows, and whose packets they
// are. That does not change: a key that changes hands gets another session.
type session struct {
	tunnel  *Tunnel
	key     wgtypes.Key
	psk     wgtypes.Key // zero: none
	overlay netip.Addr
	rate    *rate.Limiter // of packets into the overlay's stack

	// One of the two.
	peer  *Peer
	guest *Guest

	// Watch's own.
	quiet   quiet
	greeted time.Time // the handshake that greetSilent answered

	// Guarded by tunnel.deviceMu.
	before  traffic   // what was counted in WireGuard peers of this session that are gone
	renewed time.Time // an answer of the device from before tells of one of those
	gone    bool
}

// traffic is WireGuard's count of bytes each way.
type traffic struct{ rx, tx uint64 }

func (t *traffic) add(u traffic) { t.rx, t.tx = t.rx+u.rx, t.tx+u.tx }

func (t *Tunnel) newSession(key, psk wgtypes.Key) *session {
	return &session{tunnel: t, key: key, psk: psk, overlay: OverlayAddr(key), rate: rate.NewLimiter(overlayRate, overlayBurst)}
}

// handOver returns a session of the same key, for another owner. The WireGuard
// peer is that one's from now on: who still holds s can neither renew nor
// remove it.
func (s *session) handOver() *session {
	t := s.tunnel
	t.deviceMu.Lock()
	defer t.deviceMu.Unlock()
	s.gone = true
	return &session{tunnel: t, key: s.key, psk: s.psk, overlay: s.overlay, rate: s.rate, before: s.before, renewed: s.renewed}
}

// sessionAt returns the session whose overlay address that is, or nil.
func (t *Tunnel) sessionAt(overlay netip.Addr) *session {
	v, ok := t.byOverlay.Load(overlay)
	if !ok {
		return nil
	}
	return v.(*session)
}

// heard notes an authenticated packet of n bytes.
func (s *session) heard(now time.Time, n int) {
	if s.guest != nil {
		s.guest.heard.Store(true)
		return
	}
	p := s.peer
	if p.session() != s && !p.follow(s) {
		return // a key that was left: what we send does not go there
	}
	p.heard(now, n)
}

// live reports whether the other end is there to be spoken to.
func (s *session) live() bool {
	if s.guest != nil {
		return s.guest.heard.Load()
	}
	return s.peer.open.Load()
}

// KeyAt returns the public key whose overlay address that is, where the tunnel
// knows it.
func (t *Tunnel) KeyAt(overlay netip.Addr) (key wgtypes.Key, ok bool) {
	s := t.sessionAt(overlay)
	if s == nil {
		return wgtypes.Key{}, false
	}
	return s.key, true
}

// reserve claims key, so that no two sessions share one.
func (t *Tunnel) reserve(name string, key wgtypes.Key) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	if _, known := t.keys[key]; known {
		return fmt.Errorf("adding peer %q with key %s: %w", name, Abbreviate(key), ErrKnownKey)
	}
	t.keys[key] = struct{}{}
	return nil
}

func (t *Tunnel) release(key wgtypes.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.keys, key)
}

// install makes the session's WireGuard peer; endpoint may be zero. Its only
// AllowedIPs is its overlay address: so WireGuard vouches for the outer source.
func (s *session) install(endpoint netip.AddrPort) error {
	if s.peer == nil || !s.peer.initiate {
		s.tunnel.answering.Store(true)
	}
	var uapi strings.Builder
	fmt.Fprintf(&uapi, "public_key=%s\n", hex.EncodeToString(s.key[:]))
	if s.psk != (wgtypes.Key{}) {
		fmt.Fprintf(&uapi, "preshared_key=%s\n", hex.EncodeToString(s.psk[:]))
	}
	if endpoint.IsValid() {
		fmt.Fprintf(&uapi, "endpoint=%s\n", endpoint)
	}
	fmt.Fprintf(&uapi, "replace_allowed_ips=true\nallowed_ip=%s/128\n", s.overlay)
	return s.tunnel.device.IpcSet(uapi.String())
}

// uninstall removes the WireGuard peer: what it sends is not even decrypted
// from now on.
func (s *session) uninstall() {
	t := s.tunnel
	t.deviceMu.Lock()
	defer t.deviceMu.Unlock()
	if s.gone {
		return
	}
	s.gone = true
	last := s.stateLocked()
	t.device.RemovePeer([32]byte(s.key))
	if s.peer != nil { // its counts stay the peer's
		s.peer.before.add(s.before)
		s.peer.before.add(last.traffic)
	}
}

// renew removes the WireGuard peer and adds it again. gone is called between,
// when nothing of the old one can come any more.
func (s *session) renew(gone func()) error {
	t := s.tunnel
	t.deviceMu.Lock()
	defer t.deviceMu.Unlock()
	if s.gone {
		return errGone
	}
	last := s.stateLocked()
	t.device.RemovePeer([32]byte(s.key))
	s.before.add(last.traffic) // as it was last told: a count must not fall, nor jump
	s.renewed = time.Now()
	gone()
	return s.install(netip.AddrPort{})
}

// forget makes the next packet begin a new handshake at once; wireguard-go
// alone would wait up to five seconds.
func (s *session) forget() {
	s.tunnel.deviceMu.Lock()
	defer s.tunnel.deviceMu.Unlock()
	if wg := s.tunnel.device.LookupPeer([32]byte(s.key)); wg != nil {
		wg.ExpireCurrentKeypairs()
	}
}

// state is what the device knows of the session, at most a second old.
func (s *session) state() wgState {
	s.tunnel.deviceMu.Lock()
	defer s.tunnel.deviceMu.Unlock()
	return s.stateLocked()
}

func (s *session) stateLocked() wgState {
	state := s.tunnel.askLocked()[s.key]
	if !s.tunnel.answered.After(s.renewed) {
		return wgState{}
	}
	return state
}

// lastHandshake asks the device when the newest keys were agreed on.
func (s *session) lastHandshake() time.Time {
	s.tunnel.forgetDeviceState()
	return s.state().handshake
}
