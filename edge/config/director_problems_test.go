package config

import "testing"

// TestDirectorProblems edits steered and wants exactly these problems.
func TestDirectorProblems(t *testing.T) {
	t.Run("pool", func(t *testing.T) { testEdits(t, steered, poolEdits) })
	t.Run("endpoint", func(t *testing.T) { testEdits(t, steered, endpointEdits) })
	t.Run("monitor", func(t *testing.T) { testEdits(t, steered, monitorEdits) })
	t.Run("app", func(t *testing.T) { testEdits(t, steered, appEdits) })
	t.Run("rest", func(t *testing.T) { testEdits(t, steered, restEdits) })
}

var poolEdits = []edit{
	{"empty network", `network = "@public"`, "@network = ''", []string{
		`pool[2].network: "": empty; name the [[network]] that its endpoints are in, or "@public"`}},
	{"no endpoint", "[[pool]]\nname = \"b\"", "@[[pool]]\nname = 'x'\nnetwork = 'berlin'\n[[pool]]\nname = \"b\"", []string{
		`pool[1].endpoints: missing; add a [[pool.endpoints]] with its address`}},
	{"steering of nobody", `steering = "hash"`, `@steering = "hsah"`, []string{
		`pool[1].steering: "hsah": not one of the legal words; did you mean "hash"?`}},
	{"minimum of nothing", `minimum_healthy = 2`, `@minimum_healthy = 0`, []string{
		`pool[0].minimum_healthy: 0: out of range; use 1 to 10000`}},
	{"minimum above the endpoints", `monitor = "ping"`, "monitor = \"ping\"\n@minimum_healthy = 2", []string{
		`pool[1].minimum_healthy: 2: more than the endpoints of the pool, 1; use 1 to 1`}},
	{"minimum above the endpoints, of which one is a name", `minimum_healthy = 2`, `minimum_healthy = 9`, nil},
	{"slow start too slow", `slow_start = "30s"`, `@slow_start = "25h"`, []string{
		`pool[0].slow_start: "25h": out of range; use 0s to 24h`}},
	{"shedding without percent", "percent = 10\n", "", []string{
		`79: pool[0].shedding.percent: missing; write how many of 100 flows are to go elsewhere`}},
	{"shedding above all", "percent = 10", "@percent = 101", []string{
		`pool[0].shedding.percent: 101: out of range; use 0 to 100`}},
	{"shedding by nobody", `by = "hash"`, `@by = "client_ip"`, []string{
		`pool[0].shedding.by: "client_ip": not one of the legal words; use random, hash`}},
	{"queue of no length", "length = 50\n", "", []string{
		`82: pool[0].queue.length: missing; write how many flows may wait`}},
	{"queue for ever", `timeout = "2s"`, `@timeout = "0s"`, []string{
		`pool[0].queue.timeout: "0s": out of range; use 1ms to 10s`}},
	{"queue for longer than a flow has", `timeout = "2s"`, `@timeout = "11s"`, []string{
		`pool[0].queue.timeout: "11s": out of range; use 1ms to 10s`}},
	{"queue before endless endpoints", "max_connections = 100\n", "", []string{
		`90: pool[0].endpoints[0].max_connections: no endpoint of the pool has a bound, so that no flow would ever wait in its queue; give an endpoint max_connections, or remove the queue`}},
	{"ejection that begins with nothing", "failures = 3", "@failures = 0", []string{
		`pool[0].ejection.failures: 0: out of range; use 1 to 1000`}},
	{"ejection that shrinks", `max_time = "1m"`, `@max_time = "10s"`, []string{
		`pool[0].ejection.max_time: "10s": shorter than time, 20s; use time or more`}},
	{"ejection of more than all", "max_percent = 40", "@max_percent = 101", []string{
		`pool[0].ejection.max_percent: 101: out of range; use 1 to 100`}},
	{"every weight zero", `address = "10.0.0.20:8443"`, "address = \"10.0.0.20:8443\"\n@weight = 0", []string{
		`pool[1].endpoints[0].weight: 0: no endpoint of the pool has a weight above 0, so that no new flow can go there; give one of them a weight, or set enabled = false for the pool`}},
	{"every weight zero, of a pool that is off", `address = "10.1.2.3:443"`, "address = \"10.1.2.3:443\"\nweight = 0", nil},
	{"dangling monitor", `monitor = "ping"`, `@monitor = "pnig"`, []string{
		`pool[1].monitor: "pnig": no such monitor; did you mean "ping"?`}},
	{"connectors that check the Internet", `monitor = "redis"`, `@monitor = "web"`, []string{
		`pool[2].monitor: "web": connectors run its checks, and @public has none; name a monitor with run_by = "edge"`}},
}

