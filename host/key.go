package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

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

// LoadKey is ReadKey, but makes a key where there is no file; made tells so.
// The caller holds the lock of the directory.
func LoadKey(path string) (key wgtypes.Key, made bool, err error) {
	key, err = ReadKey(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	if key, err = wgtypes.GeneratePrivateKey(); err != nil {
		return wgtypes.Key{}, false, fmt.Errorf("making a private key: %w", err)
	}
	if err := saveKey(path, key); err != nil {
		return wgtypes.Key{}, false, fmt.Errorf("saving private key: %w", err)
	}
	return key, true, nil
}

// saveKey writes the key so that a crash leaves either no file or a whole one:
// temporary file, fsync, rename, fsync of the directory.
func saveKey(path string, key wgtypes.Key) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
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
