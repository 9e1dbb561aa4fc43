package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

func newKey(t *testing.T) wgtypes.Key {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newEdge(t *testing.T, name string) Edge {
	t.Helper()
	return Edge{
		PublicKey: wire.Key{Key: newKey(t).PublicKey()}, URLs: []string{name + ".example.net:51820", "203.0.113.10:51820"},
		Name: "berlin-1", Network: "berlin", TokenID: "0011223344556677", Since: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC),
	}
}

// statePath is a place for a state directory, which is not there yet.
func statePath(t *testing.T) string { return filepath.Join(t.TempDir(), "a", "state") }

func mustOpen(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestEdgesOutliveTheProcess(t *testing.T) {
	path := statePath(t)
	d := mustOpen(t, path)
	first, second := newEdge(t, "fra1"), newEdge(t, "fra2")
	for _, e := range []Edge{first, second} {
		if err := d.SaveEdge(e); err != nil {
			t.Fatal(err)
		}
	}
	first.Confirmed, first.Ephemeral = true, true
	if err := d.SaveEdge(first); err != nil {
		t.Fatal(err)
	}
	if err := d.SaveEdge(Edge{Name: "none"}); err == nil {
		t.Error("an edge without a key was saved")
	}
	want := []Edge{first, second}
	if diff := cmp.Diff(want, d.Edges()); diff != "" {
		t.Error(diff)
	}
	d.Edges()[0].URLs[0] = "changed"
	d.Close()

	d = mustOpen(t, path)
	defer d.Close()
	if diff := cmp.Diff(want, d.Edges()); diff != "" {
		t.Error("read back:", diff)
	}
	looked, err := Look(path)
	if diff := cmp.Diff(want, looked); diff != "" || err != nil {
		t.Error("looked at:", diff, err)
	}
	for name, mode := range map[string]fs.FileMode{"": fs.ModeDir | 0o700, fileName: 0o600} {
		if info, err := os.Stat(filepath.Join(path, name)); err != nil || info.Mode() != mode {
			t.Errorf("%q: %v, %v; want mode %v", name, info, err, mode)
		}
	}
}

// TestInvitedEdgesAreNotForgotten until they have enrolled this connector, or
// another token is used.
func TestInvitedEdgesAreNotForgotten(t *testing.T) {
	path := statePath(t)
	d := mustOpen(t, path)
	first, second, third := newEdge(t, "fra1"), newEdge(t, "fra2"), newEdge(t, "fra3")
	if err := d.Invite([]Edge{first, second}); err != nil {
		t.Fatal(err)
	}
	if len(d.Edges()) != 0 {
		t.Errorf("edges that only invited are %v", d.Edges())
	}
	// No edge knows the key yet.
	if _, made, err := d.Key(); err != nil || !made {
		t.Errorf("the first key: made %v, %v", made, err)
	}
	if err := d.SaveEdge(first); err != nil {
		t.Fatal(err)
	}
	d.Close()

	d = mustOpen(t, path)
	defer d.Close()
	if diff := cmp.Diff([]Edge{second}, d.Invited()); diff != "" {
		t.Error("read back:", diff)
	}
	if diff := cmp.Diff([]Edge{first}, d.Edges()); diff != "" {
		t.Error(diff)
	}
	if looked, err := Look(path); err != nil || len(looked) != 1 {
		t.Errorf("Look = %v, %v", looked, err)
	}
	before, err := os.Stat(filepath.Join(path, fileName))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Invite([]Edge{first, second}); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(filepath.Join(path, fileName)); err != nil || !os.SameFile(before, after) {
		t.Errorf("the same token again was written: %v", err)
	}
	if err := d.Invite([]Edge{third}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Edge{third}, d.Invited()); diff != "" {
		t.Error("with another token:", diff)
	}
}

// TestDamagedKeyOfAnEnrolledConnector: a new key would be nobody's.
func TestDamagedKeyOfAnEnrolledConnector(t *testing.T) {
	path := statePath(t)
	d := mustOpen(t, path)
	if err := d.SaveEdge(newEdge(t, "fra1")); err != nil {
		t.Fatal(err)
	}
	d.Close()
	write(t, filepath.Join(path, KeyName), "hunter2", 0o600)
	_, err := Open(path)
	if err == nil || !strings.Contains(err.Error(), "move the whole directory "+path+" away, and start with a new token") ||
		strings.Contains(err.Error(), "genkey") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Open fails with %v", err)
	}
}

