package balance

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// health is a hand-written Health: everything is up but what is listed.
type health map[string]string // "network/addr monitor" → why it is down

func (h health) Up(network string, addr netip.AddrPort, monitor string) (bool, string) {
	why, down := h[network+"/"+addr.String()+" "+monitor]
	return !down, why
}

func endpoint(s string) Endpoint {
	network, addr, _ := strings.Cut(s, "/")
	return Endpoint{Network: network, Addr: netip.MustParseAddrPort(addr)}
}

func pooled(name, monitor string, endpoints ...string) Spec {
	s := Spec{Name: name, Monitor: monitor, Steering: "round_robin"}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, endpoint(e))
	}
	return s
}

func triedSet(endpoints ...string) func(Endpoint) bool {
	set := make(map[Endpoint]bool)
	for _, e := range endpoints {
		set[endpoint(e)] = true
	}
	return func(e Endpoint) bool { return set[e] }
}

// picks asks n times and returns the endpoints, "-" where there was none.
func picks(d *Director, pools []string, n int) []string {
	var got []string
	for range n {
		pick, _, ok := d.Pick(pools, nil)
		if !ok {
			got = append(got, "-")
			continue
		}
		got = append(got, pick.Endpoint.String())
	}
	return got
}

const (
	b1 = "berlin/10.0.0.10:5432"
	b2 = "berlin/10.0.0.11:5432"
	b3 = "berlin/10.0.0.12:5432"
	t1 = "tokyo/10.0.0.10:5432"
)

func TestPickRoundRobin(t *testing.T) {
	tests := []struct {
		name   string
		health health
		want   []string
	}{
		{"all up", nil, []string{b1, b2, b3, b1, b2, b3, b1}},
		{"one down gets nothing, and its turns are shared", health{b1 + " pg": "refused"}, []string{b2, b3, b2, b3}},
		{"the middle one down", health{b2 + " pg": "refused"}, []string{b1, b3, b1, b3}},
		{"all down", health{b1 + " pg": "x", b2 + " pg": "x", b3 + " pg": "x"}, []string{"-", "-"}},
		{"another monitor's verdict does not count", health{b1 + " http": "x"}, []string{b1, b2, b3}},
		{"the same address in another network does not count", health{t1 + " pg": "x"}, []string{b1, b2, b3}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := New([]Spec{pooled("db", "pg", b1, b2, b3)}, test.health)
			if diff := cmp.Diff(test.want, picks(d, []string{"db"}, len(test.want))); diff != "" {
				t.Errorf("picks differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPickWhy(t *testing.T) {
	down := health{b1 + " pg": "connection refused", b2 + " pg": "connection timed out"}
	specs := []Spec{
		pooled("berlin-db", "pg", b1, b2),
		pooled("tokyo-db", "pg", t1),
		pooled("plain", "", b1, b2),
		pooled("empty", ""),
	}
	tests := []struct {
		name   string
		pools  []string
		health health
		tried  func(Endpoint) bool
		want   string // the endpoint, "" for none
		why    string
	}{
		{"the first pool serves", []string{"berlin-db", "tokyo-db"}, nil, nil, b1,
			`pool "berlin-db" by round_robin`},
		{"failover says why", []string{"berlin-db", "tokyo-db"}, down, nil, t1,
			`pool "tokyo-db" by round_robin; pool "berlin-db" has no healthy endpoint: 2 down (10.0.0.10:5432: connection refused)`},
		{"all down", []string{"berlin-db"}, down, nil, "",
			`pool "berlin-db" has no healthy endpoint: 2 down (10.0.0.10:5432: connection refused)`},
		{"a retry skips what was tried", []string{"berlin-db"}, nil, triedSet(b1), b2,
			`pool "berlin-db" by round_robin`},
		{"a retry goes on to the next pool", []string{"berlin-db", "tokyo-db"}, nil, triedSet(b1, b2), t1,
			`pool "tokyo-db" by round_robin; pool "berlin-db" has no endpoint left: 2 tried`},
		{"tried and down together", []string{"berlin-db"}, health{b2 + " pg": "refused"}, triedSet(b1), "",
			`pool "berlin-db" has no endpoint left: 1 tried, 1 down (10.0.0.11:5432: refused)`},
		{"no monitor ignores health", []string{"plain"}, health{b1 + " ": "x", b2 + " ": "x"}, nil, b1,
			`pool "plain" by round_robin`},
		{"a pool without endpoints", []string{"empty"}, nil, nil, "", `pool "empty" has no endpoint`},
		{"a pool that is not there", []string{"gone", "plain"}, nil, nil, b1,
			`pool "plain" by round_robin; pool "gone" is not defined`},
		{"no pools", nil, nil, nil, "", "no pool to pick from"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			pick, why, ok := New(specs, test.health).Pick(test.pools, test.tried)
			if ok != (test.want != "") {
				t.Fatalf("ok = %v, picked %v", ok, pick)
			}
			if ok && pick.Endpoint.String() != test.want {
				t.Errorf("picked %v, want %v", pick.Endpoint, test.want)
			}
			if ok && !strings.HasPrefix(why, `pool "`+pick.Pool+`"`) {
				t.Errorf("pool %q is not the one of why %q", pick.Pool, why)
			}
			if why != test.why {
				t.Errorf("why\n got %s\nwant %s", why, test.why)
			}
		})
	}
}

func TestReloadKeepsPositions(t *testing.T) {
	first := New([]Spec{pooled("same", "", b1, b2, b3), pooled("changed", "", b1, b2, b3), pooled("gone", "", b1)}, nil)
	picks(first, []string{"same"}, 2)
	picks(first, []string{"changed"}, 2)

	second := first.With([]Spec{pooled("same", "", b1, b2, b3), pooled("changed", "", b1, b2)})
	if got := picks(second, []string{"same"}, 1); got[0] != b3 {
		t.Errorf("the unchanged pool goes on at %v, want %v", got[0], b3)
	}
	if got := picks(second, []string{"changed"}, 1); got[0] != b1 {
		t.Errorf("the changed pool starts at %v, want %v", got[0], b1)
	}
	if got := picks(second, []string{"gone"}, 1); got[0] != "-" {
		t.Errorf("the removed pool picked %v", got[0])
	}
	// Flows that were admitted with the old config still pick from it, and
	// take turns with the new ones.
	if got := picks(first, []string{"same"}, 1); got[0] != b1 {
		t.Errorf("the old director picked %v, want %v", got[0], b1)
	}
	if got := picks(second, []string{"same"}, 1); got[0] != b2 {
		t.Errorf("the new director picked %v, want %v", got[0], b2)
	}
	if got := picks(first, []string{"gone"}, 1); got[0] != b1 {
		t.Errorf("the old director's own pool picked %v, want %v", got[0], b1)
	}
}

func TestDirectorKeepsItsOwnCopyOfTheSpec(t *testing.T) {
	spec := pooled("db", "", b1, b2)
	d := New([]Spec{spec}, nil)
	spec.Endpoints[0] = endpoint(t1)
	d.Pools()[0].Spec.Endpoints[1] = endpoint(t1)
	if diff := cmp.Diff([]string{b1, b2}, picks(d, []string{"db"}, 2)); diff != "" {
		t.Errorf("picks differ (-want +got):\n%s", diff)
	}
}

func TestPickIsFairUnderConcurrency(t *testing.T) {
	const workers, each = 8, 3000
	d := New([]Spec{pooled("db", "pg", b1, b2, b3)}, health{b2 + " pg": "down"})
	var counts [3]atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				pick, _, _ := d.Pick([]string{"db"}, nil)
				switch pick.Endpoint.String() {
				case b1:
					counts[0].Add(1)
				case b2:
					counts[1].Add(1)
				case b3:
					counts[2].Add(1)
				}
			}
		})
	}
	wg.Wait()
	if counts[0].Load() != workers*each/2 || counts[1].Load() != 0 || counts[2].Load() != workers*each/2 {
		t.Errorf("picks = %d %d %d, want %d 0 %d", counts[0].Load(), counts[1].Load(), counts[2].Load(),
			workers*each/2, workers*each/2)
	}
}

