package integration

// This file is DESIGN §2 as a table: every room, what of ours it may import,
// and why nothing else. arch_test.go enforces it.

// Why each arrow is what it is. A broken rule is reported with its reason.
const (
	whyCmd = "a command turns flags into Run(ctx) of a daemon and talks to a running edge through its admin client; " +
		"whatever else it knew, another program could not do (arrow 1)"
	whyEdge = "edge is the only place where rooms meet; it knows nothing of the other side of the tunnel (arrow 2)"
	whyRoom = "a room of edge knows no other room: what it needs from a neighbour is a small interface that it declares itself, " +
		"wired in edge; so each is read, tested and replaced alone (arrow 3)"
	whyEdgeConfig = "edge/config turns TOML into every room's Spec and does nothing else; rooms take Specs, so that their tests need no file (arrow 3)"
	whyConnector  = "a connector lives in other people's networks: the edge's code, and its attack surface, stays out of it (arrow 4)"
	whyDnsd       = "dnsd also runs alone: it is fed snapshots through dnsd.Feed and knows no edge (arrow 5)"
	whyNetstack   = "netstack moves packets for edges and connectors alike and knows neither (arrow 6)"
	whyLeaf       = "what everybody shares depends on nobody, or a change of one room reaches all of them (arrow 7)"
	whyCheck      = "a check runs wherever somebody can dial: at the edge and at a connector alike, so it knows neither and takes its dialer"
	whyConfigs    = "the sample files and the strict reader serve every config and know none"
	whyTests      = "only tests may need the tests' own tools"
)

// room is one folder of the house.
type room struct {
	path string   // from the root of the repository; "" is the root itself
	may  []string // rooms it may import; "x/..." is x and everything below
	why  string   // the reason nothing else is allowed
}

// ofEdge is what any room of edge may import.
var ofEdge = []string{"edge/flow", "netstack/netx", "netstack/relay"}

var rooms = []room{
	{"cmd/warren", []string{"edge", "connector", "dnsd", "edge/config", "connector/config", "dnsd/config", "configs/...", "edge/admin/client", "host", "cmd/warren/..."}, whyCmd},
	{"cmd/warren-connector", []string{"connector", "connector/config", "configs/...", "host"}, whyCmd},
	{"cmd/warren/demo", []string{"edge", "connector", "dnsd", "edge/config", "connector/config", "dnsd/config", "configs/...", "edge/admin/client", "host"}, whyCmd},
	{"cmd/warren/doctor", []string{"edge", "connector", "dnsd", "edge/config", "connector/config", "dnsd/config", "configs/...", "edge/admin/client", "host"}, whyCmd},

	{"host", []string{}, whyLeaf},
	{"host/lookup", []string{}, whyLeaf},
	{"host/ping", []string{}, whyLeaf},

	{"check", []string{"netstack/netx"}, whyCheck},

	{"configs", []string{}, whyConfigs},
	{"configs/strict", []string{}, whyLeaf},
	{"configs/strict/mutate", []string{"configs/strict"}, whyTests},

	{"netstack", []string{"netstack/..."}, whyNetstack},
	{"netstack/link", []string{"netstack/..."}, whyNetstack},
	{"netstack/shim", []string{}, whyLeaf},
	{"netstack/bind", []string{"netstack/...", "host"}, whyNetstack},
	{"netstack/drops", []string{}, whyLeaf},
	{"netstack/tunnel", []string{"netstack/..."}, whyNetstack},
	{"netstack/relay", []string{"netstack/netx"}, whyNetstack},
	{"netstack/netx", []string{}, whyLeaf},
	{"netstack/memnet", []string{"netstack/netx"}, whyNetstack},

	{"edge", []string{"edge/...", "check", "netstack/...", "dnsd/...", "configs/...", "host", "host/lookup"}, whyEdge},
	{"edge/flow", []string{}, whyLeaf},
	{"edge/wire", []string{"check"}, whyLeaf},
	{"edge/config", []string{"edge/...", "check", "netstack/...", "dnsd/...", "configs/...", "host"}, whyEdgeConfig},
	{"edge/ingress", append([]string{"host"}, ofEdge...), whyRoom},
	{"edge/proxyproto", ofEdge, whyRoom},
	{"edge/shield", ofEdge, whyRoom},
	{"edge/tlsfront", ofEdge, whyRoom},
	{"edge/route", ofEdge, whyRoom},
	{"edge/policy", ofEdge, whyRoom},
	{"edge/balance", ofEdge, whyRoom},
	{"edge/monitor", append([]string{"check"}, ofEdge...), whyRoom},
	{"edge/resolve", append([]string{"host/lookup"}, ofEdge...), whyRoom},
	{"edge/public", append([]string{"host/lookup", "host/ping"}, ofEdge...), whyRoom},
	{"edge/events", ofEdge, whyRoom},
	{"edge/enroll", append([]string{"edge/wire", "check"}, ofEdge...), whyRoom},
	{"edge/observe", ofEdge, whyRoom},
	{"edge/store", ofEdge, whyRoom},
	{"edge/admin", append([]string{"edge/admin/client"}, ofEdge...), whyRoom},
	{"edge/admin/client", []string{}, whyLeaf},
	{"edge/onramp", ofEdge, whyRoom},
	{"edge/web", ofEdge, whyRoom},
	{"edge/access", ofEdge, whyRoom},
	{"edge/isolate", ofEdge, whyRoom},
	{"edge/cluster", ofEdge, whyRoom},

	{"connector", []string{"connector/...", "check", "edge/wire", "netstack/...", "configs/...", "host", "host/lookup"}, whyConnector},
	{"connector/config", []string{"connector", "check", "connector/guard", "connector/origin", "connector/state", "edge/wire", "netstack/...", "configs/...", "host"}, whyConnector},
	{"connector/state", []string{"check", "edge/wire", "host"}, whyConnector},
	{"connector/guard", []string{"check"}, whyConnector},
	{"connector/origin", []string{"check", "connector/guard", "netstack/netx", "netstack/relay", "host/ping"}, whyConnector},

	{"dnsd", []string{"dnsd/...", "configs/...", "host"}, whyDnsd},
	{"dnsd/config", []string{"dnsd/...", "configs/..."}, whyDnsd},
	{"dnsd/zone", []string{}, whyDnsd},
	{"dnsd/sign", []string{"dnsd/zone"}, whyDnsd},
	{"dnsd/steer", []string{"dnsd/zone"}, whyDnsd},

	{"integration", []string{"..."}, ""},
	{"integration/require", []string{"integration/..."}, whyTests},
	{"integration/proc", []string{"integration/..."}, whyTests},
	{"integration/netns", []string{"integration/..."}, whyTests},
	{"integration/origins", []string{"integration/..."}, whyTests},
	{"integration/daemon", []string{"integration/...", "edge/admin/client"}, whyTests},
	{"integration/guide", []string{"integration/..."}, whyTests},
	{"integration/bench", []string{"integration/...", "edge/...", "connector/...", "netstack/..."}, whyTests},
	{"integration/bench/impair", []string{}, whyLeaf},
	{"integration/bench/load", []string{}, whyLeaf},
	{"integration/bench/naive", []string{}, "the yardstick is upstream's parts and nothing of ours, or Warren would be measured by itself"},
}

