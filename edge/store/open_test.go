package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// written makes a state file with some records and returns its bytes.
func written(t testing.TB, path string) []byte {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "1", record{Name: "x"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return readFile(t, path)
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// withFormat makes a bbolt file whose format is text, or that has none.
func withFormat(t *testing.T, path, text string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(b *bbolt.Tx) error {
		if text == "" {
			_, err := b.CreateBucket([]byte("somebody else's"))
			return err
		}
		meta, err := b.CreateBucket([]byte(metaBucket))
		if err != nil {
			return err
		}
		return meta.Put([]byte(formatKey), []byte(text))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// What is no state file of ours is refused in a sentence that says what to do,
// and stays as it is.
func TestOpenRefuses(t *testing.T) {
	const restore = "restore a backup of it, or move it away to begin with nothing"
	tests := []struct {
		name string
		make func(t *testing.T, path string)
		want []string
	}{
		{"an empty file", func(t *testing.T, path string) { writeFile(t, path, nil) }, []string{"it is empty", restore}},
		{"a text", func(t *testing.T, path string) { writeFile(t, path, []byte("version = 1\n")) }, []string{"it is no state file of warren", restore}},
		{"a long text", func(t *testing.T, path string) { writeFile(t, path, []byte(strings.Repeat("hello ", 20_000))) }, []string{"it is no state file of warren", restore}},
		{"zeros", func(t *testing.T, path string) { writeFile(t, path, make([]byte, 32<<10)) }, []string{"it is no state file of warren", restore}},
		{"a file cut short", func(t *testing.T, path string) {
			data := written(t, path)
			writeFile(t, path, data[:5*os.Getpagesize()/2])
		}, []string{"it was cut short", restore}},
		{"a file cut within the first page", func(t *testing.T, path string) {
			data := written(t, path)
			writeFile(t, path, data[:1000])
		}, []string{"it was cut short", restore}},
		{"both meta pages damaged", func(t *testing.T, path string) {
			data := written(t, path)
			data[pageHeader+20]++
			data[os.Getpagesize()+pageHeader+20]++
			writeFile(t, path, data)
		}, []string{"it is damaged (both meta pages)", restore}},
		{"a page lost", func(t *testing.T, path string) {
			data := written(t, path)
			clear(data[2*os.Getpagesize():])
			writeFile(t, path, data)
		}, []string{"it is damaged (page ", restore}},
		{"a bbolt file of another program", func(t *testing.T, path string) { withFormat(t, path, "") }, []string{"it is a bbolt file, but not warren's", restore}},
		{"a format that is none", func(t *testing.T, path string) { withFormat(t, path, `"x"`) }, []string{"it is damaged (no format)", restore}},
		{"format 0", func(t *testing.T, path string) { withFormat(t, path, "0") }, []string{"it is damaged (no format)", restore}},
		{"a later release's", func(t *testing.T, path string) { withFormat(t, path, "2") }, []string{"it has format 2 and this release knows 1", "it was made by a later release of warren: install that"}},
		{"readable by everybody", func(t *testing.T, path string) {
			written(t, path)
			chmod(t, path, 0o644)
		}, []string{"everybody on this machine has access (mode 0644): run chmod 600 /"}},
		{"writable by everybody", func(t *testing.T, path string) {
			written(t, path)
			chmod(t, path, 0o602)
		}, []string{"(mode 0602): run chmod 600 /"}},
		{"a directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, []string{"is a directory"}},
		{"a pipe", func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"it is no file: move it away"}},
		{"a symlink that leads nowhere", func(t *testing.T, path string) {
			if err := os.Symlink("elsewhere", path); err != nil {
				t.Fatal(err)
			}
		}, []string{"no such file or directory"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "edge.db")
			tt.make(t, path)
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			var data []byte
			if before.Mode().IsRegular() {
				data = readFile(t, path)
			}
			s, err := Open(path)
			if err == nil {
				_ = s.Close()
				t.Fatal("Open takes it")
			}
			for _, want := range append(tt.want, "opening state \""+path+"\": ") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Open fails with %v, want %q", err, want)
				}
			}
			after, err := os.Lstat(path)
			if err != nil || before.Mode() != after.Mode() || before.Mode().IsRegular() && string(readFile(t, path)) != string(data) {
				t.Errorf("Open changed it: %v", err)
			}
			if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
				t.Errorf("Open left %v", entries)
			}
		})
	}
}

func chmod(t testing.TB, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestOpenMakesAPrivateFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "edge.db")
	writeFile(t, path+".new", []byte("what a crash has left"))
	s := mustOpen(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
	err := s.db.View(func(b *bbolt.Tx) error {
		var found int
		return json.Unmarshal(b.Bucket([]byte(metaBucket)).Get([]byte(formatKey)), &found)
	})
	if err != nil {
		t.Error(err)
	}
	check(t, s)
	for _, path := range []string{filepath.Join(dir, "none", "edge.db"), filepath.Join(path, "edge.db")} {
		if s, err := Open(path); err == nil {
			_ = s.Close()
			t.Errorf("Open(%q) succeeds", path)
		}
	}
}

// A group may read it: service managers want that.
func TestOpenAllowsAGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.db")
	written(t, path)
	chmod(t, path, 0o660)
	mustOpen(t, path)
}

func TestOpenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.db")
	s := mustOpen(t, path)
	if again, err := Open(path); err == nil || !strings.Contains(err.Error(), "another process has it open: stop that one") {
		t.Errorf("a second Open: %v, %v", again, err)
	}
	put(t, s, "a", "1", 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path)
}

// A refused file is let go of: it can be mended and opened without a restart.
func TestOpenLetsGoOfWhatItRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.db")
	withFormat(t, path, "2")
	for range 2 {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "later release") {
			t.Errorf("Open: %v", err)
		}
	}
}

// As after a copy that was torn or a disk that has forgotten a page: one meta
// page is enough.
func TestOpenWithOneMetaPage(t *testing.T) {
	for page := range 2 {
		path := filepath.Join(t.TempDir(), "edge.db")
		data := written(t, path)
		clear(data[page*os.Getpagesize() : (page+1)*os.Getpagesize()])
		writeFile(t, path, data)
		s := mustOpen(t, path)
		put(t, s, "a", "2", 2)
		check(t, s)
	}
}
