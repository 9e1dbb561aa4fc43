package main

import (
	"net/netip"

	"github.com/warrenmesh/warren/integration/bench/naive"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
)

// nameNaive is the contender that the others are divided by.
const nameNaive = "naive"

// naiveContender is package naive at both ends.
func naiveContender() contender {
	return contender{name: nameNaive, udp: true, start: func(s *scope, w *world) *running {
		edgeKey, connectorKey, err := naive.NewKeys()
		if err != nil {
			s.Fatalf("making keys: %v", err)
		}
		edge := naive.Spec{PrivateKey: edgeKey, PeerKey: connectorKey.PublicKey(), MTU: w.path.mtu,
			Public: edgePublic, TCP: tcpPorts, UDP: udpPorts}
		connector := naive.Spec{PrivateKey: connectorKey, PeerKey: edgeKey.PublicKey(), MTU: w.path.mtu,
			Edge: naive.WireGuard(edgeWAN), Origin: originAddr, TCP: tcpPorts, UDP: udpPorts}
		// As Warren's daemons: nobody special.
		attr, _, _ := netns.Ordinary()
		edgePart, connectorPart := part(roleNaiveEdge, edge), part(roleNaiveConnector, connector)
		edgePart.Attr, connectorPart.Attr = attr, attr
		r := &running{target: edgePublic, inspect: map[string]inspector{
			"edge":      pprofDoor{w.edge, naiveDoor},
			"connector": pprofDoor{w.dc, naiveDoor},
		}}
		r.edge = []*proc.Process{startPart(s, w.edge, edgePart)}
		r.connector = []*proc.Process{startPart(s, w.dc, connectorPart)}
		return r
	}}
}

// naiveDoor is where a naive end serves its profiles, each on its own host.
var naiveDoor = netip.MustParseAddrPort("127.0.0.1:9190")
