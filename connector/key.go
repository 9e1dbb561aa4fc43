package connector

import (
	"path/filepath"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/host"
)

// keyName is the private key's file in the state directory.
const keyName = "connector.key"

// KeyFile is where the private key is read from.
func (s Spec) KeyFile() string {
	if s.PrivateKeyFile != "" {
		return s.PrivateKeyFile
	}
	return filepath.Join(s.StateDir, keyName)
}

// loadKey returns the connector's private key. Where the spec names no file
// and the state directory has none yet, it makes one; made tells so. The
// caller holds the state directory's lock in that case.
func loadKey(s Spec) (key wgtypes.Key, made bool, err error) {
	if s.PrivateKeyFile == "" {
		return host.LoadKey(s.KeyFile())
	}
	key, err = host.ReadKey(s.KeyFile())
	return key, false, err
}