// testsMay is what the tests of every room may import on top: the fake
// network, the sample files that a config must load, and their mutants. No other arrow is
// lifted for tests; a test that needs more belongs here, in integration.
// (Libraries are another matter: a test may speak any protocol, so the table
// of libraries binds code alone.)
var testsMay = []string{"netstack/memnet", "configs", "configs/strict/mutate", "integration/require", "integration/proc"}

// library is a library that only some rooms may import.
type library struct {
	prefix string   // an import path, and everything below it
	except string   // a prefix below it that anybody may import
	only   []string // rooms; "x/..." is x and everything below
	why    string
}

var libraries = []library{
	{"gvisor.dev/gvisor", "", []string{"netstack/..."},
		"gVisor's API changes every week: one tree of ours feels it (arrow 6)"},
	{"golang.zx2c4.com/wireguard", "golang.zx2c4.com/wireguard/wgctrl", []string{"netstack/..."},
		"one room owns the WireGuard device; keys are wgtypes, which anybody may use (arrow 6)"},
	{"golang.zx2c4.com/wireguard/wgctrl", "golang.zx2c4.com/wireguard/wgctrl/wgtypes", []string{"cmd/...", "edge", "netstack/tunnel"},
		"peers are read through the tunnel's own state; wgctrl serves `warren status` alone (arrow 6)"},
	{"github.com/miekg/dns", "", []string{"dnsd/...", "check", "cmd/warren/demo", "cmd/warren/doctor"},
		"DNS messages are dnsd's trade; a check and the programs that check answers ask questions (arrow 6)"},
	{"github.com/BurntSushi/toml", "", []string{"configs/strict"},
		"its decoder is lenient where we are strict: nobody may go around the strict reader (arrow 6)"},
	{"go.etcd.io/etcd", "", []string{"edge/cluster"}, "one edge must run without a cluster (arrow 6)"},
	{"go.etcd.io/bbolt", "", []string{"edge/store"}, "one room owns the state file and its crashes (DESIGN §8)"},
	{"github.com/spf13/cobra", "", []string{"cmd/..."}, "flags end where Run(ctx) begins (arrow 1)"},
	{"github.com/prometheus", "", []string{"edge", "edge/observe", "dnsd", "connector", "netstack/tunnel"},
		"a room counts in its metrics.go with plain counters; edge/observe gives them names (DESIGN §9)"},
	{"testing", "", []string{}, "the tests' package must not be linked into a daemon"},
}

// banned file names: everybody's attic (STYLE 21).
var attics = []string{"util", "utils", "common", "helper", "helpers", "misc"}

const (
	maxLines     = 500 // of a file of code (STYLE 21)
	maxTestLines = 700 // of a file of tests: tables are long and read in parts
)
