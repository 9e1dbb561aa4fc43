package edge

import (
	"fmt"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/store"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/host"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// identity is the record that ties the state to the edge's key: connectors
// know the edge by it, so the state is worth nothing under another.
type identity struct {
	PublicKey wire.Key `json:"public_key"`
}

const (
	identityKind = "edge"
	identityID   = "identity"
)

// loadKey reads the edge's private key, and makes one where the config names
// no file, there is none yet, and the state is nobody's. It refuses the state
// of another edge, and one whose own key is lost.
func (e *Edge) loadKey(cfg *config.Config) (key wgtypes.Key, err error) {
	var owner identity
	var owned bool
	err = e.store.View(func(tx *store.Tx) (err error) {
		owned, err = tx.Get(identityKind, identityID, &owner)
		return err
	})
	if err != nil {
		return key, err
	}
	path, made := cfg.WireGuard.PrivateKeyFile, false
	if cfg.WireGuard.KeyGenerated && !owned {
		key, made, err = host.LoadKey(path)
	} else {
		key, err = host.ReadKey(path)
	}
	state := fmt.Sprintf("the state in %q belongs to the edge with key %s", cfg.Edge.StateDir, tunnel.Abbreviate(owner.PublicKey.Key))
	const advice = "restore that key, or move " + storeName + " away: connectors that came by token must then enrol anew"
	switch {
	case err != nil && owned && cfg.WireGuard.KeyGenerated:
		return key, fmt.Errorf("%w; %s: %s", err, state, advice)
	case err != nil:
		return key, err
	case owned && owner.PublicKey.Key != key.PublicKey():
		return key, fmt.Errorf("opening the state: %s, and %q holds another, %s: %s", state, path, tunnel.Abbreviate(key.PublicKey()), advice)
	}
	if made {
		e.log.Info("made a private key", "file", path)
	}
	if owned {
		return key, nil
	}
	return key, e.store.Update(func(tx *store.Tx) error {
		return tx.Put(identityKind, identityID, identity{wire.Key{Key: key.PublicKey()}})
	})
}
