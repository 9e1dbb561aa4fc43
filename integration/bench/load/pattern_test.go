package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// naivePattern is the stream of a seed, byte by byte, as the comment of
// pattern describes it.
func naivePattern(seed uint64, from, n int) []byte {
	out := make([]byte, 0, n)
	for at := from; at < from+n; at++ {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], seed+uint64(at/8)*golden)
		out = append(out, word[at%8])
	}
	return out
}

// FuzzPattern writes and checks a stream in pieces of any length, changes one
// byte, and holds all of it against the naive stream.
func FuzzPattern(f *testing.F) {
	f.Add(uint64(1), []byte{1, 7, 8, 9, 31, 32, 33, 64, 100}, uint16(40), byte(1))
	f.Add(^uint64(0), []byte{200, 0, 3, 255}, uint16(0), byte(0x80))
	f.Fuzz(func(t *testing.T, seed uint64, pieces []byte, at uint16, change byte) {
		var got []byte
		out, in := pattern{seed: seed}, pattern{seed: seed}
		for _, n := range pieces {
			piece := make([]byte, n)
			out.fill(piece)
			got = append(got, piece...)
		}
		if want := naivePattern(seed, 0, len(got)); !bytes.Equal(got, want) {
			t.Fatalf("wrote % x, want % x", got, want)
		}
		if len(got) == 0 {
			return
		}
		wrong := int(at) % len(got)
		got[wrong] ^= change
		for rest := got; len(pieces) > 0; pieces = pieces[1:] {
			n := int(pieces[0])
			bad := in.check(rest[:n])
			begin := len(got) - len(rest)
			if change != 0 && wrong >= begin && wrong < begin+n {
				if bad != wrong-begin || in.offset != uint64(wrong) {
					t.Fatalf("byte %d of a piece is wrong, at %d of the stream: found %d and %d", wrong-begin, wrong, bad, in.offset)
				}
				return
			}
			if bad != -1 {
				t.Fatalf("byte %d of a right piece is called wrong", bad)
			}
			rest = rest[n:]
		}
	})
}

// faults are what may happen to a stream on its way: each gets three blocks
// that follow each other, and one from another stream.
var faults = map[string]func(a, b, c, other []byte) []byte{
	"a flipped bit":         func(a, b, c, _ []byte) []byte { a[len(a)/2] ^= 4; return join(a, b, c) },
	"a lost block":          func(a, b, c, _ []byte) []byte { return join(a, c) },
	"two lost blocks":       func(a, b, c, _ []byte) []byte { return join(c) },
	"a repeated block":      func(a, b, c, _ []byte) []byte { return join(a, a, b, c) },
	"two swapped blocks":    func(a, b, c, _ []byte) []byte { return join(a, c, b) },
	"one block for another": func(a, b, c, _ []byte) []byte { return join(a, a, c) },
	"a block too many":      func(a, b, c, other []byte) []byte { return join(a, b, other, c) },
	"another stream's":      func(a, b, c, other []byte) []byte { return join(a, other, c) },
	"zeros":                 func(a, b, c, _ []byte) []byte { clear(b); return join(a, b, c) },
}

func join(blocks ...[]byte) []byte { return bytes.Join(blocks, nil) }

// TestReceiveFindsEveryFault puts each fault into a stream, for blocks that
// are and are not multiples of a word, of a page, of what buffers hold.
func TestReceiveFindsEveryFault(t *testing.T) {
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{8, 9, 1448, 4096, 32 << 10, 64 << 10, maxBuffer} {
				begin := 3*size + 5
				in := pattern{seed: 7}
				stream := make([]byte, begin+4*size+100)
				in.fill(stream)
				other := make([]byte, size)
				(&pattern{seed: 8, offset: uint64(begin + size)}).fill(other)
				block := func(i int) []byte { return bytes.Clone(stream[begin+i*size:][:size]) }
				bad := join(stream[:begin], fault(block(0), block(1), block(2), other), stream[begin+3*size:])
				wrong := firstDifference(stream, bad)

				got, err := receiveBytes(t, bad)
				var d *Difference
				if !errors.As(err, &d) || got.Wrong != d || d.Offset != uint64(wrong) || d.Got != bad[wrong] || d.Want != stream[wrong] {
					t.Errorf("blocks of %d bytes: byte %d is wrong, and it says %v", size, wrong, err)
				}
			}
		})
	}
	if _, err := receiveBytes(t, naivePattern(7, 0, 100_000)); !errors.Is(err, io.EOF) {
		t.Errorf("a right stream that ends early: %v, want EOF", err)
	}
}

func firstDifference(a, b []byte) int {
	for i := range b {
		if i >= len(a) || a[i] != b[i] {
			return i
		}
	}
	return len(b)
}

// receiveBytes gives a receiver these bytes of the stream of seed 7, and then
// the end.
func receiveBytes(t *testing.T, stream []byte) (intake, error) {
	t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	go func() {
		defer there.Close()
		there.Write(stream)
	}()
	return receive(here, 7, make([]byte, 10_000), windowAfter(0, time.Minute))
}

func TestPatternDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 4099)
	out, in := pattern{seed: 1}, pattern{seed: 1}
	if n := testing.AllocsPerRun(100, func() {
		out.fill(buf)
		if in.check(buf) >= 0 {
			t.Fatal("what was written is called wrong")
		}
	}); n != 0 {
		t.Errorf("%v allocations a buffer", n)
	}
}

// BenchmarkPattern says what the content check costs each side, in processor
// time, which neighbours on the machine do not lengthen.
func BenchmarkPattern(b *testing.B) {
	buf := make([]byte, maxBuffer)
	for name, step := range map[string]func(){
		"fill": func() { (&pattern{}).fill(buf) },
		"check": func() {
			if (&pattern{}).check(buf) >= 0 {
				b.Fatal("what was written is called wrong")
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			(&pattern{}).fill(buf)
			before := processorTime()
			for b.Loop() {
				step()
			}
			b.ReportMetric(float64((processorTime()-before).Nanoseconds())/float64(b.N)/float64(len(buf)>>10), "cpu-ns/KiB")
			b.ReportMetric(0, "ns/op")
		})
	}
}
