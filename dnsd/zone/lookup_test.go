package zone

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// example is the source that most tests ask: a zone inside another, a zone
// whose nameserver lies in the first, hosts of every shape.
func example() Source {
	edge := addrs("203.0.113.10", "2001:db8::10")
	ns1 := Nameserver{Name: "ns1.apps.example.com", Addrs: edge}
	return Source{
		Revision: 7,
		Zones: []Zone{
			{Name: "apps.example.com", Nameservers: []Nameserver{ns1, {Name: "ns2.example.net"}}},
			{Name: "eu.deep.Apps.Example.com.", Nameservers: []Nameserver{ns1}, Serial: 99, Mailbox: "ops.example.net"},
			{Name: "other.test", Nameservers: []Nameserver{ns1}, TTLs: TTLs{Host: 5e9, Negative: 7200e9, Nameserver: 600e9}},
		},
		Hosts: []Host{
			{Name: "db.apps.example.com", Addrs: edge},
			{Name: "DB.apps.example.com.", Addrs: edge}, // a second app on the same name
			{Name: "four.apps.example.com", Addrs: addrs("203.0.113.10", "::ffff:203.0.113.9", "203.0.113.9")},
			{Name: "six.apps.example.com", Addrs: addrs("2001:db8::10")},
			{Name: "a.b.c.apps.example.com", Addrs: edge},
			{Name: "nothing.apps.example.com"},
			{Name: "*.dev.apps.example.com", Addrs: addrs("203.0.113.11")},
			{Name: "box.dev.apps.example.com", Addrs: addrs("203.0.113.12")},
			{Name: "db.eu.deep.apps.example.com", Addrs: addrs("203.0.113.13")},
			{Name: "other.test", Addrs: addrs("203.0.113.14")},
		},
	}
}

func mustBuild(t testing.TB, s Source) *Snapshot {
	t.Helper()
	snapshot, problems := Build(s)
	for _, p := range problems {
		t.Error(p)
	}
	if t.Failed() {
		t.FailNow()
	}
	return snapshot
}

// lines writes records with single spaces, one a line.
func lines(records []dns.RR) string {
	var out []string
	for _, rr := range records {
		out = append(out, strings.Join(strings.Fields(rr.String()), " "))
	}
	return strings.Join(out, "\n")
}

const (
	appsSOA  = "apps.example.com. 3600 IN SOA ns1.apps.example.com. hostmaster.apps.example.com. 7 3600 600 1209600 30"
	appsNeg  = "apps.example.com. 30 IN SOA ns1.apps.example.com. hostmaster.apps.example.com. 7 3600 600 1209600 30"
	euNeg    = "eu.deep.apps.example.com. 30 IN SOA ns1.apps.example.com. ops.example.net. 99 3600 600 1209600 30"
	otherNeg = "other.test. 600 IN SOA ns1.apps.example.com. hostmaster.other.test. 7 3600 600 1209600 7200"
	glue     = "ns1.apps.example.com. 3600 IN A 203.0.113.10\nns1.apps.example.com. 3600 IN AAAA 2001:db8::10"
)

