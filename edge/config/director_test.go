package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/events"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/resolve"
)

// steered has every key of the Director.
const steered = `version = 1
[public]
allow = ["10.1.0.0/16", "169.254.169.254/32"]
timeout = "3s"
keepalive = "10s"
max_dials = 7

[events]
ring = 100

[[webhook]]
name = "ops"
url = "http://hooks.example.com/secret-path"
secret_file = "hook.key"
token_file = "/run/token"
kinds = ["pool"]
timeout = "1s"
max_age = "2h"
queue = 9

[[address]]
name = "main"
advertise = ["127.0.0.1"]

[[network]]
name = "berlin"
steering = "failover"
replicas = ["berlin-2", "berlin-1"]

[[monitor]]
name = "web"
type = "https"
interval = "10s"
timeout = "3s"
retries = 1
rise = 3
fall = 4
run_by = "connector"
server_name = "www.internal"
ca_file = "ca.pem"
method = "GET"
path = "/health?x=1"
host = "www.internal:8443"
headers = {Authorization = "Bearer hunter2", "X.Y" = "1"}
expected_codes = ["2xx", "301"]
expected_body = "ok"
follow_redirects = true

[[monitor]]
name = "redis"
send = "PING\r\n"
expect = "+PONG"

[[monitor]]
name = "game"
type = "udp"
send_hex = "ff 00"
expect_hex = "01"

[[monitor]]
name = "dns"
type = "dns"
question = "www.internal"
record_type = "AAAA"
expected_rcode = "NXDOMAIN"

[[monitor]]
name = "ping"
type = "icmp"

[[pool]]
name = "a"
network = "berlin"
enabled = true
steering = "least_connections"
monitor = "web"
minimum_healthy = 2
slow_start = "30s"
[pool.shedding]
percent = 10
by = "hash"
[pool.queue]
length = 50
timeout = "2s"
[pool.ejection]
failures = 3
time = "20s"
max_time = "1m"
max_percent = 40
[[pool.endpoints]]
address = "10.0.0.10:8443"
weight = 2
max_connections = 100
[[pool.endpoints]]
host = "Web.internal:8443"
weight = 0
[[pool.endpoints]]
address = "10.0.0.12:8443"
enabled = false

[[pool]]
name = "b"
network = "berlin"
steering = "hash"
monitor = "ping"
[[pool.endpoints]]
address = "10.0.0.20:8443"

[[pool]]
name = "c"
network = "@public"
enabled = false
monitor = "redis"
[[pool.endpoints]]
host = "www.example.com:443"
[[pool.endpoints]]
address = "10.1.2.3:443"

[[app]]
name = "web"
listen = ["tcp/8443", "udp/8443"]
pools = ["a", "b"]
steering = "random"
fallback_pool = "c"
pool_weights = {a = 3}
[app.affinity]
by = "client_net"
ttl = "2h"
failover = "sticky"
max = 5

[[app]]
name = "media"
listen = ["udp/9000-9001"]
origin = "@public/media.example.com:9000-9001"
fallback_pool = "b"

[[app]]
name = "one"
listen = ["tcp/9100"]
pools = ["b"]
`

func addrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// compareAddrs lets cmp compare what has unexported fields only.
var compareAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestDirector(t *testing.T) {
	cfg, err := parseText(t, steered)
	if err != nil {
		t.Fatal(err)
	}
	berlin := func(addr string) balance.Endpoint { return balance.Endpoint{Network: "berlin", Addr: addrPort(addr)} }
	port := func(network string, port uint16) balance.Endpoint {
		return balance.Endpoint{Network: network, Addr: netip.AddrPortFrom(netip.Addr{}, port)}
	}
	pools := []balance.Spec{{
		Name: "a", Steering: "least_connections", Monitor: "web", MinimumHealthy: 2, SlowStart: 30 * time.Second,
		Shedding: balance.Shedding{Percent: 10, By: "hash"}, Queue: balance.Queue{Length: 50, Timeout: 2 * time.Second},
		Ejection: balance.Ejection{Failures: 3, Time: 20 * time.Second, MaxTime: time.Minute, MaxPercent: 40},
		Endpoints: []balance.Member{
			{Endpoint: berlin("10.0.0.10:8443"), Weight: 2, MaxConnections: 100},
			{Endpoint: port("berlin", 8443), Host: "web.internal"},
			{Endpoint: berlin("10.0.0.12:8443"), Weight: 1, Disabled: true},
		},
	}, {
		Name: "b", Steering: "hash", Monitor: "ping", MinimumHealthy: 1,
		Endpoints: []balance.Member{{Endpoint: berlin("10.0.0.20:8443"), Weight: 1}},
	}, {
		Name: "c", Disabled: true, Steering: "round_robin", Monitor: "redis", MinimumHealthy: 1,
		Endpoints: []balance.Member{
			{Endpoint: port("@public", 443), Host: "www.example.com", Weight: 1},
			{Endpoint: balance.Endpoint{Network: "@public", Addr: addrPort("10.1.2.3:443")}, Weight: 1},
		},
	}}
	if diff := cmp.Diff(pools, cfg.Pools, compareAddrs); diff != "" {
		t.Error(diff)
	}
	spec := monitor.Spec{Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 2, RunBy: "edge"}
	with := func(name string, c check.Spec) monitor.Spec {
		s := spec
		s.Name, s.Check = name, c
		return s
	}
	monitors := []monitor.Spec{{
		Name: "web", Interval: 10 * time.Second, Timeout: 3 * time.Second, Retries: 1, Rise: 3, Fall: 4, RunBy: "connector",
		Check: check.Spec{
			Type: "https", ServerName: "www.internal", CAFile: "ca.pem", Method: "GET", Path: "/health?x=1", Host: "www.internal:8443",
			Headers:       map[string]string{"Authorization": "Bearer hunter2", "X.Y": "1"},
			ExpectedCodes: []string{"2xx", "301"}, ExpectedBody: "ok", FollowRedirects: true,
		},
	},
		with("redis", check.Spec{Type: "tcp", Send: "PING\r\n", Expect: "+PONG"}),
		with("game", check.Spec{Type: "udp", SendHex: "ff 00", ExpectHex: "01"}),
		with("dns", check.Spec{Type: "dns", Question: "www.internal", RecordType: "AAAA", ExpectedRcode: "NXDOMAIN"}),
		with("ping", check.Spec{Type: "icmp"}),
	}
	if diff := cmp.Diff(monitors, cfg.Monitors); diff != "" {
		t.Error(diff)
	}
	apps := []balance.App{{
		Name: "web", Pools: []balance.Choice{{Pool: "a", Weight: 3}, {Pool: "b", Weight: 1}}, Steering: "random", Fallback: "c",
		Affinity: balance.Affinity{By: "client_net", TTL: 2 * time.Hour, Failover: "sticky", Max: 5},
	},
		{Name: "media/origin:9000", Pools: []balance.Choice{{Pool: "media/origin:9000", Weight: 1}}, Steering: "failover", Fallback: "b"},
		{Name: "media/origin:9001", Pools: []balance.Choice{{Pool: "media/origin:9001", Weight: 1}}, Steering: "failover", Fallback: "b"},
		{Name: "one", Pools: []balance.Choice{{Pool: "b", Weight: 1}}, Steering: "failover"},
	}
	if diff := cmp.Diff(apps, cfg.BalanceApps()); diff != "" {
		t.Error(diff)
	}
	if n := cfg.Networks[0]; n.Steering != "failover" || strings.Join(n.Replicas, " ") != "berlin-2 berlin-1" || !n.Equal(n) || n.Equal(Network{Name: "berlin"}) {
		t.Errorf("network = %+v", n)
	}
	if p := cfg.Public; len(p.Allow) != 2 || p.Timeout != 3*time.Second || p.KeepAlive != 10*time.Second || p.MaxDials != 7 {
		t.Errorf("public = %+v", p)
	}
	webhooks := []events.Spec{{
		Name: "ops", URL: "http://hooks.example.com/secret-path", SecretFile: "hook.key", TokenFile: "/run/token", Kinds: []string{"pool"},
		Timeout: time.Second, MaxAge: 2 * time.Hour, Queue: 9,
	}}
	if diff := cmp.Diff(webhooks, cfg.Webhooks); diff != "" || cfg.Events.Ring != 100 {
		t.Error(diff, cfg.Events)
	}
	if w := cfg.Warnings(); len(w) != 1 || !strings.Contains(w[0], `webhook "ops" posts over plain http`) || strings.Contains(w[0], "secret-path") {
		t.Errorf("warnings = %q", w)
	}
}

