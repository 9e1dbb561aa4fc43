package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warrenmesh/warren/dnsd"
	"github.com/warrenmesh/warren/dnsd/zone"
)

// dnsTable is [dns].
type dnsTable struct {
	// Listen are the addresses that are asked over UDP and TCP. Port 0 is any
	// port that is free for both. Default: port 53 of every address's bind,
	// never the wildcard. Without a [[zone]] nothing listens.
	Listen []netip.AddrPort `toml:"listen"`
}

// zoneTable is a [[zone]] that this edge is authoritative for.
type zoneTable struct {
	// Name of the zone, as in "apps.example.com".
	Name string `toml:"name" required:"true" hint:"name the zone, as in \"apps.example.com\""`
	// Nameservers that the zone is delegated to. One inside the zone gets its
	// A and AAAA made, from the addresses that DNS listens on.
	Nameservers []string `toml:"nameservers" required:"true" hint:"name at least one, as in [\"ns1.apps.example.com\"]"`
	// Mailbox of who runs the zone, written as a name. Default: hostmaster and
	// the zone's name.
	Mailbox string `toml:"mailbox"`
	// TTL of the addresses of apps, in whole seconds. Default: 30s; 1s to 24h.
	TTL time.Duration `toml:"ttl" default:"30s" range:"1s..24h"`
	// NegativeTTL of the answer that there is no such name or address, in whole
	// seconds. Default: 30s; 1s to 24h.
	NegativeTTL time.Duration `toml:"negative_ttl" default:"30s" range:"1s..24h"`
}

// DNS is what the DNS server of this edge serves, and where.
type DNS struct {
	// Server listens nowhere where there is no zone.
	Server dnsd.Spec
	Zones  []zone.Zone
	Hosts  []zone.Host
}

// Source is the zones and hosts as of a revision.
func (d DNS) Source(revision uint64) zone.Source {
	return zone.Source{Revision: revision, Zones: d.Zones, Hosts: d.Hosts}
}

// hostname is one entry of an app's hostnames.
type hostname struct {
	path string // app[0].hostnames[1]
	app  int
}

// buildDNS makes the zones, the hosts and where they are served. What is wrong
// with names is found by building a snapshot of them, as the server will.
func (l *loader) buildDNS() {
	l.buildZones()
	l.buildHosts()
	if len(l.file.Zone) > 0 {
		l.buildServer()
	}
	if l.doc.Broken() || (len(l.cfg.DNS.Zones) == 0 && l.doc.Bad("zone")) {
		return
	}
	_, problems := zone.Build(l.cfg.DNS.Source(1))
	for _, p := range problems {
		l.zoneProblem(p)
	}
	l.completeHostnames()
}

func (l *loader) buildZones() {
	for i, z := range l.file.Zone {
		for _, t := range []struct {
			key string
			ttl time.Duration
		}{{"ttl", z.TTL}, {"negative_ttl", z.NegativeTTL}} {
			if t.ttl%time.Second != 0 {
				l.doc.Add(fmt.Sprintf("zone[%d].%s", i, t.key), "a fraction of a second", "use whole seconds")
			}
		}
		out := zone.Zone{Name: z.Name, Mailbox: z.Mailbox, TTLs: zone.TTLs{Host: z.TTL, Negative: z.NegativeTTL}}
		for _, ns := range z.Nameservers {
			out.Nameservers = append(out.Nameservers, zone.Nameserver{Name: ns, Addrs: l.serverAddrs()})
		}
		l.cfg.DNS.Zones = append(l.cfg.DNS.Zones, out)
	}
}

// serverAddrs is how the world reaches this edge's DNS server: the advertised
// half of the addresses that it listens on, or of all where it listens on none
// of them by name.
func (l *loader) serverAddrs() []netip.Addr {
	var all, named []netip.Addr
	for _, a := range l.cfg.Addresses {
		for n := range min(len(a.Bind), len(a.Advertise)) {
			if !a.Advertise[n].IsValid() {
				continue
			}
			all = append(all, a.Advertise[n])
			if slices.ContainsFunc(l.file.DNS.Listen, func(at netip.AddrPort) bool { return at.Addr() == a.Bind[n] }) {
				named = append(named, a.Advertise[n])
			}
		}
	}
	if len(named) > 0 {
		return named
	}
	return all
}

