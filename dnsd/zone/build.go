package zone

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Build makes the Snapshot of a source, or returns everything that is wrong
// with it, in the order of the source, and no snapshot. A source without
// zones is fine: its snapshot refuses every question.
func Build(source Source) (*Snapshot, []Problem) {
	b := builder{
		snapshot: &Snapshot{revision: source.Revision, nodes: make(map[string]*node)},
		owners:   make(map[string]owner),
	}
	for i, z := range source.Zones {
		b.addZone(i, z, source.Revision)
	}
	b.linkZones()
	for i, z := range source.Zones {
		b.addNameservers(i, z)
	}
	for i, h := range source.Hosts {
		b.addHost(i, h, source.Zones)
	}
	if len(b.problems) > 0 {
		return nil, b.problems
	}
	b.linkWildcards()
	return b.snapshot, nil
}

// builder holds what Build has so far.
type builder struct {
	snapshot *Snapshot
	owners   map[string]owner // who gave a name its addresses
	problems []Problem
}

// owner is the first host or nameserver that gave a name its addresses.
type owner struct {
	path  string
	addrs []netip.Addr
}

func (b *builder) problem(path, value, what, hint string) {
	b.problems = append(b.problems, Problem{Path: path, Value: value, What: what, Hint: hint})
}

// name checks a name and returns its canonical form, or "" after it has
// recorded the problem.
func (b *builder) name(path, value string, wildcard bool) string {
	fqdn, what, hint := canonical(value, wildcard)
	if what != "" {
		b.problem(path, value, what, hint)
	}
	return fqdn
}

// addZone makes the apex with its SOA and NS records. The apex claims its
// names even where the rest of the zone is wrong, so that the hosts below it
// are not each reported as outside the zones.
func (b *builder) addZone(i int, z Zone, revision uint64) {
	path := fmt.Sprintf("zones[%d]", i)
	apex := b.name(path+".name", z.Name, false)
	if apex == "" {
		return
	}
	if b.snapshot.nodes[apex] != nil {
		b.problem(path+".name", z.Name, "the zone is given twice", "remove one of the two")
		return
	}
	ttls := b.ttls(path, z.TTLs)
	h := &held{apex: apex, name: strings.TrimSuffix(apex, "."), hostTTL: ttls.host, nsTTL: ttls.nameserver}
	n := &node{zone: h}
	b.snapshot.nodes[apex] = n
	b.snapshot.zones = append(b.snapshot.zones, h.name)

	servers := b.servers(path, h, z.Nameservers)
	mailbox := b.mailbox(path, h, z)
	if len(servers) == 0 || mailbox == "" {
		return
	}
	soa := &dns.SOA{
		Hdr: header(apex, dns.TypeSOA, ttls.nameserver), Ns: servers[0].(*dns.NS).Ns, Mbox: mailbox,
		Serial: z.Serial, Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: ttls.negative,
	}
	if soa.Serial == 0 {
		soa.Serial = uint32(revision)
	}
	h.negative = negative(soa)
	n.add(dns.TypeSOA, []dns.RR{soa})
	n.add(dns.TypeNS, servers)
}

// servers makes the NS records of a zone.
func (b *builder) servers(path string, h *held, nameservers []Nameserver) []dns.RR {
	if len(nameservers) == 0 {
		b.problem(path+".nameservers", "", "the zone has no nameserver", "name at least one, such as ns1."+h.name)
	}
	var records []dns.RR
	for j, ns := range nameservers {
		path := fmt.Sprintf("%s.nameservers[%d].name", path, j)
		name := b.name(path, ns.Name, false)
		switch {
		case name == "":
		case slices.ContainsFunc(records, func(rr dns.RR) bool { return rr.(*dns.NS).Ns == name }):
			b.problem(path, ns.Name, "the nameserver is given twice", "remove one of the two")
		default:
			records = append(records, &dns.NS{Hdr: header(h.apex, dns.TypeNS, h.nsTTL), Ns: name})
		}
	}
	return records
}

// mailbox is the SOA's RNAME.
func (b *builder) mailbox(path string, h *held, z Zone) string {
	if z.Mailbox != "" {
		return b.name(path+".mailbox", z.Mailbox, false)
	}
	mailbox := "hostmaster." + h.apex
	if len(mailbox) > maxNameLen+1 {
		b.problem(path+".name", z.Name, "the name leaves no room for the SOA's mailbox", "set a mailbox, or shorten the name")
		return ""
	}
	return mailbox
}

// negative is the authority section of NXDOMAIN and NODATA: the SOA with the
// smaller of its TTL and its MINIMUM (RFC 2308 section 3).
func negative(soa *dns.SOA) []dns.RR {
	low := *soa
	low.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl)
	return []dns.RR{&low}
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// seconds are the TTLs of a zone as records carry them.
type seconds struct{ host, negative, nameserver uint32 }

func (b *builder) ttls(path string, t TTLs) seconds {
	one := func(key string, d, fallback time.Duration) uint32 {
		switch {
		case d == 0:
			d = fallback
		case d < time.Second || d > maxTTL:
			b.problem(path+".ttls."+key, d.String(), "the TTL is out of range", "1s or more, 2147483647s or less")
			d = fallback
		}
		return uint32(d / time.Second)
	}
	return seconds{
		host:       one("host", t.Host, DefaultHostTTL),
		negative:   one("negative", t.Negative, DefaultNegativeTTL),
		nameserver: one("nameserver", t.Nameserver, DefaultNameserverTTL),
	}
}

