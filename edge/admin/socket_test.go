package admin

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListenModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "warren")
	path := filepath.Join(dir, "warren.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("mode of the socket = %v, want srw-rw----", info.Mode())
	}
	info, err = os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm()&^0o750 != 0 || info.Mode().Perm()&0o700 != 0o700 {
		t.Errorf("mode of the directory = %v, want drwxr-x---", info.Mode())
	}
	if got := ln.Addr().String(); got != path {
		t.Errorf("address = %q, want %q", got, path)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	_ = ln.Close() // again is harmless
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("%v is left behind, %v", left, err)
	}
}

func TestListenKeepsTheModeOfADirectoryThatIsThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(filepath.Join(dir, "warren.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o711 {
		t.Errorf("mode = %v", info.Mode())
	}
}

// stale leaves a socket behind that nobody listens on, as a killed edge does.
func stale(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "warren.sock")
	stale(t, path)
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if conn, err := ln.Accept(); err == nil {
			conn.Close()
		}
	}()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestListenRefuses(t *testing.T) {
	tests := []struct {
		name string
		path func(t *testing.T, dir string) string
		want string
	}{
		{"a socket that answers", func(t *testing.T, dir string) string {
			path := filepath.Join(dir, "live.sock")
			ln, err := Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			return path
		}, "another edge runs and answers there"},
		{"a file", func(t *testing.T, dir string) string {
			path := filepath.Join(dir, "file")
			if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}, "is not a socket"},
		{"a directory", func(t *testing.T, dir string) string {
			path := filepath.Join(dir, "dir")
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			return path
		}, "is not a socket"},
		{"a path through a file", func(t *testing.T, dir string) string {
			path := filepath.Join(dir, "afile")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(path, "warren.sock")
		}, "making the directory of admin socket"},
		{"a long path", func(_ *testing.T, dir string) string {
			return filepath.Join(dir, strings.Repeat("x", maxPath))
		}, "the system allows 107"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := test.path(t, dir)
			before, _ := os.ReadDir(dir)
			ln, err := Listen(path)
			if err == nil {
				ln.Close()
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error = %v, want %q and the path", err, test.want)
			}
			after, _ := os.ReadDir(dir)
			if len(after) != len(before) {
				t.Errorf("directory holds %v, before it held %v", after, before)
			}
		})
	}
}

func TestCloseLeavesASuccessorsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "warren.sock")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil { // a successor puts its own there
		t.Fatal(err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
	second.Close()
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket outlived its listener")
	}
}
