package config

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warrenmesh/warren/configs/strict"
)

// edit is a change of a file, from to to, and the problems that it wants. The
// first "@" of to marks the edited place and is removed: a problem without a
// line is on its line.
type edit struct {
	name, from, to string
	want           []string
}

// TestProblems wants exactly these problems of full when it is edited.
func TestProblems(t *testing.T) {
	testEdits(t, full, []edit{
		{"newer version", "version = 1", "@version = 2", []string{"version: 2: this release reads version 1; install a later release of warren"}},
		{"older version", "version = 1", "@version = 0", []string{"version: 0: no such version; write 1"}},
		{"unknown key", `name = "fra1"`, "@nmae = \"fra1\"", []string{`edge.nmae: unknown key; did you mean "name"?`}},
		{"bad name", `name = "fra1"`, "@name = \"fra 1\"", []string{`edge.name: "fra 1": bad character in a name; use letters, digits, "-", "_" and ".", beginning with a letter or a digit`}},
		{"later key", `deny = ["198.51.100.7/32"]`, "[app.proxy_protocol]@\nsend = 'v2'\n[[app]]\nname='x'\nlisten=['tcp/1']\npools=['berlin-db']", []string{
			`app[0].proxy_protocol: not supported by this version; the flow log names the client`,
		}},
		{"later word", `monitor = "pg"`, "monitor = \"pg\"\n@steering = 'least_outstanding'", []string{
			`pool[0].steering: "least_outstanding": not supported by this version; use round_robin, failover, random, hash, least_connections, latency`}},
		{"later table", `[[network]]
name = "tokyo"`, "[[network]]\nname = \"tokyo\"\n@[[device]]\nname='x'", []string{`device: not supported by this version; only connectors join a network`}},

		{"wireguard port", `listen = "192.0.2.1:51820"`, `@listen = "192.0.2.1:518200"`, []string{`wireguard.listen: "192.0.2.1:518200": port out of range; use 1 to 65535`}},
		{"inner sources of IPv6", `inner_sources = "100.126.0.0/24"`, `@inner_sources = "fd00::/64"`, []string{`wireguard.inner_sources: "fd00::/64": not an IPv4 block; write it like 100.127.0.0/24`}},
		{"inner sources too small", `inner_sources = "100.126.0.0/24"`, `@inner_sources = "100.126.0.0/32"`, []string{`wireguard.inner_sources: "100.126.0.0/32": block of an odd size; use a /8 to a /30`}},
		{"advertise of another scheme", `"fra1.example.net:51820"`, `@"wss://fra1.example.net"`, []string{`wireguard.advertise[0]: "wss://fra1.example.net": scheme "wss" is not supported by this version; use udp://, or none`}},

		{"bind of another length", `bind = ["10.1.2.3", "2001:db8::10"]`, `@bind = ["10.1.2.3"]`, []string{`address[0].bind: 1 addresses for the 2 of advertise; write one for each, in the same order`}},
		{"bind of another family", `bind = ["10.1.2.3", "2001:db8::10"]`, `@bind = ["2001:db8::1", "10.1.2.3"]`, []string{
			`address[0].bind[0]: "2001:db8::1": paired with 203.0.113.10, of the other family; write both lists in the same order`,
			`address[0].bind[1]: "10.1.2.3": paired with 2001:db8::10, of the other family; write both lists in the same order`}},
		{"unspecified advertise", `advertise = ["203.0.113.11"]`, `@advertise = ["0.0.0.0"]`, []string{`address[1].advertise[0]: "0.0.0.0": not an address that clients can dial; write the public address`}},
		{"wildcard bind and default DNS", `advertise = ["203.0.113.11"]`, "advertise = ['203.0.113.11']\nbind = ['0.0.0.0']\n[dns]@", []string{
			`dns.listen: missing, and an [[address]] binds every address of the machine; list where DNS listens, as in ["203.0.113.10:53"]`}},

		{"zone without a name server", `nameservers = ["ns1.apps.example.com", "ns.example.net"]`, `@nameservers = []`, []string{`zone[0].nameservers: empty list; name at least one, as in ["ns1.apps.example.com"]`}},
		{"bad zone name", `name = "apps.example.com"`, `@name = "apps..example.com"`, []string{`zone[0].name: "apps..example.com": the name has an empty label; remove the extra dot`}},
		{"hostname outside the zones", `hostnames = ["db", "pg.apps.example.com"]`, `@hostnames = ["db", "pg.example.com"]`, []string{
			`app[0].hostnames[1]: "pg.example.com": the hostname is outside the zones; declare its zone, or write it in full, such as pg.example.com.apps.example.com`}},
		{"bare label with two zones", `[admin]`, "[[zone]]\nname='b.example'\nnameservers=['ns.example.net']\n[admin]", []string{
			`66: app[0].hostnames[0]: "db": the hostname is outside the zones; there are 2 zones, so write it in full, such as db.apps.example.com`}},
		{"hostname of two apps with other addresses", "on = [\"second\"]", "on = [\"second\"]\n@hostnames = ['DB.apps.example.com']", []string{
			`app[1].hostnames[0]: "DB.apps.example.com": the name has other addresses already, at edge.toml:63; give both the same addresses, or another name`}},

		{"duplicate network", `name = "tokyo"`, `@name = "berlin"`, []string{
			`network[1].name: "berlin": the name is taken already, at edge.toml:37; choose another`,
			`75: app[1].origin: "tokyo/10.0.0.10:9000-9002": no such network; known here: berlin`}},
		{"dangling network of a connector", `network = "berlin"`, `@network = "brelin"`, []string{
			`connector[0].network: "brelin": no such network; did you mean "berlin"?`}},
		{"dangling monitor", `monitor = "pg"`, `@monitor = "pq"`, []string{`pool[0].monitor: "pq": no such monitor; did you mean "pg"?`}},
		{"dangling pool", `pools = ["berlin-db"]`, `pools = [@"berlin"]`, []string{`app[0].pools[0]: "berlin": no such pool; known here: berlin-db`}},
		{"dangling address", `on = ["main"]`, `@on = ["mian"]`, []string{`app[0].on[0]: "mian": no such address; did you mean "main"?`}},
		{"dangling network of an origin", `"tokyo/10.0.0.10:9000-9002"`, `@"tokio/10.0.0.10:9000-9002"`, []string{`app[1].origin: "tokio/10.0.0.10:9000-9002": no such network; did you mean "tokyo"?`}},

		{"order of replicas", `name = "berlin"`, "name = \"berlin\"\nsteering = 'failover'\nreplicas = ['berlin-2', 'berlin-1']", nil},
		{"failover without an order", `name = "berlin"`, "@name = \"berlin\"\nsteering = 'failover'", []string{
			`36: network[0].replicas: failover without an order; list the names of connectors, as in ["berlin-1", "berlin-2"]`}},
		{"order without failover", `name = "berlin"`, "name = \"berlin\"\n@replicas = ['berlin-1']", []string{
			`network[0].replicas: an order that least_connections does not heed; write steering = "failover", or remove it`}},
		{"replica twice, and a bad name", `name = "berlin"`, "name = \"berlin\"\nsteering = 'failover'\n@replicas = ['b', 'b', 'b 1']", []string{
			`network[0].replicas[1]: "b": the connector is there twice; remove one of the two`,
			`network[0].replicas[2]: "b 1": bad character in a name; use letters, digits, "-", "_" and ".", beginning with a letter or a digit`}},
		{"replica of another network", `name = "tokyo"`, "name = \"tokyo\"\nsteering = 'failover'\n@replicas = ['berlin-1']", []string{
			`network[1].replicas[0]: "berlin-1": the connector stands in network "berlin"; list connectors of this network`}},
		{"network that is there by itself", `name = "tokyo"`, `@name = "@public"`, []string{
			`network[1].name: "@public": the network is there by itself; remove the table; pools and origins name "@public" all the same`}},
		{"origin of a private name", `"tokyo/10.0.0.10:9000-9002"`, `"tokyo/Media.internal.:9000-9002"`, nil},
		{"public origin", `"tokyo/10.0.0.10:9000-9002"`, `@"@public/media.example.net:9000-9002"`, nil},
		{"origin in an unknown network of ours", `"tokyo/10.0.0.10:9000-9002"`, `@"@local/10.0.0.10:9000-9002"`, []string{
			`app[1].origin: "@local/10.0.0.10:9000-9002": there is no network "@local"; name a [[network]], or "@public", which the edge dials itself`}},
		{"origin that is nearly an address", `"tokyo/10.0.0.10:9000-9002"`, `@"tokyo/10.0.0.256:9000-9002"`, []string{
			`app[1].origin: "tokyo/10.0.0.256:9000-9002": neither an IP address nor a DNS name, whose last label has a letter; use letters, digits, "-" and "_" between dots, as in "db.internal"`}},

		{"key that is none", keyOne, "@HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8y", []string{"connector[0].public_key: not a WireGuard key; write the 44 characters that `warren pubkey` prints"}},
		{"key of another length", keyOne, "@HIgo9xNzJMWLKASShiTqIybx", []string{"connector[0].public_key: a key of 18 bytes, not 32; write the 44 characters that `warren pubkey` prints"}},
		{"two connectors with one key", "[[monitor]]", "[[connector]]\nname='two'\nnetwork='tokyo'\n@public_key='" + keyOne + "'\nroutes=['10.0.0.0/8']\n[[monitor]]", []string{
			`connector[1].public_key: connector "berlin-1" has the same key, at edge.toml:44; give each connector its own`}},
		{"route over the inner block", `"10.0.0.0/16", `, `"10.0.0.0/16", @"100.64.0.0/10", `, []string{
			`connector[0].routes[1]: "100.64.0.0/10": overlaps wireguard.inner_sources, 100.126.0.0/24; move inner_sources to a block that no network uses`}},
		{"default route", `"10.0.0.0/16", `, `"0.0.0.0/0", `, nil},
		{"route over the overlay", `"2001:db8:1::/48"`, `@"fd77::/16"`, []string{
			`connector[0].routes[1]: "fd77::/16": overlaps the addresses of the tunnel itself, fd77:6172:7265::/48 and fd77:6172:7266::/64; use another prefix`}},
		{"route with host bits", `"10.0.0.0/16", `, `@"10.0.0.1/16", `, []string{
			`connector[0].routes[0]: "10.0.0.1/16": address bits behind the prefix length are set; write "10.0.0.0/16"`}},
		{"endpoint outside every declared route, where connectors may enrol", "[[network]]\nname = \"berlin\"", "[[network]]\nname = \"berlin\"\nenroll = true\n[[pool]]\nname = \"far\"\nnetwork = \"berlin\"\n[[pool.endpoints]]\naddress = \"10.9.0.11:5432\"", nil},
		{"keys that age too fast", "[[network]]\nname = \"berlin\"", "[enrollment]\n@key_max_age = \"10m\"\n[[network]]\nname = \"berlin\"", []string{
			`enrollment.key_max_age: "10m": out of range; use 1h to 87600h, or 0s for never`}},
		{"endpoint outside every route", `address = "10.0.0.11:5432"`, `@address = "10.9.0.11:5432"`, []string{
			`pool[0].endpoints[1].address: "10.9.0.11:5432": no connector of network "berlin" has a route to it; add one, or use an address in 10.0.0.0/16, 2001:db8:1::/48`}},
		{"endpoint twice", `address = "10.0.0.11:5432"`, `@address = "10.0.0.10:5432"`, []string{
			`pool[0].endpoints[1].address: "10.0.0.10:5432": it is endpoints[0] already; remove one`}},
		{"endpoint with port 0", `address = "10.0.0.11:5432"`, `@address = "10.0.0.11:0"`, []string{
			`pool[0].endpoints[1].address: "10.0.0.11:0": port 0 cannot be dialled; write the port that the service listens on`}},
		{"pool without endpoints", "[[app]]\nname = \"db\"", "@[[pool]]\nname = 'x'\nnetwork = 'tokyo'\n[[app]]\nname = \"db\"", []string{
			`pool[1].endpoints: missing; add a [[pool.endpoints]] with its address`}},
		{"timeout over the interval", `timeout = "1s"`, `@timeout = "6s"`, []string{`monitor[0].timeout: "6s": use 1ms up to the interval, 5s`}},

		{"profiles for everybody", `listen = "127.0.0.1:9191"`, "listen = ':9191'\n@pprof = true", []string{
			`metrics.pprof: true: profiles are for this machine alone: listen on a loopback address, such as 127.0.0.1:9191, or leave pprof off`}},

		{"no protocol", `listen = ["tcp/5432"]`, `@listen = ["5432"]`, []string{`app[0].listen[0]: "5432": the protocol is missing; write "tcp/5432" or "udp/5432"`}},
		{"listener's port", `listen = ["tcp/5432"]`, `@listen = ["tcp/5432", "tcp/99999"]`, []string{`app[0].listen[1]: "tcp/99999": port out of range; use 1 to 65535`}},
		{"listener's range", `listen = ["tcp/8000-8002"]`, `@listen = ["tcp/8002-8000"]`, []string{`app[1].listen[0]: "tcp/8002-8000": the range ends before it begins; write 8000-8002`}},
		{"range of another size", `"tokyo/10.0.0.10:9000-9002"`, `"tokyo/10.0.0.10:9000"`, []string{`73: app[1].listen[0]: "tcp/8000-8002": 3 ports, but origin has 1; give both ranges the same size`}},
		{"range with pools", `listen = ["tcp/5432"]`, `@listen = ["tcp/5432-5433"]`, []string{`app[0].listen[0]: "tcp/5432-5433": a range of ports needs an origin with a range; write origin = "network/ip:first-last", or list the ports one by one`}},
		{"listener twice in an app", `listen = ["tcp/5432"]`, `@listen = ["tcp/5432", "tcp/5432"]`, []string{`app[0].listen[1]: "tcp/5432": overlaps listen[0], "tcp/5432"; list each port once`}},
		{"listener of two apps", "on = [\"second\"]\norigin = \"tokyo/10.0.0.10:9000-9002\"", "@on = [\"second\"]\norigin = \"tokyo/10.0.0.10:9000-9002\"\n[[app]]\nname='z'\nlisten=['tcp/8001']\norigin='tokyo/10.0.0.1:1'", []string{
			`78: app[2].listen[0]: "tcp/8001": tcp/203.0.113.11:8001 is taken already by app "web", at edge.toml:73; choose another port or address`}},
		{"listener that DNS has", `listen = ["tcp/5432"]`, `@listen = ["tcp/53"]`, []string{`app[0].listen[0]: "tcp/53": tcp/10.1.2.3:53 is taken already by [dns], by default; choose another port or address`}},
		{"pools and origin", `pools = ["berlin-db"]`, "pools = [\"berlin-db\"]\n@origin = 'tokyo/10.0.0.1:1'", []string{`app[0].origin: "tokyo/10.0.0.1:1": both pools and origin are set; keep one of them`}},
		{"neither pools nor origin", `pools = ["berlin-db"]`, "", []string{`61: app[0].origin: missing, and so is pools; write origin = "network/ip:port", or name pools`}},
		{"origin without a port", `"tokyo/10.0.0.10:9000-9002"`, `@"tokyo/10.0.0.10"`, []string{`app[1].origin: "tokyo/10.0.0.10": the port is missing; write it like "berlin/10.0.0.10:80", "berlin/[2001:db8::1]:80" or "berlin/db.internal:5432"`}},
		{"empty allow", `allow = ["198.51.100.0/24"]`, `@allow = []`, []string{`app[0].allow: an empty list denies everyone; remove it, or list who may connect`}},
		{"bad deny", `deny = ["198.51.100.7/32"]`, `@deny = ["198.51.100.7"]`, []string{`app[0].deny[0]: "198.51.100.7": the prefix length is missing; write "198.51.100.7/32" for this one address`}},
		{"control character in a path", `"/var/log/warren/flows.json"`, `@"/var/log\u0000"`, []string{
			`log.flows: "/var/log\x00": a path with the control character '\x00'; write a plain path`}},
		{"one path for two", `"/var/log/warren/flows.json"`, `@"/run/warren/../warren/edge.sock"`, []string{
			`log.flows: "/run/warren/edge.sock" is admin.socket already; choose another path`}},
		{"socket path too long", `socket = "/run/warren/edge.sock"`, `@socket = "/` + strings.Repeat("x", 120) + `"`, []string{
			`admin.socket: "/` + strings.Repeat("x", 120) + `" has 121 bytes, more than the 107 of a Unix socket's path; choose a shorter one`}},
	})
}

// testEdits wants each edit of text to have exactly the problems that it says.
func testEdits(t *testing.T, text string, edits []edit) {
	t.Helper()
	for _, tt := range edits {
		t.Run(tt.name, func(t *testing.T) {
			before, after, ok := strings.Cut(text, tt.from)
			if !ok {
				t.Fatalf("the sample has no %q", tt.from)
			}
			to, line := tt.to, 0
			if i := strings.Index(to, "@"); i >= 0 {
				line = strings.Count(before+to[:i], "\n") + 1
				to = strings.Replace(to, "@", "", 1)
			}
			var want []string
			for _, w := range tt.want {
				if w[0] < '0' || w[0] > '9' {
					w = strconv.Itoa(line) + ": " + w
				}
				want = append(want, "edge.toml:"+w)
			}
			_, err := parseText(t, before+to+after)
			var got []string
			if ps, ok := err.(strict.Problems); ok {
				got = strings.Split(ps.Error(), "\n")
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}
