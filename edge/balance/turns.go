package balance

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// Bounds of the tables of turns: what a period may cost to work out, and how
// many turns are worked out at one time where a period costs more.
const (
	maxPeriodWork = 1 << 20
	maxPeriod     = 1 << 16
	turnsAtOnce   = 8192
)

// turns is the order in which smooth weighted round robin takes slots: one
// period of nginx's, worked out beforehand. Where that would be too long the
// turns come by earliest deadline, which is as smooth, some thousand at a time.
type turns struct {
	n     uint64
	block atomic.Pointer[[]uint16] // nil: all weights are the same

	mu    sync.Mutex // guards what follows; whoever takes a block's last turn moves it on
	next  []uint64   // a heap of deadline<<16 | slot; nil: block is a whole period
	every []uint64   // between two turns of a slot
}

// wholeTurn is the deadline of a weight of 1: 2^40 leaves the heap 48 bits for
// a virtual time that refill sets back.
const wholeTurn = 1 << 40

func newTurns(slots []slot) *turns {
	t := &turns{n: uint64(len(slots))}
	if len(slots) == 0 {
		return t
	}
	var divisor, period uint64
	same := true
	for _, s := range slots {
		divisor = gcd(divisor, s.weight)
		period += s.weight
		same = same && s.weight == slots[0].weight
	}
	if same {
		return t
	}
	period /= divisor
	if period <= maxPeriodWork && period*t.n <= maxPeriodWork {
		t.block.Store(smooth(slots, int64(divisor), int(period)))
		return t
	}
	t.every = make([]uint64, t.n)
	t.next = make([]uint64, t.n)
	for i, s := range slots {
		t.every[i] = wholeTurn / s.weight
		t.next[i] = t.every[i]/2<<memberBits | uint64(i)
	}
	for i := len(t.next) / 2; i >= 0; i-- {
		t.sink(i)
	}
	if period <= maxPeriod {
		t.refill(int(period))
		t.next, t.every = nil, nil
		return t
	}
	t.refill(turnsAtOnce)
	return t
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// smooth is nginx's algorithm: at each turn every slot gains its weight, the
// one that has most is taken and pays the sum.
func smooth(slots []slot, divisor int64, period int) *[]uint16 {
	order := make([]uint16, period)
	have := make([]int64, len(slots))
	for turn := range order {
		best := 0
		for i := range slots {
			have[i] += int64(slots[i].weight) / divisor
			if have[i] > have[best] {
				best = i
			}
		}
		have[best] -= int64(period)
		order[turn] = uint16(best)
	}
	return &order
}

// at returns the slot of the k-th turn.
func (t *turns) at(k uint64) int {
	block := t.block.Load()
	if block == nil {
		return int(k % t.n)
	}
	i := k % uint64(len(*block))
	slot := int((*block)[i])
	if t.every != nil && i == turnsAtOnce-1 {
		t.refill(turnsAtOnce)
	}
	return slot
}

// refill works out the n turns that follow.
func (t *turns) refill(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	past := t.next[0] >> memberBits << memberBits
	for i := range t.next {
		t.next[i] -= past
	}
	block := make([]uint16, n)
	for i := range block {
		slot := t.next[0] & (1<<memberBits - 1)
		block[i] = uint16(slot)
		t.next[0] += t.every[slot] << memberBits
		t.sink(0)
	}
	t.block.Store(&block)
}

// sink restores the heap's order below i.
func (t *turns) sink(i int) {
	h := t.next
	x := h[i]
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1] < h[child] {
			child++
		}
		if x <= h[child] {
			break
		}
		h[i] = h[child]
		i = child
	}
	h[i] = x
}

// odds draws slots at random, by weight, in constant time: the alias method
// (Walker 1977, Vose 1991).
type odds struct {
	n     uint64
	cut   []uint32 // nil: all weights are the same
	other []uint16
}

func newOdds(slots []slot) *odds {
	o := &odds{n: uint64(len(slots))}
	var total uint64
	same := true
	for _, s := range slots {
		total += s.weight
		same = same && s.weight == slots[0].weight
	}
	if same {
		return o
	}
	o.cut, o.other = make([]uint32, o.n), make([]uint16, o.n)
	scaled := make([]float64, o.n) // 1 is the average
	var small, large []uint16
	for i, s := range slots {
		scaled[i] = float64(s.weight) * float64(o.n) / float64(total)
		if scaled[i] < 1 {
			small = append(small, uint16(i))
		} else {
			large = append(large, uint16(i))
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		o.cut[s], o.other[s] = uint32(scaled[s]*(1<<32)), l
		if scaled[l] -= 1 - scaled[s]; scaled[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range append(small, large...) {
		o.cut[i], o.other[i] = 1<<32-1, i
	}
	return o
}

func (o *odds) draw() int {
	r := rand.Uint64()
	i := (r >> 32) * o.n >> 32
	if o.cut == nil || uint32(r) < o.cut[i] {
		return int(i)
	}
	return int(o.other[i])
}