// linkZones tells every zone that lies inside another which one that is, and
// makes the names between the two exist in the outer one: below them is the
// inner zone, so they are empty non-terminals and never NXDOMAIN.
func (b *builder) linkZones() {
	var apexes []string
	for name := range b.snapshot.nodes {
		apexes = append(apexes, name)
	}
	for _, apex := range apexes {
		above := parent(apex)
		if outer := b.zoneOf(above); outer != nil {
			b.snapshot.nodes[apex].zone.parent = outer
			b.ensure(above, outer)
		}
	}
}

// zoneOf returns the zone that a name belongs to: the longest that holds it.
func (b *builder) zoneOf(name string) *held {
	for ; name != ""; name = parent(name) {
		if n := b.snapshot.nodes[name]; n != nil {
			return n.zone
		}
	}
	return nil
}

// ensure makes name exist in its zone, with every name between it and the apex.
func (b *builder) ensure(name string, z *held) *node {
	n := b.snapshot.nodes[name]
	if n != nil {
		return n
	}
	n = &node{zone: z}
	b.snapshot.nodes[name] = n
	b.ensure(parent(name), z)
	return n
}

// addNameservers gives the nameservers that lie inside a zone their addresses,
// and the apex its glue.
func (b *builder) addNameservers(i int, z Zone) {
	apex, what, _ := canonical(z.Name, false)
	if what != "" {
		return
	}
	for j, ns := range z.Nameservers {
		path := fmt.Sprintf("zones[%d].nameservers[%d]", i, j)
		name, what, _ := canonical(ns.Name, false)
		if what != "" {
			continue
		}
		inside := b.zoneOf(name)
		if inside == nil {
			continue // somebody else's zone has its addresses
		}
		if len(ns.Addrs) == 0 {
			b.problem(path+".addrs", ns.Name, "a nameserver inside the zone has no address", "give it the addresses it is reached at, or name one outside the zone")
			continue
		}
		if n := b.addAddrs(path, name, ns.Name, ns.Addrs, inside, inside.nsTTL); n != nil {
			b.snapshot.nodes[apex].zone.addGlue(n)
		}
	}
}

// addHost finds the host's zone and gives the host its addresses.
func (b *builder) addHost(i int, h Host, zones []Zone) {
	path := fmt.Sprintf("hosts[%d]", i)
	name := b.name(path+".name", h.Name, true)
	if name == "" {
		return
	}
	z := b.zoneOf(name)
	if z == nil && len(zones) == 1 && !strings.Contains(h.Name, ".") {
		if apex, what, _ := canonical(zones[0].Name, false); what == "" {
			name += apex
			z = b.zoneOf(name)
		}
	}
	switch {
	case z == nil:
		b.problem(path+".name", h.Name, "the hostname is outside the zones", outsideHint(h.Name, zones))
	case len(name) > maxNameLen+1:
		b.problem(path+".name", h.Name, "the name is longer than 253 characters within its zone", "shorten it")
	default:
		b.addAddrs(path, name, h.Name, h.Addrs, z, z.hostTTL)
	}
}

func outsideHint(name string, zones []Zone) string {
	switch {
	case len(zones) == 0:
		return "declare its zone"
	case strings.Contains(name, "."):
		return fmt.Sprintf("declare its zone, or write it in full, such as %s.%s", name, strings.TrimSuffix(zones[0].Name, "."))
	}
	return fmt.Sprintf("there are %d zones, so write it in full, such as %s.%s", len(zones), name, strings.TrimSuffix(zones[0].Name, "."))
}

// addAddrs gives a name its A and AAAA records. A name that has them already
// must have been given the same ones. It returns nil after a problem.
func (b *builder) addAddrs(path, name, value string, given []netip.Addr, z *held, ttl uint32) *node {
	addrs, ok := b.checkAddrs(path, given)
	if !ok {
		return nil
	}
	if first, taken := b.owners[name]; taken {
		if !slices.Equal(first.addrs, addrs) {
			b.problem(path, value, "the name has other addresses already, at "+first.path, "give both the same addresses, or another name")
			return nil
		}
		return b.snapshot.nodes[name]
	}
	b.owners[name] = owner{path, addrs}
	n := b.ensure(name, z)
	var four, six []dns.RR
	for _, a := range addrs {
		if a.Is4() {
			four = append(four, &dns.A{Hdr: header(name, dns.TypeA, ttl), A: a.AsSlice()})
		} else {
			six = append(six, &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttl), AAAA: a.AsSlice()})
		}
	}
	n.add(dns.TypeA, four)
	n.add(dns.TypeAAAA, six)
	return n
}

// checkAddrs returns the addresses sorted and without duplicates, as an RRset
// is a set (RFC 2181 section 5).
func (b *builder) checkAddrs(path string, given []netip.Addr) (addrs []netip.Addr, ok bool) {
	ok = true
	for i, a := range given {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			b.problem(fmt.Sprintf("%s.addrs[%d]", path, i), a.String(), "the address is not one that a client can dial", "give a unicast address without a zone")
			ok = false
			continue
		}
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), ok
}

// linkWildcards ties each "*" to the name it stands below.
func (b *builder) linkWildcards() {
	for name, n := range b.snapshot.nodes {
		if below, ok := strings.CutPrefix(name, "*."); ok {
			b.snapshot.nodes[below].wildcard = n
		}
	}
}
