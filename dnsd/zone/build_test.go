package zone

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestBuildProblems(t *testing.T) {
	ns := []Nameserver{{Name: "ns.example.net"}}
	zones := []Zone{{Name: "a.test", Nameservers: ns}}
	two := append(zones[:1:1], Zone{Name: "b.test", Nameservers: ns})
	host := func(name string, list ...string) []Host { return []Host{{Name: name, Addrs: addrs(list...)}} }
	long := strings.TrimSuffix(strings.Repeat(strings.Repeat("x", 49)+".", 5), ".")

	cases := []struct {
		name   string
		source Source
		want   []string // each must start a problem's line, in order
	}{
		{"host outside", Source{Zones: zones, Hosts: host("db.b.test", "192.0.2.1")}, []string{`hosts[0].name = "db.b.test": the hostname is outside the zones: `}},
		{"host outside for lack of zones", Source{Hosts: host("db", "192.0.2.1")}, []string{`hosts[0].name = "db": the hostname is outside the zones: declare its zone`}},
		{"bare label with two zones", Source{Zones: two, Hosts: host("db", "192.0.2.1")}, []string{`hosts[0].name = "db": the hostname is outside the zones: there are 2 zones, so write it in full, such as db.a.test`}},
		{"zone suffix without a dot", Source{Zones: zones, Hosts: host("dba.test", "192.0.2.1")}, []string{`hosts[0].name = "dba.test": the hostname is outside`}},
		{"space in a name", Source{Zones: zones, Hosts: host("d b.a.test", "192.0.2.1")}, []string{`hosts[0].name = "d b.a.test": the name has a character`}},
		{"not ASCII", Source{Zones: zones, Hosts: host("dé.a.test", "192.0.2.1")}, []string{`hosts[0].name = "dé.a.test": the name is not ASCII: write its xn--`}},
		{"backslash", Source{Zones: zones, Hosts: host(`d\.b.a.test`, "192.0.2.1")}, []string{`hosts[0].name = "d\\.b.a.test": the name has a character`}},
		{"empty label", Source{Zones: zones, Hosts: host("d..a.test", "192.0.2.1")}, []string{`hosts[0].name = "d..a.test": the name has an empty label`}},
		{"hyphen", Source{Zones: zones, Hosts: host("-d.a.test", "192.0.2.1")}, []string{`hosts[0].name = "-d.a.test": a label starts or ends with a hyphen`}},
		{"long label", Source{Zones: zones, Hosts: host(strings.Repeat("x", 64)+".a.test", "192.0.2.1")}, []string{`hosts[0].name = "` + strings.Repeat("x", 64) + `.a.test": a label is longer than 63`}},
		{"long name", Source{Zones: zones, Hosts: host(long+".xxxx.a.test", "192.0.2.1")}, []string{`hosts[0].name = "` + long + `.xxxx.a.test": the name is longer than 253`}},
		{"long zone", Source{Zones: []Zone{{Name: long, Nameservers: ns}}}, []string{`zones[0].name = "` + long + `": the name leaves no room`}},
		{"bare label too long within its zone", Source{Zones: []Zone{{Name: long, Nameservers: ns, Mailbox: "x.test"}}, Hosts: host("wwwww", "192.0.2.1")}, []string{`hosts[0].name = "wwwww": the name is longer than 253 characters within`}},
		{"empty name", Source{Zones: zones, Hosts: host("", "192.0.2.1")}, []string{`hosts[0].name = "": the name is empty`}},
		{"wildcard inside", Source{Zones: zones, Hosts: host("x.*.a.test", "192.0.2.1")}, []string{`hosts[0].name = "x.*.a.test": "*" is only possible`}},
		{"wildcard in part", Source{Zones: zones, Hosts: host("x*.a.test", "192.0.2.1")}, []string{`hosts[0].name = "x*.a.test": "*" is only possible`}},
		{"wildcard zone", Source{Zones: []Zone{{Name: "*.test", Nameservers: ns}}}, []string{`zones[0].name = "*.test": "*" is only possible`}},
		{"root zone", Source{Zones: []Zone{{Name: ".", Nameservers: ns}}}, []string{`zones[0].name = ".": the name is empty`}},
		{"zone twice", Source{Zones: []Zone{{Name: "a.test", Nameservers: ns}, {Name: "A.test.", Nameservers: ns}}}, []string{`zones[1].name = "A.test.": the zone is given twice`}},
		{"no nameserver", Source{Zones: []Zone{{Name: "a.test"}}, Hosts: host("db.a.test", "192.0.2.1")}, []string{`zones[0].nameservers = "": the zone has no nameserver: name at least one, such as ns1.a.test`}},
		{"nameserver twice", Source{Zones: []Zone{{Name: "a.test", Nameservers: []Nameserver{{Name: "ns.test"}, {Name: "NS.test"}}}}}, []string{`zones[0].nameservers[1].name = "NS.test": the nameserver is given twice`}},
		{"nameserver inside without addresses", Source{Zones: []Zone{{Name: "a.test", Nameservers: []Nameserver{{Name: "ns.a.test"}}}}}, []string{`zones[0].nameservers[0].addrs = "ns.a.test": a nameserver inside the zone has no address`}},
		{"bad nameserver and bad mailbox at once", Source{Zones: []Zone{{Name: "a.test", Mailbox: "a@b", Nameservers: []Nameserver{{Name: "n s"}}}}}, []string{`zones[0].nameservers[0].name = "n s"`, `zones[0].mailbox = "a@b"`}},
		{"other addresses", Source{Zones: zones, Hosts: append(host("db.a.test", "192.0.2.1"), host("DB.a.test", "192.0.2.2")...)}, []string{`hosts[1] = "DB.a.test": the name has other addresses already, at hosts[0]: `}},
		{"host with a nameserver's name", Source{Zones: []Zone{{Name: "a.test", Nameservers: []Nameserver{{Name: "ns.a.test", Addrs: addrs("192.0.2.1")}}}}, Hosts: host("ns.a.test", "192.0.2.2")}, []string{`hosts[0] = "ns.a.test": the name has other addresses already, at zones[0].nameservers[0]: `}},
		{"addresses that nobody can dial", Source{Zones: zones, Hosts: host("db.a.test", "0.0.0.0", "ff02::1", "192.0.2.1", "fe80::1%eth0")}, []string{`hosts[0].addrs[0] = "0.0.0.0": the address is not`, `hosts[0].addrs[1] = "ff02::1"`, `hosts[0].addrs[3] = "fe80::1%eth0"`}},
		{"bad nameserver address", Source{Zones: []Zone{{Name: "a.test", Nameservers: []Nameserver{{Name: "ns.a.test", Addrs: addrs("::")}}}}}, []string{`zones[0].nameservers[0].addrs[0] = "::"`}},
		{"TTL too small", Source{Zones: []Zone{{Name: "a.test", Nameservers: ns, TTLs: TTLs{Host: time.Millisecond}}}}, []string{`zones[0].ttls.host = "1ms": the TTL is out of range`}},
		{"TTL too large", Source{Zones: []Zone{{Name: "a.test", Nameservers: ns, TTLs: TTLs{Negative: maxTTL + 1}}}}, []string{`zones[0].ttls.negative`}},
		{"all at once", Source{Zones: []Zone{{Name: "a b", Nameservers: ns}, {Name: "a.test"}}, Hosts: append(host("x.test", "192.0.2.1"), host("db.a.test", "::")...)}, []string{`zones[0].name`, `zones[1].nameservers`, `hosts[0].name`, `hosts[1].addrs[0]`}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			snapshot, problems := Build(c.source)
			if snapshot != nil {
				t.Error("a snapshot came with the problems")
			}
			var got []string
			for i, p := range problems {
				line := p.Error()
				if p.Hint == "" {
					t.Errorf("no hint: %s", line)
				}
				if i < len(c.want) && strings.HasPrefix(line, c.want[i]) {
					line = c.want[i]
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBuildBareLabels(t *testing.T) {
	snapshot := mustBuild(t, Source{
		Zones: []Zone{{Name: "apps.test", Nameservers: []Nameserver{{Name: "ns1.apps.test", Addrs: addrs("192.0.2.53")}}}},
		Hosts: []Host{{Name: "db", Addrs: addrs("192.0.2.1")}, {Name: "*", Addrs: addrs("192.0.2.2")}, {Name: "_x", Addrs: addrs("192.0.2.3")}},
	})
	for qname, want := range map[string]string{"db.apps.test.": "192.0.2.1", "other.apps.test.": "192.0.2.2", "_x.apps.test.": "192.0.2.3", "ns1.apps.test.": "192.0.2.53"} {
		a := snapshot.Lookup(qname, dns.TypeA)
		if len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != want {
			t.Errorf("%s = %v, want %s", qname, a.Answer, want)
		}
	}
}

func TestBuildWithoutZones(t *testing.T) {
	snapshot := mustBuild(t, Source{Revision: 3})
	if got := snapshot.Lookup("a.test.", dns.TypeA).Rcode; got != dns.RcodeRefused {
		t.Errorf("rcode %d, want REFUSED", got)
	}
	if snapshot.Revision() != 3 {
		t.Errorf("revision %d, want 3", snapshot.Revision())
	}
}

// TestBuildSerial: the serial is the revision, so that it is the same on every
// edge that holds it, or what the zone says.
func TestBuildSerial(t *testing.T) {
	snapshot := mustBuild(t, example())
	for qname, want := range map[string]uint32{"apps.example.com.": 7, "eu.deep.apps.example.com.": 99} {
		if got := snapshot.Lookup(qname, dns.TypeSOA).Answer[0].(*dns.SOA).Serial; got != want {
			t.Errorf("serial of %s = %d, want %d", qname, got, want)
		}
	}
}

// TestBuildDoesNotKeepTheSource: the caller may reuse what it passed.
func TestBuildDoesNotKeepTheSource(t *testing.T) {
	source := example()
	snapshot := mustBuild(t, source)
	clear(source.Hosts)
	clear(source.Zones[0].Nameservers)
	if got := lines(snapshot.Lookup("db.apps.example.com.", dns.TypeA).Answer); got != "db.apps.example.com. 30 IN A 203.0.113.10" {
		t.Errorf("answer = %q", got)
	}
	zones := snapshot.Zones()
	zones[0] = "changed"
	if snapshot.Zones()[0] != "apps.example.com" {
		t.Error("Zones handed out the snapshot's own slice")
	}
}
