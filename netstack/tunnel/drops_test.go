package tunnel

import (
	"testing"
	"time"
)

// TestDropsOutliveWhatDropped: a counter that falls would be taken for a
// restart by whoever scrapes it.
func TestDropsOutliveWhatDropped(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	c, p := join(t, e, n, "b1", handlers{}, "10.0.0.0/8")
	garbage := [][]byte{{4 << 4}, {7 << 4}} // no IPv4 header, and no IP at all
	if _, err := p.enter(); err != nil {    // so that there is a stack to drop it
		t.Fatal(err)
	}
	p.link.Deliver(garbage)
	p.leave()
	c.edge.link.Deliver(garbage)

	check := func(what string, tun *Tunnel, remove func()) {
		t.Helper()
		drops := func() map[[2]string]uint64 {
			sums := make(map[[2]string]uint64)
			tun.Drops(func(where, why string, n uint64) { sums[[2]string{where, why}] += n })
			return sums
		}
		before := drops()
		for _, place := range [][2]string{{"netstack", "malformed"}, {"link", "version"}} {
			if before[place] == 0 {
				t.Errorf("%s: nothing dropped at %v", what, place)
			}
		}
		remove()
		after := drops()
		for place, n := range before {
			if after[place] < n {
				t.Errorf("%s: %v fell from %d to %d", what, place, n, after[place])
			}
		}
	}
	check("a network that rests", e.Tunnel, func() {
		if !n.rest(time.Now().Add(2 * restAfter)) {
			t.Error("the network does not rest")
		}
	})
	check("a connector that goes", e.Tunnel, p.Remove)
	check("a network that goes", e.Tunnel, n.Close)
	check("an edge that goes", c.Tunnel, c.edge.Remove)
}
