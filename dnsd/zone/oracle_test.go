package zone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// oracle answers by the definitions, from lists and without any structure: it
// is slow and plain, and shares no code with Lookup.
type oracle struct {
	apexes []string            // with final dots
	owners map[string][]uint16 // name → types that it has
}

func newOracle(s Source) oracle {
	o := oracle{owners: make(map[string][]uint16)}
	give := func(name string, list []netip.Addr) {
		if _, ok := o.owners[name]; !ok {
			o.owners[name] = nil
		}
		for _, a := range list {
			t := dns.TypeAAAA
			if a.Is4() {
				t = dns.TypeA
			}
			if !slices.Contains(o.owners[name], t) {
				o.owners[name] = append(o.owners[name], t)
			}
		}
	}
	for _, z := range s.Zones {
		apex := z.Name + "."
		o.apexes = append(o.apexes, apex)
		o.owners[apex] = append(o.owners[apex], dns.TypeSOA, dns.TypeNS)
	}
	for _, h := range s.Hosts {
		give(h.Name+".", h.Addrs)
	}
	return o
}

func within(name, ancestor string) bool {
	return name == ancestor || strings.HasSuffix(name, "."+ancestor)
}

func (o oracle) zone(name string) (best string) {
	for _, apex := range o.apexes {
		if within(name, apex) && len(apex) > len(best) {
			best = apex
		}
	}
	return best
}

// exists: something is at the name or below it, in any zone.
func (o oracle) exists(name string) bool {
	for owner := range o.owners {
		if within(owner, name) {
			return true
		}
	}
	return false
}

// ask returns the zone, the code, and the type answered (0 is NODATA).
func (o oracle) ask(qname string, qtype uint16) (zone string, rcode int, answered uint16) {
	zone = o.zone(qname)
	if zone == "" {
		return "", dns.RcodeRefused, 0
	}
	labels := strings.Split(qname, ".")
	owner := qname
	if !o.exists(qname) {
		// The closest encloser is the longest ancestor that exists; the source
		// of synthesis is its asterisk (RFC 4592 section 3.3.1).
		for i := 1; ; i++ {
			if encloser := strings.Join(labels[i:], "."); o.exists(encloser) {
				owner = "*." + encloser
				break
			}
		}
		if _, ok := o.owners[owner]; !ok {
			return zone, dns.RcodeNameError, 0
		}
	}
	types := o.owners[owner]
	if qtype == dns.TypeDS && slices.Contains(types, dns.TypeSOA) {
		if above := o.zone(strings.Join(labels[1:], ".")); above != "" {
			return above, dns.RcodeSuccess, 0
		}
	}
	if qtype == dns.TypeANY {
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSOA} {
			if slices.Contains(types, t) {
				return zone, dns.RcodeSuccess, t
			}
		}
	}
	if slices.Contains(types, qtype) {
		return zone, dns.RcodeSuccess, qtype
	}
	return zone, dns.RcodeSuccess, 0
}

// randomName is a name of few labels from a small alphabet, so that questions
// and hosts meet often.
func randomName(r *rand.Rand, most int, star bool) string {
	labels := make([]string, 1+r.IntN(most))
	for i := range labels {
		labels[i] = string("abc"[r.IntN(3)])
	}
	if star && r.IntN(5) == 0 {
		labels[0] = "*"
	}
	return strings.Join(labels, ".")
}

func randomSource(r *rand.Rand) Source {
	s := Source{Revision: 1}
	seen := map[string]bool{}
	for range 1 + r.IntN(4) {
		name := randomName(r, 3, false)
		if !seen[name] {
			seen[name] = true
			s.Zones = append(s.Zones, Zone{Name: name, Nameservers: []Nameserver{{Name: "ns.example.net"}}})
		}
	}
	choices := [][]netip.Addr{nil, addrs("192.0.2.1"), addrs("2001:db8::1"), addrs("192.0.2.1", "2001:db8::1")}
	o := newOracle(s)
	seen = map[string]bool{}
	for range r.IntN(12) {
		name := randomName(r, 6, true)
		if o.zone(name+".") != "" && !seen[name] {
			seen[name] = true
			s.Hosts = append(s.Hosts, Host{Name: name, Addrs: choices[r.IntN(len(choices))]})
		}
	}
	return s
}

