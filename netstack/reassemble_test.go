package netstack

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"

	"github.com/warrenmesh/warren/netstack/drops"
)

// cut is one fragment of a test's datagram.
type cut struct {
	off  int
	data []byte
	more bool
}

// cuts splits b at multiples of size.
func cuts(b []byte, size int) []cut {
	var all []cut
	for off := 0; off < len(b); off += size {
		end := min(off+size, len(b))
		all = append(all, cut{off, b[off:end], end < len(b)})
	}
	return all
}

func newReassembler(t testing.TB) (*reassembler, *drops.Counter) {
	counter := new(drops.Counter)
	r := &reassembler{drops: counter}
	t.Cleanup(r.close)
	return r, counter
}

// feed adds c and returns the datagram if it is complete.
func feed(r *reassembler, key fragmentKey, c cut) ([]byte, bool) {
	_, whole, ok := r.add(key, c.off, c.more, []byte{byte(c.off)}, buffer.MakeWithData(c.data), 65535)
	if !ok {
		return nil, false
	}
	b := whole.Flatten()
	whole.Release()
	return b, true
}

func TestReassembly(t *testing.T) {
	want := patterned(1, 2)[:10_000]
	key := fragmentKey{id: 7, proto: protoUDP}
	for _, tt := range []struct {
		name    string
		arrange func(all []cut) []cut
	}{
		{"in order", func(all []cut) []cut { return all }},
		{"backwards", func(all []cut) []cut {
			var back []cut
			for i := range all {
				back = append(back, all[len(all)-1-i])
			}
			return back
		}},
		{"every fragment twice", func(all []cut) []cut {
			var twice []cut
			for _, c := range all[:len(all)-1] {
				twice = append(twice, c, c)
			}
			return append(twice, all[len(all)-1])
		}},
		{"shuffled", func(all []cut) []cut {
			rnd := rand.New(rand.NewPCG(1, 1))
			rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			return all
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, counter := newReassembler(t)
			all := tt.arrange(cuts(want, 1376))
			for i, c := range all {
				got, complete := feed(r, key, c)
				if complete != (i == len(all)-1) {
					t.Fatalf("after %d of %d fragments complete is %v", i+1, len(all), complete)
				}
				if complete && !bytes.Equal(got, want) {
					t.Error("other bytes came out")
				}
			}
			if r.partial != nil || r.bytes != 0 || counter.Total() != 0 {
				t.Errorf("left: %d datagrams, %d bytes, %d drops", len(r.partial), r.bytes, counter.Total())
			}
		})
	}
}

func TestReassemblyRefuses(t *testing.T) {
	key := fragmentKey{id: 7, proto: protoUDP}
	eight := make([]byte, 8)
	for _, tt := range []struct {
		name string
		feed []cut
		why  string
	}{
		{"empty", []cut{{0, nil, true}}, whyFragment},
		{"odd length before the last", []cut{{0, eight[:7], true}}, whyFragment},
		{"past the limit", []cut{{65528, eight, false}}, whyFragment},
		{"overlap", []cut{{0, make([]byte, 16), true}, {8, make([]byte, 16), true}}, whyFragmentOverlap},
		{"overlap from below", []cut{{8, make([]byte, 16), true}, {0, make([]byte, 16), true}}, whyFragmentOverlap},
		{"inside another", []cut{{0, make([]byte, 24), true}, {8, eight, true}}, whyFragmentOverlap},
		{"two ends", []cut{{16, eight, false}, {32, eight, false}}, whyFragmentOverlap},
		{"beyond the end", []cut{{16, eight, false}, {32, eight, true}}, whyFragmentOverlap},
		{"end before what came", []cut{{32, eight, true}, {16, eight, false}}, whyFragmentOverlap},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, counter := newReassembler(t)
			for _, c := range tt.feed {
				if _, complete := feed(r, key, c); complete {
					t.Error("a datagram came out")
				}
			}
			if n := counter.Count(tt.why); n != 1 {
				t.Errorf("%d drops for %q, want 1", n, tt.why)
			}
			if r.partial != nil || r.bytes != 0 {
				t.Errorf("%d datagrams and %d bytes are left", len(r.partial), r.bytes)
			}
		})
	}
}

