package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/netstack/tunnel"
)

// refs checks what crosses tables: names that point nowhere, things that two
// tables claim, private addresses that no connector serves.
func (l *loader) refs() {
	networks := l.kindOf("network", names(l.file.Network, func(t Network) string { return t.Name }))
	addresses := l.kindOf("address", names(l.file.Address, func(t Address) string { return t.Name }))
	monitors := l.kindOf("monitor", names(l.file.Monitor, func(t monitorTable) string { return t.Name }))
	pools := l.kindOf("pool", names(l.file.Pool, func(t poolTable) string { return t.Name }))
	l.kindOf("connector", names(l.file.Connector, func(t Connector) string { return t.Name }))
	l.kindOf("webhook", names(l.file.Webhook, func(t webhookTable) string { return t.Name }))
	l.kindOf("app", names(l.file.App, func(t appTable) string { return t.Name }))

	for i, c := range l.file.Connector {
		networks.has(l.doc, fmt.Sprintf("connector[%d].network", i), c.Network)
	}
	l.checkReplicas()
	l.checkKeys()
	l.checkRoutes()
	l.indexRoutes()
	for i, p := range l.file.Pool {
		l.poolRefs(fmt.Sprintf("pool[%d]", i), p, networks, monitors)
	}
	for i, a := range l.file.App {
		l.appRefs(fmt.Sprintf("app[%d]", i), a, networks, addresses, pools)
	}
	l.checkTransports()
	l.claims()
	l.paths()
}

func names[T any](tables []T, name func(T) string) []string {
	out := make([]string, len(tables))
	for i, t := range tables {
		out[i] = name(t)
	}
	return out
}

// checkReplicas wants no network to list a connector that stands in another.
// One that is not declared may enrol later.
func (l *loader) checkReplicas() {
	standsIn := make(map[string]string, len(l.file.Connector))
	for _, c := range l.file.Connector {
		standsIn[c.Name] = c.Network
	}
	for i, n := range l.file.Network {
		for j, name := range n.Replicas {
			at := fmt.Sprintf("network[%d].replicas[%d]", i, j)
			if other, declared := standsIn[name]; declared && name != "" && other != n.Name && other != "" && n.Name != "" && !l.doc.Bad(at) {
				l.doc.Add(at, fmt.Sprintf("the connector stands in network %q", other), "list connectors of this network")
			}
		}
	}
}

// checkKeys wants each connector to have a key of its own: the key is what a
// packet is known by.
func (l *loader) checkKeys() {
	first := make(map[wgtypes.Key]int)
	for i, c := range l.file.Connector {
		key := c.PublicKey.Key
		if key == (wgtypes.Key{}) {
			continue
		}
		if j, twice := first[key]; twice {
			l.doc.AddHidden(fmt.Sprintf("connector[%d].public_key", i),
				fmt.Sprintf("connector %q has the same key, at %s", l.file.Connector[j].Name, l.doc.Where(fmt.Sprintf("connector[%d].public_key", j))),
				"give each connector its own")
			continue
		}
		first[key] = i
	}
}

// checkRoutes keeps routes off the blocks that the edge itself speaks from,
// and off what no host of a network can have. A default route excepts them:
// the check of each packet sees to that.
func (l *loader) checkRoutes() {
	for i, c := range l.file.Connector {
		for j, r := range c.Routes {
			if problem, hint := routeProblem(l.file.WireGuard.InnerSources, r); problem != "" {
				l.doc.Add(fmt.Sprintf("connector[%d].routes[%d]", i, j), problem, hint)
			}
		}
	}
}

// routeProblem says what keeps r from being a route, and what to do about it.
func routeProblem(inner netip.Prefix, r netip.Prefix) (problem, hint string) {
	if !r.IsValid() || r.Bits() == 0 {
		return "", ""
	}
	switch a := r.Addr(); {
	case inner.IsValid() && r.Overlaps(inner):
		return fmt.Sprintf("overlaps wireguard.inner_sources, %s", inner), "move inner_sources to a block that no network uses"
	case r.Overlaps(tunnel.OverlayPrefix), r.Overlaps(tunnel.InnerSources6):
		return "overlaps the addresses of the tunnel itself, fd77:6172:7265::/48 and fd77:6172:7266::/64", "use another prefix"
	case a.IsLoopback() || a.IsMulticast():
		return "not addresses that another host can have", "list the prefixes of the private network"
	}
	return "", ""
}

