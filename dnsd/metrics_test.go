package dnsd

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/warrenmesh/warren/dnsd/zone"
)

func TestMetrics(t *testing.T) {
	s := start(t, Spec{})
	at := s.Addrs()[0]
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s)

	ask(t, "udp", at, query("db.apps.example.com.", dns.TypeA))
	ask(t, "udp", at, query("DB.apps.example.com.", dns.TypeA))
	ask(t, "tcp", at, query("no.apps.example.com.", dns.TypeAAAA))
	for i := range 20 { // names and types that a client makes up share a label
		ask(t, "udp", at, query(strings.Repeat("x", i+1)+".example.org.", 60000+uint16(i)))
	}
	badVersion := query("db.apps.example.com.", dns.TypeA).SetEdns0(1232, false)
	badVersion.IsEdns0().SetVersion(1)
	ask(t, "udp", at, badVersion)

	want := `
# HELP warren_dns_queries_total DNS queries that were answered, by zone, type, response code and transport.
# TYPE warren_dns_queries_total counter
warren_dns_queries_total{proto="tcp",rcode="NXDOMAIN",type="AAAA",zone="apps.example.com"} 1
warren_dns_queries_total{proto="udp",rcode="BADVERS",type="A",zone=""} 1
warren_dns_queries_total{proto="udp",rcode="NOERROR",type="A",zone="apps.example.com"} 2
warren_dns_queries_total{proto="udp",rcode="REFUSED",type="other",zone=""} 20
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// TestMetricsForgetZones that are gone, and keep those that stay.
func TestMetricsForgetZones(t *testing.T) {
	feed := exampleFeed(t)
	s := New(Spec{}, feed, quiet)
	question := query("db.apps.example.com.", dns.TypeA).Question
	s.answers.counts.add("apps.example.com", question, dns.RcodeSuccess, overUDP)
	s.answers.counts.add("", question, dns.RcodeRefused, overUDP)
	if n := testutil.CollectAndCount(s); n != 2 {
		t.Errorf("%d metrics, want 2", n)
	}
	source := example()
	source.Zones, source.Hosts = []zone.Zone{{Name: "other.test", Nameservers: []zone.Nameserver{{Name: "ns.example.net"}}}}, nil
	feed.Publish(mustBuild(t, source))
	if n := testutil.CollectAndCount(s); n != 1 {
		t.Errorf("%d metrics after the zone went, want 1", n)
	}
	if n := len(*s.answers.counts.zones.Load()); n != 1 {
		t.Errorf("%d zones counted, want 1", n)
	}
}

func TestCountingAllocates(t *testing.T) {
	var counts queryCounts
	question := query("db.apps.example.com.", dns.TypeTXT).Question
	if n := testing.AllocsPerRun(100, func() { counts.add("apps.example.com", question, dns.RcodeSuccess, overTCP) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// TestKernelDropsAreCounted fills the queue of a socket that nobody reads, and
// then closes it: what it dropped stays counted.
func TestKernelDropsAreCounted(t *testing.T) {
	s := New(Spec{Listen: []netip.AddrPort{loopback}}, exampleFeed(t), quiet)
	s.workers = 0
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	s.endpoints[loopback].udp.SetReadBuffer(4096)
	conn, err := net.Dial("udp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 200 {
		conn.Write(make([]byte, 512))
	}
	before := dropped(s, "socket_queue")
	if before < 100 || before > 200 {
		t.Errorf("%d of 200 datagrams dropped", before)
	}
	reload(t, s, Spec{})
	if after := dropped(s, "socket_queue"); after != before {
		t.Errorf("%d dropped after the socket closed, %d before", after, before)
	}
}