// Memory is bounded whatever arrives, and the newest survive.
func TestReassemblyIsBounded(t *testing.T) {
	r, counter := newReassembler(t)
	const n = 10_000
	for id := range uint32(n) {
		feed(r, fragmentKey{id: id}, cut{0, make([]byte, 1376), true})
		if r.bytes > reassemblyBytes {
			t.Fatalf("%d bytes wait", r.bytes)
		}
	}
	if got := counter.Count(whyReassemblyFull) + uint64(len(r.partial)); got != n {
		t.Errorf("%d datagrams are accounted for, want %d", got, n)
	}
	if _, newest := r.partial[fragmentKey{id: n - 1}]; !newest {
		t.Error("the newest was dropped")
	}
	r.close()
	if r.bytes != 0 || counter.Total() != n {
		t.Errorf("after close: %d bytes, %d drops", r.bytes, counter.Total())
	}
}

// The timer's work, without waiting for it.
func TestReassemblyExpires(t *testing.T) {
	r, counter := newReassembler(t)
	feed(r, fragmentKey{id: 1}, cut{0, make([]byte, 8), true})
	feed(r, fragmentKey{id: 2}, cut{0, make([]byte, 8), true})
	r.mu.Lock()
	old := r.partial[fragmentKey{id: 1}]
	old.since = old.since.Add(-2 * reassemblyTimeout)
	r.mu.Unlock()
	r.expire()
	if counter.Count(whyReassemblyTimeout) != 1 || len(r.partial) != 1 {
		t.Errorf("%d expired, %d are left; want 1 and 1", counter.Count(whyReassemblyTimeout), len(r.partial))
	}
}

// naive is the oracle: a datagram as a byte array and a mark for each byte.
// Anything odd spoils it, as the reassembler promises.
type naive struct {
	data  [9 << 10]byte
	mark  [9 << 10]bool
	first map[int]int // offset → length of the fragments that were taken
	last  int         // offset of the last fragment, -1 if it has not come
	total int
	n     int
}

func (o *naive) add(c cut) (complete, spoiled bool) {
	end := c.off + len(c.data)
	if n, known := o.first[c.off]; known && n == len(c.data) && c.more == (o.last != c.off) {
		return false, false
	}
	for i := c.off; i < end; i++ {
		if o.mark[i] {
			return false, true
		}
	}
	if o.last >= 0 && (!c.more || end > o.total) {
		return false, true
	}
	if !c.more {
		for i := end; i < len(o.mark); i++ {
			if o.mark[i] {
				return false, true
			}
		}
		o.last, o.total = c.off, end
	}
	copy(o.data[c.off:], c.data)
	for i := c.off; i < end; i++ {
		o.mark[i] = true
	}
	o.first[c.off] = len(c.data)
	o.n += len(c.data)
	return o.last >= 0 && o.n == o.total, false
}

// FuzzReassemble feeds fragments, six bytes of the input each, to the
// reassembler and to the oracle.
func FuzzReassemble(f *testing.F) {
	f.Add([]byte{0, 0, 1, 1, 9, 0, 0, 1, 1, 0, 7, 0})
	f.Add([]byte{0, 1, 1, 0, 9, 0, 0, 0, 1, 1, 7, 0})
	f.Add([]byte{0, 0, 4, 1, 9, 0, 0, 2, 1, 1, 7, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r, _ := newReassembler(t)
		oracle := &naive{first: make(map[int]int), last: -1}
		for ; len(in) >= 6; in = in[6:] {
			c := cut{off: (int(in[0])<<8 | int(in[1])) % 1024 * 8, more: in[3]&1 == 1}
			size := 1 + int(in[2])
			if c.more {
				size = (size + 7) &^ 7
			}
			c.data = bytes.Repeat(in[4:5], size)
			wantComplete, spoiled := oracle.add(c)
			got, complete := feed(r, fragmentKey{id: 1}, c)
			if complete != wantComplete {
				t.Fatalf("fragment %d+%d more=%v: complete is %v, want %v", c.off, size, c.more, complete, wantComplete)
			}
			if complete && !bytes.Equal(got, oracle.data[:oracle.total]) {
				t.Fatal("other bytes came out")
			}
			if complete || spoiled {
				if len(r.partial) != 0 || r.bytes != 0 {
					t.Fatalf("%d bytes are left", r.bytes)
				}
				oracle = &naive{first: make(map[int]int), last: -1}
			}
		}
	})
}
