package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
)

// advice is what to do about a file that is of no use.
const advice = "restore a backup of it, or move it away to begin with nothing"

// The layout of a bbolt file, as its internal/common has it: pages of one size,
// numbers in the machine's byte order. Pages 0 and 1 are meta pages, of which
// the valid one with the higher transaction counts; from there a tree of branch
// and leaf pages leads to all else.
const (
	magic       = 0xED0CDAED
	fileVersion = 2

	pageHeader = 16 // id 8, flags 2, count 2, overflow 4
	metaSize   = 64 // magic 4, version 4, page size 4, flags 4, root 8, sequence 8, freelist 8, high water 8, transaction 8, FNV-1a 8
	element    = 16 // branch: pos 4, key 4, page 8; leaf: flags 4, pos 4, key 4, value 4; pos counts from the element
	inBucket   = 16 // root 8, sequence 8; a page of its own follows where root is 0

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketLeaf   = 0x01 // in a leaf element's flags

	noFreelist = 1<<64 - 1
)

// inspect refuses a file that is no bbolt database or a damaged one. bbolt
// itself maps the file and trusts it: a page that is missing or wrong would end
// the process at some later moment, or be overwritten with what others need.
// What is in a value cannot be checked here, and a key only for its order.
func inspect(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return fmt.Errorf("it is empty: %s", advice)
	}
	in := &inspection{file: f, size: info.Size()}
	err = in.run()
	var broken damage
	if errors.As(err, &broken) {
		return fmt.Errorf("%s: %s", broken, advice)
	}
	return err
}

// damage says what is wrong with a file, other errors that it cannot be read.
type damage string

func (d damage) Error() string { return string(d) }

func damaged(format string, args ...any) error { return damage(fmt.Sprintf(format, args...)) }

type inspection struct {
	file interface {
		ReadAt(p []byte, off int64) (int, error)
	}
	size     int64
	pageSize uint64
	high     uint64 // pages below are in use or free
	seen     []bool // pages that something leads to
}

func (in *inspection) run() error {
	meta, err := in.meta()
	if err != nil {
		return err
	}
	in.pageSize = uint64(binary.NativeEndian.Uint32(meta[8:]))
	root, freelist := binary.NativeEndian.Uint64(meta[16:]), binary.NativeEndian.Uint64(meta[32:])
	in.high = binary.NativeEndian.Uint64(meta[40:])
	if in.pageSize < pageHeader+metaSize {
		return damaged("it is damaged (its pages have %d bytes)", in.pageSize)
	}
	if in.high > uint64(in.size)/in.pageSize {
		return damaged("it was cut short (%d bytes are left of %d pages of %d)", in.size, in.high, in.pageSize)
	}
	in.seen = make([]bool, in.high)
	if err := in.tree(root, nil, nil); err != nil {
		return err
	}
	if freelist == noFreelist {
		return nil
	}
	return in.freelist(freelist)
}

// meta finds the meta page that counts. The second one lies a page behind the
// first, whose size only they tell.
func (in *inspection) meta() ([]byte, error) {
	var best []byte
	bolt := false
	for _, at := range append([]int64{0}, sizes()...) {
		page := make([]byte, pageHeader+metaSize)
		if at+int64(len(page)) > in.size {
			break
		}
		if _, err := in.file.ReadAt(page, at); err != nil {
			return nil, err
		}
		meta := page[pageHeader:]
		if binary.NativeEndian.Uint32(meta) != magic || binary.NativeEndian.Uint32(meta[4:]) != fileVersion {
			continue
		}
		bolt = true
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:metaSize-8])
		if sum.Sum64() != binary.NativeEndian.Uint64(meta[metaSize-8:]) {
			continue
		}
		if at != 0 && at != int64(binary.NativeEndian.Uint32(meta[8:])) {
			continue // what lies there is a value
		}
		if best == nil || binary.NativeEndian.Uint64(meta[48:]) > binary.NativeEndian.Uint64(best[48:]) {
			best = meta
		}
	}
	switch {
	case best != nil:
		return best, nil
	case bolt:
		return nil, damaged("it is damaged (both meta pages)")
	}
	return nil, damaged("it is no state file of warren")
}

// sizes are those that pages may have, as bbolt looks for them.
func sizes() []int64 {
	var list []int64
	for size := int64(1 << 10); size <= 16<<20; size *= 2 {
		list = append(list, size)
	}
	return list
}

// page reads a page with what overflows from it, and marks it as seen.
func (in *inspection) page(id uint64) ([]byte, error) {
	if id < 2 || id >= in.high {
		return nil, damaged("it is damaged (something leads to page %d of %d)", id, in.high)
	}
	header := make([]byte, pageHeader)
	if _, err := in.file.ReadAt(header, int64(id*in.pageSize)); err != nil {
		return nil, err
	}
	pages := 1 + uint64(binary.NativeEndian.Uint32(header[12:]))
	if binary.NativeEndian.Uint64(header) != id || id+pages > in.high {
		return nil, damaged("it is damaged (page %d)", id)
	}
	for i := id; i < id+pages; i++ {
		if in.seen[i] {
			return nil, damaged("it is damaged (two things lead to page %d)", i)
		}
		in.seen[i] = true
	}
	page := make([]byte, pages*in.pageSize)
	_, err := in.file.ReadAt(page, int64(id*in.pageSize))
	return page, err
}