var endpointEdits = []edit{
	{"weight below zero", "weight = 2", "@weight = -1", []string{
		`pool[0].endpoints[0].weight: -1: out of range; use 0 to 1000`}},
	{"weight too great", "weight = 2", "@weight = 1001", []string{
		`pool[0].endpoints[0].weight: 1001: out of range; use 0 to 1000`}},
	{"connections below zero", "max_connections = 100", "@max_connections = -1", []string{
		`pool[0].endpoints[0].max_connections: -1: out of range; use 0 to 1000000`}},
	{"neither address nor host", "address = \"10.0.0.20:8443\"\n", "weight = 1\n", []string{
		`106: pool[1].endpoints[0].address: missing, and so is host; write the IP address and port, as in "10.0.0.10:5432", or host = "db.internal:5432"`}},
	{"address and host", `address = "10.0.0.20:8443"`, "address = \"10.0.0.20:8443\"\n@host = 'x:1'", []string{
		`pool[1].endpoints[0].host: "x:1": both address and host are set; keep one of them, and write the other as an endpoint of its own`}},
	{"the same address twice", `address = "10.0.0.12:8443"`, `@address = "10.0.0.10:8443"`, []string{
		`pool[0].endpoints[2].address: "10.0.0.10:8443": it is endpoints[0] already; remove one`}},
	{"the same host twice", `address = "10.0.0.12:8443"`, `@host = "WEB.internal.:8443"`, []string{
		`pool[0].endpoints[2].host: "WEB.internal.:8443": it is endpoints[1] already; remove one`}},
	{"the same host with another port", `address = "10.0.0.12:8443"`, `host = "web.internal:8444"`, nil},
	{"a name for an address", `address = "10.0.0.20:8443"`, `@address = "db.internal:8443"`, []string{
		`pool[1].endpoints[0].address: "db.internal:8443": a name, not an IP address; write host = "db.internal:8443"`}},
	{"an address for a name", `host = "Web.internal:8443"`, `@host = "10.0.0.11:8443"`, []string{
		`pool[0].endpoints[1].host: "10.0.0.11:8443": an IP address, not a name; write address = "10.0.0.11:8443"`}},
	{"an address without a port for a name", `host = "Web.internal:8443"`, `@host = "::1"`, []string{
		`pool[0].endpoints[1].host: "::1": an IP address, not a name; write address = "[::1]:443"`}},
	{"a URL for a name", `host = "Web.internal:8443"`, `@host = "https://web.internal"`, []string{
		`pool[0].endpoints[1].host: "https://web.internal": a URL, not a host and port; write it like "db.internal:5432"`}},
	{"a name without a port", `host = "Web.internal:8443"`, `@host = "web.internal"`, []string{
		`pool[0].endpoints[1].host: "web.internal": the port is missing; write it like "db.internal:5432"`}},
	{"a name with port 0", `host = "Web.internal:8443"`, `@host = "web.internal:0"`, []string{
		`pool[0].endpoints[1].host: "web.internal:0": port 0 cannot be dialled; write the port that the service listens on`}},
	{"a name with a great port", `host = "Web.internal:8443"`, `@host = "web.internal:65536"`, []string{
		`pool[0].endpoints[1].host: "web.internal:65536": port out of range; use 1 to 65535`}},
	{"a name with an empty label", `host = "Web.internal:8443"`, `@host = "web..internal:1"`, []string{
		`pool[0].endpoints[1].host: "web..internal:1": the name has an empty label; remove the extra dot`}},
	{"a name that is nearly an address", `host = "Web.internal:8443"`, `@host = "10.0.0.300:1"`, []string{
		`pool[0].endpoints[1].host: "10.0.0.300:1": neither an IP address nor a DNS name, whose last label has a letter; use letters, digits, "-" and "_" between dots, as in "db.internal"`}},
	{"a name with a blank", `host = "Web.internal:8443"`, `@host = "web internal:1"`, []string{
		`pool[0].endpoints[1].host: "web internal:1": bad character in a DNS name; use letters, digits, "-" and "_" between dots, as in "db.internal"`}},
	{"a name with a hyphen in front", `host = "Web.internal:8443"`, `@host = "-web.internal:1"`, []string{
		`pool[0].endpoints[1].host: "-web.internal:1": a label begins or ends with a hyphen; use letters, digits, "-" and "_" between dots, as in "db.internal"`}},
	{"a name of the world", `host = "Web.internal:8443"`, `@host = "münchen.example:1"`, []string{
		`pool[0].endpoints[1].host: "münchen.example:1": a letter outside ASCII in a DNS name; write the name in its "xn--" form`}},
	{"a private address in public", `address = "10.1.2.3:443"`, `@address = "10.2.2.3:443"`, []string{
		`pool[2].endpoints[1].address: "10.2.2.3:443": no endpoint of "@public": 10.2.2.3 is private (RFC 1918), and not allowed at edge.toml:3; if it is wanted, list "10.2.2.3/32", or a prefix that holds it, in [public] allow`}},
	{"metadata in public", `address = "10.1.2.3:443"`, `@address = "[fd00:ec2::254]:443"`, []string{
		`pool[2].endpoints[1].address: "[fd00:ec2::254]:443": no endpoint of "@public": fd00:ec2::254 is a cloud's metadata service, which hands out credentials, and not allowed at edge.toml:3; if it is wanted all the same, list "fd00:ec2::254/128", that address alone, in [public] allow`}},
	{"the edge itself in public", `address = "10.1.2.3:443"`, `@address = "127.0.0.1:443"`, []string{
		`pool[2].endpoints[1].address: "127.0.0.1:443": no endpoint of "@public": 127.0.0.1 is the edge's own, and not allowed at edge.toml:3; if it is wanted, list "127.0.0.1/32", or a prefix that holds it, in [public] allow`}},
	{"an address of the tunnel", `address = "10.0.0.20:8443"`, `@address = "100.127.0.1:8443"`, []string{
		`pool[1].endpoints[0].address: "100.127.0.1:8443": an address of the edge's own, inside the tunnel; write the address of a private host`}},
}

