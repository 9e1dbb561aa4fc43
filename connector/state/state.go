// Package state is what a connector remembers: its private key, the next one
// while it changes it, and the edges at which it has enrolled.
//
//	dir, err := state.Open("/var/lib/warren-connector")
//	defer dir.Close()
//	key, made, err := dir.Key()
//	err = dir.SaveEdge(state.Edge{…})
//
// Everything is in one directory of mode 0700, in files of mode 0600:
//
//	connector.key       the private key, base64
//	connector.key.next  the one that is to follow it, while edges are told
//	state.json          the edges
//	lock                held while a connector runs
//
// A method that returned without an error has put its change on the disk, and
// a crash at any moment leaves what was there before or what is there after.
// The package must never write over a file that it could not read, make a
// second key where one was, or put a key into an error.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/host"
)

// Version of state.json.
const Version = 1

// Names in the directory.
const (
	KeyName  = "connector.key"
	nextName = "connector.key.next"
	fileName = "state.json"
)

// maxFile bounds state.json, in bytes. A thousand edges fit.
const maxFile = 1 << 20

// Edge is an edge at which the connector has enrolled.
type Edge struct {
	PublicKey wire.Key `json:"public_key"`
	URLs      []string `json:"urls"`               // "host:port" each, as the edge last said
	Name      string   `json:"name"`               // of this connector, as that edge calls it
	Network   string   `json:"network"`            // that it serves there
	TokenID   string   `json:"token_id,omitempty"` // of the token that it came with
	Ephemeral bool     `json:"ephemeral,omitempty"`
	// Confirmed: the edge has answered this connector's own key. Until then
	// the token may be needed again.
	Confirmed bool      `json:"confirmed"`
	Since     time.Time `json:"since"` // of the enrolment
}

// file is state.json.
type file struct {
	Version int    `json:"version"`
	Edges   []Edge `json:"edges"`
	// Invited are the edges of the last token that have not enrolled this
	// connector: each has a key, URLs and a token's ID.
	Invited []Edge `json:"invited,omitempty"`
}

// Dir is a state directory that this process holds. Its methods may be called
// concurrently, and none after Close.
type Dir struct {
	path   string
	unlock func()

	mu             sync.Mutex // held while files are written, too
	edges, invited []Edge     // as state.json has them
}

// Open makes the directory where it is missing, takes it for this process, and
// reads what it holds. It refuses one that others may read or enter, that
// cannot be written, that another connector runs with, or whose files are
// damaged or of a later release; its error says what to do.
func Open(path string) (*Dir, error) {
	unlock, err := host.LockDir(path, "connector")
	if err != nil {
		return nil, err
	}
	d := &Dir{path: path, unlock: unlock}
	if d.edges, d.invited, err = read(path); err != nil {
		unlock()
		return nil, err
	}
	// What a crash left behind would be a key that nobody knows of.
	for _, name := range []string{KeyName, nextName, fileName} {
		if err := os.Remove(filepath.Join(path, name+".tmp")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			unlock()
			return nil, fmt.Errorf("tidying state directory: %w", err)
		}
	}
	return d, nil
}

// Look returns the edges in a state directory that this process need not hold:
// none where nothing was ever saved there. Its errors are Open's, and it
// changes nothing.
func Look(path string) ([]Edge, error) {
	if _, err := os.Stat(filepath.Join(path, fileName)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err := host.CheckDir(path); err != nil {
		return nil, err
	}
	edges, _, err := read(path)
	return edges, err
}

// read reads state.json and sees that nobody else can read the keys.
func read(dir string) (edges, invited []Edge, err error) {
	path := filepath.Join(dir, fileName)
	text, err := host.ReadPrivate(path, maxFile+1)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, nil, fmt.Errorf("reading connector's state %w", err)
	default:
		if edges, invited, err = parse(text); err != nil {
			if errors.Is(err, errDamaged) {
				err = fmt.Errorf("%w: restore it, or %s", err, anew(dir))
			}
			return nil, nil, fmt.Errorf("reading connector's state %q: %w", path, err)
		}
	}
	for _, name := range []string{KeyName, nextName} {
		path := filepath.Join(dir, name)
		_, err := host.ReadKey(path)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, host.ErrNoKey) && len(edges) > 0:
			// Of another key no edge knows anything.
			return nil, nil, fmt.Errorf("reading private key %q: %w, and edges know the one that it held: restore it, or %s", path, host.ErrNoKey, anew(dir))
		default:
			return nil, nil, err
		}
	}
	return edges, invited, nil
}

// anew is how to go on without what a state directory held: the edges know its
// key, and refuse a token to it, and its name is taken until they forget it.
func anew(dir string) string {
	return fmt.Sprintf("revoke this connector at the edge (`warren connector revoke NAME`), move the whole directory %s away, and start with a new token", dir)
}

// errDamaged: state.json is not what this package wrote.
var errDamaged = errors.New("it is damaged")

