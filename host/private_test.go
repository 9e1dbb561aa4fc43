package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadPrivate(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name string
		mode fs.FileMode
		err  string
	}{
		{name: "own", mode: 0o600},
		{name: "a group's", mode: 0o440},
		{name: "everybody's", mode: 0o604, err: "everybody on this machine has access (mode 0604): run chmod 600"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.name)
			writeFile(t, path, "hunter2 and more", tt.mode)
			text, err := ReadPrivate(path, 7)
			switch {
			case tt.err == "" && (err != nil || string(text) != "hunter2"):
				t.Errorf("ReadPrivate = %q, %v", text, err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || !strings.HasPrefix(err.Error(), fmt.Sprintf("%q: ", path))):
				t.Errorf("ReadPrivate fails with %v", err)
			}
		})
	}
	if _, err := ReadPrivate(filepath.Join(dir, "none"), 7); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadPrivate of no file fails with %v", err)
	}
}

// TestReadPrivateOfNoFile: nobody is told to change the mode of what is not
// theirs.
func TestReadPrivateOfNoFile(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	pipe := filepath.Join(dir, "pipe")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777), unix.Mkfifo(pipe, 0o622)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, err string }{
		{dir, "it is a directory"},
		{open, "it is a directory"},
		{os.DevNull, "it is no regular file"},
		{pipe, "it is no regular file"},
	} {
		for name, read := range map[string]func(string, int64) ([]byte, error){"ReadPrivate": ReadPrivate, "ReadPrivateOrPipe": ReadPrivateOrPipe} {
			if tt.path == pipe && name == "ReadPrivateOrPipe" {
				continue
			}
			_, err := read(tt.path, 7)
			if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("%q: %s", tt.path, tt.err)) || strings.Contains(err.Error(), "chmod") {
				t.Errorf("%s fails with %v, want %q", name, err, tt.err)
			}
		}
	}
}

// TestReadPrivateOrPipe: a shell's <(command), and a named pipe.
func TestReadPrivateOrPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("hunter2 and more"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if text, err := ReadPrivateOrPipe(fmt.Sprintf("/dev/fd/%d", r.Fd()), 7); err != nil || string(text) != "hunter2" {
		t.Errorf("a shell's pipe: %q, %v", text, err)
	}

	named := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(named, 0o644); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(named, []byte("hunter2"), 0) }()
	text, err := ReadPrivateOrPipe(named, 64)
	if err := errors.Join(err, <-wrote); err != nil || string(text) != "hunter2" {
		t.Errorf("a named pipe: %q, %v", text, err)
	}

	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file, "hunter2", 0o644)
	if _, err := ReadPrivateOrPipe(file, 64); err == nil || !strings.Contains(err.Error(), "run chmod 600") {
		t.Errorf("a file that is open to all: %v", err)
	}
}

func TestWritePrivate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	// What a crash may leave, as somebody might have widened it.
	writeFile(t, path+".tmp", "half", 0o644)
	for _, text := range []string{"first", "second"} {
		if err := WritePrivate(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Errorf("read %q, %v; want %q", got, err, text)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("the directory holds %v, %v", left, err)
	}
	if err := WritePrivate(filepath.Join(dir, "none", "state"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("writing in no directory fails with %v", err)
	}
}

func TestLockDirRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	writeFile(t, file, "", 0o600)
	for _, tt := range []struct {
		name, path string
		mode       fs.FileMode
		err        string // "": it is taken
	}{
		{name: "own", mode: 0o700},
		{name: "a group's", mode: 0o750},
		{name: "everybody reads", mode: 0o704, err: "everybody on this machine has access (mode 0704): run chmod 700 "},
		{name: "everybody enters", mode: 0o701, err: "or under systemd set StateDirectoryMode=0700"},
		{name: "a file", path: file, err: "not a directory"},
		{name: "below a file", path: filepath.Join(file, "state"), err: "a part of the path is a file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.path
			if path == "" {
				path = filepath.Join(dir, tt.name)
				if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, tt.mode)); err != nil {
					t.Fatal(err)
				}
			}
			release, err := LockDir(path, "edge")
			if err == nil {
				release()
			}
			if (err == nil) != (tt.err == "") || err != nil && (!strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), path)) {
				t.Errorf("LockDir fails with %v, want %q", err, tt.err)
			}
		})
	}
	none := filepath.Join(dir, "none", "below")
	if err := CheckDir(none); err != nil {
		t.Errorf("CheckDir of a directory that can be made fails with %v", err)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("CheckDir made it")
	}
}

// TestExplain: what root does not meet, and a test may be root.
func TestExplain(t *testing.T) {
	there := t.TempDir()
	for _, tt := range []struct {
		dir   string
		errno unix.Errno
		want  string
	}{
		{there, unix.EROFS, "read-only file system: mount a volume or a tmpfs there, or choose another state_dir"},
		{there, unix.EACCES, fmt.Sprintf("permission denied: run chown -R %d %s as root, or choose another state_dir", os.Geteuid(), there)},
		{there + "/none", unix.EPERM, fmt.Sprintf("operation not permitted: run install -d -m 700 -o %d %s/none as root, or", os.Geteuid(), there)},
		{there, unix.ENOSPC, "no space left on device"},
	} {
		err := explain(&fs.PathError{Op: "mkdir", Path: tt.dir, Err: tt.errno}, tt.dir)
		if !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.errno) || strings.Contains(err.Error(), "mkdir") {
			t.Errorf("explain(%v) = %q, want %q", tt.errno, err, tt.want)
		}
	}
}
