package connector

import (
	"path/filepath"

	"github.com/warrenmesh/warren/connector/state"
)

// KeyFile is where the private key is read from.
func (s Spec) KeyFile() string {
	if s.PrivateKeyFile != "" {
		return s.PrivateKeyFile
	}
	return filepath.Join(s.StateDir, state.KeyName)
}