// CheckRoutes refuses routes for a connector that comes by a token as Load
// refuses those of a declared one.
func (c *Config) CheckRoutes(routes []netip.Prefix) error {
	for _, r := range routes {
		if problem, hint := routeProblem(c.WireGuard.InnerSources, r); problem != "" {
			return fmt.Errorf("checking route %q: %s; %s", r, problem, hint)
		}
	}
	return nil
}

func (l *loader) poolRefs(path string, p poolTable, networks, monitors kind) {
	if p.Network == Public || networks.has(l.doc, path+".network", p.Network) {
		for i, e := range p.Endpoints {
			l.checkServed(fmt.Sprintf("%s.endpoints[%d].address", path, i), p.Network, e.Address.Addr())
		}
	}
	if p.Monitor != "" && monitors.has(l.doc, path+".monitor", p.Monitor) {
		l.checkRunner(path, p)
	}
}

func (l *loader) appRefs(path string, a appTable, networks, addresses, pools kind) {
	for i, name := range a.Pools {
		at := fmt.Sprintf("%s.pools[%d]", path, i)
		if pools.has(l.doc, at, name) && slices.Index(a.Pools, name) != i {
			l.doc.Add(at, "the pool is there twice", "remove one of the two")
		}
	}
	if a.Fallback != "" && pools.has(l.doc, path+".fallback_pool", a.Fallback) && slices.Contains(a.Pools, a.Fallback) {
		l.doc.Add(path+".fallback_pool", "it is one of pools already", "remove it there, or name another pool here")
	}
	l.checkAffinity(path, a)
	if o := a.Origin; o != (Origin{}) && (o.Network == Public || networks.has(l.doc, path+".origin", o.Network)) {
		l.checkServed(path+".origin", o.Network, o.Addr)
	}
	for i, name := range a.On {
		at := fmt.Sprintf("%s.on[%d]", path, i)
		if addresses.has(l.doc, at, name) && slices.Index(a.On, name) != i {
			l.doc.Add(at, "the address is there twice", "remove one of the two")
		}
	}
	if len(a.On) == 0 && len(addresses.names) == 0 && addresses.sound && !l.doc.Bad(path+".on") {
		l.doc.Add(path+".listen", "there is no address to listen on", "add an [[address]]")
	}
}

// checkServed wants a private address to be one that some connector of its
// network may be asked for. A network that connectors may enrol in is left
// alone: theirs may be any routes.
func (l *loader) checkServed(path, network string, addr netip.Addr) {
	if !addr.IsValid() || l.doc.Bad(path) {
		return
	}
	if network == Public {
		l.checkPublic(path, addr)
		return
	}
	if inner := l.file.WireGuard.InnerSources; inner.IsValid() && inner.Contains(addr) || tunnel.OverlayPrefix.Contains(addr) || tunnel.InnerSources6.Contains(addr) {
		l.doc.Add(path, "an address of the edge's own, inside the tunnel", "write the address of a private host")
		return
	}
	served := l.served[network]
	if served == nil || served.unsound || served.routes.Contains(addr) || l.enrolls(network) {
		return
	}
	l.doc.Add(path, fmt.Sprintf("no connector of network %q has a route to it", network),
		fmt.Sprintf("add one, or use an address in %s", strings.Join(served.first, ", ")))
}

// enrolls tells whether connectors may join the network by token.
func (l *loader) enrolls(network string) bool {
	return slices.ContainsFunc(l.file.Network, func(n Network) bool { return n.Name == network && n.Enroll })
}

// served is what the declared connectors of one network have routes to.
type served struct {
	routes  bart.Lite
	first   []string // a few of them, for hints
	unsound bool     // a route could not be read
}

// indexRoutes fills l.served.
func (l *loader) indexRoutes() {
	l.served = make(map[string]*served)
	for i, c := range l.file.Connector {
		s := l.served[c.Network]
		if s == nil {
			s = &served{}
			l.served[c.Network] = s
		}
		s.unsound = s.unsound || len(c.Routes) == 0 || l.doc.Bad(fmt.Sprintf("connector[%d].routes", i))
		for _, r := range c.Routes {
			if !r.IsValid() || s.routes.Get(r) {
				continue
			}
			s.routes.Insert(r)
			switch {
			case len(s.first) < 4:
				s.first = append(s.first, r.String())
			case len(s.first) == 4:
				s.first = append(s.first, "…")
			}
		}
	}
}
