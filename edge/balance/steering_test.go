package balance

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// bits is a Health in which bit i of the pool's i-th endpoint says it is up.
type bits uint64

func (b bits) Up(_ string, addr netip.AddrPort, _ string) (bool, string) {
	return b&(1<<addr.Addr().As4()[3]) != 0, ""
}

// naiveTurn is nextInTurn written the slow and obvious way: list the usable
// ones, take the first that is not before from, else the first of all.
func naiveTurn(up uint64, n, from int) int {
	first := -1
	for i := range n {
		if up&(1<<i) == 0 {
			continue
		}
		if i >= from {
			return i
		}
		if first < 0 {
			first = i
		}
	}
	return first
}

func TestNextInTurnAgainstOracle(t *testing.T) {
	for range 5000 {
		n := rand.IntN(12)
		up := rand.Uint64() & rand.Uint64()
		from := 0
		if n > 0 {
			from = rand.IntN(n)
		}
		c := candidates{pool: &pool{spec: large(n)}, health: bits(up)}
		if got, want := nextInTurn(c, nil, from), naiveTurn(up, n, from); got != want {
			t.Fatalf("n %d, up %b, from %d: picked %d, want %d", n, up, from, got, want)
		}
	}
}

func TestEveryPolicyHasACase(t *testing.T) {
	for _, by := range policies() {
		p := &pool{spec: large(3), policy: by}
		if i := p.choose(candidates{pool: p, health: constant(true)}, nil); i < 0 {
			t.Errorf("policy %q picks nothing from a healthy pool", by)
		}
	}
}

func TestValidate(t *testing.T) {
	good := func(change func(*Spec)) Spec {
		s := pooled("db", "pg", b1, b2)
		change(&s)
		return s
	}
	tests := []struct {
		name string
		spec Spec
		want []string // "path value hint", matched as prefix
	}{
		{"good", good(func(s *Spec) {}), nil},
		{"the default steering", good(func(s *Spec) { s.Steering = "" }), nil},
		{"the same address in two networks", pooled("db", "", b1, t1), nil},
		{"a policy of a later release", good(func(s *Spec) { s.Steering = "least_connections" }),
			[]string{"steering least_connections use one of: round_robin"}},
		{"wrong case", good(func(s *Spec) { s.Steering = "Round_Robin" }), []string{"steering Round_Robin use one of"}},
		{"no name", good(func(s *Spec) { s.Name = "" }), []string{"name  give"}},
		{"no endpoints", pooled("db", ""), []string{"endpoints  give the pool at least one"}},
		{"twice the same", pooled("db", "", b1, b2, b1), []string{"endpoints[2].address 10.0.0.10:5432 it is endpoints[0] already"}},
		{"several at once", pooled("", "", "/10.0.0.1:80", "x/10.0.0.1:0", "x/0.0.0.0:80", "x/239.0.0.1:80"),
			[]string{"name", "endpoints[0].network", "endpoints[1].address 10.0.0.1:0 port 0", "endpoints[2].address 0.0.0.0:80 ", "endpoints[3].address 239.0.0.1:80 "}},
		{"no address", Spec{Name: "db", Endpoints: []Endpoint{{Network: "a"}, {Network: "a"}}},
			[]string{"endpoints[0].address  write an IP", "endpoints[1].address  write an IP"}},
		{"too many", large(MaxEndpoints + 1), []string{"endpoints 10001 a pool holds at most 10000"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			test.spec.Validate(func(path, value, hint string) { got = append(got, path+" "+value+" "+hint) })
			if len(got) != len(test.want) {
				t.Fatalf("problems = %q, want %q", got, test.want)
			}
			for i, want := range test.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("problem %d = %q, want it to start with %q", i, got[i], want)
				}
			}
		})
	}
}
