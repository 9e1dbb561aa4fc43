package host

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ErrNoKey is wrapped by ReadKey's error where the file can be read and holds
// something else.
var ErrNoKey = errors.New("it holds no WireGuard key (44 characters of base64)")

// ReadKey reads a WireGuard private key in base64 from a file, as ReadPrivate
// reads it. The error wraps fs.ErrNotExist where there is no file, and never
// holds a part of the key.
func ReadKey(path string) (wgtypes.Key, error) {
	// A key is 45 bytes; a little more shows that it is something else.
	text, err := ReadPrivate(path, 256)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("reading private key %w", err)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(text)))
	if err != nil || key == (wgtypes.Key{}) {
		return wgtypes.Key{}, fmt.Errorf("reading private key %q: %w: make one with `warren genkey`", path, ErrNoKey)
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
	if err := WritePrivate(path, []byte(key.String()+"\n")); err != nil {
		return wgtypes.Key{}, false, fmt.Errorf("saving private key: %w", err)
	}
	return key, true, nil
}
