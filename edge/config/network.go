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
