package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/dnsd/zone"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/ingress"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/public"
)

// env is an environment for tests.
func env(pairs ...string) Env {
	return func(key string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == key {
				return pairs[i+1]
			}
		}
		return ""
	}
}

var home = env("HOME", "/home/op")

func parseText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	return Parse(home, strict.Source{Name: "edge.toml", Text: []byte(text)})
}

const (
	keyOne = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
	keyTwo = "mKtXlLhCGVCRg3ZVBVB0fkbUbb8sMVKpXKQ9qU1XOGM="
)

// full has every table and nearly every key.
const full = `version = 1

[edge]
name = "fra1"
state_dir = "/var/lib/warren"

[wireguard]
listen = "192.0.2.1:51820"
advertise = ["fra1.example.net:51820", "udp://203.0.113.10:51820"]
private_key_file = "/etc/warren/edge.key"
inner_sources = "100.126.0.0/24"

[[address]]
name = "main"
advertise = ["203.0.113.10", "2001:db8::10"]
bind = ["10.1.2.3", "2001:db8::10"]

[[address]]
name = "second"
advertise = ["203.0.113.11"]

[[zone]]
name = "apps.example.com"
nameservers = ["ns1.apps.example.com", "ns.example.net"]

[admin]
socket = "/run/warren/edge.sock"

[metrics]
listen = "127.0.0.1:9191"

[log]
level = "debug"
flows = "/var/log/warren/flows.json"

[[network]]
name = "berlin"
[[network]]
name = "tokyo"

[[connector]]
name = "berlin-1"
network = "berlin"
public_key = "` + keyOne + `"
routes = ["10.0.0.0/16", "2001:db8:1::/48"]

[[monitor]]
name = "pg"
interval = "5s"
timeout = "1s"

[[pool]]
name = "berlin-db"
network = "berlin"
monitor = "pg"
[[pool.endpoints]]
address = "10.0.0.10:5432"
[[pool.endpoints]]
address = "10.0.0.11:5432"

[[app]]
name = "db"
hostnames = ["db", "pg.apps.example.com"]
listen = ["tcp/5432"]
on = ["main"]
pools = ["berlin-db"]
allow = ["198.51.100.0/24"]
deny = ["198.51.100.7/32"]
tcp_idle = "1h"

[[app]]
name = "web"
listen = ["tcp/8000-8002"]
on = ["second"]
origin = "tokyo/10.0.0.10:9000-9002"
`

