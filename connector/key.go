package connector

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
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

// ReadKey reads a WireGuard private key in base64 from a file. It refuses one
// that everybody on the machine may read or write, and follows symlinks, as
// mounted secrets have them. The error wraps fs.ErrNotExist where there is no
// file, and never holds a part of the key.
func ReadKey(path string) (wgtypes.Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("reading private key: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("reading private key: %w", err)
	}
	// A group may read it: service managers hand out secrets so.
	if perm := info.Mode().Perm(); perm&0o007 != 0 {
		return wgtypes.Key{}, fmt.Errorf("reading private key %q: everybody on this machine has access (mode %04o): run chmod 600 %s, and make a new key if others use this machine", path, perm, path)
	}
	// A key is 45 bytes; a little more shows that it is something else.
	text, err := io.ReadAll(io.LimitReader(f, 256))
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("reading private key: %w", err)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(text)))
	if err != nil || key == (wgtypes.Key{}) {
		return wgtypes.Key{}, fmt.Errorf("reading private key %q: it holds no WireGuard key (44 characters of base64): make one with `warren genkey`", path)
	}
	return key, nil
}

// loadKey returns the connector's private key. Where the spec names no file
// and the state directory has none yet, it makes one; made tells so. The
// caller holds the state directory's lock in that case.
func loadKey(s Spec) (key wgtypes.Key, made bool, err error) {
	key, err = ReadKey(s.KeyFile())
	if err == nil || s.PrivateKeyFile != "" || !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	if key, err = wgtypes.GeneratePrivateKey(); err != nil {
		return wgtypes.Key{}, false, fmt.Errorf("making a private key: %w", err)
	}
	if err := saveKey(s.KeyFile(), key); err != nil {
		return wgtypes.Key{}, false, fmt.Errorf("saving private key: %w", err)
	}
	return key, true, nil
}

// saveKey writes the key so that a crash leaves either no file or a whole one:
// temporary file, fsync, rename, fsync of the directory.
func saveKey(path string, key wgtypes.Key) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, keyName+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.WriteString(key.String() + "\n"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// lockName is the file in the state directory that a running connector locks.
const lockName = "connector.lock"

// lockState makes the state directory, 0700, and takes it for this process
// until release is called or the process ends: two connectors with one key
// would take turns in losing the tunnel.
func lockState(dir string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking state directory %q: another connector runs with it: stop that one, or give this one its own state_dir", dir)
		}
		return nil, fmt.Errorf("locking state directory %q: %w", dir, err)
	}
	return func() { _ = f.Close() }, nil
}