// parse reads the text of a state.json.
func parse(text []byte) (edges, invited []Edge, err error) {
	damaged := func(format string, args ...any) ([]Edge, []Edge, error) {
		return nil, nil, fmt.Errorf("%w (%w)", errDamaged, fmt.Errorf(format, args...))
	}
	if len(text) > maxFile {
		return damaged("it is longer than %d bytes", maxFile)
	}
	var head struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return damaged("%w", err)
	}
	switch {
	case head.Version == nil || *head.Version < 1:
		return damaged("it has no version")
	case *head.Version > Version:
		return nil, nil, fmt.Errorf("it is of a later release (version %d, this one reads %d): install that release, or choose another state_dir and enrol there with a new token", *head.Version, Version)
	}
	var f file
	if err := json.Unmarshal(text, &f); err != nil {
		return damaged("%w", err)
	}
	for what, list := range map[string][]Edge{"edge": f.Edges, "invited edge": f.Invited} {
		for i, e := range list {
			if err := e.check(); err != nil {
				return damaged("%s %d: %w", what, i, err)
			}
			if slices.ContainsFunc(list[:i], e.same) {
				return damaged("%s %d is there twice", what, i)
			}
		}
	}
	return f.Edges, f.Invited, nil
}

// check refuses what is no edge.
func (e Edge) check() error {
	if e.PublicKey.Key == (wgtypes.Key{}) {
		return errors.New("it has no public key")
	}
	return nil
}

// same tells whether other is the same edge.
func (e Edge) same(other Edge) bool { return e.PublicKey == other.PublicKey }

// Close gives the directory up.
func (d *Dir) Close() { d.unlock() }

// Path is the directory.
func (d *Dir) Path() string { return d.path }

func (d *Dir) file(name string) string { return filepath.Join(d.path, name) }

// Key returns the private key, and makes it where there was none; made tells
// so. Where edges know a key that is gone, it fails rather than make another.
func (d *Dir) Key() (key wgtypes.Key, made bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := d.file(KeyName)
	if len(d.edges) > 0 {
		key, err = host.ReadKey(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("reading private key %q: it is gone, and %s names edges that know it: put it back, or %s", path, fileName, anew(d.path))
		}
		return key, false, err
	}
	return host.LoadKey(path)
}

// NextKey returns the key that is to follow Key's. The first call makes and
// saves it; it stays the same until TakeNext.
func (d *Dir) NextKey() (wgtypes.Key, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key, _, err := host.LoadKey(d.file(nextName))
	return key, err
}

// TakeNext makes the next key the connector's, and forgets the one before it.
// It fails where NextKey was never called.
func (d *Dir) TakeNext() (wgtypes.Key, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key, err := host.ReadKey(d.file(nextName))
	if err != nil {
		return wgtypes.Key{}, err
	}
	if err := host.Rename(d.file(nextName), d.file(KeyName)); err != nil {
		return wgtypes.Key{}, fmt.Errorf("changing the private key: %w", err)
	}
	return key, nil
}

// Edges returns the edges at which the connector has enrolled, the first one
// first.
func (d *Dir) Edges() []Edge {
	d.mu.Lock()
	defer d.mu.Unlock()
	return cloned(d.edges)
}

// Invited returns the edges that Invite named and that have not enrolled this
// connector since.
func (d *Dir) Invited() []Edge {
	d.mu.Lock()
	defer d.mu.Unlock()
	return cloned(d.invited)
}

func cloned(edges []Edge) []Edge {
	out := slices.Clone(edges)
	for i := range out {
		out[i].URLs = slices.Clone(out[i].URLs)
	}
	return out
}

// Invite notes the edges of a token, in place of those of the token before, so
// that one which never enrols this connector is not forgotten when the token
// is gone. Those that have enrolled it are left out. It writes nothing where
// that changes nothing.
func (d *Dir) Invite(edges []Edge) error {
	for _, e := range edges {
		if err := e.check(); err != nil {
			return fmt.Errorf("saving an edge: %w", err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	invited := slices.DeleteFunc(cloned(edges), func(e Edge) bool { return slices.ContainsFunc(d.edges, e.same) })
	if slices.EqualFunc(invited, d.invited, func(a, b Edge) bool {
		return a.same(b) && a.TokenID == b.TokenID && slices.Equal(a.URLs, b.URLs)
	}) {
		return nil
	}
	return d.writeLocked(d.edges, invited)
}

// SaveEdge adds an edge, or replaces what is known of the one with its key.
func (d *Dir) SaveEdge(e Edge) error {
	if err := e.check(); err != nil {
		return fmt.Errorf("saving an edge: %w", err)
	}
	e.URLs = slices.Clone(e.URLs)
	d.mu.Lock()
	defer d.mu.Unlock()
	edges := slices.Clone(d.edges)
	if i := slices.IndexFunc(edges, e.same); i >= 0 {
		edges[i] = e
	} else {
		edges = append(edges, e)
	}
	return d.writeLocked(edges, slices.DeleteFunc(slices.Clone(d.invited), e.same))
}

// writeLocked puts edges on the disk, and then into memory. The caller holds
// mu.
func (d *Dir) writeLocked(edges, invited []Edge) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(file{Version: Version, Edges: edges, Invited: invited}); err != nil {
		return fmt.Errorf("saving connector's state: %w", err)
	}
	if text.Len() > maxFile {
		return fmt.Errorf("saving connector's state: it would be longer than %d bytes", maxFile)
	}
	if err := host.WritePrivate(d.file(fileName), text.Bytes()); err != nil {
		return fmt.Errorf("saving connector's state: %w", err)
	}
	d.edges, d.invited = edges, invited
	return nil
}
