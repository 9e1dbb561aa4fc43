package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/proc"
)

// nameWarren is the contender that all this is for.
const nameWarren = "warren"

// Where Warren's daemons serve metrics and, where asked, profiles.
var (
	edgeDoor      = netip.MustParseAddrPort("127.0.0.1:9191")
	connectorDoor = netip.MustParseAddrPort("127.0.0.1:9192")
)

// warrenContender is a warren binary as its user runs it: an edge.toml, a
// connector.toml, a declared key.
func warrenContender(name, binary string) contender {
	return contender{name: name, udp: true, binary: binary, start: func(s *scope, w *world) *running {
		return startWarren(s, w, daemon.Warren{Path: binary})
	}}
}

func startWarren(s *scope, w *world, program daemon.Warren) *running {
	edgeKey, connectorKey := program.GenKey(s), program.GenKey(s)
	wireGuard := netip.AddrPortFrom(edgeWAN, 51820).String()
	edge := program.StartEdge(s, w.edge, daemon.EdgeConfig{
		Name: "edge", Key: edgeKey, Listen: ":51820", Calls: []string{wireGuard}, Metrics: edgeDoor, Profiles: true,
		Tables: oneNetwork(connectorKey.Public) + apps(),
	})
	connector := program.StartConnector(s, w.dc, daemon.ConnectorConfig{
		Name: "dc", Key: connectorKey, Edges: []daemon.EdgeAt{{PublicKey: edgeKey.Public, URL: wireGuard}},
		Tables: fmt.Sprintf("[metrics]\nlisten = %q\npprof = true\n", connectorDoor),
	})
	return &running{
		target: edgePublic,
		edge:   []*proc.Process{edge.Process}, connector: []*proc.Process{connector.Process},
		inspect: map[string]inspector{
			"edge":      pprofDoor{w.edge, edgeDoor},
			"connector": pprofDoor{w.dc, connectorDoor},
		},
	}
}

// oneNetwork is the network of the data centre and its connector.
func oneNetwork(publicKey string) string {
	return fmt.Sprintf(`
[[address]]
name = "main"
advertise = [%q]

[[network]]
name = "dc"

[[connector]]
name = "dc"
network = "dc"
public_key = %q
routes = ["10.0.0.0/24"]
`, edgePublic, publicKey)
}

// apps publishes the origin's ports.
func apps() string {
	var b strings.Builder
	one := func(protocol string, port uint16) {
		fmt.Fprintf(&b, "\n[[app]]\nname = \"%s-%d\"\nlisten = [\"%s/%d\"]\norigin = \"dc/%s\"\n",
			protocol, port, protocol, port, netip.AddrPortFrom(originAddr, port))
	}
	for _, port := range tcpPorts {
		one("tcp", port)
	}
	for _, port := range udpPorts {
		one("udp", port)
	}
	return b.String()
}