func TestKeys(t *testing.T) {
	path := statePath(t)
	d := mustOpen(t, path)
	first, made, err := d.Key()
	if err != nil || !made {
		t.Fatalf("the first key: made %v, %v", made, err)
	}
	again, made, err := d.Key()
	if err != nil || made || again != first {
		t.Errorf("asked again: made %v, %v, the same: %v", made, err, again == first)
	}
	if _, err := d.TakeNext(); err == nil {
		t.Error("a next key was taken and none was made")
	}
	next, err := d.NextKey()
	if err != nil || next == first {
		t.Fatalf("the next key: %v, the same as the first: %v", err, next == first)
	}
	d.Close()

	d = mustOpen(t, path)
	defer d.Close()
	if key, _, err := d.Key(); err != nil || key != first {
		t.Errorf("with a next key there, the key is the first: %v, %v", key == first, err)
	}
	if key, err := d.NextKey(); err != nil || key != next {
		t.Errorf("the next key stays: %v, %v", key == next, err)
	}
	if key, err := d.TakeNext(); err != nil || key != next {
		t.Errorf("taken: %v, %v", key == next, err)
	}
	if key, made, err := d.Key(); err != nil || made || key != next {
		t.Errorf("the key is the next one: %v, made %v, %v", key == next, made, err)
	}
	if key, err := d.NextKey(); err != nil || key == next || key == first {
		t.Errorf("another next key: %v, %v", key != next && key != first, err)
	}
}

// TestTodaysKey: a state directory of a release without tokens.
func TestTodaysKey(t *testing.T) {
	path := statePath(t)
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	write(t, filepath.Join(path, KeyName), key.String()+"\n", 0o600)
	d := mustOpen(t, path)
	defer d.Close()
	if got, made, err := d.Key(); err != nil || made || got != key {
		t.Errorf("the key is read: %v, made %v, %v", got == key, made, err)
	}
	if len(d.Edges()) != 0 {
		t.Errorf("edges: %v", d.Edges())
	}
}

