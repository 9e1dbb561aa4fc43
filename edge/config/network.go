package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/warrenmesh/warren/configs/strict"
)

// Network is a [[network]]: one private address space. Two networks may hold
// the same prefixes.
type Network struct {
	// Name is the left side of "network/ip:port", and the label in metrics.
	Name string `toml:"name" required:"true" hint:"give the network a name"`
	// Enroll tells whether `warren token create` may let connectors into the
	// network. Default: true for a network without a declared connector, false
	// for one with: then its declared routes are known to be all that there
	// are, and an endpoint that none of them holds is an error.
	Enroll bool `toml:"enroll"`
	// MaxTCPFlows is the most TCP flows of this edge that each connector of
	// the network carries at a time; 0 leaves it to the connector's own
	// limits. Default: 0; up to 1048576.
	MaxTCPFlows int `toml:"max_tcp_flows" range:"0..1048576"`
	// MaxUDPFlows is the same for UDP.
	MaxUDPFlows int `toml:"max_udp_flows" range:"0..1048576"`

	// ClientSource lets a flow come from its client's own address and port
	// inside the tunnel, so that the connector's log names the client. The
	// origin sees the connector's address all the same. Only TCP, and only where
	// the address is global unicast, of the endpoint's family, and not within
	// the network's routes; else, and where this is false, flows come from
	// inner_sources. Default: true.
	ClientSource bool `toml:"client_source"`

	Steering strict.Unsupported `toml:"steering" hint:"replicas of a connector take turns"`
}

// Validate implements strict.Validator.
func (n *Network) Validate(doc *strict.Doc, path string) {
	if n.Name == "@public" {
		doc.Add(path+".name", "not supported by this version", "an edge dials private networks only")
		return
	}
	checkName(doc, path+".name", n.Name)
}

// Connector is a declared [[connector]]: a process inside a private network
// that serves routes of it. Connectors with the same route are replicas.
type Connector struct {
	// Name is unique among the connectors.
	Name string `toml:"name" required:"true" hint:"give the connector a name"`
	// Network that it stands in.
	Network string `toml:"network" required:"true" hint:"name the [[network]] that it stands in"`
	// PublicKey is its WireGuard public key in base64. Each connector has its
	// own.
	PublicKey Key `toml:"public_key" required:"true" hidden:"true" hint:"write what the connector prints at its start"`
	// Routes are the prefixes that it may be asked for, and may speak for. The
	// default routes 0.0.0.0/0 and ::/0 are all but the edge's own blocks.
	Routes []netip.Prefix `toml:"routes" required:"true" hint:"list the prefixes behind it, as in [\"10.0.0.0/16\"]"`
}

// Validate implements strict.Validator.
func (c *Connector) Validate(doc *strict.Doc, path string) {
	checkName(doc, path+".name", c.Name)
	for i, r := range c.Routes {
		if r.IsValid() && slices.Index(c.Routes, r) != i {
			doc.Add(fmt.Sprintf("%s.routes[%d]", path, i), "the route is there twice", "remove one of the two")
		}
	}
}

// buildNetworks fills in what the declared connectors say of enrolment.
func (l *loader) buildNetworks() {
	l.cfg.Connectors = l.file.Connector
	for i := range l.file.Network {
		n := &l.file.Network[i]
		if !l.doc.Has(fmt.Sprintf("network[%d].client_source", i)) {
			n.ClientSource = true
		}
		if !l.doc.Has(fmt.Sprintf("network[%d].enroll", i)) {
			n.Enroll = !slices.ContainsFunc(l.file.Connector, func(c Connector) bool { return c.Network == n.Name })
		}
	}
	l.cfg.Networks = l.file.Network
}
