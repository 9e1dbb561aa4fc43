package mutate

import (
	"fmt"
	"strings"
)

// Edge returns a big edge.toml for All: every table and nearly every key, most
// of them twice. It starts on a machine's loopback addresses without any right; its
// ports are base to base+13, over TCP and UDP.
func Edge(base int, stateDir string) string {
	var b strings.Builder
	fmt.Fprintf(&b, edgeTop, stateDir, base, base+1, base+2)
	for _, network := range []string{"berlin", "tokyo"} {
		fmt.Fprintf(&b, "\n[[network]]\nname = %q\n", network)
	}
	for i, network := range []string{"berlin", "tokyo"} {
		fmt.Fprintf(&b, edgeConnector, i, network, keys[i], i+1)
	}
	for i := range 2 {
		fmt.Fprintf(&b, edgePool, i, i, i, 10+i, i+1, 20+i)
	}
	for i := range 2 {
		fmt.Fprintf(&b, edgeApp, i, i, base+3+i, base+3+i, i, 1-i)
	}
	fmt.Fprintf(&b, edgeOrigin, base+10, base+13)
	return b.String()
}

const edgeTop = `version = 1

[edge]
name = "fra1"
state_dir = %q

[wireguard]
listen = "127.0.0.1:%d"
advertise = ["fra1.example.net:51820", "udp://[::1]:51820"]
inner_sources = "100.126.0.0/24"

[[address]]
name = "main"
advertise = ["127.0.0.1", "127.0.0.2"]
bind = ["127.0.0.1", "127.0.0.2"]

[[address]]
name = "other"
advertise = ["127.0.0.3"]

[dns]
listen = ["127.0.0.1:%d"]

[[zone]]
name = "apps.example.com"
nameservers = ["ns1.apps.example.com", "ns.example.net"]
mailbox = "noc.example.net"
ttl = "10s"
negative_ttl = "20s"

[admin]
socket = "admin.sock"

[metrics]
listen = "127.0.0.1:%d"

[log]
level = "debug"
flows = "flows.json"
`

const edgeConnector = `
[[connector]]
name = "connector-%d"
network = %q
public_key = %q
routes = ["10.0.0.0/16", "10.1.%d.0/24", "fd00:1::/48"]
`

const edgePool = `
[[monitor]]
name = "monitor-%d"
type = "tcp"
interval = "5s"
timeout = "2s"
rise = 2
fall = 3

[[pool]]
name = "pool-%d"
network = "berlin"
steering = "round_robin"
monitor = "monitor-%d"
[[pool.endpoints]]
address = "10.0.0.%d:5432"
[[pool.endpoints]]
address = "10.0.%d.%d:5432"
`

const edgeApp = `
[[app]]
name = "app-%d"
hostnames = ["app-%d"]
listen = ["tcp/%d", "udp/%d"]
on = ["main"]
pools = ["pool-%d", "pool-%d"]
steering = "failover"
allow = ["127.0.0.0/8", "::1/128"]
deny = ["192.0.2.0/24"]
tcp_idle = "1h"
udp_idle = "1m"
tcp_flows = 1000
udp_sessions = 1000
`

const edgeOrigin = `
[[app]]
name = "range"
hostnames = ["range.apps.example.com"]
listen = ["tcp/%d-%d"]
on = ["other"]
origin = "tokyo/10.0.0.10:9000-9003"
`

// keys are public keys of nobody.
var keys = []string{"HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=", "mKtXlLhCGVCRg3ZVBVB0fkbUbb8sMVKpXKQ9qU1XOGM="}