// TestLostKeyIsNotReplaced: edges know the old one, and would know no other.
func TestLostKeyIsNotReplaced(t *testing.T) {
	path := statePath(t)
	d := mustOpen(t, path)
	defer d.Close()
	if err := d.SaveEdge(newEdge(t, "fra1")); err != nil {
		t.Fatal(err)
	}
	_, made, err := d.Key()
	if err == nil || made || !strings.Contains(err.Error(), "it is gone, and state.json names edges that know it: put it back") {
		t.Errorf("made %v, %v", made, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	key, good := newKey(t), newEdge(t, "fra1")
	text := func(edges ...Edge) string {
		b, err := json.Marshal(file{Version: Version, Edges: edges})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, tt := range []struct {
		name, file, text string
		mode             fs.FileMode
		want             string
	}{
		{"good", fileName, text(good), 0o600, ""},
		{"no edges", fileName, `{"version":1}`, 0o600, ""},
		{"a field of a later release", fileName, `{"version":1,"colour":"red"}`, 0o600, ""},
		{"empty", fileName, "", 0o600, "it is damaged (unexpected end of JSON input): restore it, or revoke this connector at the edge (`warren connector revoke NAME`), move the whole directory "},
		{"cut short", fileName, text(good)[:60], 0o600, "it is damaged ("},
		{"zeros", fileName, string(make([]byte, 512)), 0o600, "it is damaged ("},
		{"another file", fileName, `{"name":"x"}`, 0o600, "it is damaged (it has no version)"},
		{"no version", fileName, `{"version":0}`, 0o600, "it is damaged (it has no version)"},
		{"a word for edges", fileName, `{"version":1,"edges":"x"}`, 0o600, "it is damaged ("},
		{"a bad key", fileName, `{"version":1,"edges":[{"public_key":"x"}]}`, 0o600, "it is damaged (reading a public key: want 44 characters"},
		{"no key", fileName, text(Edge{Name: "x"}), 0o600, "it is damaged (edge 0: it has no public key)"},
		{"an edge twice", fileName, text(good, good), 0o600, "it is damaged (edge 1 is there twice)"},
		{"an invitation without a key", fileName, `{"version":1,"invited":[{}]}`, 0o600, "it is damaged (invited edge 0: it has no public key)"},
		{"too long", fileName, text(good) + strings.Repeat(" ", maxFile), 0o600, "it is damaged (it is longer than 1048576 bytes)"},
		{"a later release", fileName, `{"version":2,"edges":{"a":1}}`, 0o600, "it is of a later release (version 2, this one reads 1): install that release"},
		{"open to all", fileName, text(good), 0o644, "everybody on this machine has access (mode 0644): run chmod 600 "},
		{"an open key", KeyName, key.String(), 0o644, "everybody on this machine has access (mode 0644): run chmod 600 "},
		{"an open next key", nextName, key.String(), 0o606, "everybody on this machine has access (mode 0606): run chmod 600 "},
		{"a damaged key", KeyName, key.String()[:20], 0o600, "it holds no WireGuard key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := statePath(t)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, tt.file)
			write(t, path, tt.text, tt.mode)
			d, err := Open(dir)
			_, looked := Look(dir)
			if tt.want == "" {
				if err != nil || looked != nil {
					t.Fatal(err, looked)
				}
				d.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("Open fails with %v\nwant %q and the file's name", err, tt.want)
			}
			if tt.file == fileName && (looked == nil || looked.Error() != err.Error()) {
				t.Errorf("Look fails with %v, Open with %v", looked, err)
			}
			if strings.Contains(err.Error(), key.String()[:12]) {
				t.Errorf("the error holds the key: %v", err)
			}
			if left, _ := os.ReadFile(path); string(left) != tt.text {
				t.Errorf("the file holds %q now", left)
			}
			// Nothing is held after a failure.
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			mustOpen(t, dir).Close()
		})
	}
}

func TestOneConnectorADirectory(t *testing.T) {
	path := statePath(t)
	d := mustOpen(t, path)
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "another connector runs with it: stop that one") {
		t.Errorf("a second one: %v", err)
	}
	if _, err := Look(path); err != nil {
		t.Errorf("looking at a directory in use: %v", err)
	}
	d.Close()
	mustOpen(t, path).Close()
}

func TestLookChangesNothing(t *testing.T) {
	path := statePath(t)
	if edges, err := Look(path); err != nil || edges != nil {
		t.Errorf("Look = %v, %v", edges, err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("Look made the directory")
	}
	// One that others may enter is refused where there is something in it.
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if edges, err := Look(path); err != nil || edges != nil {
		t.Errorf("Look = %v, %v", edges, err)
	}
	write(t, filepath.Join(path, fileName), `{"version":1}`, 0o600)
	if _, err := Look(path); err == nil || !strings.Contains(err.Error(), "everybody on this machine has access (mode 0755): run chmod 700 "+path) {
		t.Errorf("Look fails with %v", err)
	}
}

func TestOpenTidies(t *testing.T) {
	path := statePath(t)
	d := mustOpen(t, path)
	d.Close()
	for _, name := range []string{KeyName, nextName, fileName} {
		write(t, filepath.Join(path, name+".tmp"), "half", 0o600)
	}
	d = mustOpen(t, path)
	defer d.Close()
	left, err := filepath.Glob(filepath.Join(path, "*.tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left are %q, %v", left, err)
	}
}

// TestFailedWrite: what could not be saved is not believed either.
func TestFailedWrite(t *testing.T) {
	path := statePath(t)
	d := mustOpen(t, path)
	defer d.Close()
	e := newEdge(t, "fra1")
	if err := d.SaveEdge(e); err != nil {
		t.Fatal(err)
	}
	// In the way of the temporary file, and not empty.
	if err := os.MkdirAll(filepath.Join(path, fileName+".tmp", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	confirmed := e
	confirmed.Confirmed = true
	if err := d.SaveEdge(confirmed); err == nil || !strings.HasPrefix(err.Error(), "saving connector's state: ") {
		t.Errorf("SaveEdge fails with %v", err)
	}
	if diff := cmp.Diff([]Edge{e}, d.Edges()); diff != "" {
		t.Error(diff)
	}
}

func TestVolatile(t *testing.T) {
	for kind, want := range map[int64]string{
		unix.TMPFS_MAGIC: "on tmpfs: this connector has to enrol again after a reboot: mount a volume there, or use a token made with --ephemeral",
		unix.RAMFS_MAGIC: "on ramfs:", unix.OVERLAYFS_SUPER_MAGIC: "(overlayfs): this connector has to enrol again after the container is made anew",
		unix.EXT4_SUPER_MAGIC: "", unix.XFS_SUPER_MAGIC: "",
	} {
		why, yes := volatile("/state", kind)
		if yes != (want != "") || !strings.Contains(why, want) || yes && !strings.HasPrefix(why, "the state directory /state is ") {
			t.Errorf("volatile(%x) = %q, %v; want %q", kind, why, yes, want)
		}
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &fs); err != nil || int64(fs.Type) != unix.TMPFS_MAGIC {
		t.Log("this machine has no tmpfs at /dev/shm")
		return
	}
	path, err := os.MkdirTemp("/dev/shm", "warren-state-")
	if err != nil {
		t.Log("no test of a real tmpfs:", err)
		return
	}
	defer os.RemoveAll(path)
	d := mustOpen(t, path)
	defer d.Close()
	if why, yes := d.Volatile(); !yes || !strings.Contains(why, path+" is on tmpfs") {
		t.Errorf("a directory on tmpfs: %q, %v", why, yes)
	}
}

// FuzzParse: what is read can be written and read again, and errors stay one
// line.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":1,"edges":[{"public_key":"HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=","urls":["a:1"],"confirmed":true,"since":"2026-07-01T12:00:00Z"}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"edges":[null,{}]}`))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		edges, invited, err := parse(text)
		if err != nil {
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 1000 {
				t.Errorf("the error is no sentence: %q", err)
			}
			return
		}
		again, err := json.Marshal(file{Version: Version, Edges: edges, Invited: invited})
		if err != nil {
			if bytes.Contains([]byte(err.Error()), []byte("year")) {
				return // a time of another calendar
			}
			t.Fatal(err)
		}
		back, invitedBack, err := parse(again)
		if err != nil || len(invitedBack) != len(invited) || !slices.EqualFunc(edges, back, func(a, b Edge) bool { return a.same(b) && fmt.Sprint(a.URLs) == fmt.Sprint(b.URLs) }) {
			t.Errorf("read back: %v, %v", back, err)
		}
	})
}
