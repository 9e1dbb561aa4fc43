package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// Tx is a transaction: what View and Update lend to a function. It belongs to
// that function's goroutine and is over when the function returns; every
// method then fails.
type Tx struct {
	b *bbolt.Tx // nil once it is over
}

var (
	errOver = errors.New("the transaction is over")
	errView = errors.New("a View changes nothing")
)

// Get decodes a record into what into points to, and reports whether there is
// one. A field that into does not have is left out: an older release reads
// what a newer one of the same format stored.
func (tx *Tx) Get(kind, id string, into any) (found bool, err error) {
	if err := tx.check(kind, id); err != nil {
		return false, err
	}
	bucket := tx.b.Bucket([]byte(kind))
	if bucket == nil {
		return false, nil
	}
	text := bucket.Get([]byte(id))
	if text == nil {
		return false, nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return true, fmt.Errorf("decoding %s %q: %w", kind, id, err)
	}
	return true, nil
}

// Put stores a record in the place of the one with its kind and id. An id has
// 1 to 32,768 bytes.
func (tx *Tx) Put(kind, id string, value any) error {
	if err := tx.check(kind, id); err != nil {
		return err
	}
	if !tx.b.Writable() {
		return fmt.Errorf("putting %s %q: %w", kind, id, errView)
	}
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding %s %q: %w", kind, id, err)
	}
	bucket, err := tx.b.CreateBucketIfNotExists([]byte(kind))
	if err == nil {
		err = bucket.Put([]byte(id), text)
	}
	if err != nil {
		return fmt.Errorf("putting %s %q: %w", kind, id, err)
	}
	return nil
}

// Delete removes a record; that there is none is no error.
func (tx *Tx) Delete(kind, id string) error {
	if err := tx.check(kind, id); err != nil {
		return err
	}
	if !tx.b.Writable() {
		return fmt.Errorf("deleting %s %q: %w", kind, id, errView)
	}
	bucket := tx.b.Bucket([]byte(kind))
	if bucket == nil {
		return nil
	}
	if err := bucket.Delete([]byte(id)); err != nil {
		return fmt.Errorf("deleting %s %q: %w", kind, id, err)
	}
	return nil
}

// Each calls visit for each record of a kind, in the order of the ids' bytes,
// until visit fails, and returns that error. decode does what Get does. visit
// may put and delete: a record that has gone is not visited, one that is new
// may be.
func (tx *Tx) Each(kind string, visit func(id string, decode func(into any) error) error) error {
	if err := tx.check(kind, "-"); err != nil {
		return err
	}
	bucket := tx.b.Bucket([]byte(kind))
	if bucket == nil {
		return nil
	}
	for next := []byte{}; ; {
		// A change makes a cursor useless: each step has its own.
		key, _ := bucket.Cursor().Seek(next)
		if key == nil {
			return nil
		}
		id := string(key)
		err := visit(id, func(into any) error {
			found, err := tx.Get(kind, id, into)
			if err == nil && !found {
				err = fmt.Errorf("decoding %s %q: it was deleted", kind, id)
			}
			return err
		})
		if err != nil {
			return err
		}
		next = append(bytes.Clone([]byte(id)), 0) // the least that is greater
	}
}

// check refuses what names no record.
func (tx *Tx) check(kind, id string) error {
	switch {
	case tx.b == nil:
		return errOver
	case kind == "" || kind == metaBucket || id == "":
		return fmt.Errorf("%q %q can be no record's kind and id", kind, id)
	}
	return nil
}