// TestDirectorDefaults is the golden of what the file may leave out.
func TestDirectorDefaults(t *testing.T) {
	cfg, err := parseText(t, `
[[address]]
name = "main"
advertise = ["127.0.0.1"]
[[webhook]]
name = "w"
url = "https://example.com"
[[network]]
name = "n"
[[monitor]]
name = "m"
[[monitor]]
name = "short"
interval = "1s"
[[monitor]]
name = "web"
type = "http"
[[monitor]]
name = "dns"
type = "dns"
question = "."
[[pool]]
name = "p"
network = "n"
[pool.shedding]
percent = 1
[pool.queue]
length = 1
[pool.ejection]
[[pool.endpoints]]
address = "10.0.0.1:1"
max_connections = 1
[[pool]]
name = "long"
network = "n"
[pool.ejection]
time = "10m"
[[pool.endpoints]]
address = "10.0.0.1:1"
[[app]]
name = "a"
listen = ["tcp/1"]
pools = ["p"]
[app.affinity]
by = "client_ip"
`)
	if err != nil {
		t.Fatal(err)
	}
	spec := monitor.Spec{Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 2, RunBy: "edge"}
	m, short, web, dns := spec, spec, spec, spec
	m.Name, m.Check.Type = "m", "tcp"
	short.Name, short.Check.Type, short.Interval, short.Timeout = "short", "tcp", time.Second, time.Second
	web.Name, web.Check = "web", check.Spec{Type: "http", Method: "GET", Path: "/", ExpectedCodes: []string{"2xx"}}
	dns.Name, dns.Check = "dns", check.Spec{Type: "dns", Question: ".", RecordType: "A", ExpectedRcode: "NOERROR"}
	one := balance.Endpoint{Network: "n", Addr: addrPort("10.0.0.1:1")}
	want := &Config{
		Events:   Events{Ring: 4096},
		Webhooks: []events.Spec{{Name: "w", URL: "https://example.com", Timeout: 10 * time.Second, MaxAge: time.Hour, Queue: 1024}},
		Monitors: []monitor.Spec{m, short, web, dns},
		Pools: []balance.Spec{{
			Name: "p", Steering: "round_robin", MinimumHealthy: 1, Endpoints: []balance.Member{{Endpoint: one, Weight: 1, MaxConnections: 1}},
			Shedding: balance.Shedding{Percent: 1, By: "random"}, Queue: balance.Queue{Length: 1, Timeout: 5 * time.Second},
			Ejection: balance.Ejection{Failures: 5, Time: 10 * time.Second, MaxTime: 5 * time.Minute, MaxPercent: 50},
		}, {
			Name: "long", Steering: "round_robin", MinimumHealthy: 1, Endpoints: []balance.Member{{Endpoint: one, Weight: 1}},
			Ejection: balance.Ejection{Failures: 5, Time: 10 * time.Minute, MaxTime: 10 * time.Minute, MaxPercent: 50},
		}},
	}
	got := &Config{Events: cfg.Events, Webhooks: cfg.Webhooks, Monitors: cfg.Monitors, Pools: cfg.Pools}
	if diff := cmp.Diff(want, got, compareAddrs, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Error(diff)
	}
	affinity := balance.Affinity{By: "client_ip", TTL: time.Hour, Failover: "temporary", Max: balance.DefaultAffinity}
	if got := cfg.BalanceApps()[0]; got.Affinity != affinity || got.Steering != "failover" || got.Fallback != "" {
		t.Errorf("app = %+v", got)
	}
	if cfg.Warnings() != nil {
		t.Errorf("warnings = %q", cfg.Warnings())
	}
}

