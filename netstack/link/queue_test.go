package link

import (
	"math/rand/v2"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// sized are packets to queue, one of each size that a test asks for.
type sized map[int]*stack.PacketBuffer

func (s sized) packet(size int) *stack.PacketBuffer {
	if s[size] == nil {
		s[size] = stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(make([]byte, size))})
	}
	return s[size]
}

// naiveQueue says the same as queue by looking through slices. A packet is its
// size.
type naiveQueue struct {
	fresh, old []*naiveFlow
	lead       int
}

type naiveFlow struct {
	key     uint64
	packets []int
	deficit int
}

func (q *naiveQueue) all() []*naiveFlow { return slices.Concat(q.fresh, q.old) }

func (q *naiveQueue) find(key uint64) *naiveFlow {
	for _, f := range q.all() {
		if f.key == key {
			return f
		}
	}
	return nil
}

func (q *naiveQueue) idle() (n int) {
	for _, f := range q.old {
		if len(f.packets) == 0 {
			n++
		}
	}
	return n
}

func (q *naiveQueue) push(key uint64, size int) {
	f, shared := q.find(key), q.find(sharedFlow)
	if f == nil && (len(q.all()) >= maxFlows || shared != nil && len(shared.packets) > 0) {
		f, key = shared, sharedFlow
	}
	if f == nil {
		f = &naiveFlow{key: key, deficit: credit}
		q.fresh = append(q.fresh, f)
	}
	if i := slices.Index(q.old, f); i >= 0 && len(f.packets) == 0 && size <= f.deficit {
		q.old = slices.Delete(q.old, i, i+1)
		q.fresh = append(q.fresh, f)
	}
	f.packets = append(f.packets, size)
}

func (q *naiveQueue) pop() (key uint64, size int) {
	for {
		if len(q.fresh) > 0 && (q.lead < maxLead || len(q.old) == 0) {
			f := q.fresh[0]
			if len(f.packets) > 0 && f.packets[0] <= f.deficit {
				size = f.send()
				if len(q.old) > 0 {
					q.lead += size
				}
				q.forgetAll()
				return f.key, size
			}
			q.fresh = q.fresh[1:]
			if len(f.packets) > 0 {
				f.deficit += quantum
			} else if q.idle() >= maxIdle {
				continue
			}
			q.old = append(q.old, f)
			continue
		}
		f := q.old[0]
		switch {
		case f.deficit <= 0:
			f.deficit += quantum
			q.old = append(q.old[1:], f)
		case len(f.packets) == 0:
			q.old = q.old[1:]
		default:
			size = f.send()
			q.lead = max(0, q.lead-size)
			if len(f.packets) == 0 {
				f.deficit = min(f.deficit, credit)
			}
			q.forgetAll()
			return f.key, size
		}
	}
}

func (f *naiveFlow) send() int {
	size := f.packets[0]
	f.packets = f.packets[1:]
	f.deficit -= size
	return size
}

func (q *naiveQueue) forgetAll() {
	if q.count() == 0 {
		*q = naiveQueue{}
	}
}

func (q *naiveQueue) count() (n int) {
	for _, f := range q.all() {
		n += len(f.packets)
	}
	return n
}

// compare has queue and naiveQueue do the same, and fails where they differ.
// next returns the flow, beginning at 1, and the size of a packet to push, or 0
// for a pop, or -1 at the end.
func compare(t *testing.T, next func() (flow, size int)) {
	t.Helper()
	packets := sized{}
	var q queue
	var naive naiveQueue
	for step := 0; ; step++ {
		flow, size := next()
		if flow < 0 {
			break
		}
		if flow > 0 {
			q.push(uint64(flow), packets.packet(size))
			naive.push(uint64(flow), size)
		} else if q.len() > 0 {
			_, want := naive.pop()
			if got := q.pop().Size(); got != want {
				t.Fatalf("step %d: a packet of %d bytes, want one of %d", step, got, want)
			}
		}
		if q.active > maxFlows+1 || q.active != len(naive.all()) || q.idle != naive.idle() || q.len() != naive.count() {
			t.Fatalf("step %d: %d flows, %d idle, %d packets; want %d, %d, %d", step, q.active, q.idle, q.len(),
				len(naive.all()), naive.idle(), naive.count())
		}
	}
	for q.len() > 0 {
		_, want := naive.pop()
		if got := q.pop().Size(); got != want {
			t.Fatalf("at the end: a packet of %d bytes, want one of %d", got, want)
		}
	}
	if q != (queue{}) {
		t.Fatalf("an empty queue holds %+v", q)
	}
}

