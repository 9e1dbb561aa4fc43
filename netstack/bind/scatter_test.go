package bind

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

// wireMessage is a message as a kernel has it: data in datagrams of segment bytes.
type wireMessage struct {
	data    []byte
	segment int
	ep      *Endpoint
}

// split is the oracle.
func (m wireMessage) split() (out [][]byte) {
	if len(m.data) == 0 {
		return [][]byte{{}}
	}
	for chunk := range slices.Chunk(m.data, m.segment) {
		out = append(out, chunk)
	}
	return out
}

// scatterRig is a device, and a kernel with a queue of messages.
type scatterRig struct {
	scatter
	batch
	gathers bool
	queue   []wireMessage
	copied  int // bytes that did not land in place
}

func newScatterRig(bufs, size int) *scatterRig {
	r := &scatterRig{gathers: true}
	for range bufs {
		r.bufs = append(r.bufs, make([]byte, size))
	}
	r.sizes, r.eps = make([]int, bufs), make([]conn.Endpoint, bufs)
	return r
}

type got struct {
	data string
	ep   *Endpoint
}

// receive is the receive function over the kernel's queue, as in recvmmsg: one
// message a lane, at most most of them.
func (r *scatterRig) receive(t testing.TB, most int) (out []got) {
	t.Helper()
	for i := range r.sizes { // what is stale must not come back
		r.sizes[i], r.eps[i] = 1, &Endpoint{}
		for j := range min(len(r.bufs[i]), 64) {
			r.bufs[i][j] = 0xee
		}
	}
	n := 0
	if len(r.left) > 0 {
		n = r.deliver(r.batch)
	} else {
		sh := r.shape(r.bufs, r.gathers)
		messages := min(sh.lanes, most, len(r.queue))
		long := 1
		var ms []message
		for lane, w := range r.queue[:messages] {
			rest := w.data
			for j := range sh.length {
				rest = rest[copy(sh.vector(r.bufs, lane, j), rest):]
			}
			if sh.length == 0 {
				rest = rest[copy(r.spare, rest):]
			}
			if len(rest) > 0 {
				t.Fatalf("%+v cuts off %d bytes of a message of %d", sh, len(rest), len(w.data))
			}
			ms = append(ms, message{len(w.data), min(w.segment, len(w.data)), w.ep})
			long = max(long, ms[lane].datagrams())
		}
		for lane, m := range ms {
			before := len(r.carry)
			r.learn(m)
			n = r.place(r.batch, sh, lane, lane == messages-1, m)
			r.copied += max(len(r.carry)-before, 0)
		}
		r.learnCall(messages, long)
		r.queue = r.queue[messages:]
	}
	for i, size := range r.sizes[:n] {
		if r.eps[i] != nil {
			out = append(out, got{string(r.bufs[i][:size]), r.eps[i].(*Endpoint)})
		} else if size != 0 {
			t.Fatalf("buffer %d has size %d and nobody who sent it", i, size)
		}
	}
	return out
}

// check receives until all is there and compares with the oracle.
func (r *scatterRig) check(t testing.TB, most func() int) {
	t.Helper()
	var want []got
	for _, m := range r.queue {
		for _, d := range m.split() {
			want = append(want, got{string(d), m.ep})
		}
	}
	for len(r.queue) > 0 || len(r.left) > 0 {
		for _, g := range r.receive(t, most()) {
			if len(want) == 0 {
				t.Fatalf("a datagram of %d bytes too many", len(g.data))
			}
			if g != want[0] {
				t.Fatalf("a datagram of %d bytes, want %d; %d to come; endpoint %v", len(g.data), len(want[0].data), len(want), g.ep == want[0].ep)
			}
			want = want[1:]
		}
	}
	if len(want) > 0 {
		t.Fatalf("%d datagrams are lost", len(want))
	}
	if r.truncated > 0 {
		t.Fatalf("%d truncated", r.truncated)
	}
	if cap(r.carry) > keptCarry {
		t.Fatalf("%d bytes are kept", cap(r.carry))
	}
}

func filled(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		v := r.Uint64()
		for j := i; j < min(i+8, n); j++ {
			b[j] = byte(v >> (8 * (j - i)))
		}
	}
	return b
}

// TestScatterAgainstSplitting is random traffic, in phases as traffic has them.
func TestScatterAgainstSplitting(t *testing.T) {
	for _, bufs := range []int{1, 2, 3, 8, 32, 64, 127, 128} {
		t.Run(fmt.Sprint(bufs), func(t *testing.T) {
			for seed := range uint64(2) {
				r := rand.New(rand.NewPCG(seed, uint64(bufs)))
				rig := newScatterRig(bufs, 1<<16-1)
				for range 40 { // phases
					size := 1 + []int{r.IntN(64), 111, 1451, r.IntN(2000), r.IntN(9000), r.IntN(maxPayload)}[r.IntN(6)]
					mixed := r.IntN(3) == 0
					for range 1 + r.IntN(10) {
						s, n := size, 1+r.IntN(64)
						if mixed {
							s, n = 1+r.IntN(2*size), 1+r.IntN(3)
						}
						s = min(s, maxPayload)
						total := min(s*n-r.IntN(s), maxPayload)
						if r.IntN(50) == 0 {
							total = 0
						}
						rig.queue = append(rig.queue, wireMessage{filled(r, total), s, &Endpoint{}})
					}
					rig.check(t, func() int { return 1 + r.IntN(bufs) })
				}
			}
		})
	}
}

