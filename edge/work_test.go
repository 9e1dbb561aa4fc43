package edge

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/resolve"
	"github.com/warrenmesh/warren/edge/wire"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestWhoChecks(t *testing.T) {
	wide := func(name string, checks int) *member {
		return &member{name: name, routes: prefixes("10.0.0.0/8", "fd00::/16"), speaks: true, checks: checks}
	}
	narrow := &member{name: "n", routes: prefixes("10.0.0.0/24"), speaks: true, checks: 9}
	silent := &member{name: "s", routes: prefixes("10.0.0.0/8")}
	for _, test := range []struct {
		name    string
		members []*member
		had     string
		want    string
	}{
		{"nobody", nil, "", ""},
		{"nobody with a route", []*member{{name: "a", routes: prefixes("192.168.0.0/16")}}, "a", ""},
		{"the least busy", []*member{wide("a", 2), wide("b", 1), wide("c", 3)}, "", "b"},
		{"who had it", []*member{wide("a", 2), wide("b", 1), wide("c", 3)}, "c", "c"},
		{"the longest route, however busy", []*member{wide("a", 0), narrow, wide("b", 0)}, "a", "n"},
		{"who speaks control", []*member{silent, wide("a", 5)}, "s", "a"},
		{"another where nobody does", []*member{silent}, "", "s"},
		{"not who is full", []*member{wide("a", wire.MaxChecks), wide("b", 9)}, "a", "b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if m := choose(test.members, netip.MustParseAddr("10.0.0.5"), test.had); m != nil {
				got = m.name
			}
			if got != test.want {
				t.Errorf("%q checks, want %q", got, test.want)
			}
		})
	}
}

func TestWhoResolves(t *testing.T) {
	a, b, c := &member{name: "a", speaks: true}, &member{name: "b", speaks: true}, &member{name: "c"}
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	for _, test := range []struct {
		name   string
		had    string
		failed map[string]time.Time
		want   string
	}{
		{"the first", "", nil, "a"},
		{"who had it", "b", nil, "b"},
		{"not who failed", "a", map[string]time.Time{"a": early}, "b"},
		{"who failed the longest ago, where all have", "b", map[string]time.Time{"a": late, "b": late, "c": early}, "c"},
		{"rather who speaks control", "c", nil, "a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if m := resolverOf([]*member{a, b, c}, test.had, test.failed); m.name != test.want {
				t.Errorf("%q resolves, want %q", m.name, test.want)
			}
		})
	}
	if m := resolverOf([]*member{{name: "full", names: wire.MaxNames}}, "", nil); m != nil {
		t.Errorf("%q has no room", m.name)
	}
}

// A connector's word about a name leads flows nowhere but to hosts that it may
// serve.
func TestNamesStayWithinRoutes(t *testing.T) {
	routes := prefixes("10.0.0.0/24")
	in, out := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.1.5")
	mapped := netip.MustParseAddr("::ffff:10.0.0.6")
	got, err := ownAddrs("a", routes, enroll.Found{Addrs: []netip.Addr{in, out, mapped}})
	if diff := cmp.Diff([]netip.Addr{in, mapped}, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
		t.Errorf("%v; kept (-want +got):\n%s", err, diff)
	}
	if got, err := ownAddrs("a", routes, enroll.Found{Addrs: []netip.Addr{out}}); err == nil {
		t.Errorf("kept %v", got)
	}
	cause := errors.New("no such name")
	if _, err := ownAddrs("a", routes, enroll.Found{Err: cause}); !errors.Is(err, cause) {
		t.Errorf("%v, want %v", err, cause)
	}
}

// The same names are the same work, in whatever order and however often a
// reload lists them.
func TestWantedNames(t *testing.T) {
	w := newWork(&Edge{})
	a, b := resolve.Name{Network: "berlin", Host: "a.internal"}, resolve.Name{Network: "berlin", Host: "b.internal"}
	w.want([]resolve.Name{b, a, {Network: resolve.Public, Host: "c.example"}, b, a})
	if diff := cmp.Diff([]resolve.Name{a, b}, w.names); diff != "" {
		t.Errorf("wanted (-want +got):\n%s", diff)
	}
}