func TestQueueIsTheNaiveOne(t *testing.T) {
	sizes := []int{40, 52, 104, 1400, 4096, 4097, 9000, 30000, 65535}
	for _, tc := range []struct {
		name         string
		flows, steps int
		most         int // packets
		sizes        []int
	}{
		{"few flows", 5, 20000, 60, sizes},
		{"many flows", 200, 20000, 1500, sizes},
		{"often empty", 20, 20000, 3, sizes},
		{"small packets", 300, 10000, 400, sizes[:4]},
		{"more flows than there may be", 3000, 12000, 5000, sizes[:3]},
		{"ever new flows", 1 << 30, 6000, 300, sizes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(3, uint64(tc.flows)))
			waiting, filling := 0, true
			compare(t, func() (int, int) {
				if tc.steps--; tc.steps < 0 {
					return -1, 0
				}
				if waiting == 0 || waiting >= tc.most {
					filling = waiting == 0
				}
				if waiting > 0 && (rng.IntN(5) < 2) == filling {
					waiting--
					return 0, 0
				}
				waiting++
				// Sizes differ by a flow's few bytes, so that packets can be told apart.
				flow := 1 + rng.IntN(tc.flows)
				return flow, min(65535, tc.sizes[rng.IntN(len(tc.sizes))]+flow%7)
			})
		})
	}
}

func FuzzQueue(f *testing.F) {
	f.Add([]byte{1, 255, 2, 0, 0, 1, 10, 0, 0})
	f.Add([]byte{1, 3, 0, 1, 3, 0, 0, 2, 250, 2, 250, 0, 1, 3, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		compare(t, func() (int, int) {
			if len(b) == 0 || len(b) == 1 && b[0] != 0 {
				return -1, 0
			}
			if b[0] == 0 {
				b = b[1:]
				return 0, 0
			}
			flow, size := int(b[0]), 1+int(b[1])*int(b[1])
			b = b[2:]
			return flow, size
		})
	})
}

// TestFlowsShareByBytes: over time each flow sends as much, whatever the size
// of its packets, whether it always has one more or, where each is more than a
// quantum, only once the last went.
func TestFlowsShareByBytes(t *testing.T) {
	sizes := []int{1400, 40000, 9000, 20000, 65535, 65535, 65535}
	packets := sized{}
	var q queue
	var sent [16]int
	push := func(flow int) { q.push(uint64(flow+1), packets.packet(sizes[flow]-flow)) }
	for flow := range sizes {
		push(flow)
		if flow%2 == 0 {
			for range 100 {
				push(flow)
			}
		}
	}
	const total = 200 << 20
	for q.bytes > 0 {
		size := q.pop().Size()
		flow := slices.IndexFunc([]int{0, 1, 2, 3, 4, 5, 6}, func(i int) bool { return sizes[i]-i == size })
		sent[flow] += size
		all := 0
		for _, n := range sent {
			all += n
		}
		if all > total {
			break
		}
		push(flow)
	}
	for flow := range sizes {
		if share := float64(sent[flow]) / total * float64(len(sizes)); share < 0.97 || share > 1.03 {
			t.Errorf("flow %d, packets of %d bytes, sent %.2f of its share", flow, sizes[flow], share)
		}
	}
}

// TestNewFlowsDoNotStarveOldOnes: however many new flows come, an old one has
// half, and waits for no more than maxLead and a packet at a time.
func TestNewFlowsDoNotStarveOldOnes(t *testing.T) {
	packets := sized{}
	var q queue
	old, fresh, since := 0, 0, 0
	bulk, small := packets.packet(60000), packets.packet(1400)
	for i := range 100 {
		q.push(1, bulk)
		q.push(uint64(1000+i), small)
	}
	for key := uint64(2000); key < 20000; key++ {
		q.push(key, small)
		if pkt := q.pop(); pkt == small {
			fresh += small.Size()
			since += small.Size()
		} else {
			old, since = old+bulk.Size(), 0
			q.push(1, bulk)
		}
		if since > maxLead+bulk.Size()+small.Size() {
			t.Fatalf("%d bytes of new flows went while an old one waited", since)
		}
	}
	if old*11 < fresh*10 {
		t.Errorf("an old flow sent %d bytes beside %d of new flows", old, fresh)
	}
	for q.len() > 0 {
		q.pop()
	}
}

// TestQueueAllocatesNothing once its tables have grown: neither while it holds
// packets nor when it falls empty and fills again.
func TestQueueAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools")
	}
	packets := sized{}
	small, bulk := packets.packet(100), packets.packet(60000)
	var q queue
	fill := func(flows int) {
		for i := range flows {
			q.push(uint64(1+i), bulk)
			q.push(uint64(1000+i), small)
		}
		for q.len() > 1 {
			q.pop()
		}
	}
	for _, flows := range []int{1, 8, 128, 500} {
		if n := testing.AllocsPerRun(100, func() { fill(flows); q.pop() }); n != 0 {
			t.Errorf("%d flows: %v allocations from empty to empty", flows, n)
		}
		if n := testing.AllocsPerRun(100, func() { fill(flows) }); n != 0 {
			t.Errorf("%d flows: %v allocations, never empty", flows, n)
		}
		q.pop()
	}
}