var monitorEdits = []edit{
	{"type of nobody", `type = "https"`, `@type = "htps"`, []string{
		`monitor[0].type: "htps": not one of the legal words; did you mean "https"?`}},
	{"a check key of another type", `question = "www.internal"`, "question = \"www.internal\"\n@path = \"/\"", []string{
		`monitor[3].path: "/": a check of type dns has none; remove it, or use type http or https`}},
	{"a timeout above the interval", `timeout = "3s"
retries`, "@timeout = \"11s\"\nretries", []string{
		`monitor[0].timeout: "11s": use 1ms up to the interval, 10s`}},
	{"too many retries", "retries = 1", "@retries = 11", []string{
		`monitor[0].retries: 11: out of range; use 0 to 10`}},
	{"run by nobody", `run_by = "connector"`, `@run_by = "replica"`, []string{
		`monitor[0].run_by: "replica": not one of the legal words; use edge, connector`}},
	{"bad code", `"301"]`, `@"3oo"]`, []string{
		`monitor[0].expected_codes: "3oo" is none: write codes from 100 to 599, as in "301", "2xx" or "200-204"`}},
	{"bad header", `"X.Y" = "1"`, `@"X Y" = "hunter3"`, []string{
		`monitor[0].headers."X Y": write the header's name, as in "Authorization"`}},
	{"header of another", `"X.Y" = "1"`, `@Host = "hunter3"`, []string{
		`monitor[0].headers.Host: use host instead`}},
	{"header of the wrong type", `"X.Y" = "1"`, `@"X.Y" = 1`, []string{
		`monitor[0].headers."X.Y": expected a string, not an integer; put it in quotes`}},
	{"question of nothing", "question = \"www.internal\"\n", "", []string{
		`60: monitor[3].question: write the name to ask for, as in "www.example.com"`}},
	{"bytes that are none", `send_hex = "ff 00"`, `@send_hex = "f"`, []string{
		`monitor[2].send_hex: write 1 to 1024 bytes as pairs of hexadecimal digits, as in "00 ff 7f"`}},
	{"text and bytes", `send_hex = "ff 00"`, "send_hex = \"ff 00\"\n@send = \"hunter3\"", []string{
		`57: monitor[2].send_hex: it is also written as text, in send; keep one of the two`}},
}