func TestPools(t *testing.T) {
	d := New([]Spec{
		pooled("b", "pg", b1, b2), pooled("a", "pg", t1), pooled("c", "", b1), pooled("d", "pg", b1),
	}, health{b1 + " pg": "refused"})
	want := []Status{
		{Spec: pooled("a", "pg", t1), State: StateHealthy, Endpoints: []EndpointStatus{{endpoint(t1), true, ""}}},
		{Spec: pooled("b", "pg", b1, b2), State: StateDegraded,
			Endpoints: []EndpointStatus{{endpoint(b1), false, "refused"}, {endpoint(b2), true, ""}}},
		{Spec: pooled("c", "", b1), State: StateUnmonitored, Endpoints: []EndpointStatus{{endpoint(b1), true, ""}}},
		{Spec: pooled("d", "pg", b1), State: StateDown, Endpoints: []EndpointStatus{{endpoint(b1), false, "refused"}}},
	}
	if diff := cmp.Diff(want, d.Pools(), cmp.Comparer(func(a, b Endpoint) bool { return a == b })); diff != "" {
		t.Errorf("pools differ (-want +got):\n%s", diff)
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	d := New([]Spec{large(100)}, constant(true))
	pools := []string{"large"}
	for _, test := range []struct {
		name  string
		tried []Endpoint
	}{{"first try", nil}, {"retry", []Endpoint{endpoint(b1)}}} {
		t.Run(test.name, func(t *testing.T) {
			allocs := testing.AllocsPerRun(1000, func() {
				_, _, ok := d.Pick(pools, func(e Endpoint) bool {
					for _, seen := range test.tried {
						if e == seen {
							return true
						}
					}
					return false
				})
				if !ok {
					t.Fatal("nothing picked")
				}
			})
			if allocs != 0 {
				t.Errorf("a pick makes %v allocations, want 0", allocs)
			}
		})
	}
}

type constant bool

func (c constant) Up(string, netip.AddrPort, string) (bool, string) { return bool(c), "" }

func large(n int) Spec {
	s := Spec{Name: "large", Monitor: "pg"}
	for i := range n {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		s.Endpoints = append(s.Endpoints, Endpoint{Network: "berlin", Addr: netip.AddrPortFrom(addr, 80)})
	}
	return s
}

func BenchmarkPick1000(b *testing.B) {
	d := New([]Spec{large(1000)}, constant(true))
	pools := []string{"large"}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			d.Pick(pools, nil)
		}
	})
}
