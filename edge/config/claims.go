package config

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/warrenmesh/warren/edge/observe"
)

// claim is a socket that the edge will open.
type claim struct {
	network string // "tcp" or "udp"
	// addr is what is bound; an invalid address is every address of both
	// families.
	addr netip.AddrPort
	path string // of the key that asks for it
	who  string // in words
}

// overlaps reports whether both cannot be bound at once: the same port, and
// the same address or one that includes the other. An IPv6 wildcard does not
// include IPv4: the edge's sockets are of one family.
func (c claim) overlaps(o claim) bool {
	if c.network != o.network || c.addr.Port() != o.addr.Port() || c.addr.Port() == 0 {
		return false
	}
	a, b := c.addr.Addr(), o.addr.Addr()
	if !a.IsValid() || !b.IsValid() {
		return true
	}
	return a == b || a.BitLen() == b.BitLen() && (a.IsUnspecified() || b.IsUnspecified())
}

// sockets lists every socket of the edge in the order of the file's tables.
func (c *Config) sockets() []claim {
	out := []claim{{"udp", c.WireGuard.Listen.AddrPort, "wireguard.listen", "[wireguard]"}}
	if c.Metrics.On {
		out = append(out, claim{"tcp", c.Metrics.Listen, "metrics.listen", "[metrics]"})
	}
	for i, at := range c.DNS.Server.Listen {
		path := "dns.listen"
		if c.doc.Has(path + "[0]") {
			path = fmt.Sprintf("dns.listen[%d]", i)
		}
		out = append(out, claim{"udp", at, path, "[dns]"}, claim{"tcp", at, path, "[dns]"})
	}
	for i, a := range c.Apps {
		for _, ls := range a.Listeners {
			out = append(out, claim{ls.Network, ls.Addr, fmt.Sprintf("app[%d].listen[%d]", i, ls.Entry), fmt.Sprintf("app %q", a.Name)})
		}
	}
	return out
}

// claims reports each socket that two keys ask for, once a pair of keys.
func (l *loader) claims() {
	type place struct {
		network string
		port    uint16
	}
	taken := make(map[place][]claim)
	reported := make(map[[2]string]bool)
	for _, c := range l.cfg.sockets() {
		if l.doc.Bad(c.path) {
			continue
		}
		at := place{c.network, c.addr.Port()}
		for _, other := range taken[at] {
			pair := [2]string{c.path, other.path}
			if !c.overlaps(other) || reported[pair] {
				continue
			}
			reported[pair] = true
			where := "by default"
			if l.doc.Has(other.path) {
				where = "at " + l.doc.Where(other.path)
			}
			l.doc.Add(c.path, fmt.Sprintf("%s/%s is taken already by %s, %s", c.network, show(c.addr), other.who, where),
				"choose another port or address")
			break
		}
		taken[at] = append(taken[at], c)
	}
}

// show writes an address; one without a host as ":port".
func show(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return fmt.Sprintf(":%d", a.Port())
	}
	return a.String()
}

// paths reports a file of the edge that two keys name.
func (l *loader) paths() {
	c := l.cfg
	taken := make(map[string]string)
	for _, p := range []struct{ key, path string }{
		{"edge.state_dir", c.Edge.StateDir}, {"wireguard.private_key_file", c.WireGuard.PrivateKeyFile},
		{"admin.socket", c.Admin.Socket}, {"log.flows", c.Log.Flows},
	} {
		if p.path == "" || p.key == "log.flows" && (p.path == "-" || p.path == observe.LogOff) {
			continue // no file
		}
		path := filepath.Clean(p.path)
		if other, twice := taken[path]; twice {
			l.doc.AddHidden(p.key, fmt.Sprintf("%q is %s already", path, other), "choose another path")
			continue
		}
		taken[path] = p.key
	}
}