// differs asks both and says where they disagree.
func differs(snapshot *Snapshot, o oracle, qname string, qtype uint16) string {
	a := snapshot.Lookup(qname, qtype)
	zone, rcode, answered := o.ask(fold(qname), qtype)
	got, gotType := a.Zone, uint16(0)
	if len(a.Answer) > 0 {
		gotType = a.Answer[0].Header().Rrtype
	}
	if got != strings.TrimSuffix(zone, ".") || a.Rcode != rcode || gotType != answered {
		return fmt.Sprintf("%s %s = zone %q rcode %d type %d, the oracle says %q %d %d",
			qname, dns.Type(qtype), a.Zone, a.Rcode, gotType, zone, rcode, answered)
	}
	for _, rr := range a.Answer {
		if rr.Header().Name != qname {
			return fmt.Sprintf("%s is answered as %s", qname, rr.Header().Name)
		}
	}
	if negative := rcode == dns.RcodeNameError || rcode == dns.RcodeSuccess && answered == 0; negative != (len(a.Authority) == 1) {
		return fmt.Sprintf("%s %s has %d authority records", qname, dns.Type(qtype), len(a.Authority))
	}
	return ""
}

// FuzzLookup draws zones and questions from a seed and a name, and holds
// Lookup to the oracle.
func FuzzLookup(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(seed, "a.b.c")
	}
	f.Add(uint64(1), `x\.a.b`)
	f.Add(uint64(2), "")
	f.Fuzz(func(t *testing.T, seed uint64, extra string) {
		r := rand.New(rand.NewPCG(seed, 0))
		source := randomSource(r)
		snapshot, problems := Build(source)
		if len(problems) > 0 {
			t.Fatalf("source %+v: %v", source, problems)
		}
		o := newOracle(source)
		types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypeSOA, dns.TypeANY, dns.TypeDS, dns.TypeTXT}
		for range 50 {
			qname := randomName(r, 7, true) + "."
			if r.IntN(4) == 0 {
				qname = strings.ToUpper(qname)
			}
			if diff := differs(snapshot, o, qname, types[r.IntN(len(types))]); diff != "" {
				t.Fatalf("%+v\n%s", source, diff)
			}
		}
		snapshot.Lookup(extra, types[r.IntN(len(types))]) // must not panic
	})
}

// FuzzBuild gives Build names that nobody checked: whatever it accepts is
// found under that name, packs, and nothing panics.
func FuzzBuild(f *testing.F) {
	f.Add("apps.example.com", "db", "ns1.apps.example.com")
	f.Add("a", "*.a", "a")
	f.Add("a..b", "-", "x*")
	f.Add(strings.Repeat("a.", 126)+"a", "b", "c")
	f.Fuzz(func(t *testing.T, zoneName, host, ns string) {
		list := addrs("192.0.2.1", "2001:db8::1")
		snapshot, problems := Build(Source{
			Zones: []Zone{{Name: zoneName, Nameservers: []Nameserver{{Name: ns, Addrs: list}}}},
			Hosts: []Host{{Name: host, Addrs: list}},
		})
		if (snapshot == nil) != (len(problems) > 0) {
			t.Fatalf("snapshot %v with %d problems", snapshot, len(problems))
		}
		if snapshot == nil {
			return
		}
		a := snapshot.Lookup(zoneName, dns.TypeNS)
		m := dns.Msg{Answer: a.Answer, Extra: a.Additional, Ns: snapshot.Lookup(zoneName, dns.TypeTXT).Authority}
		if len(a.Answer) != 1 || len(m.Ns) != 1 {
			t.Fatalf("apex of %q: %v", zoneName, m)
		}
		if _, err := m.Pack(); err != nil {
			t.Fatalf("packing the apex of %q: %v", zoneName, err)
		}
	})
}