func TestLookup(t *testing.T) {
	snapshot := mustBuild(t, example())
	const (
		ok       = dns.RcodeSuccess
		nxdomain = dns.RcodeNameError
		refused  = dns.RcodeRefused
		apps     = "apps.example.com"
	)
	cases := []struct {
		name, qname string
		qtype       uint16
		rcode       int
		zone        string
		answer, ns  string
		extra       string
	}{
		{name: "A", qname: "db.apps.example.com.", qtype: dns.TypeA, zone: apps, answer: "db.apps.example.com. 30 IN A 203.0.113.10"},
		{name: "AAAA", qname: "db.apps.example.com.", qtype: dns.TypeAAAA, zone: apps, answer: "db.apps.example.com. 30 IN AAAA 2001:db8::10"},
		{name: "no final dot", qname: "six.apps.example.com", qtype: dns.TypeAAAA, zone: apps, answer: "six.apps.example.com. 30 IN AAAA 2001:db8::10"},
		{name: "case is echoed", qname: "dB.aPPs.Example.COM.", qtype: dns.TypeA, zone: apps, answer: "dB.aPPs.Example.COM. 30 IN A 203.0.113.10"},
		{name: "an RRset has no duplicates", qname: "four.apps.example.com.", qtype: dns.TypeA, zone: apps, answer: "four.apps.example.com. 30 IN A 203.0.113.9\nfour.apps.example.com. 30 IN A 203.0.113.10"},
		{name: "AAAA of an A-only name is NODATA", qname: "four.apps.example.com.", qtype: dns.TypeAAAA, zone: apps, ns: appsNeg},
		{name: "A of an AAAA-only name is NODATA", qname: "six.apps.example.com.", qtype: dns.TypeA, zone: apps, ns: appsNeg},
		{name: "CAA is clean NODATA", qname: "db.apps.example.com.", qtype: dns.TypeCAA, zone: apps, ns: appsNeg},
		{name: "CAA of the apex is clean NODATA", qname: "apps.example.com.", qtype: dns.TypeCAA, zone: apps, ns: appsNeg},
		{name: "an unknown type is NODATA", qname: "db.apps.example.com.", qtype: 65280, zone: apps, ns: appsNeg},
		{name: "a host without addresses exists", qname: "nothing.apps.example.com.", qtype: dns.TypeA, zone: apps, ns: appsNeg},
		{name: "NXDOMAIN", qname: "absent.apps.example.com.", qtype: dns.TypeA, rcode: nxdomain, zone: apps, ns: appsNeg},
		{name: "NXDOMAIN below a host", qname: "x.db.apps.example.com.", qtype: dns.TypeA, rcode: nxdomain, zone: apps, ns: appsNeg},
		{name: "NXDOMAIN of a deep name", qname: strings.Repeat("x.", 110) + "apps.example.com.", qtype: dns.TypeA, rcode: nxdomain, zone: apps, ns: appsNeg},
		{name: "an empty non-terminal exists", qname: "b.c.apps.example.com.", qtype: dns.TypeA, zone: apps, ns: appsNeg},
		{name: "and so does the one above it", qname: "c.apps.example.com.", qtype: dns.TypeA, zone: apps, ns: appsNeg},
		{name: "but not their siblings", qname: "z.c.apps.example.com.", qtype: dns.TypeA, rcode: nxdomain, zone: apps, ns: appsNeg},
		{name: "an inner zone makes names in the outer", qname: "deep.apps.example.com.", qtype: dns.TypeA, zone: apps, ns: appsNeg},
		{name: "apex SOA", qname: "apps.example.com.", qtype: dns.TypeSOA, zone: apps, answer: appsSOA},
		{name: "apex NS with glue", qname: "apps.example.com.", qtype: dns.TypeNS, zone: apps, answer: "apps.example.com. 3600 IN NS ns1.apps.example.com.\napps.example.com. 3600 IN NS ns2.example.net.", extra: glue},
		{name: "apex A is NODATA", qname: "apps.example.com.", qtype: dns.TypeA, zone: apps, ns: appsNeg},
		{name: "SOA of a host is NODATA", qname: "db.apps.example.com.", qtype: dns.TypeSOA, zone: apps, ns: appsNeg},
		{name: "NS of a host is NODATA", qname: "db.apps.example.com.", qtype: dns.TypeNS, zone: apps, ns: appsNeg},
		{name: "nameserver A", qname: "ns1.apps.example.com.", qtype: dns.TypeA, zone: apps, answer: "ns1.apps.example.com. 3600 IN A 203.0.113.10"},
		{name: "nameserver AAAA", qname: "ns1.apps.example.com.", qtype: dns.TypeAAAA, zone: apps, answer: "ns1.apps.example.com. 3600 IN AAAA 2001:db8::10"},
		{name: "ANY is one RRset", qname: "db.apps.example.com.", qtype: dns.TypeANY, zone: apps, answer: "db.apps.example.com. 30 IN A 203.0.113.10"},
		{name: "ANY of an AAAA-only name", qname: "six.apps.example.com.", qtype: dns.TypeANY, zone: apps, answer: "six.apps.example.com. 30 IN AAAA 2001:db8::10"},
		{name: "ANY of the apex", qname: "apps.example.com.", qtype: dns.TypeANY, zone: apps, answer: appsSOA},
		{name: "ANY of an empty non-terminal", qname: "c.apps.example.com.", qtype: dns.TypeANY, zone: apps, ns: appsNeg},
		{name: "ANY of no name", qname: "absent.apps.example.com.", qtype: dns.TypeANY, rcode: nxdomain, zone: apps, ns: appsNeg},
		{name: "wildcard", qname: "Any.dev.apps.example.com.", qtype: dns.TypeA, zone: apps, answer: "Any.dev.apps.example.com. 30 IN A 203.0.113.11"},
		{name: "wildcard, several labels", qname: "x.y.dev.apps.example.com.", qtype: dns.TypeA, zone: apps, answer: "x.y.dev.apps.example.com. 30 IN A 203.0.113.11"},
		{name: "wildcard NODATA", qname: "any.dev.apps.example.com.", qtype: dns.TypeAAAA, zone: apps, ns: appsNeg},
		{name: "the wildcard itself", qname: "*.dev.apps.example.com.", qtype: dns.TypeA, zone: apps, answer: "*.dev.apps.example.com. 30 IN A 203.0.113.11"},
		{name: "a host beside the wildcard hides it", qname: "box.dev.apps.example.com.", qtype: dns.TypeAAAA, zone: apps, ns: appsNeg},
		{name: "and everything below that host", qname: "x.box.dev.apps.example.com.", qtype: dns.TypeA, rcode: nxdomain, zone: apps, ns: appsNeg},
		{name: "the wildcard's parent is not matched", qname: "dev.apps.example.com.", qtype: dns.TypeA, zone: apps, ns: appsNeg},
		{name: "nothing below the wildcard itself", qname: "x.*.dev.apps.example.com.", qtype: dns.TypeA, rcode: nxdomain, zone: apps, ns: appsNeg},
		{name: "an escaped dot parts no labels", qname: `x\.any.dev.apps.example.com.`, qtype: dns.TypeA, zone: apps, answer: `x\.any.dev.apps.example.com. 30 IN A 203.0.113.11`},
		{name: "an escaped dot does not reach the wildcard", qname: `x\.dev.apps.example.com.`, qtype: dns.TypeA, rcode: nxdomain, zone: apps, ns: appsNeg},
		{name: "the inner zone answers", qname: "db.eu.deep.apps.example.com.", qtype: dns.TypeA, zone: "eu.deep.apps.example.com", answer: "db.eu.deep.apps.example.com. 30 IN A 203.0.113.13"},
		{name: "and denies", qname: "x.eu.deep.apps.example.com.", qtype: dns.TypeA, rcode: nxdomain, zone: "eu.deep.apps.example.com", ns: euNeg},
		{name: "DS of an inner zone is its parent's", qname: "eu.deep.apps.example.com.", qtype: dns.TypeDS, zone: apps, ns: appsNeg},
		{name: "DS without the parent is ours", qname: "apps.example.com.", qtype: dns.TypeDS, zone: apps, ns: appsNeg},
		{name: "a nameserver in another of our zones", qname: "other.test.", qtype: dns.TypeNS, zone: "other.test", answer: "other.test. 600 IN NS ns1.apps.example.com.", extra: glue},
		{name: "a host at the apex", qname: "other.test.", qtype: dns.TypeA, zone: "other.test", answer: "other.test. 5 IN A 203.0.113.14"},
		{name: "negative TTL is the SOA's where that is smaller", qname: "x.other.test.", qtype: dns.TypeA, rcode: nxdomain, zone: "other.test", ns: otherNeg},
		{name: "outside", qname: "example.com.", qtype: dns.TypeA, rcode: refused},
		{name: "a longer label is outside", qname: "xapps.example.com.", qtype: dns.TypeA, rcode: refused},
		{name: "an escaped dot is outside", qname: `x\.apps.example.com.`, qtype: dns.TypeA, rcode: refused},
		{name: "the root", qname: ".", qtype: dns.TypeNS, rcode: refused},
		{name: "a top-level name", qname: "test.", qtype: dns.TypeNS, rcode: refused},
		{name: "an empty name", qname: "", qtype: dns.TypeA, rcode: refused},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a := snapshot.Lookup(c.qname, c.qtype)
			got := []string{a.Zone, dns.RcodeToString[a.Rcode], lines(a.Answer), lines(a.Authority), lines(a.Additional)}
			want := []string{c.zone, dns.RcodeToString[c.rcode], c.answer, c.ns, c.extra}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", c.qname, dns.Type(c.qtype), diff)
			}
		})
	}
}

