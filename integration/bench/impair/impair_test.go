package impair

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	for _, test := range []struct {
		text string
		want Spec
		ok   bool
	}{
		{"", Spec{}, true},
		{"delay=20ms,loss=0.1%,reorder=1%", Spec{20 * time.Millisecond, 0.001, 0.01}, true},
		{"loss=100%", Spec{Loss: 1}, true},
		{"delay=20", Spec{}, false},
		{"delay=-1ms", Spec{}, false},
		{"delay=1h", Spec{}, false},
		{"loss=0.1", Spec{}, false},
		{"loss=101%", Spec{}, false},
		{"loss=NaN%", Spec{}, false},
		{"loss=1%,loss=2%", Spec{}, false},
		{"jitter=1ms", Spec{}, false},
		{"delay=1ms,", Spec{}, false},
	} {
		got, err := Parse(test.text)
		if (err == nil) != test.ok || math.Abs(got.Loss-test.want.Loss) > 1e-12 || got.Delay != test.want.Delay || got.Reorder != test.want.Reorder {
			t.Errorf("Parse(%q) = %+v, %v; want %+v, ok %v", test.text, got, err, test.want, test.ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("delay=20ms,loss=0.1%,reorder=1%")
	f.Add("loss=1e-3%")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.Delay != s.Delay || math.Abs(again.Loss-s.Loss) > 1e-12 || math.Abs(again.Reorder-s.Reorder) > 1e-12 {
			t.Fatalf("%q is %+v, whose text %q is %+v (%v)", text, s, s, again, err)
		}
	})
}

// oracle is the queue without a heap: fates drawn in the same order, packets
// sorted by when they are due.
func oracle(spec Spec, seed uint64, came []time.Time) (order []int) {
	q := NewQueue(spec, seed) // for its lots alone
	type due struct {
		at time.Time
		n  int
	}
	var all []due
	for n, at := range came {
		lost, late := q.lots.Float64() < spec.Loss, q.lots.Float64() < spec.Reorder
		if lost {
			continue
		}
		at = at.Add(spec.Delay / 2)
		if late {
			at = at.Add(reorderBy)
		}
		all = append(all, due{at, n})
	}
	slices.SortStableFunc(all, func(a, b due) int { return a.at.Compare(b.at) })
	for _, d := range all {
		order = append(order, d.n)
	}
	return order
}

func FuzzQueue(f *testing.F) {
	f.Add([]byte{0, 0, 5, 200, 3, 3, 3, 3}, uint8(20), uint8(30), uint8(50), uint64(1))
	f.Fuzz(func(t *testing.T, gaps []byte, delay, loss, reorder uint8, seed uint64) {
		if len(gaps) > queueLimit {
			return
		}
		spec := Spec{Delay: time.Duration(delay) * time.Millisecond, Loss: float64(loss) / 255, Reorder: float64(reorder) / 255}
		now := time.Unix(0, 0)
		var came []time.Time
		var got []int
		q := NewQueue(spec, seed)
		drain := func() {
			for {
				p, ok := q.Pop(now)
				if !ok {
					return
				}
				n := int(binary.BigEndian.Uint32(p))
				if early := came[n].Add(spec.Delay / 2).Sub(now); early > 0 {
					t.Fatalf("packet %d came out %v early", n, early)
				}
				got = append(got, n)
			}
		}
		for n, gap := range gaps {
			// Everything that is due before the next packet comes leaves first.
			until := now.Add(time.Duration(gap) * 50 * time.Microsecond)
			for {
				due, ok := q.Due()
				if !ok || !due.Before(until) {
					break
				}
				now = due
				drain()
			}
			now = until
			came = append(came, now)
			q.Push(now, binary.BigEndian.AppendUint32(nil, uint32(n)))
		}
		now = now.Add(time.Hour)
		drain()
		if want := oracle(spec, seed, came); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		if uint64(len(got))+q.Lost != uint64(len(gaps)) {
			t.Fatalf("%d came, %d left, %d are lost", len(gaps), len(got), q.Lost)
		}
	})
}

func TestQueueLosesAndReordersAsOftenAsAsked(t *testing.T) {
	const count = 200_000
	spec := Spec{Delay: 20 * time.Millisecond, Loss: 0.01, Reorder: 0.05}
	q := NewQueue(spec, 7)
	now := time.Unix(0, 0)
	var out, overtaken int
	last := -1
	for n := range count {
		now = now.Add(100 * time.Microsecond)
		q.Push(now, binary.BigEndian.AppendUint32(nil, uint32(n)))
		for {
			p, ok := q.Pop(now)
			if !ok {
				break
			}
			out++
			if n := int(binary.BigEndian.Uint32(p)); n < last {
				overtaken++
			} else {
				last = n
			}
		}
	}
	for _, share := range []struct {
		name      string
		got, want float64
	}{
		{"lost", float64(q.Lost) / count, spec.Loss},
		{"late", float64(q.Late) / count, spec.Reorder * (1 - spec.Loss)},
		{"overtaken", float64(overtaken) / count, spec.Reorder * (1 - spec.Loss)},
	} {
		if math.Abs(share.got-share.want) > 0.1*share.want {
			t.Errorf("%s: %.4f, want about %.4f", share.name, share.got, share.want)
		}
	}
}

func TestQueueIsBounded(t *testing.T) {
	q := NewQueue(Spec{Delay: time.Second}, 0)
	now := time.Unix(0, 0)
	for range queueLimit {
		if !q.Push(now, nil) {
			t.Fatal("the queue refuses a packet before it is full")
		}
	}
	if q.Push(now, nil) || q.Overflowed != 1 {
		t.Fatalf("a full queue takes a packet; %d overflowed", q.Overflowed)
	}
}

// end is a TUN device without a kernel: packets go over channels.
type end struct {
	in, out chan []byte
	closed  chan struct{}
}

func newEnd() *end {
	return &end{in: make(chan []byte, 100), out: make(chan []byte, 100), closed: make(chan struct{})}
}

func (e *end) Read(p []byte) (int, error) {
	select {
	case packet := <-e.in:
		return copy(p, packet), nil
	case <-e.closed:
		return 0, io.EOF
	}
}
func (e *end) Write(p []byte) (int, error) { e.out <- bytes.Clone(p); return len(p), nil }
func (e *end) Close() error                { close(e.closed); return nil }

func TestRouterCarriesBothWays(t *testing.T) {
	a, b := newEnd(), newEnd()
	r := Start(Spec{Delay: 2 * time.Millisecond}, a, b)
	defer r.Close()
	for _, way := range []struct {
		name     string
		from, to *end
	}{{"a to b", a, b}, {"b to a", b, a}} {
		for round := range 2 { // the second in the buffers of the first
			started := time.Now()
			for n := range 50 {
				way.from.in <- []byte(fmt.Sprintf("%s %d %d", way.name, round, n))
			}
			for n := range 50 {
				if got, want := string(<-way.to.out), fmt.Sprintf("%s %d %d", way.name, round, n); got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
			}
			if took := time.Since(started); took < time.Millisecond {
				t.Errorf("%s: the packets were there after %v, before their time", way.name, took)
			}
		}
	}
}
