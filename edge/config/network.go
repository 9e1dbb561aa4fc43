package config

import (
	"fmt"
	"net/netip"
	"reflect"
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

	// Steering chooses between the connectors whose routes hold an endpoint
	// equally closely: least_connections, the one with the fewest flows, or
	// failover, the first of Replicas that lives. Default: least_connections.
	Steering string `toml:"steering" default:"least_connections" oneof:"least_connections failover"`
	// Replicas are the names of connectors in order of preference, for failover
	// alone. One may enrol later, and one that is not listed comes behind those
	// that are. Default: none.
	Replicas []string `toml:"replicas"`
}

// SteerFailover is the steering of what goes to the first that can take it.
const SteerFailover = "failover"

// Equal reports whether n says what o says.
func (n Network) Equal(o Network) bool { return reflect.DeepEqual(n, o) }

// Validate implements strict.Validator.
func (n *Network) Validate(doc *strict.Doc, path string) {
	if n.Name == Public {
		doc.Add(path+".name", "the network is there by itself", `remove the table; pools and origins name "@public" all the same`)
	} else {
		checkName(doc, path+".name", n.Name)
	}
	n.checkReplicas(doc, path)
}

// checkReplicas wants an order where there is to be one, and only there.
func (n *Network) checkReplicas(doc *strict.Doc, path string) {
	has := doc.Has(path + ".replicas")
	switch {
	case doc.Bad(path+".steering") || doc.Bad(path+".replicas"):
	case n.Steering == SteerFailover && len(n.Replicas) == 0:
		doc.Add(path+".replicas", "failover without an order", `list the names of connectors, as in ["berlin-1", "berlin-2"]`)
	case has && n.Steering != SteerFailover:
		doc.Add(path+".replicas", "an order that "+n.Steering+" does not heed", `write steering = "failover", or remove it`)
	}
	for i, name := range n.Replicas {
		at := fmt.Sprintf("%s.replicas[%d]", path, i)
		checkName(doc, at, name)
		if name != "" && slices.Index(n.Replicas, name) != i && !doc.Bad(at) {
			doc.Add(at, "the connector is there twice", "remove one of the two")
		}
	}
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
