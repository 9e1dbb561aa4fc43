package store

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"path/filepath"
	"testing"
)

// FuzzInspect changes a sound file. What inspect takes, bbolt uses without a
// panic. changes is a list of place (2 bytes) and value (1 byte).
func FuzzInspect(f *testing.F) {
	data := image(f)
	f.Add([]byte{}, true)
	for _, page := range []int{0, 1, 2, 3, 4, 5, 9} {
		for _, at := range []int{0, 8, 10, 12, 16, 20, 24, 28, 32, 40} {
			f.Add(append(binary.BigEndian.AppendUint16(nil, uint16(page*1024+at)), 7), true)
		}
	}
	path := filepath.Join(f.TempDir(), "edge.db")
	f.Fuzz(func(t *testing.T, changes []byte, summed bool) {
		wrong := bytes.Clone(data)
		for ; len(changes) >= 3; changes = changes[3:] {
			wrong[int(binary.BigEndian.Uint16(changes))%len(wrong)] = changes[2]
		}
		if summed { // or no change of a meta page would ever get in
			for _, page := range []int{0, 1024} {
				sum := fnv.New64a()
				_, _ = sum.Write(wrong[page+pageHeader : page+pageHeader+metaSize-8])
				binary.NativeEndian.PutUint64(wrong[page+pageHeader+metaSize-8:], sum.Sum64())
			}
		}
		if inspectBytes(wrong) != nil {
			return
		}
		writeFile(t, path, wrong)
		_ = use(t, path)
	})
}
