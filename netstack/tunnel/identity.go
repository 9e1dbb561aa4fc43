package tunnel

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// formerGrace is how long after a change of our key packets to our former
// overlay address are taken: those under way, and those of an edge that has not
// heard of the new one.
const formerGrace = 30 * time.Second

// identity is who we are to our peers.
type identity struct {
	public  wgtypes.Key
	overlay netip.Addr
	stack   *overlayStack

	// Of the key before this one; zero: there was none.
	formerKey   wgtypes.Key
	former      netip.Addr
	formerUntil time.Time
}

// is reports whether dst is our overlay address, or was until just now.
func (id *identity) is(dst netip.Addr, now time.Time) bool {
	return dst == id.overlay || dst == id.former && now.Before(id.formerUntil)
}

func (t *Tunnel) newIdentity(public wgtypes.Key) (*identity, error) {
	id := &identity{public: public, overlay: OverlayAddr(public)}
	var err error
	if id.stack, err = t.newOverlayStack(id.overlay); err != nil {
		return nil, err
	}
	return id, nil
}

// SetPrivateKey changes our key and with it our overlay address, at a
// connector. Its edges must know the new key by then: they are called with it
// at once, and flows go on. What DialOverlay opened ends, and so does what
// listens there. The key must be new in the whole tunnel (ErrKnownKey), but for
// the one before the present one.
func (t *Tunnel) SetPrivateKey(key wgtypes.Key) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	old, public := t.self.Load(), key.PublicKey()
	if public == old.public {
		return nil
	}
	if err := t.reserveOwn(public, old); err != nil {
		return err
	}
	self, err := t.newIdentity(public)
	if err != nil {
		t.release(public)
		return fmt.Errorf("changing the private key: %w", err)
	}
	self.formerKey, self.former, self.formerUntil = old.public, old.overlay, time.Now().Add(formerGrace)
	peers := t.allPeers()
	shaken := make([]time.Time, len(peers))
	for i, p := range peers {
		shaken[i] = p.session().lastHandshake()
	}
	if err := t.setPrivateKey(key, self); err != nil {
		self.stack.close(t)
		t.release(public)
		return fmt.Errorf("changing the private key: %w", err)
	}
	if old.formerKey != public {
		t.release(old.formerKey)
	}
	for i, p := range peers {
		p.rekeyed.Store(&shaken[i])
		p.sendEcho(echoIDLiveness, 0) // which begins the handshake
	}
	t.nudge()
	old.stack.link.Close() // nothing that it sends can arrive any more
	old.stack.close(t)
	return nil
}

// reserveOwn claims our next key.
func (t *Tunnel) reserveOwn(public wgtypes.Key, now *identity) error {
	err := t.reserve("self", public)
	if err == nil || public == now.formerKey && errors.Is(err, ErrKnownKey) { // that is claimed still
		return nil
	}
	return fmt.Errorf("changing the private key: %w", err)
}

// setPrivateKey makes us self. Nothing is sent meanwhile: a packet that was
// wrapped for one identity and sent by the other would be refused.
//
// deviceMu keeps all that takes wireguard-go's locks the other way round out
// of its SetPrivateKey.
func (t *Tunnel) setPrivateKey(key wgtypes.Key, self *identity) error {
	t.deviceMu.Lock()
	defer t.deviceMu.Unlock()
	t.outbox.hold(creditExpiry)
	overlay := t.Overlay()
	defer func() { t.outbox.resume(overlay) }()
	if err := t.device.IpcSet(fmt.Sprintf("private_key=%s\n", hex.EncodeToString(key[:]))); err != nil {
		return err
	}
	overlay = self.overlay
	t.self.Store(self)
	return nil
}
