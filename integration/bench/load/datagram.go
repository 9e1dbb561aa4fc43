package load

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// A datagram is a header of four words and the pattern whose seed is the
// fourth:
//
//	flow      random, one for each flow of a run
//	sequence  of the flow
//	sent      nanoseconds since the run's base
//	seal      a mix of the three
//
// So a datagram of another flow, a changed one and one that is not the
// contender's to send are each told apart, without a memory of what was sent.
const headerSize = 32

type header struct{ flow, sequence, sent uint64 }

func (h header) seal() uint64 {
	x := h.flow ^ h.sequence*golden ^ bits.RotateLeft64(h.sent*golden3, 32)
	x = (x ^ x>>31) * golden // so that neighbours have nothing in common
	return x ^ x>>29
}

// write fills b with a datagram.
func (h header) write(b []byte) {
	seal := h.seal()
	for i, word := range []uint64{h.flow, h.sequence, h.sent, seal} {
		binary.LittleEndian.PutUint64(b[8*i:], word)
	}
	(&pattern{seed: seal}).fill(b[headerSize:])
}

// readDatagram takes a datagram apart; what is wrong with its content is a
// Difference.
func readDatagram(b []byte, flow uint64, size int) (header, error) {
	if len(b) != size {
		return header{}, fmt.Errorf("a datagram of %d bytes has %d: %w", size, len(b), &Difference{Offset: uint64(min(len(b), size))})
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	h := header{word(0), word(1), word(2)}
	if h.flow != flow {
		return h, fmt.Errorf("a datagram of another flow: %w", &Difference{Want: byte(flow), Got: b[0]})
	}
	seal := h.seal()
	if word(3) != seal {
		return h, fmt.Errorf("a changed header: %w", &Difference{Offset: 24, Want: byte(seal), Got: b[24]})
	}
	place := pattern{seed: seal}
	if at := place.check(b[headerSize:]); at >= 0 {
		var want [1]byte
		place.fill(want[:])
		return h, &Difference{Offset: uint64(headerSize + at), Want: want[0], Got: b[headerSize+at]}
	}
	return h, nil
}

// seen remembers which of the last 65,536 sequence numbers came back.
type seen struct {
	top  uint64 // the highest so far, plus 1
	bits [1 << 10]uint64
}

const seenSpan = 1 << 16

// mark notes a sequence number and reports whether it is new. One that is too
// old to be known counts as new.
func (s *seen) mark(sequence uint64) bool {
	if sequence+seenSpan < s.top {
		return true
	}
	if sequence >= s.top {
		if sequence-s.top >= seenSpan {
			s.bits = [1 << 10]uint64{}
			s.top = sequence
		}
		for ; s.top <= sequence; s.top++ {
			s.bits[s.top/64%uint64(len(s.bits))] &^= 1 << (s.top % 64)
		}
	}
	word, bit := &s.bits[sequence/64%uint64(len(s.bits))], uint64(1)<<(sequence%64)
	fresh := *word&bit == 0
	*word |= bit
	return fresh
}