// TestLookupSharesNothingThatItChanges asks in odd case and through a
// wildcard, and checks that the next answer is spelt as its own question.
func TestLookupSharesNothingThatItChanges(t *testing.T) {
	snapshot := mustBuild(t, example())
	before := lines(snapshot.Lookup("db.apps.example.com.", dns.TypeA).Answer)
	snapshot.Lookup("DB.APPS.EXAMPLE.COM.", dns.TypeA)
	snapshot.Lookup("x.dev.apps.example.com.", dns.TypeA)
	if after := lines(snapshot.Lookup("db.apps.example.com.", dns.TypeA).Answer); after != before {
		t.Errorf("answer changed from %q to %q", before, after)
	}
	want := "*.dev.apps.example.com. 30 IN A 203.0.113.11"
	if got := lines(snapshot.Lookup("*.dev.apps.example.com.", dns.TypeA).Answer); got != want {
		t.Errorf("wildcard = %q, want %q", got, want)
	}
}

func TestLookupOfNil(t *testing.T) {
	var snapshot *Snapshot
	if got := snapshot.Lookup("db.apps.example.com.", dns.TypeA); got.Rcode != dns.RcodeRefused {
		t.Errorf("rcode %d, want REFUSED", got.Rcode)
	}
	if snapshot.Revision() != 0 || snapshot.Zones() != nil {
		t.Error("a nil snapshot has a revision or zones")
	}
}

// TestLookupAllocates nothing for the questions that resolvers ask most.
func TestLookupAllocates(t *testing.T) {
	snapshot := mustBuild(t, example())
	for _, qname := range []string{"db.apps.example.com.", "absent.apps.example.com.", "four.apps.example.com.", "example.org."} {
		if n := testing.AllocsPerRun(100, func() { snapshot.Lookup(qname, dns.TypeAAAA) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", qname, n)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	snapshot := mustBuild(b, example())
	for b.Loop() {
		snapshot.Lookup("db.apps.example.com.", dns.TypeA)
	}
}
