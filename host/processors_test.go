package host

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	repeat := func(busy float64, n int) []float64 { return slices.Repeat([]float64{busy}, n) }
	for _, tt := range []struct {
		name string
		from int
		busy []float64
		want int
	}{
		{"at rest", 1, repeat(0.01, 50), 1},
		{"at work", 1, repeat(0.8, 50), 1},
		{"at hard work", 1, repeat(0.94, 50), 1},
		{"one is not enough", 1, repeat(0.99, paceHot), 2},
		{"for a moment", 1, append(repeat(0.99, paceHot-1), append(repeat(0.5, 1), repeat(0.99, paceHot-1)...)...), 1},
		{"nor are two", 1, append(repeat(0.99, paceHot), repeat(1.9, paceHot)...), 4},
		{"no more than there are", 8, repeat(8, 9), 8},
		{"a short rest", 2, repeat(0.1, paceCalm-1), 2},
		{"a rest with a start", 2, append(repeat(0.1, paceCalm-1), append([]float64{1}, repeat(0.1, paceCalm-1)...)...), 2},
		{"a rest", 2, repeat(0.1, paceCalm), 1},
		{"step by step", 4, repeat(0.1, 2*paceCalm), 2},
		{"one would do", 2, repeat(0.9, paceCalm), 1},
		{"two are of use", 2, repeat(1.1, 100), 2},
		{"three are of use", 3, repeat(1.1, 100), 3},
		{"two would do", 3, repeat(0.9, paceCalm), 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := pace{most: 8, now: tt.from}
			for _, busy := range tt.busy {
				before := p.now
				if changed := p.look(busy); changed != (p.now != before) {
					t.Errorf("from %d to %d, and says %v", before, p.now, changed)
				}
			}
			if p.now != tt.want {
				t.Errorf("%d processors, want %d", p.now, tt.want)
			}
		})
	}
}

func TestProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(3)
	defer runtime.GOMAXPROCS(before)
	run := func(t *testing.T) (within int) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { Processors(ctx); close(done) }()
		synctest.Wait()
		within = runtime.GOMAXPROCS(0)
		cancel()
		<-done
		if after := runtime.GOMAXPROCS(0); after != 3 {
			t.Errorf("%d processors afterwards, want the 3 of before", after)
		}
		return within
	}
	t.Run("at rest", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			if n := run(t); n != 1 {
				t.Errorf("%d processors, want 1", n)
			}
		})
	})
	t.Run("the operator knows better", func(t *testing.T) {
		t.Setenv("GOMAXPROCS", "3")
		synctest.Test(t, func(t *testing.T) {
			if n := run(t); n != 3 {
				t.Errorf("%d processors, want 3", n)
			}
		})
	})
	if used := processorTime(); used <= 0 || used > time.Hour {
		t.Errorf("this test has used %v", used)
	}
}