// FuzzScatter is the same from a fuzzer's hand: each message is four bytes.
func FuzzScatter(f *testing.F) {
	f.Add(uint8(128), []byte{5, 172, 41, 0, 5, 172, 41, 0, 5, 172, 41, 0})
	f.Add(uint8(32), []byte{0, 100, 64, 0, 5, 172, 1, 0, 255, 247, 1, 0, 0, 1, 64, 0})
	f.Add(uint8(3), []byte{0, 10, 60, 5, 0, 10, 60, 5, 0, 20, 1, 0, 0, 10, 60, 5})
	f.Fuzz(func(t *testing.T, bufs uint8, script []byte) {
		rig := newScatterRig(int(bufs)%maxBatch+1, 1<<16-1)
		r := rand.New(rand.NewPCG(1, uint64(len(script))))
		for m := range slices.Chunk(script[:min(len(script), 256)], 4) {
			if len(m) < 4 {
				break
			}
			segment := min(max(int(m[0])<<8|int(m[1]), 1), maxPayload)
			total := min(segment*(int(m[2])%(maxSegments+1)), maxPayload)
			total = max(total-int(m[3])%segment, 0)
			rig.queue = append(rig.queue, wireMessage{filled(r, total), segment, &Endpoint{}})
			if m[3]&1 == 1 {
				rig.check(t, func() int { return 1 + int(m[3])>>1 })
			}
		}
		rig.check(t, func() int { return maxBatch })
	})
}

// TestNothingIsCopiedWhereTheGuessIsRight: bulk with its tails, bulk with
// acknowledgements alone between, and single datagrams of any size.
func TestNothingIsCopiedWhereTheGuessIsRight(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	one := func(size int) []wireMessage { return []wireMessage{{filled(r, size), size, nil}} }
	run := func(size, n, tail int) []wireMessage {
		return []wireMessage{{filled(r, size*n+tail), size, nil}}
	}
	for _, tt := range []struct {
		name     string
		bufs     int
		messages func(i int) []wireMessage
	}{
		{"bulk", 128, func(int) []wireMessage {
			return slices.Concat(run(1452, 41, 0), run(1452, 41, 0), run(1452, 41, 0), run(1452, 4, 100))
		}},
		{"bulk in a small batch", 64, func(int) []wireMessage { return run(1452, 41, 0) }},
		{"jumbo", 128, func(int) []wireMessage { return slices.Concat(run(8952, 6, 7), run(8952, 6, 0)) }},
		{"acknowledgements", 128, func(int) []wireMessage { return run(112, 64, 0) }},
		{"bulk and single ones", 128, func(i int) []wireMessage { return slices.Concat(one(32+i%1000), run(1452, 41, 0), one(148)) }},
		{"singles", 128, func(i int) []wireMessage { return one(1 + i*37%maxPayload) }},
		{"short runs", 128, func(i int) []wireMessage { return run(128, 1+i%5, 0) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rig := newScatterRig(tt.bufs, 1<<16-1)
			for i := range 100 {
				if i == 10 {
					rig.copied = 0
				}
				rig.queue = tt.messages(i)
				for j := range rig.queue {
					rig.queue[j].ep = &Endpoint{}
				}
				rig.check(t, func() int { return maxBatch })
			}
			if rig.copied != 0 {
				t.Errorf("%d bytes were copied", rig.copied)
			}
		})
	}
}

// TestGuessFollowsTheTraffic up at once, down after a while.
func TestGuessFollowsTheTraffic(t *testing.T) {
	var s scatter
	for _, tt := range []struct{ size, segment, times, want int }{
		{3000, 1000, 1, 1000},
		{4000, 1452, 1, 1452},
		{1000, 100, patientGuess - 1, 1452},
		{4000, 1452, 1, 1452},
		{1000, 100, patientGuess - 1, 1452},
		{50, 50, 100, 1452}, // single ones say nothing
		{1000, 100, 1, 100},
		{9000, 9000, 1, 9000},
	} {
		for range tt.times {
			s.learn(message{size: tt.size, segment: tt.segment})
		}
		if s.guess != tt.want {
			t.Errorf("after %+v the guess is %d", tt, s.guess)
		}
	}
}

// TestSmallBuffersLoseNothing: buffers that cannot hold a whole message.
func TestSmallBuffersLoseNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	rig := newScatterRig(7, 1500)
	for range 200 {
		segment := 1 + r.IntN(1500)
		rig.queue = append(rig.queue, wireMessage{filled(r, min(segment*(1+r.IntN(64)), maxPayload)), segment, &Endpoint{}})
	}
	rig.check(t, func() int { return 7 })
	rig.queue = append(rig.queue, wireMessage{filled(r, 4000), 1501, &Endpoint{}})
	data := rig.queue[0].data
	out := rig.receive(t, 7)
	if len(out) != 3 || out[0].data != "" || out[1].data != "" || out[2].data != string(data[3002:]) || rig.truncated != 2 {
		t.Errorf("%d datagrams, %d truncated", len(out), rig.truncated)
	}
}

func TestKernelWithoutGatheringFillsEveryBuffer(t *testing.T) {
	rig := newScatterRig(100, 2000)
	rig.gathers, rig.guess, rig.long = false, 1452, 41
	if got := rig.shape(rig.bufs, false); got != (shape{lanes: 100, length: 1}) {
		t.Errorf("%+v", got)
	}
	if !bytes.Equal(rig.bufs[0], make([]byte, 2000)) {
		t.Error("shape writes to a buffer")
	}
}