var appEdits = []edit{
	{"steering that is not between pools", `steering = "random"`, `@steering = "round_robin"`, []string{
		`app[0].steering: "round_robin": not one of the legal words; use failover, random, latency, least_connections, hash`}},
	{"steering of a later version", `steering = "random"`, `@steering = "geo"`, []string{
		`app[0].steering: "geo": not supported by this version; use failover, random, latency, least_connections, hash`}},
	{"weights with failover", `steering = "random"`, `steering = "failover"`, []string{
		`125: app[0].pool_weights: failover goes by the order of pools, not by weights; remove them, or write steering = "random"`}},
	{"weight of a pool of another app", "{a = 3}", "{c = 3}", []string{
		`125: app[0].pool_weights.c: 3: not one of the app's pools; did you mean "a"?`}},
	{"weight out of range", "{a = 3}", "{a = 1001}", []string{
		`125: app[0].pool_weights.a: 1001: out of range; use 0 to 1000`}},
	{"weights of zero", "{a = 3}", "{a = 0, b = 0}", []string{
		`125: app[0].pool_weights: no pool has a weight above 0; give one of them a weight`}},
	{"weights as a list", "{a = 3}", "[3, 1]", []string{
		`125: app[0].pool_weights: expected a table, not a list; write it as a table: [pool_weights]`}},
	{"dangling fallback", `fallback_pool = "c"`, `@fallback_pool = "d"`, []string{
		`app[0].fallback_pool: "d": no such pool; did you mean "a"?`}},
	{"fallback that is a pool", `fallback_pool = "c"`, `@fallback_pool = "b"`, []string{
		`app[0].fallback_pool: "b": it is one of pools already; remove it there, or name another pool here`}},
	{"steering of an origin", `origin = "@public`, "@steering = 'hash'\norigin = \"@public", []string{
		`app[1].steering: "hash": an origin is one pool, so that there is nothing to choose; remove it`}},
	{"weights of an origin", `origin = "@public`, "@pool_weights = {a = 1}\norigin = \"@public", []string{
		`app[1].pool_weights: an origin is one pool, so that there is nothing to choose; remove them`}},
	{"private origin in public", `"@public/media.example.com:9000-9001"`, `@"@public/192.168.1.1:9000-9001"`, []string{
		`app[1].origin: "@public/192.168.1.1:9000-9001": no endpoint of "@public": 192.168.1.1 is private (RFC 1918), and not allowed at edge.toml:3; if it is wanted, list "192.168.1.1/32", or a prefix that holds it, in [public] allow`}},
	{"affinity by nothing", "by = \"client_net\"\n", "", []string{
		`126: app[0].affinity.by: missing; use client_ip, client_net`}},
	{"affinity by a cookie", `by = "client_net"`, `@by = "cookie"`, []string{
		`app[0].affinity.by: "cookie": not one of the legal words; use client_ip, client_net`}},
	{"affinity for ever", `ttl = "2h"`, `@ttl = "721h"`, []string{
		`app[0].affinity.ttl: "721h": out of range; use 1s to 720h`}},
	{"affinity of too many", "max = 5", "@max = 1000001", []string{
		`app[0].affinity.max: 1000001: out of range; use 1 to 1000000`}},
	{"affinity where hashing does it", `listen = ["tcp/9100"]
pools = ["b"]`, "listen = [\"tcp/9100\"]\npools = [\"b\"]\n@[app.affinity]\nby = 'client_ip'", []string{
		`app[2].affinity: pool "b" steers by hash, which leads a client to the same endpoint already; remove the table, or choose another steering for the pool`}},
	{"affinity that hashing does not give", `listen = ["tcp/9100"]
pools = ["b"]`, "listen = [\"tcp/9100\"]\npools = [\"b\"]\n[app.affinity]\nby = 'client_net'", nil},
	{"http check of a udp app", `listen = ["tcp/8443", "udp/8443"]`, `@listen = ["udp/8443"]`, []string{
		`122: app[0].pools[0]: "a": its monitor "web" makes https checks, over tcp, but the app listens on udp alone; give the pool a monitor of type udp, icmp or dns`}},
	{"dns check of a tcp app", `listen = ["tcp/9100"]
pools = ["b"]`, `listen = ["tcp/9100"]
@pools = ["x"]
[[pool]]
name = "x"
network = "berlin"
monitor = "dns"
[[pool.endpoints]]
address = "10.0.0.1:53"`, []string{
		`app[2].pools[0]: "x": its monitor "dns" makes dns checks, over udp, but the app listens on tcp alone; give the pool a monitor of type tcp, tls, http, https, icmp, postgres, smtp or redis`}},
	{"dns check of a pool that is a fallback only", `fallback_pool = "b"`, `fallback_pool = "x"
[[pool]]
name = "x"
network = "berlin"
monitor = "web"
[[pool.endpoints]]
address = "10.0.0.1:53"`, nil},
	{"tcp check of a udp app, whose pool a tcp app has as well", `listen = ["tcp/8443", "udp/8443"]
pools = ["a", "b"]`, "listen = [\"udp/8443\"]\n@pools = [\"a\", \"b\"]\n[[app]]\nname='x'\nlisten=['tcp/1']\npools=['a','b']", []string{
		`app[0].pools[0]: "a": its monitor "web" makes https checks, over tcp, but the app listens on udp alone; give the pool a monitor of type udp, icmp or dns`}},
	{"tcp check of an app over both", `listen = ["tcp/8443", "udp/8443"]
pools = ["a", "b"]`, "listen = [\"udp/8443\", \"tcp/8443\"]\npools = [\"a\", \"b\"]\n[[app]]\nname='x'\nlisten=['tcp/1']\npools=['a','b']", nil},
	{"dns check of a tcp app, whose pool a udp app has as well", `listen = ["tcp/9100"]
pools = ["b"]`, `listen = ["tcp/9100"]
pools = ["x"]
[[app]]
name = "same"
listen = ["udp/9100"]
pools = ["x"]
[[pool]]
name = "x"
network = "berlin"
monitor = "dns"
[[pool.endpoints]]
address = "10.0.0.1:53"`, nil},
}

