package main

import (
	"fmt"
	"net/netip"

	"github.com/warrenmesh/warren/integration/bench/impair"
	"github.com/warrenmesh/warren/integration/netns"
)

// Addresses of the world (RFC 5737 on the public side).
var (
	edgePublic = netip.MustParseAddr("203.0.113.10") // where clients come
	edgeWAN    = netip.MustParseAddr("192.0.2.1")    // where connectors call
	originAddr = netip.MustParseAddr("10.0.0.10")    // what is served
)

// path is what lies between the hosts.
type path struct {
	mtu    int
	impair impair.Spec // of the cable between edge and data centre; zero: none
	// congestion is what the kernels' TCP uses. It is set, for Linux has one
	// default (cubic) and machines another: with bbr a proxy over kernel TCP
	// passes a path with loss ten times faster.
	congestion string
}

func (p path) String() string {
	text := fmt.Sprintf("MTU %d, %s", p.mtu, p.congestion)
	if p.impair != (impair.Spec{}) {
		text += ", " + p.impair.String()
	}
	return text
}

// world is the three hosts of a measurement:
//
//	client ──────────────── edge ──────────────── data centre
//	203.0.113.2  203.0.113.10  192.0.2.1   192.0.2.2, origin 10.0.0.10
//
// The edge is a router too, for who goes without a proxy. The cable to the
// data centre is a veth pair or, where the path is impaired, two TUN devices
// and a router between them. Each measurement has a world of its own, so that
// no port in TIME_WAIT and no warm buffer goes from one contender to the next.
type world struct {
	client, edge, dc *netns.Host
	path             path
}

func newWorld(s *scope, p path) *world {
	lab := netns.New(s)
	w := &world{client: lab.Host("client"), edge: lab.Host("edge"), dc: lab.Host("dc"), path: p}
	public := lab.Link(w.client, "wan", w.edge, "public")
	public.SetMTU(p.mtu)
	w.edge.Forward()
	if p.impair == (impair.Spec{}) {
		lab.Link(w.edge, "dc", w.dc, "wan").SetMTU(p.mtu)
	} else {
		w.bridge(s)
	}
	// The congestion control is an attribute of every route: only the machine
	// itself may make an unusual one the default of a namespace.
	via := " congctl " + p.congestion
	w.client.IP("address add 203.0.113.2/24 dev wan noprefixroute",
		"route add 203.0.113.0/24 dev wan src 203.0.113.2"+via, "route add default via 203.0.113.10"+via)
	w.edge.IP("address add 203.0.113.10/24 dev public noprefixroute", "address add 192.0.2.1/30 dev dc noprefixroute",
		"route add 203.0.113.0/24 dev public src 203.0.113.10"+via, "route add 192.0.2.0/30 dev dc src 192.0.2.1"+via,
		"route add 10.0.0.10/32 via 192.0.2.2 dev dc"+via)
	w.dc.IP("address add 192.0.2.2/30 dev wan noprefixroute", "address add 10.0.0.10/32 dev lo",
		"route replace local 10.0.0.10 dev lo table local src 10.0.0.10"+via,
		"route add 192.0.2.0/30 dev wan src 192.0.2.2"+via, "route add default via 192.0.2.1 dev wan"+via)
	// One address and port takes thousands of connections a second: the
	// kernels around the contenders must not be what runs out of ports.
	for _, h := range []*netns.Host{w.client, w.edge, w.dc} {
		h.Sysctl("net/ipv4/ip_local_port_range", "10240 65535")
		h.Sysctl("net/ipv4/tcp_tw_reuse", "1")
	}
	return w
}

// bridge makes the cable between edge and data centre out of two TUN devices
// and a router that impairs.
func (w *world) bridge(s *scope) {
	devices := [2]*impair.Device{}
	for i, end := range []struct {
		host *netns.Host
		name string
	}{{w.edge, "dc"}, {w.dc, "wan"}} {
		err := end.host.Do(func() (err error) {
			devices[i], err = impair.Open(end.name)
			return err
		})
		if err != nil {
			s.Fatalf("making the TUN device %q on host %q: %v", end.name, end.host.Name(), err)
		}
		end.host.IP(fmt.Sprintf("link set %s mtu %d txqueuelen 1000 up", end.name, w.path.mtu))
	}
	router := impair.Start(w.path.impair, devices[0], devices[1])
	s.Cleanup(router.Close)
}
