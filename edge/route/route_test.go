package route_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/edge/route"
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func listeners() []route.Listener[string] {
	return []route.Listener[string]{
		{Name: "db", Network: "tcp", Addr: at("203.0.113.10:5432"), App: "DB"},
		{Name: "dns", Network: "udp", Addr: at("203.0.113.10:5432"), App: "DNS"},
		{Name: "web", Network: "tcp", Addr: at("[2001:db8::10]:5432"), App: "WEB"},
		{Name: "range", Network: "tcp", Addr: at("203.0.113.10:8001"), Offset: 1, App: "RANGE"},
		{Name: "one", Network: "tcp", Addr: at("127.0.0.1:0"), App: "ONE"},
		{Name: "two", Network: "tcp", Addr: at("127.0.0.1:0"), App: "TWO"},
	}
}

func TestMatch(t *testing.T) {
	table, err := route.New(listeners())
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name, network, addr, listener string
		app                           string
		offset                        uint16
	}{
		{"tcp", "tcp", "203.0.113.10:5432", "db", "DB", 0},
		{"the name does not count", "tcp", "203.0.113.10:5432", "", "DB", 0},
		{"udp at the same port", "udp", "203.0.113.10:5432", "dns", "DNS", 0},
		{"IPv6 at the same port", "tcp", "[2001:db8::10]:5432", "web", "WEB", 0},
		{"mapped", "tcp", "[::ffff:203.0.113.10]:5432", "db", "DB", 0},
		{"in a range", "tcp", "203.0.113.10:8001", "range", "RANGE", 1},
		{"a picked port", "tcp", "127.0.0.1:0", "one", "ONE", 0},
		{"another at the same address", "tcp", "127.0.0.1:0", "two", "TWO", 0},
		{"a picked port of nobody", "tcp", "127.0.0.1:0", "three", "", 0},
		{"another port", "tcp", "203.0.113.10:5433", "db", "", 0},
		{"another address", "tcp", "203.0.113.11:5432", "db", "", 0},
		{"another network", "udp", "203.0.113.10:8001", "range", "", 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			app, offset, ok := table.Match(c.network, at(c.addr), c.listener)
			if app != c.app || offset != c.offset || ok != (c.app != "") {
				t.Errorf("%q, %d, %v; want %q, %d", app, offset, ok, c.app, c.offset)
			}
		})
	}
}

func TestZeroTableMatchesNothing(t *testing.T) {
	var table route.Table[string]
	if _, _, ok := table.Match("tcp", at("203.0.113.10:5432"), "db"); ok {
		t.Error("it matched")
	}
}

func TestTwoAppsAtOneAddress(t *testing.T) {
	for _, addr := range []string{"203.0.113.10:5432", "[::ffff:203.0.113.10]:5432"} {
		second := route.Listener[string]{Name: "other", Network: "tcp", Addr: at(addr)}
		_, err := route.New(append(listeners(), second))
		if err == nil || !strings.Contains(err.Error(), `"db"`) || !strings.Contains(err.Error(), `"other"`) {
			t.Errorf("%s: got %v, want an error that names both apps", addr, err)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	table, err := route.New(listeners())
	if err != nil {
		t.Fatal(err)
	}
	addr := at("203.0.113.10:8001")
	if n := testing.AllocsPerRun(100, func() { table.Match("tcp", addr, "range") }); n > 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
