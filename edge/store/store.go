// Package store is the edge's memory: what is in no configuration file and
// outlives a restart, in one file of records.
//
//	s, err := store.Open(filepath.Join(stateDir, "edge.db"))
//	err = s.Update(func(tx *store.Tx) error { return tx.Put("token", id, token) })
//	err = s.View(func(tx *store.Tx) error { found, err := tx.Get("token", id, &token); … })
//	err = s.Close()
//
// A record is a JSON value with a kind and an id. The file is a bbolt database
// with a bucket for each kind, and one that says what format it has. A crash
// at any moment, of the process or of the machine, leaves a file in which every
// Update that has returned stands whole, and one that had not is whole or
// absent.
//
// It knows nothing of what the records mean. It must never change a file that
// it does not understand wholly, nor return from Update before the disk has
// what was stored.
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"

	"go.etcd.io/bbolt"
)

// Store is an open state file. Make it with Open. Its methods may be called
// from any goroutine, but none of them from within a View or an Update: that
// could wait for itself.
type Store struct {
	path string
	db   *bbolt.DB

	writing sync.Mutex // one Update at a time, its verdict included
	unsure  error      // set once the disk did not confirm what was written
}

// Close waits for every View and Update to return, and lets go of the file.
// Later ones fail. Closing again does nothing.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("closing state %q: %w", s.path, err)
	}
	return nil
}

// View calls read with a transaction that sees the records as they were when
// it began, whatever is stored meanwhile: it waits for no Update. Its error is
// read's, as it is.
func (s *Store) View(read func(*Tx) error) error {
	var own error
	err := s.db.View(func(b *bbolt.Tx) error {
		own = transact(b, read)
		return own
	})
	if err != nil && own == nil {
		return fmt.Errorf("reading state %q: %w", s.path, err)
	}
	return own
}

// Update calls change with a transaction of which everything is stored, or
// nothing if it fails. One Update runs at a time. It returns once the disk has
// confirmed.
//
// Its error is change's, as it is, or says why nothing was stored; it wraps
// syscall.ENOSPC where the disk is full, and the store goes on. A disk that
// takes what is written but does not confirm it leaves nobody sure of what it
// has: that Update may or may not stand, and all later ones fail until the
// file is opened again.
func (s *Store) Update(change func(*Tx) error) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.unsure != nil {
		return s.unsure
	}
	var own error
	err := s.db.Update(func(b *bbolt.Tx) error {
		own = transact(b, change)
		return own
	})
	switch {
	case own != nil:
		return own
	case err == nil:
		return nil
	case unconfirmed(err):
		// Going on would reuse pages that the last confirmed state needs.
		s.unsure = fmt.Errorf("storing in %q: the disk did not confirm a write (%w): mend it, then start again", s.path, err)
		return s.unsure
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("storing in %q: %w: nothing was changed; make room there", s.path, err)
	}
	return fmt.Errorf("storing in %q: %w: nothing was changed", s.path, err)
}

// unconfirmed reports whether a commit failed in fdatasync, whose error bbolt
// passes on bare; that of a write names the file.
func unconfirmed(err error) bool {
	var write *fs.PathError
	var bare syscall.Errno
	return !errors.As(err, &write) && errors.As(err, &bare)
}

// transact calls do with a Tx that is of no use afterwards.
func transact(b *bbolt.Tx, do func(*Tx) error) error {
	tx := &Tx{b: b}
	defer func() { tx.b = nil }()
	return do(tx)
}