// buildHosts gives each hostname the advertised addresses of its app.
func (l *loader) buildHosts() {
	bare := len(l.file.Zone) == 0 && !l.doc.Bad("zone") && !l.doc.Broken()
	for i, t := range l.file.App {
		var addrs []netip.Addr
		for _, a := range l.addressesOf(t) {
			for _, adv := range a.Advertise {
				if adv.IsValid() {
					addrs = append(addrs, adv)
				}
			}
		}
		for j, name := range t.Hostnames {
			path := fmt.Sprintf("app[%d].hostnames[%d]", i, j)
			switch {
			case name == "":
			case bare && !strings.Contains(name, "."):
				l.doc.Add(path, "there is no [[zone]] to complete it", "write the name in full, or add a [[zone]]")
			case bare:
				// Somebody else's DNS answers for it.
			default:
				l.cfg.DNS.Hosts = append(l.cfg.DNS.Hosts, zone.Host{Name: name, Addrs: addrs})
				l.hosts = append(l.hosts, hostname{path: path, app: i})
			}
		}
	}
}

// buildServer chooses where DNS listens.
func (l *loader) buildServer() {
	listen := l.file.DNS.Listen
	if len(listen) == 0 && !l.doc.Bad("dns.listen") {
		var binds []netip.Addr
		for _, a := range l.cfg.Addresses {
			for _, b := range a.Bind {
				if b.IsValid() {
					binds = append(binds, b)
				}
			}
		}
		list, err := dnsd.ListenOn(binds, dnsd.Port)
		switch {
		case l.doc.Bad("address"):
		case err != nil:
			l.doc.Add("dns.listen", "missing, and an [[address]] binds every address of the machine", `list where DNS listens, as in ["203.0.113.10:53"]`)
		case len(list) == 0:
			l.doc.Add("dns.listen", "missing, and there is no [[address]] to listen on", "add an [[address]], or list where DNS listens")
		}
		listen = list
	}
	for i, at := range listen {
		path := fmt.Sprintf("dns.listen[%d]", i)
		switch {
		case at.Addr().IsMulticast():
			l.doc.Add(path, "not an address of this machine", "write the machine's own address")
		case slices.Index(listen, at) != i && at.Port() != 0 && at.IsValid():
			l.doc.Add(path, "the address is there twice", "remove one of the two")
		}
	}
	l.cfg.DNS.Server = dnsd.Spec{Listen: listen}
}

// zoneProblem reports what zone.Build found, at the key that it speaks of.
func (l *loader) zoneProblem(p zone.Problem) {
	var i, j int
	path := ""
	switch {
	case scan(p.Path, "zones[%d].nameservers[%d]", &i, &j):
		path = fmt.Sprintf("zone[%d].nameservers[%d]", i, j)
	case scan(p.Path, "zones[%d]", &i):
		path = fmt.Sprintf("zone[%d].%s", i, lastKey(p.Path))
	case scan(p.Path, "hosts[%d]", &i) && i < len(l.hosts):
		path = l.hosts[i].path
	}
	switch {
	case path == "" || l.doc.Bad(path):
	case strings.Contains(p.Path, ".addrs") && l.doc.Bad("address"):
	case strings.HasPrefix(p.Path, "hosts") && l.badZone():
	default:
		l.doc.Add(path, l.inFileWords(p.What), p.Hint)
	}
}

// badZone reports whether a zone's name is wrong, so that hostnames may seem
// to be outside.
func (l *loader) badZone() bool {
	for i := range l.file.Zone {
		if l.doc.Bad(fmt.Sprintf("zone[%d].name", i)) {
			return true
		}
	}
	return false
}

// inFileWords puts the path that a zone.Problem may end with into a place of
// the file.
func (l *loader) inFileWords(text string) string {
	before, path, ok := strings.Cut(text, ", at ")
	var i, j int
	switch {
	case !ok:
		return text
	case scan(path, "zones[%d].nameservers[%d]", &i, &j):
		path = fmt.Sprintf("zone[%d].nameservers[%d]", i, j)
	case scan(path, "hosts[%d]", &i) && i < len(l.hosts):
		path = l.hosts[i].path
	}
	return before + ", at " + l.doc.Where(path)
}

// scan reports whether path begins with what format describes, and reads its
// indices.
func scan(path, format string, into ...any) bool {
	n, _ := fmt.Sscanf(path, format, into...)
	return n == len(into)
}

// completeHostnames gives each app its names in full.
func (l *loader) completeHostnames() {
	for i, h := range l.hosts {
		name := strings.TrimSuffix(l.cfg.DNS.Hosts[i].Name, ".")
		if !strings.Contains(name, ".") && len(l.cfg.DNS.Zones) == 1 {
			name += "." + strings.TrimSuffix(l.cfg.DNS.Zones[0].Name, ".")
		}
		app := &l.cfg.Apps[h.app]
		app.Hostnames = append(app.Hostnames, name)
	}
	if len(l.hosts) == 0 { // no zone: the names are somebody else's business
		for i, t := range l.file.App {
			l.cfg.Apps[i].Hostnames = t.Hostnames
		}
	}
}