// TestPoolsWith fills in what names resolve to.
func TestPoolsWith(t *testing.T) {
	cfg, err := parseText(t, steered)
	if err != nil {
		t.Fatal(err)
	}
	names := []resolve.Name{{Network: "berlin", Host: "web.internal"}, {Network: "@public", Host: "www.example.com"}, {Network: "@public", Host: "media.example.com"}}
	if diff := cmp.Diff(names, cfg.Names()); diff != "" {
		t.Error(diff)
	}
	known := map[string][]string{
		"berlin web.internal 8443":       {"10.0.0.12", "10.0.0.13", "10.0.0.10", "192.168.1.1"},
		"@public www.example.com 443":    {"1.1.1.1", "127.0.0.1", "10.1.2.3", "::ffff:8.8.8.8", "169.254.169.254", "2606:4700::1"},
		"@public media.example.com 9000": {"1.1.1.2"},
	}
	pools := cfg.PoolsWith(func(network, host string, port uint16) []netip.Addr {
		var out []netip.Addr
		for _, a := range known[fmt.Sprintf("%s %s %d", network, host, port)] {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	})
	want := []string{
		"a: berlin/10.0.0.10:8443 w2 c100, berlin/10.0.0.13:8443 w0 web.internal, berlin/192.168.1.1:8443 w0 web.internal, berlin/10.0.0.12:8443 w1 off",
		"b: berlin/10.0.0.20:8443 w1",
		"c: @public/1.1.1.1:443 w1 www.example.com, @public/8.8.8.8:443 w1 www.example.com, " +
			"@public/169.254.169.254:443 w1 www.example.com, @public/[2606:4700::1]:443 w1 www.example.com, @public/10.1.2.3:443 w1",
		"media/origin:9000: @public/1.1.1.2:9000 w1 media.example.com",
		"media/origin:9001: @public/:9001 w1 media.example.com",
	}
	if diff := cmp.Diff(want, describe(pools)); diff != "" {
		t.Error(diff)
	}
	var targets []string
	for _, target := range Targets(append(pools, pools...)) {
		targets = append(targets, target.String())
	}
	wantTargets := []string{
		`berlin/10.0.0.10:8443 (monitor "web")`, `berlin/10.0.0.13:8443 (monitor "web")`, `berlin/192.168.1.1:8443 (monitor "web")`, `berlin/10.0.0.20:8443 (monitor "ping")`,
	}
	if diff := cmp.Diff(wantTargets, targets); diff != "" {
		t.Error(diff)
	}
	literal := []string{
		"a: berlin/10.0.0.10:8443 w2 c100, berlin/:8443 w0 web.internal, berlin/10.0.0.12:8443 w1 off", "b: berlin/10.0.0.20:8443 w1",
		"c: @public/:443 w1 www.example.com, @public/10.1.2.3:443 w1",
		"media/origin:9000: @public/:9000 w1 media.example.com", "media/origin:9001: @public/:9001 w1 media.example.com",
	}
	if diff := cmp.Diff(literal, describe(cfg.AllPools())); diff != "" {
		t.Error(diff)
	}
	if n := len(Targets(cfg.AllPools())); n != 2 {
		t.Errorf("%d targets without a name's address, want 2", n)
	}
	if len(cfg.Pools[0].Endpoints) != 3 {
		t.Error("the config was changed")
	}
}

// describe writes each pool on a line.
func describe(pools []balance.Spec) []string {
	var out []string
	for _, p := range pools {
		var members []string
		for _, m := range p.Endpoints {
			s := fmt.Sprintf("%s w%d", m.Endpoint, m.Weight)
			if !m.Addr.IsValid() {
				s = fmt.Sprintf("%s/:%d w%d", m.Network, m.Addr.Port(), m.Weight)
			}
			if m.MaxConnections > 0 {
				s += fmt.Sprintf(" c%d", m.MaxConnections)
			}
			if m.Host != "" {
				s += " " + m.Host
			}
			if m.Disabled {
				s += " off"
			}
			members = append(members, s)
		}
		out = append(out, p.Name+": "+strings.Join(members, ", "))
	}
	return out
}