func TestFull(t *testing.T) {
	text := full
	got, err := parseText(t, text)
	if err != nil {
		t.Fatal(err)
	}
	mainAddrs := []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8::10")}
	serverAddrs := append(mainAddrs[:2:2], netip.MustParseAddr("203.0.113.11"))
	listener := func(app, bind, advertise, address string, offset uint16) Listener {
		return Listener{
			Spec: ingress.Spec{App: app, Network: "tcp", Addr: netip.MustParseAddrPort(bind), Advertise: netip.MustParseAddrPort(advertise),
				UDPIdle: 210 * time.Second, MaxFlows: 65536},
			Address: address, Offset: offset,
		}
	}
	want := &Config{
		Edge: Edge{Name: "fra1", StateDir: "/var/lib/warren"},
		WireGuard: WireGuard{
			Listen:    Socket{netip.MustParseAddrPort("192.0.2.1:51820")},
			Advertise: []Dial{"fra1.example.net:51820", "203.0.113.10:51820"}, PrivateKeyFile: "/etc/warren/edge.key",
			InnerSources: netip.MustParsePrefix("100.126.0.0/24"),
		},
		Addresses: []Address{
			{Name: "main", Advertise: mainAddrs, Bind: []netip.Addr{netip.MustParseAddr("10.1.2.3"), mainAddrs[1]}},
			{Name: "second", Advertise: serverAddrs[2:], Bind: serverAddrs[2:]},
		},
		Admin:   Admin{Socket: "/run/warren/edge.sock"},
		Metrics: Metrics{Listen: netip.MustParseAddrPort("127.0.0.1:9191"), On: true},
		Log:     Log{Level: "debug", Flows: "/var/log/warren/flows.json"},
		Public: public.Spec{
			Timeout: 5 * time.Second, KeepAlive: 30 * time.Second, MaxDials: 1024,
			Own: []netip.Addr{mainAddrs[0], mainAddrs[1], netip.MustParseAddr("10.1.2.3"), serverAddrs[2]},
		},
		Events: Events{Ring: 4096},
		Networks: []Network{{Name: "berlin", ClientSource: true, Steering: "least_connections"},
			{Name: "tokyo", Enroll: true, ClientSource: true, Steering: "least_connections"},
		},
		Monitors: []monitor.Spec{{Name: "pg", Check: check.Spec{Type: "tcp"}, Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 2, RunBy: "edge"}},
		Pools: []balance.Spec{{Name: "berlin-db", Steering: "round_robin", Monitor: "pg", MinimumHealthy: 1, Endpoints: []balance.Member{
			{Endpoint: balance.Endpoint{Network: "berlin", Addr: netip.MustParseAddrPort("10.0.0.10:5432")}, Weight: 1},
			{Endpoint: balance.Endpoint{Network: "berlin", Addr: netip.MustParseAddrPort("10.0.0.11:5432")}, Weight: 1},
		}}},
		Apps: []App{{
			Name: "db", Hostnames: []string{"db.apps.example.com", "pg.apps.example.com"}, Pools: []string{"berlin-db"}, Steering: "failover",
			Listeners: []Listener{
				listener("db", "10.1.2.3:5432", "203.0.113.10:5432", "main", 0),
				listener("db", "[2001:db8::10]:5432", "[2001:db8::10]:5432", "main", 0),
			},
			Allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Deny: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/32")},
			TCPIdle: time.Hour, UDPIdle: 210 * time.Second,
		}, {
			Name: "web", Steering: "failover", TCPIdle: 8 * time.Hour, UDPIdle: 210 * time.Second,
			Origin: &Origin{Network: "tokyo", Addr: netip.MustParseAddr("10.0.0.10"), First: 9000, Last: 9002},
			Listeners: []Listener{
				listener("web", "203.0.113.11:8000", "203.0.113.11:8000", "second", 0),
				listener("web", "203.0.113.11:8001", "203.0.113.11:8001", "second", 1),
				listener("web", "203.0.113.11:8002", "203.0.113.11:8002", "second", 2),
			},
		}},
	}
	want.DNS.Server.Listen = []netip.AddrPort{
		netip.MustParseAddrPort("10.1.2.3:53"), netip.MustParseAddrPort("[2001:db8::10]:53"), netip.MustParseAddrPort("203.0.113.11:53"),
	}
	want.DNS.Zones = []zone.Zone{{
		Name: "apps.example.com", TTLs: zone.TTLs{Host: 30 * time.Second, Negative: 30 * time.Second},
		Nameservers: []zone.Nameserver{{Name: "ns1.apps.example.com", Addrs: serverAddrs}, {Name: "ns.example.net", Addrs: serverAddrs}},
	}}
	want.DNS.Hosts = []zone.Host{{Name: "db", Addrs: mainAddrs}, {Name: "pg.apps.example.com", Addrs: mainAddrs}}
	got.Connectors = nil // a key does not compare by its fields alone; see below
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Config{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Fatal(diff)
	}
}

func TestConnector(t *testing.T) {
	cfg, err := parseText(t, full)
	if err != nil {
		t.Fatal(err)
	}
	c := cfg.Connectors[0]
	if c.PublicKey.String() != keyOne || c.Network != "berlin" || len(c.Routes) != 2 || c.Routes[1].String() != "2001:db8:1::/48" {
		t.Errorf("connector = %+v", c)
	}
}