// tree checks a page and what it leads to. Its first key is low and all are less
// than high, where those are not nil.
func (in *inspection) tree(id uint64, low, high []byte) error {
	page, err := in.page(id)
	if err != nil {
		return err
	}
	switch binary.NativeEndian.Uint16(page[8:]) {
	case leafPage:
		return in.leaf(id, page, low, high)
	case branchPage:
		return in.branch(id, page, low, high)
	}
	return damaged("it is damaged (page %d)", id)
}

func (in *inspection) branch(id uint64, page, low, high []byte) error {
	count := int(binary.NativeEndian.Uint16(page[10:]))
	keys := make([][]byte, count, count+1)
	for i, end := 0, pageHeader+count*element; i < count; i++ {
		e := pageHeader + i*element
		if keys[i], _, end = cut(page, e, e, 0, end); end < 0 {
			return damaged("it is damaged (page %d)", id)
		}
	}
	if count == 0 || !ordered(keys, low, high) {
		return damaged("it is damaged (page %d)", id)
	}
	keys = append(keys, high)
	for i := range count {
		child := binary.NativeEndian.Uint64(page[pageHeader+i*element+8:])
		if err := in.tree(child, keys[i], keys[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (in *inspection) leaf(id uint64, page, low, high []byte) error {
	count := int(binary.NativeEndian.Uint16(page[10:]))
	if pageHeader+count*element > len(page) {
		return damaged("it is damaged (page %d)", id)
	}
	keys := make([][]byte, count)
	for i, end := 0, pageHeader+count*element; i < count; i++ {
		e := pageHeader + i*element
		var value []byte
		keys[i], value, end = cut(page, e, e+4, binary.NativeEndian.Uint32(page[e+12:]), end)
		flags := binary.NativeEndian.Uint32(page[e:])
		if end < 0 || flags&^bucketLeaf != 0 {
			return damaged("it is damaged (page %d)", id)
		}
		if flags&bucketLeaf == 0 {
			continue
		}
		if err := in.bucket(id, value); err != nil {
			return err
		}
	}
	if !ordered(keys, low, high) {
		return damaged("it is damaged (page %d)", id)
	}
	return nil
}

// bucket checks what a leaf has of a bucket: its root, or all of it.
func (in *inspection) bucket(id uint64, value []byte) error {
	if len(value) < inBucket {
		return damaged("it is damaged (page %d)", id)
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return in.tree(root, nil, nil)
	}
	page := value[inBucket:]
	if len(page) < pageHeader || binary.NativeEndian.Uint16(page[8:]) != leafPage {
		return damaged("it is damaged (page %d)", id)
	}
	return in.leaf(id, page, nil, nil)
}

// cut returns the key of the element at e, and the value of that size behind
// it, neither of which lies before start, and where the value ends; -1 where
// that cannot be. The element's pos and its key's size are at field.
func cut(page []byte, e, field int, valueSize uint32, start int) (key, value []byte, end int) {
	if e+element > len(page) {
		return nil, nil, -1
	}
	first := uint64(e) + uint64(binary.NativeEndian.Uint32(page[field:]))
	middle := first + uint64(binary.NativeEndian.Uint32(page[field+4:]))
	last := middle + uint64(valueSize)
	if first < uint64(start) || last > uint64(len(page)) {
		return nil, nil, -1
	}
	return page[first:middle], page[middle:last], int(last)
}

// ordered reports whether each key is greater than the one before and none is
// empty, and where those are not nil, the first is low and all are less than
// high.
func ordered(keys [][]byte, low, high []byte) bool {
	before := []byte{}
	for _, key := range keys {
		if bytes.Compare(before, key) >= 0 {
			return false
		}
		before = key
	}
	if len(keys) == 0 {
		return low == nil
	}
	return (low == nil || bytes.Equal(keys[0], low)) && (high == nil || bytes.Compare(keys[len(keys)-1], high) < 0)
}

// freelist checks that no page is both free and in use. One that is neither is
// lost room and no danger.
func (in *inspection) freelist(id uint64) error {
	page, err := in.page(id)
	if err != nil {
		return err
	}
	count := uint64(binary.NativeEndian.Uint16(page[10:]))
	list := page[pageHeader:]
	if count == 0xFFFF && len(list) >= 8 { // too many for the header
		count, list = binary.NativeEndian.Uint64(list), list[8:]
	}
	if binary.NativeEndian.Uint16(page[8:]) != freelistPage || count > uint64(len(list))/8 {
		return damaged("it is damaged (page %d)", id)
	}
	for i := range count {
		free := binary.NativeEndian.Uint64(list[i*8:])
		if free < 2 || free >= in.high || in.seen[free] {
			return damaged("it is damaged (page %d is free and in use)", free)
		}
		in.seen[free] = true
	}
	return nil
}