var restEdits = []edit{
	{"prefix of nothing", `"169.254.169.254/32"]`, `@"224.0.0.0/4"]`, []string{
		`public.allow[1]: "224.0.0.0/4": it is no endpoint's: nothing can be dialled there`}},
	{"prefix without a length", `"169.254.169.254/32"]`, `@"169.254.169.254"]`, []string{
		`public.allow[1]: "169.254.169.254": the prefix length is missing; write "169.254.169.254/32" for this one address`}},
	{"less than no dials", "max_dials = 7", "@max_dials = -1", []string{
		`public.max_dials: -1: out of range; use 1 to 1000000`}},
	{"dial too long", `timeout = "3s"`, `@timeout = "8s"`, []string{
		`public.timeout: "8s": out of range; use 1ms to 7s`}},
	{"ring of one", "ring = 100", "@ring = 1", []string{
		`events.ring: 1: out of range; use 16 to 1000000`}},
	{"webhook without a URL", "url = \"http://hooks.example.com/secret-path\"\n", "", []string{
		`11: webhook[0].url: missing; write it like "https://hooks.example.com/warren"`}},
	{"webhook to nowhere", `"http://hooks.example.com/secret-path"`, `@"hooks.example.com/secret-path"`, []string{
		`webhook[0].url: want a whole URL, such as https://hooks.example.com/warren`}},
	{"webhook over mail", `"http://hooks.example.com/secret-path"`, `@"mailto://hooks.example.com/secret-path"`, []string{
		`webhook[0].url: want https:// (or http:// inside your own network)`}},
	{"webhook with a password", `"http://hooks.example.com/secret-path"`, `@"http://a:hunter2@hooks.example.com/"`, []string{
		`webhook[0].url: leave the user and the password out of the URL: put a token into token_file`}},
	{"webhook twice", "[[address]]", "[[webhook]]\n@name = 'ops'\nurl = 'https://x.example'\n[[address]]", []string{
		`webhook[1].name: "ops": the name is taken already, at edge.toml:12; choose another`}},
	{"webhook of nothing", `kinds = ["pool"]`, `@kinds = ["pool", "", "pool"]`, []string{
		`webhook[0].kinds[1]: "": empty`,
		`webhook[0].kinds[2]: "pool": the kind is there twice; remove one of the two`}},
	{"webhook of what there is not", `kinds = ["pool"]`, `@kinds = ["pools", "flow", "connector", "endpoint"]`, []string{
		`webhook[0].kinds[0]: "pools": not one of the legal words; did you mean "pool"?`,
		`webhook[0].kinds[1]: "flow": not one of the legal words; use pool, endpoint, connector`}},
	{"webhook that has no time", "queue = 9", "@queue = 0", []string{
		`webhook[0].queue: 0: out of range; use 1 to 65536`}},
	{"webhook's secret beside the key", `secret_file = "hook.key"`, `@secret = "hunter2"`, []string{
		`webhook[0].secret: unknown key; known here: kinds, max_age, name, queue, secret_file, timeout, token_file, url`}},
}
