package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// format is the version of the records' layout. A release raises it when an
// older one could not do with what it stores; fields alone are no reason.
const format = 1

// What is in the file before any record.
const (
	metaBucket = "meta"
	formatKey  = "format" // a number in JSON
)

const (
	// mapped is how much of the file can be in use before an Update must wait
	// for running Views to map it anew, in bytes. It takes addresses, not memory.
	mapped = 64 << 20
	// grown is by how much the file grows, in bytes. The disk gives room to what
	// is written alone.
	grown = 256 << 10
)

// Open opens the state file at path, or makes an empty one, mode 0600, where
// there is none; its directory exists, and nobody else makes a file in it (the
// caller holds the directory's lock).
//
// The error is a sentence that says what to do: another process has the file
// open, everybody on this machine has access to it, a later release made it,
// it is damaged or no state file at all. Nothing is changed then.
func Open(path string) (*Store, error) {
	s, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("opening state %q: %w", path, err)
	}
	return s, nil
}

func open(path string) (*Store, error) {
	// A symlink that leads nowhere is somebody's mistake: it is not replaced.
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, err
		}
	}
	f, err := take(path)
	if err != nil {
		return nil, err
	}
	if err := inspect(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	db, err := openBolt(path, func(string, int, os.FileMode) (*os.File, error) { return f, nil })
	if err != nil {
		return nil, err
	}
	if err := db.View(checkFormat); err != nil {
		_ = db.Close()
		return nil, err
	}
	return &Store{path: path, db: db}, nil
}

// openBolt opens a database in the file that openFile returns, and closes that
// if it fails.
func openBolt(path string, openFile func(string, int, os.FileMode) (*os.File, error)) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		OpenFile:        openFile,
		Timeout:         time.Second, // for a lock that nobody else should have
		InitialMmapSize: mapped,
		NoStatistics:    true,
	})
	if err == nil {
		db.AllocSize = grown
	}
	return db, err
}

// create makes an empty state file so that a crash leaves either none or a
// whole one: another name, then rename, then fsync of the directory.
func create(path string) (err error) {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // what a crash has left cannot be removed
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	db, err := openBolt(temp, os.OpenFile)
	if err != nil {
		return err
	}
	err = db.Update(func(b *bbolt.Tx) error {
		meta, err := b.CreateBucket([]byte(metaBucket))
		if err != nil {
			return err
		}
		text, err := json.Marshal(format)
		if err != nil {
			return err
		}
		return meta.Put([]byte(formatKey), text)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// take opens a state file that is there, for this process alone, and refuses
// one that everybody on the machine may read or write: it holds the second
// factor of tokens.
func take(path string) (_ *os.File, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: run as the user that it belongs to, or give it to this one", err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no file: move it away, or choose another state_dir")
	}
	// A group may have access: service managers want that.
	if perm := info.Mode().Perm(); perm&0o007 != 0 {
		return nil, fmt.Errorf("everybody on this machine has access (mode %04o): run chmod 600 %s, and make new tokens if others use this machine", perm, path)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.New("another process has it open: stop that one, or give this one its own state_dir")
	}
	if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	return f, nil
}

// checkFormat refuses what this release cannot read.
func checkFormat(b *bbolt.Tx) error {
	meta := b.Bucket([]byte(metaBucket))
	if meta == nil {
		return fmt.Errorf("it is a bbolt file, but not warren's: %s", advice)
	}
	var found int
	if err := json.Unmarshal(meta.Get([]byte(formatKey)), &found); err != nil || found < 1 {
		return fmt.Errorf("it is damaged (no format): %s", advice)
	}
	if found > format {
		return fmt.Errorf("it has format %d and this release knows %d: it was made by a later release of warren: install that", found, format)
	}
	return nil
}