func TestAllPools(t *testing.T) {
	cfg, err := parseText(t, full)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range cfg.AllPools() {
		got = append(got, p.Name+" "+p.Endpoints[0].String())
	}
	want := []string{
		"berlin-db berlin/10.0.0.10:5432", "web/origin:9000 tokyo/10.0.0.10:9000",
		"web/origin:9001 tokyo/10.0.0.10:9001", "web/origin:9002 tokyo/10.0.0.10:9002",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	if diff := cmp.Diff([]string{"web/origin:9002"}, cfg.Apps[1].PoolsAt(2)); diff != "" {
		t.Fatal(diff)
	}
	if diff := cmp.Diff([]string{"berlin-db"}, cfg.Apps[0].PoolsAt(0)); diff != "" {
		t.Fatal(diff)
	}
	if got := len(cfg.IngressSpecs()); got != 5 {
		t.Errorf("%d ingress specs, want 5", got)
	}
}

func TestDefaults(t *testing.T) {
	for _, tt := range []struct {
		name                   string
		env                    Env
		text                   string
		state, key, socket, fl string
	}{
		{"home", home, "", "/home/op/.local/state/warren", "/home/op/.local/state/warren/edge.key", "/home/op/.local/state/warren/edge.sock", "-"},
		{"XDG", env("HOME", "/h", "XDG_STATE_HOME", "/x", "XDG_RUNTIME_DIR", "/run/user/7"), "", "/x/warren", "/x/warren/edge.key", "/run/user/7/warren-edge.sock", "-"},
		{"systemd", env("HOME", "/h", "STATE_DIRECTORY", "/var/lib/warren:/b", "RUNTIME_DIRECTORY", "/run/warren", "XDG_RUNTIME_DIR", "/run/user/7"), "",
			"/var/lib/warren", "/var/lib/warren/edge.key", "/run/warren/edge.sock", "-"},
		{"beside the file", home, "[edge]\nstate_dir = 'state'\n[wireguard]\nprivate_key_file = 'k'\n[log]\nflows = 'f.json'\n",
			"/etc/warren/state", "/etc/warren/k", "/etc/warren/state/edge.sock", "/etc/warren/f.json"},
		{"credentials", env("CREDENTIALS_DIRECTORY", "/run/cred", "HOME", "/h"), "[wireguard]\nprivate_key_file = 'k'\n[log]\nflows = 'off'\n",
			"/h/.local/state/warren", "/run/cred/k", "/h/.local/state/warren/edge.sock", "off"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := Parse(tt.env, strict.Source{Name: "/etc/warren/edge.toml", Text: []byte(tt.text)})
			if err != nil {
				t.Fatal(err)
			}
			got := []string{cfg.Edge.StateDir, cfg.WireGuard.PrivateKeyFile, cfg.Admin.Socket, cfg.Log.Spec().Path}
			if diff := cmp.Diff([]string{tt.state, tt.key, tt.socket, tt.fl}, got); diff != "" {
				t.Error(diff)
			}
			if cfg.Edge.Name != "edge" || show(cfg.WireGuard.Listen.AddrPort) != ":51820" || cfg.Metrics.Listen.String() != "127.0.0.1:9191" {
				t.Errorf("defaults are wrong: %+v", cfg)
			}
		})
	}
}

// TestFlowBounds: each network has its own bound, whichever of them are set.
func TestFlowBounds(t *testing.T) {
	const app = "version = 1\n[[address]]\nname='a'\nadvertise=['127.0.0.1']\n[[network]]\nname='n'\n" +
		"[[app]]\nname='x'\nlisten=['tcp/7', 'udp/7']\norigin='n/10.0.0.1:7'\n"
	for _, tt := range []struct {
		name, keys string
		tcp, udp   int
	}{
		{"neither", "", 65536, 65536},
		{"TCP", "tcp_flows = 10\n", 10, 65536},
		{"UDP", "udp_sessions = 20\n", 65536, 20},
		{"both", "tcp_flows = 1000000\nudp_sessions = 1\n", 1000000, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := parseText(t, app+tt.keys)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]int{}
			for _, spec := range cfg.IngressSpecs() {
				got[spec.Network] = spec.MaxFlows
			}
			if got["tcp"] != tt.tcp || got["udp"] != tt.udp {
				t.Errorf("%v, want tcp %d, udp %d", got, tt.tcp, tt.udp)
			}
		})
	}
	for _, bad := range []string{"tcp_flows = 0\n", "tcp_flows = 1000001\n"} {
		if _, err := parseText(t, app+bad); err == nil || !strings.Contains(err.Error(), "tcp_flows") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestMetricsOff(t *testing.T) {
	cfg, err := parseText(t, "[metrics]\nlisten = ''\n")
	if err != nil || cfg.Metrics.On {
		t.Errorf("metrics = %+v, %v", cfg.Metrics, err)
	}
}

func TestLoadDirectory(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"10-edge.toml": "version = 1\n[[network]]\nname = 'a'\n", "20-more.toml": "version = 1\n[[network]]\nname = 'a'\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Load(home, dir)
	want := filepath.Join(dir, "20-more.toml") + `:3: network[0].name: "a": the name is taken already, at ` + filepath.Join(dir, "10-edge.toml") + ":3; choose another"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := Load(home, filepath.Join(dir, "none.toml")); err == nil {
		t.Error("a file that is not there was loaded")
	}
}
