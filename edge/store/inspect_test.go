package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// image is a state file with small pages and everything in it: branch pages,
// values that overflow, buckets within a page and free pages.
func image(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "edge.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 1024})
	if err != nil {
		t.Fatal(err)
	}
	update := func(do func(tx *Tx) error) {
		if err := db.Update(func(b *bbolt.Tx) error { return do(&Tx{b: b}) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Update(func(b *bbolt.Tx) error {
		meta, err := b.CreateBucket([]byte(metaBucket))
		return errors.Join(err, meta.Put([]byte(formatKey), []byte("1")))
	}); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		update(func(tx *Tx) error {
			return errors.Join(tx.Put("many", fmt.Sprintf("%02d", 2*i), strings.Repeat("x", 100)), tx.Put("small", "1", i),
				tx.Put("large", "1", strings.Repeat("y", 3000)), tx.Put("many", "temporary", 1))
		})
	}
	update(func(tx *Tx) error { return errors.Join(tx.Delete("many", "temporary"), tx.Delete("large", "1")) })
	update(func(tx *Tx) error { return tx.Put("large", "2", strings.Repeat("z", 2000)) })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data := readFile(t, path)
	// The file has room to grow, of which nothing is used.
	meta, err := (&inspection{file: bytes.NewReader(data), size: int64(len(data))}).meta()
	if err != nil {
		t.Fatal(err)
	}
	return data[:1024*binary.NativeEndian.Uint64(meta[40:])]
}

func inspectBytes(data []byte) error {
	return (&inspection{file: bytes.NewReader(data), size: int64(len(data))}).run()
}

// use opens a file that may be damaged and reads and writes all of it. It
// returns what Open says; nothing may panic.
func use(t testing.TB, path string) error {
	s, err := Open(path)
	if err != nil {
		return err
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	s.db.NoSync = true // a machine that fails is not what this is about
	for range 2 {      // both meta pages are written anew
		err := s.Update(func(tx *Tx) error {
			for _, kind := range []string{"many", "small", "large"} {
				err := tx.Each(kind, func(id string, decode func(any) error) error {
					var value any
					_ = decode(&value) // what is in a value is not looked at
					return tx.Put(kind, id, "changed")
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Errorf("Open takes it, and then: %v", err)
		}
	}
	for _, problem := range problems(t, s) {
		if !strings.Contains(problem, "unreachable unfreed") { // lost room
			t.Errorf("bbolt's check: %s", problem)
		}
	}
	return nil
}

// A bit that turns anywhere in the file is found, or does no harm: bbolt reads
// and writes the file without a panic, and finds it sound. Most that is not
// found is in free pages, in values and in what a page does not use.
func TestInspectFindsDamage(t *testing.T) {
	data := image(t)
	if err := inspectBytes(data); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "edge.db")
	stride := 11
	if testing.Short() {
		stride = 47
	}
	found := 0
	for i := 0; i < len(data); i += stride {
		wrong := bytes.Clone(data)
		wrong[i] ^= 1 << (i % 8)
		err := inspectBytes(wrong)
		if err != nil {
			found++
			continue
		}
		writeFile(t, path, wrong)
		if err := use(t, path); err != nil && !strings.Contains(err.Error(), advice) && !strings.Contains(err.Error(), "later release") {
			t.Errorf("a bit at %d: %v", i, err)
		}
		if t.Failed() {
			t.Fatalf("a bit at %d", i)
		}
	}
	t.Logf("found %d of %d", found, (len(data)+stride-1)/stride)
	if found == 0 {
		t.Error("nothing was found")
	}
}

// Whatever bbolt writes is taken: a history of changes that splits pages, joins
// them again and empties buckets.
func TestInspectTakesWhatBboltWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 1024})
	if err != nil {
		t.Fatal(err)
	}
	db.NoSync = true
	defer func() { _ = db.Close() }()
	updates := 1000
	if testing.Short() {
		updates = 200
	}
	seed := rand.Uint64()
	deepest := 0
	for n := range uint64(updates) {
		r := rand.New(rand.NewPCG(seed, n))
		err := db.Update(func(b *bbolt.Tx) error {
			tx := &Tx{b: b}
			for range r.IntN(30) {
				c := change{kind: string(rune('a' + r.IntN(3))), id: strings.Repeat(fmt.Sprint(r.IntN(1000)), 1+r.IntN(10))}
				c.value = strings.Repeat("x", r.IntN(1<<r.IntN(12)))
				c.gone = r.IntN(1000) < 400+int(n%500)
				if err := c.apply(tx); err != nil {
					return err
				}
			}
			if r.IntN(300) == 0 {
				return tx.Each("a", func(id string, _ func(any) error) error { return tx.Delete("a", id) })
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := inspectBytes(readFile(t, path)); err != nil {
			t.Fatalf("seed %d, after update %d: %v", seed, n, err)
		}
		_ = db.View(func(b *bbolt.Tx) error {
			if bucket := b.Bucket([]byte("b")); bucket != nil {
				deepest = max(deepest, bucket.Stats().Depth)
			}
			return nil
		})
	}
	if deepest < 2 {
		t.Errorf("the tree was never deeper than %d", deepest)
	}
}

func TestInspectFindsWhatIsMissing(t *testing.T) {
	data := image(t)
	for size := range len(data) {
		if size%7 != 0 && size%1024 != 0 {
			continue
		}
		err := inspectBytes(data[:size])
		if err == nil || errors.As(err, new(damage)) == false {
			t.Fatalf("%d of %d bytes: %v", size, len(data), err)
		}
	}
	pages := 0
	for page := 0; page < len(data); page += 1024 {
		lost := bytes.Clone(data)
		clear(lost[page : page+1024])
		if inspectBytes(lost) != nil {
			pages++
		}
	}
	if pages == 0 || pages == len(data)/1024 {
		t.Errorf("%d of %d lost pages were found; the free ones are no loss", pages, len(data)/1024)
	}
}

// Each kind of damage, one at a time, in pages that are in use.
func TestInspectFinds(t *testing.T) {
	data := image(t)
	put16, put32, put64 := binary.NativeEndian.PutUint16, binary.NativeEndian.PutUint32, binary.NativeEndian.PutUint64
	meta, err := (&inspection{file: bytes.NewReader(data), size: int64(len(data))}).meta()
	if err != nil {
		t.Fatal(err)
	}
	page := func(data []byte, id uint64) []byte { return data[id*1024 : (id+1)*1024] }
	free := binary.NativeEndian.Uint64(meta[32:])
	root := binary.NativeEndian.Uint64(meta[16:])
	branch := uint64(0)
	for id := range uint64(len(data) / 1024) {
		wrong := bytes.Clone(data)
		put64(page(wrong, id), 1<<40)
		if binary.NativeEndian.Uint16(page(data, id)[8:]) == branchPage && inspectBytes(wrong) != nil {
			branch = id
		}
	}
	if branch == 0 {
		t.Fatal("no branch page is in use")
	}
	child := func(data []byte, i int) []byte { return page(data, branch)[pageHeader+i*element+8:] }
	first := binary.NativeEndian.Uint64(child(data, 0))

	tests := []struct {
		name string
		harm func(data []byte)
		want string
	}{
		// It would keep bbolt busy for ever, or until its stack is full.
		{"a page that leads to itself", func(data []byte) { put64(child(data, 0), branch) }, "two things lead to page"},
		{"two that lead to one", func(data []byte) { put64(child(data, 1), first) }, "two things lead to page"},
		{"a page beyond the end", func(data []byte) { put64(child(data, 0), 1<<40) }, "leads to page 1099511627776 of"},
		{"a meta page in the tree", func(data []byte) { put64(child(data, 0), 1) }, "leads to page 1 of"},
		{"the freelist in the tree", func(data []byte) { put64(child(data, 0), free) }, "is damaged"},
		{"a page under another's id", func(data []byte) { put64(page(data, first), first+1) }, "page"},
		{"a page of no kind", func(data []byte) { put16(page(data, first)[8:], 3) }, "page"},
		{"a page that overflows beyond the end", func(data []byte) { put32(page(data, first)[12:], 1<<31) }, "page"},
		{"more elements than fit", func(data []byte) { put16(page(data, first)[10:], 1000) }, "page"},
		{"more children than fit", func(data []byte) { put16(page(data, branch)[10:], 1000) }, "page"},
		{"no children", func(data []byte) { put16(page(data, branch)[10:], 0) }, "page"},
		{"no elements", func(data []byte) { put16(page(data, first)[10:], 0) }, "page"},
		{"a key beyond the page", func(data []byte) { put32(page(data, first)[pageHeader+4:], 1<<31) }, "page"},
		{"a value beyond the page", func(data []byte) { put32(page(data, first)[pageHeader+12:], 1<<31) }, "page"},
		{"a child's key beyond the page", func(data []byte) { put32(page(data, branch)[pageHeader:], 1<<31) }, "page"},
		{"a key in the elements", func(data []byte) { put32(page(data, first)[pageHeader+element+4:], 0) }, "page"},
		{"an empty key", func(data []byte) { put32(page(data, first)[pageHeader+element+8:], 0) }, "page"},
		{"a value over the next key", func(data []byte) { put32(page(data, first)[pageHeader+element+8:], 3) }, "page"},
		{"two keys in one place", func(data []byte) {
			elements := page(data, first)[pageHeader:]
			put32(elements[2*element+4:], binary.NativeEndian.Uint32(elements[element+4:])-element)
		}, "page"},
		{"keys out of order", func(data []byte) {
			elements := page(data, first)[pageHeader:]
			elements[element+binary.NativeEndian.Uint32(elements[element+4:])] = 'z'
		}, "page"},
		{"a first key that the branch does not have", func(data []byte) {
			elements := page(data, first)[pageHeader:]
			elements[binary.NativeEndian.Uint32(elements[4:])+1]++ // "00", and the next is "02"
		}, "page"},
		{"a last key that belongs on the next page", func(data []byte) {
			elements := page(data, first)[pageHeader:]
			last := elements[element*(binary.NativeEndian.Uint16(page(data, first)[10:])-1):]
			last[binary.NativeEndian.Uint32(last[4:])] = 'z'
		}, "page"},
		{"an unknown flag", func(data []byte) { put32(page(data, first)[pageHeader:], 2) }, "page"},
		{"a record for a bucket", func(data []byte) { put32(page(data, first)[pageHeader:], bucketLeaf) }, "is damaged"},
		{"a page that is free and in use", func(data []byte) { put64(page(data, free)[pageHeader:], first) }, "is free and in use"},
		{"the root free", func(data []byte) { put64(page(data, free)[pageHeader:], root) }, "is free and in use"},
		{"a page free twice", func(data []byte) {
			copy(page(data, free)[pageHeader:pageHeader+8], page(data, free)[pageHeader+8:])
		}, "is free and in use"},
		{"a free page beyond the end", func(data []byte) { put64(page(data, free)[pageHeader:], 1<<40) }, "is free and in use"},
		{"more free pages than fit", func(data []byte) { put16(page(data, free)[10:], 1000) }, "page"},
		{"far more free pages than fit", func(data []byte) {
			put16(page(data, free)[10:], 0xFFFF)
			put64(page(data, free)[pageHeader:], 1<<63)
		}, "page"},
		{"a freelist that is none", func(data []byte) { put16(page(data, free)[8:], leafPage) }, "page"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wrong := bytes.Clone(data)
			tt.harm(wrong)
			err := inspectBytes(wrong)
			if err == nil || !errors.As(err, new(damage)) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("inspect: %v, want %q", err, tt.want)
			}
		})
	}
}
