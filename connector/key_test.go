package connector

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/warrenmesh/warren/host"
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

func TestLoadKeyMakesOneOnce(t *testing.T) {
	spec := Spec{StateDir: filepath.Join(t.TempDir(), "a", "b")}
	unlock, err := host.LockDir(spec.StateDir, "connector")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	first, made, err := loadKey(spec)
	if err != nil || !made {
		t.Fatalf("the first run: made %v, %v", made, err)
	}
	second, made, err := loadKey(spec)
	if err != nil || made || second != first {
		t.Fatalf("the second run: made %v, %v, the same key: %v", made, err, second == first)
	}
	for path, want := range map[string]fs.FileMode{spec.StateDir: fs.ModeDir | 0o700, spec.KeyFile(): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want mode %v", path, info, err, want)
		}
	}
	left, err := filepath.Glob(filepath.Join(spec.StateDir, keyName+".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %q", left)
	}
}

func TestLoadKeyNeverReplacesOne(t *testing.T) {
	spec := Spec{StateDir: t.TempDir()}
	if err := os.WriteFile(spec.KeyFile(), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := loadKey(spec); err == nil {
		t.Error("a damaged key was accepted")
	}
	if text, _ := os.ReadFile(spec.KeyFile()); string(text) != "damaged" {
		t.Errorf("a damaged key was replaced by %q", text)
	}
	named := Spec{PrivateKeyFile: filepath.Join(t.TempDir(), "none")}
	if _, _, err := loadKey(named); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing private_key_file gives %v", err)
	}
	if _, err := os.Stat(named.PrivateKeyFile); err == nil {
		t.Error("a missing private_key_file was made")
	}
}
