package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// Addresses of the world. All of it is documentation space (RFC 5737,
// RFC 3849) on the public side; both data centres hold the same 10.0.0.0/24.
var (
	edgeAddr = netip.MustParseAddr("203.0.113.10")
	origin   = netip.MustParseAddr("10.0.0.10")
)

// world is the hosts of the end-to-end tests:
//
//	client ───────────┐         ┌───────── berlin1 ─┐
//	198.51.100.10     │         │          .2    .2 ├─ berlin  10.0.0.10, .11
//	                  internet ─┼───────── berlin2 ─┘
//	edge ─────────────┘         │          .6    .3
//	203.0.113.10                └── isp ── tokyo1 ──── tokyo   10.0.0.10, .11
//	                         192.0.2.0/28  .10   .2
//
// Every cable has MTU 1500. The sites have no way out but their connectors'
// hosts, which do not forward: what reaches a site came through a tunnel.
type world struct {
	client, internet, edge   *netns.Host
	isp                      *netns.Host // a second router
	berlin1, berlin2, tokyo1 *netns.Host // connectors
	berlin, tokyo            *netns.Host // origins

	lab         *netns.Lab
	tokyo1Cable *netns.Link // from tokyo1 to its provider
	trunk       *netns.Link // from the provider to the internet
}

func newWorld(t *testing.T) *world {
	t.Helper()
	lab := netns.New(t)
	w := &world{lab: lab,
		client: lab.Host("client"), internet: lab.Host("internet"), edge: lab.Host("edge"),
		berlin1: lab.Host("berlin1"), berlin2: lab.Host("berlin2"), tokyo1: lab.Host("tokyo1"),
		berlin: lab.Host("berlin"), tokyo: lab.Host("tokyo"), isp: lab.Host("isp"),
	}
	w.internet.Forward()
	w.isp.Forward()
	w.trunk = lab.Link(w.isp, "trunk", w.internet, "isp")
	w.isp.IP("address add 192.0.2.14/30 dev trunk", "route add default via 192.0.2.13")
	w.internet.IP("address add 192.0.2.13/30 dev isp", "route add 192.0.2.8/30 via 192.0.2.14")
	for _, public := range []struct {
		host, router  *netns.Host
		addr, gateway string
	}{
		{w.client, w.internet, "198.51.100.10/24", "198.51.100.1/24"},
		{w.edge, w.internet, "203.0.113.10/24", "203.0.113.1/24"},
		{w.berlin1, w.internet, "192.0.2.2/30", "192.0.2.1/30"},
		{w.berlin2, w.internet, "192.0.2.6/30", "192.0.2.5/30"},
		{w.tokyo1, w.isp, "192.0.2.10/30", "192.0.2.9/30"},
	} {
		name := public.host.Name()
		cable := lab.Link(public.host, "wan", public.router, name)
		if public.host == w.tokyo1 {
			w.tokyo1Cable = cable
		}
		public.router.IP("address add " + public.gateway + " dev " + name)
		gateway, _, _ := strings.Cut(public.gateway, "/")
		public.host.IP("address add "+public.addr+" dev wan", "route add default via "+gateway)
	}
	// The internet's own interfaces speak IPv6 too, for the client and the edge.
	w.internet.IP("address add 2001:db8:c::1/64 dev client nodad", "address add 2001:db8:e::1/64 dev edge nodad")
	w.client.IP("address add 2001:db8:c::10/64 dev wan nodad", "route add default via 2001:db8:c::1")
	w.edge.IP("address add 2001:db8:e::10/64 dev wan nodad", "route add default via 2001:db8:e::1")
	for _, site := range []struct {
		host       *netns.Host
		connectors []*netns.Host
	}{
		{w.berlin, []*netns.Host{w.berlin1, w.berlin2}},
		{w.tokyo, []*netns.Host{w.tokyo1}},
	} {
		site.host.IP("link add lan type bridge", "link set lan up",
			"address add 10.0.0.10/24 dev lan", "address add 10.0.0.11/24 dev lan")
		for i, c := range site.connectors {
			lab.Link(c, "lan", site.host, c.Name())
			site.host.IP("link set " + c.Name() + " master lan")
			c.IP(fmt.Sprintf("address add 10.0.0.%d/24 dev lan", 2+i))
		}
	}
	return w
}

// deployment is Warren in a world: an edge and its connectors, all ready.
type deployment struct {
	*world
	warren                          daemon.Warren
	edged                           *daemon.Edge
	berlin1d, berlin2d, tokyo1d     *daemon.Connector
	edgeKey, berlin1Key, berlin2Key daemon.Key
	tokyo1Key                       daemon.Key
}

// sharedTables are the networks and connectors that every deployment has.
func (d *deployment) sharedTables() string {
	return fmt.Sprintf(`
[[address]]
name = "main"
advertise = ["203.0.113.10", "2001:db8:e::10"]

[[network]]
name = "berlin"
[[network]]
name = "tokyo"

[[connector]]
name = "berlin-1"
network = "berlin"
public_key = %q
routes = ["10.0.0.0/24"]
[[connector]]
name = "berlin-2"
network = "berlin"
public_key = %q
routes = ["10.0.0.0/24"]
[[connector]]
name = "tokyo-1"
network = "tokyo"
public_key = %q
routes = ["10.0.0.0/24"]
`, d.berlin1Key.Public, d.berlin2Key.Public, d.tokyo1Key.Public)
}

// deploy makes a world and runs Warren in it, with the given apps.
func deploy(t *testing.T, apps string) *deployment {
	t.Helper()
	w := daemon.Find(t)
	d := &deployment{world: newWorld(t), warren: w}
	d.edgeKey, d.berlin1Key, d.berlin2Key, d.tokyo1Key = w.GenKey(t), w.GenKey(t), w.GenKey(t), w.GenKey(t)
	d.edged = w.StartEdge(t, d.edge, daemon.EdgeConfig{
		Name: "edge", Key: d.edgeKey, Listen: ":51820", Tables: d.sharedTables() + apps,
	})
	d.berlin1d = d.connector(t, d.berlin1, "berlin-1", d.berlin1Key)
	d.berlin2d = d.connector(t, d.berlin2, "berlin-2", d.berlin2Key)
	d.tokyo1d = d.connector(t, d.tokyo1, "tokyo-1", d.tokyo1Key)
	for _, c := range []*daemon.Connector{d.berlin1d, d.berlin2d, d.tokyo1d} {
		c.WaitReady()
	}
	return d
}

func (d *deployment) connector(t *testing.T, host *netns.Host, name string, key daemon.Key) *daemon.Connector {
	t.Helper()
	c := d.warren.NewConnector(t, host, daemon.ConnectorConfig{
		Name: name, Key: key,
		Edges: []daemon.EdgeAt{{PublicKey: d.edgeKey.Public, URL: "203.0.113.10:51820"}},
	})
	c.Start()
	return c
}

// at is an address of the edge.
func at(port uint16) netip.AddrPort { return netip.AddrPortFrom(edgeAddr, port) }
