package load

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var quantiles = []float64{0, 0.5, 0.9, 0.99, 0.999, 1}

// FuzzHistogram holds quantiles against those of the sorted values.
func FuzzHistogram(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	var wide, narrow []byte
	for range 3000 {
		wide = binary.LittleEndian.AppendUint64(wide, r.Uint64()>>(r.IntN(38)+26))
		narrow = binary.LittleEndian.AppendUint64(narrow, 300_000+r.Uint64N(5_000))
	}
	f.Add(wide)
	f.Add(narrow)
	f.Add([]byte{})
	f.Add([]byte{127, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 31, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var whole, first, second histogram
		var values []time.Duration
		for ; len(data) >= 8; data = data[8:] {
			v := time.Duration(binary.LittleEndian.Uint64(data) % (1 << topBits))
			values = append(values, v)
			whole.add(v)
			if len(values)%3 == 0 {
				first.add(v)
			} else {
				second.add(v)
			}
		}
		first.merge(&second)
		if first != whole {
			t.Fatal("two halves merged are not the whole")
		}
		if len(values) == 0 {
			return
		}
		slices.Sort(values)
		if whole.max != values[len(values)-1] || whole.n != uint64(len(values)) {
			t.Fatalf("max %v of %d values, want %v of %d", whole.max, whole.n, values[len(values)-1], len(values))
		}
		for _, q := range quantiles {
			want := values[max(1, int(math.Ceil(q*float64(len(values)))))-1]
			got := whole.quantile(q)
			if off := math.Abs(float64(got - want)); off > float64(want)/256+0.5 {
				t.Errorf("quantile %v is %d, want %d: wrong by %.2f %%", q, got, want, off/float64(want)*100)
			}
		}
	})
}

func TestHistogramEdges(t *testing.T) {
	var h histogram
	if h.quantile(0.5) != 0 {
		t.Error("a quantile of nothing is not 0")
	}
	h.add(-time.Second)
	h.add(time.Hour)
	if h.quantile(0.5) != 0 || h.max != time.Hour || h.quantile(1) > time.Hour {
		t.Errorf("p50 %v, max %v", h.quantile(0.5), h.max)
	}
	if n := testing.AllocsPerRun(100, func() { h.add(time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations a value", n)
	}
}
