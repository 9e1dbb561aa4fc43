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

func at(s string) Endpoint {
	network, addr, _ := strings.Cut(s, "/")
	return Endpoint{Network: network, Addr: netip.MustParseAddrPort(addr)}
}

func pooled(name, monitor string, endpoints ...string) Spec {
	s := Spec{Name: name, Monitor: monitor, Steering: "round_robin"}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, Member{Endpoint: at(e), Weight: 1})
	}
	return s
}

// appOf is an app "a" over pools, by failover.
func appOf(pools ...string) App {
	a := App{Name: "a"}
	for _, p := range pools {
		a.Pools = append(a.Pools, Choice{Pool: p, Weight: 1})
	}
	return a
}

// appsOf is an app for each pool, of its name.
func appsOf(pools ...Spec) []App {
	var apps []App
	for _, p := range pools {
		a := appOf(p.Name)
		a.Name = p.Name
		apps = append(apps, a)
	}
	return apps
}

func triedSet(endpoints ...string) func(Endpoint) bool {
	set := make(map[Endpoint]bool)
	for _, e := range endpoints {
		set[at(e)] = true
	}
	return func(e Endpoint) bool { return set[e] }
}

// picks asks n times and returns the endpoints, "-" where there was none.
func picks(d *Director, app string, n int) []string {
	var got []string
	for range n {
		pick, _, ok := d.Pick(Request{App: app})
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
			spec := pooled("db", "pg", b1, b2, b3)
			d := New([]Spec{spec}, appsOf(spec), Deps{Health: test.health})
			if diff := cmp.Diff(test.want, picks(d, "db", len(test.want))); diff != "" {
				t.Errorf("picks differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPickWhy(t *testing.T) {
	down := health{b1 + " pg": "connection refused", b2 + " pg": "connection timed out"}
	disabled := pooled("disabled", "", b1)
	disabled.Disabled = true
	critical := pooled("critical", "pg", b1, b2, b3)
	critical.MinimumHealthy = 2
	idle := pooled("idle", "", b1)
	idle.Endpoints[0].Weight = 0
	shed := pooled("shed", "", b1)
	shed.Shedding.Percent = 100
	specs := []Spec{
		pooled("berlin-db", "pg", b1, b2), pooled("tokyo-db", "pg", t1), pooled("plain", "", b1, b2), pooled("empty", ""),
		disabled, critical, idle, shed,
	}
	both := appOf("berlin-db", "tokyo-db")
	spread := both
	spread.Steering = "latency"
	saved := appOf("disabled")
	saved.Fallback = "berlin-db"
	tests := []struct {
		name   string
		app    App
		health health
		tried  func(Endpoint) bool
		want   string // the endpoint, "" for none
		why    string
	}{
		{"the first pool serves", both, nil, nil, b1,
			`pool "berlin-db" by round_robin`},
		{"failover says why", both, down, nil, t1,
			`pool "tokyo-db" by round_robin; pool "berlin-db" has no healthy endpoint: 2 down (10.0.0.10:5432: connection refused)`},
		{"all down", appOf("berlin-db"), down, nil, "",
			`pool "berlin-db" has no healthy endpoint: 2 down (10.0.0.10:5432: connection refused)`},
		{"a retry skips what was tried", appOf("berlin-db"), nil, triedSet(b1), b2,
			`pool "berlin-db" by round_robin`},
		{"a retry goes on to the next pool", both, nil, triedSet(b1, b2), t1,
			`pool "tokyo-db" by round_robin; pool "berlin-db" has no endpoint left: 2 tried`},
		{"tried and down together", appOf("berlin-db"), health{b2 + " pg": "refused"}, triedSet(b1), "",
			`pool "berlin-db" has no endpoint left: 1 tried, 1 down (10.0.0.11:5432: refused)`},
		{"no monitor ignores health", appOf("plain"), health{b1 + " ": "x", b2 + " ": "x"}, nil, b1,
			`pool "plain" by round_robin`},
		{"a pool without endpoints", appOf("empty"), nil, nil, "", `pool "empty" has no endpoint`},
		{"a pool that is not there", appOf("gone", "plain"), nil, nil, b1,
			`pool "plain" by round_robin; pool "gone" is not defined`},
		{"a disabled pool", appOf("disabled", "plain"), nil, nil, b1,
			`pool "plain" by round_robin; pool "disabled" is disabled`},
		{"a critical pool", appOf("critical"), down, nil, "",
			`pool "critical" is critical: 1 of 3 endpoints usable, 2 needed: 2 down (10.0.0.10:5432: connection refused)`},
		{"weight 0", appOf("idle"), nil, nil, "", `pool "idle" has no healthy endpoint: 1 with weight 0`},
		{"a pool that sheds", appOf("shed", "plain"), nil, nil, b1,
			`pool "plain" by round_robin; pool "shed" sheds 100 % of its flows`},
		{"another steering of pools", spread, nil, nil, b1,
			`pool "berlin-db" by round_robin, one of 2 pools by latency`},
		{"the fallback ignores health", saved, down, nil, b1,
			`pool "berlin-db" by round_robin, the fallback whose health is ignored; pool "disabled" is disabled`},
		{"the fallback in vain", saved, down, triedSet(b1, b2), "",
			`pool "disabled" is disabled; the fallback pool "berlin-db" has no endpoint either`},
		{"no pools", appOf(), nil, nil, "", "no pool to pick from"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			pick, why, ok := New(specs, []App{test.app}, Deps{Health: test.health}).Pick(Request{App: "a", Tried: test.tried})
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
	if _, why, ok := New(nil, nil, Deps{}).Pick(Request{App: "x"}); ok || why != `app "x" is not defined` {
		t.Errorf("an unknown app: %v, %q", ok, why)
	}
}

func TestReloadKeepsPositions(t *testing.T) {
	specs := []Spec{pooled("same", "", b1, b2, b3), pooled("changed", "", b1, b2, b3), pooled("gone", "", b1)}
	first := New(specs, appsOf(specs...), Deps{})
	picks(first, "same", 2)
	picks(first, "changed", 2)

	specs = []Spec{pooled("same", "", b1, b2, b3), pooled("changed", "", b1, b2)}
	second := first.With(specs, appsOf(specs...))
	if got := picks(second, "same", 1); got[0] != b3 {
		t.Errorf("the unchanged pool goes on at %v, want %v", got[0], b3)
	}
	if got := picks(second, "changed", 1); got[0] != b1 {
		t.Errorf("the changed pool starts at %v, want %v", got[0], b1)
	}
	if got := picks(second, "gone", 1); got[0] != "-" {
		t.Errorf("the removed pool picked %v", got[0])
	}
	// Flows that were admitted with the old config still pick from it, and
	// take turns with the new ones.
	if got := picks(first, "same", 1); got[0] != b1 {
		t.Errorf("the old director picked %v, want %v", got[0], b1)
	}
	if got := picks(second, "same", 1); got[0] != b2 {
		t.Errorf("the new director picked %v, want %v", got[0], b2)
	}
	if got := picks(first, "gone", 1); got[0] != b1 {
		t.Errorf("the old director's own pool picked %v, want %v", got[0], b1)
	}
	if got := second.Pools()[0]; got.Spec.Name != "changed" || got.Connections != 3 || got.Endpoints[0].Picks != 2 {
		t.Errorf("the changed pool has %d connections, %d picks of its first endpoint; want 3 and 2", got.Connections, got.Endpoints[0].Picks)
	}
}

func TestDirectorKeepsItsOwnCopyOfTheSpec(t *testing.T) {
	spec := pooled("db", "", b1, b2)
	d := New([]Spec{spec}, appsOf(spec), Deps{})
	spec.Endpoints[0].Endpoint = at(t1)
	d.Pools()[0].Spec.Endpoints[1].Endpoint = at(t1)
	if diff := cmp.Diff([]string{b1, b2}, picks(d, "db", 2)); diff != "" {
		t.Errorf("picks differ (-want +got):\n%s", diff)
	}
}

func TestPickIsFairUnderConcurrency(t *testing.T) {
	const workers, each = 8, 3000
	spec := pooled("db", "pg", b1, b2, b3)
	d := New([]Spec{spec}, appsOf(spec), Deps{Health: health{b2 + " pg": "down"}})
	var counts [3]atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				pick, _, _ := d.Pick(Request{App: "db"})
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

type constant bool

func (c constant) Up(string, netip.AddrPort, string) (bool, string) { return bool(c), "" }

// large is a pool of n endpoints, of weights that weight gives; nil: 1.
func large(n int, steering string, weight func(i int) int) Spec {
	s := Spec{Name: "large", Monitor: "pg", Steering: steering}
	for i := range n {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		m := Member{Endpoint: Endpoint{Network: "berlin", Addr: netip.AddrPortFrom(addr, 80)}, Weight: 1}
		if weight != nil {
			m.Weight = weight(i)
		}
		s.Endpoints = append(s.Endpoints, m)
	}
	return s
}

// clientAt is the i-th client.
func clientAt(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)})
}
