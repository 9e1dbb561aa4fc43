package dnsd

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/dnsd/zone"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; nothing that passes takes as long.
const patience = 10 * time.Second

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// example is the zone that the tests ask: hosts of both families, an empty
// non-terminal, a wildcard, and hosts with too many addresses for 512 bytes
// and for 4096.
func example() zone.Source {
	return zone.Source{
		Revision: 7,
		Zones: []zone.Zone{{
			Name:        "apps.example.com",
			Nameservers: []zone.Nameserver{{Name: "ns1.apps.example.com", Addrs: addrs("127.0.0.1", "::1")}, {Name: "ns2.example.net"}},
		}},
		Hosts: []zone.Host{
			{Name: "db", Addrs: addrs("203.0.113.10", "2001:db8::10")},
			{Name: "four", Addrs: addrs("203.0.113.10")},
			{Name: "a.b.apps.example.com", Addrs: addrs("203.0.113.10")},
			{Name: "*.dev.apps.example.com", Addrs: addrs("203.0.113.11")},
			{Name: "many", Addrs: manyAddrs(40)},
			{Name: "more", Addrs: manyAddrs(300)},
		},
	}
}

// manyAddrs are n addresses of 16 bytes in an answer each.
func manyAddrs(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		list[i] = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
	}
	return list
}

func mustBuild(t testing.TB, s zone.Source) *zone.Snapshot {
	t.Helper()
	snapshot, problems := zone.Build(s)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return snapshot
}

func exampleFeed(t testing.TB) *Current {
	t.Helper()
	feed := new(Current)
	feed.Publish(mustBuild(t, example()))
	return feed
}

// start runs a server of the example until the test ends.
func start(t testing.TB, spec Spec) *Server {
	t.Helper()
	if spec.Listen == nil {
		spec.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	}
	s := New(spec, exampleFeed(t), quiet)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ask sends a query over network ("udp", "tcp") and returns the response.
func ask(t testing.TB, network string, at netip.AddrPort, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: patience, UDPSize: 4096}
	response, _, err := c.Exchange(m, at.String())
	if err != nil {
		t.Fatalf("asking %s over %s: %v", at, network, err)
	}
	return response
}

func query(qname string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(qname, qtype)
}

// lines writes records with single spaces, one a line, without OPT.
func lines(records []dns.RR) string {
	var out []string
	for _, rr := range records {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	return strings.Join(out, "\n")
}

// dropped is how often messages went unanswered for a reason.
func dropped(s *Server, reason string) (n uint64) {
	s.Drops(func(_, why string, count uint64) {
		if why == reason {
			n = count
		}
	})
	return n
}

// eventually waits until done says so. It is for counters, which nothing
// signals.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s did not happen", what)
		}
	}
}
