package mutate

import (
	"fmt"
	"strings"
)

// Edge returns a big edge.toml for All: every table and nearly every key, most
// of them twice. It starts on a machine's loopback addresses without any right; its
// ports are base to base+13, over TCP and UDP. What steers is Director's.
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

// Director returns an edge.toml for All with nearly every key of what steers:
// pools, monitors, and what apps make of them. It starts as Edge's does, on the
// ports base and base+1, and names no host, so that nobody is asked for one.
func Director(base int, stateDir string) string {
	return fmt.Sprintf(edgeDirector, stateDir, base, base+1)
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

// edgeDirector has what steers, each key once.
const edgeDirector = `version = 1
[edge]
state_dir = %q
[wireguard]
listen = "127.0.0.1:%d"
[admin]
socket = "admin.sock"
[metrics]
listen = ""

[public]
allow = ["127.0.0.0/8"]
timeout = "1s"
keepalive = "10s"
max_dials = 64

[events]
ring = 64

[[address]]
name = "main"
advertise = ["127.0.0.1"]

[[network]]
name = "rome"
steering = "failover"
replicas = ["rome-1", "rome-2"]

[[monitor]]
name = "web"
type = "https"
retries = 1
run_by = "connector"
server_name = "www.internal"
insecure = false
method = "HEAD"
path = "/health"
host = "www.internal"
headers = {Accept = "text/plain"}
expected_codes = ["2xx", "301"]
follow_redirects = true

[[monitor]]
name = "bytes"
type = "tcp"
send = "PING"
expect_hex = "2b 50"

[[pool]]
name = "rome-web"
network = "rome"
enabled = true
steering = "least_connections"
monitor = "web"
minimum_healthy = 1
slow_start = "10s"
[pool.shedding]
percent = 5
by = "hash"
[pool.queue]
length = 10
timeout = "1s"
[pool.ejection]
failures = 3
time = "1s"
max_time = "1m"
max_percent = 40
[[pool.endpoints]]
address = "10.0.0.30:443"
weight = 2
max_connections = 100
[[pool.endpoints]]
address = "10.0.0.31:443"
enabled = false

[[pool]]
name = "rome-hash"
network = "rome"
steering = "hash"
[[pool.endpoints]]
address = "10.0.0.32:443"

[[pool]]
name = "near"
network = "@public"
monitor = "bytes"
[[pool.endpoints]]
address = "127.0.0.9:9"

[[app]]
name = "steered"
listen = ["tcp/%d"]
pools = ["rome-web", "rome-hash"]
steering = "random"
pool_weights = {rome-web = 3, rome-hash = 1}
fallback_pool = "near"
[app.affinity]
by = "client_net"
ttl = "10m"
failover = "sticky"
max = 100
`

// keys are public keys of nobody.
var keys = []string{"HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=", "mKtXlLhCGVCRg3ZVBVB0fkbUbb8sMVKpXKQ9qU1XOGM="}
