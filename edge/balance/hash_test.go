package balance

import (
	"fmt"
	"testing"
)

// TestHashAtLightLoad: the flows of one client stay together.
func TestHashAtLightLoad(t *testing.T) {
	spec := pooled("db", "", b1, b2, b3)
	spec.Steering = byHash
	for client := range 50 {
		w := newWorld(t, []Spec{spec})
		home := w.pick("db", client).Endpoint
		for flow := range boundSlack - 1 {
			if got := w.pick("db", client).Endpoint; got != home {
				t.Fatalf("flow %d of client %d leads to %v, the first to %v", flow+2, client, got, home)
			}
		}
	}
}

// TestHashAcrossSizes: neither reloads nor names with more or fewer addresses
// move more clients than the endpoints that come or go have, where all
// endpoints would get half as many points on the ring, or twice as many.
func TestHashAcrossSizes(t *testing.T) {
	const clients = 4000
	all := large(600, byHash, nil)
	for i := range all.Endpoints {
		all.Endpoints[i].Host = "db.internal"
	}
	first := func(n int) Spec {
		spec := all
		spec.Endpoints = all.Endpoints[:n]
		return spec
	}
	for _, sizes := range [][]int{{256, 257, 256}, {257, 256, 257}, {510, 515, 255, 257}} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			w := newWorld(t, []Spec{first(sizes[0])})
			var before []Endpoint
			for step, n := range sizes {
				w.reload([]Spec{first(n)})
				var after []Endpoint
				moved := 0
				for i := range clients {
					pick := w.pick("large", i)
					pick.Release()
					after = append(after, pick.Endpoint)
					if step > 0 && pick.Endpoint != before[i] {
						moved++
					}
				}
				if step > 0 {
					was := sizes[step-1]
					share := float64(max(n, was)-min(n, was)) / float64(max(n, was))
					if got := float64(moved) / clients; got > share+0.03 {
						t.Errorf("from %d to %d endpoints %.2f of the clients move, want %.3f", was, n, got, share)
					}
				}
				before = after
			}
		})
	}
	// Memory stays bounded all the same.
	r := newRing(first(200).Endpoints, nil)
	for _, n := range []int{600, 5000, 10_000, 100} {
		if r = newRing(large(n, byHash, nil).Endpoints, r); len(r.points) > ringSlack*maxRingPoints || len(r.points) < min(n*ringPoints, maxRingPoints)/ringSlack/2 {
			t.Errorf("the ring of %d endpoints has %d points", n, len(r.points))
		}
	}
}
