package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func writeFile(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestReadKey(t *testing.T) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, text string
		mode       fs.FileMode
		err        string
	}{
		{name: "good", text: key.String() + "\n", mode: 0o600},
		{name: "without a newline", text: key.String(), mode: 0o400},
		{name: "readable by a group", text: key.String(), mode: 0o640},
		{name: "readable by all", text: key.String(), mode: 0o644, err: "everybody on this machine has access (mode 0644): run chmod 600"},
		{name: "writable by all", text: key.String(), mode: 0o602, err: "chmod 600"},
		{name: "empty", mode: 0o600, err: "no WireGuard key"},
		{name: "no key", text: "hunter2", mode: 0o600, err: "make one with `warren genkey`"},
		{name: "short", text: key.String()[:40], mode: 0o600, err: "no WireGuard key"},
		{name: "two keys", text: key.String() + key.String(), mode: 0o600, err: "no WireGuard key"},
		{name: "zeros", text: wgtypes.Key{}.String(), mode: 0o600, err: "no WireGuard key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			writeFile(t, path, tt.text, tt.mode)
			got, err := ReadKey(path)
			if tt.err == "" {
				if err != nil || got != key {
					t.Fatalf("ReadKey = %v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("ReadKey fails with %v, want %q", err, tt.err)
			}
			if tt.text != "" && strings.Contains(err.Error(), tt.text) {
				t.Errorf("the error holds the file's text: %v", err)
			}
		})
	}
	if _, err := ReadKey(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadKey of no file fails with %v", err)
	}
}

func TestReadKeyFollowsSymlinks(t *testing.T) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // as a mounted secret looks
	if err := os.Mkdir(filepath.Join(dir, "..data"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "..data", "key"), key.String(), 0o400)
	link := filepath.Join(dir, "key")
	if err := os.Symlink(filepath.Join("..data", "key"), link); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadKey(link); err != nil || got != key {
		t.Errorf("ReadKey = %v, %v", got, err)
	}
}
