package drops

import (
	"sync"
	"testing"
)

func TestCounter(t *testing.T) {
	var c Counter
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				c.Add("full", 1)
				c.Add("closed", 2)
			}
		})
	}
	wg.Wait()
	got := map[string]uint64{}
	c.Each(func(why string, n uint64) { got[why] = n })
	if got["full"] != 8000 || got["closed"] != 16000 || len(got) != 2 {
		t.Errorf("counts = %v, want full 8000 and closed 16000", got)
	}
	if c.Count("full") != 8000 || c.Count("never") != 0 || c.Total() != 24000 {
		t.Errorf("Count(full) = %d, Count(never) = %d, Total = %d", c.Count("full"), c.Count("never"), c.Total())
	}
}

func TestAddDoesNotAllocate(t *testing.T) {
	var c Counter
	why := "full"
	c.Add(why, 1)
	if n := testing.AllocsPerRun(100, func() { c.Add(why, 1) }); n > 0 {
		t.Errorf("Add allocates %v times", n)
	}
}
