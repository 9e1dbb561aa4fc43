package config

import (
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/connector"
	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
)

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

func parseText(e Env, text string) (*Config, error) {
	return Parse(e, strict.Source{Name: "/etc/warren/connector.toml", Text: []byte(text)})
}

const edgeKey = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="

// least is the shortest file that is accepted.
const least = "[[edge]]\npublic_key = \"" + edgeKey + "\"\nurl = \"fra1.example.net:51820\"\n"

const full = `version = 1
[connector]
name = "berlin-1"
state_dir = "/var/lib/warren-connector"
private_key_file = "/etc/warren/connector.key"
token_file = "/etc/warren/token"
drain = "5s"

[[edge]]
public_key = "` + edgeKey + `"
url = "udp://fra1.example.net:51820"

[[alias]]
from = "tcp/10.0.0.10:5432"
to = "postgres.default.svc:5432"

[guard]
allow = ["tcp/10.0.0.0/16:5432", "tcp/10.0.0.0/16:80-443"]
deny = ["tcp/10.0.0.1"]

[limits]
max_tcp_flows = 100
max_udp_flows = 200
udp_idle = "30s"

[metrics]
listen = "127.0.0.1:9192"

[log]
level = "warn"
`

func TestFull(t *testing.T) {
	got, err := parseText(home, full)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := wgtypes.ParseKey(edgeKey)
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.MustParsePrefix
	want := connector.Spec{
		Name: "berlin-1", StateDir: "/var/lib/warren-connector", PrivateKeyFile: "/etc/warren/connector.key",
		Edges: []connector.EdgeSpec{{PublicKey: pub, URLs: []connector.EdgeURL{{Host: "fra1.example.net", Port: 51820}}}},
		Origin: origin.Spec{Aliases: []origin.Alias{{
			From: origin.Service{Proto: "tcp", Addr: netip.MustParseAddrPort("10.0.0.10:5432")},
			To:   origin.Target{Host: "postgres.default.svc", Port: 5432},
		}}},
		Guard: guard.Spec{
			Allow: []guard.Rule{{Proto: "tcp", Prefix: prefix("10.0.0.0/16"), First: 5432, Last: 5432}, {Proto: "tcp", Prefix: prefix("10.0.0.0/16"), First: 80, Last: 443}},
			Deny:  []guard.Rule{{Proto: "tcp", Prefix: prefix("10.0.0.1/32")}},
		},
		MaxTCPFlows: 100, MaxUDPFlows: 200, UDPIdle: 30 * time.Second, Grace: 5 * time.Second, MetricsListen: "127.0.0.1:9192",
	}
	if diff := cmp.Diff(want, got.Spec, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got.LogLevel != slog.LevelWarn || got.TokenFile != "/etc/warren/token" {
		t.Errorf("level = %v, token file = %q", got.LogLevel, got.TokenFile)
	}
}

func TestDefaults(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Skip("this machine has no name: ", err)
	}
	host, _, _ = strings.Cut(host, ".")
	for _, tt := range []struct {
		name, text string
		env        Env
		state, key string
		token      string
	}{
		{"home", "", home, "/home/op/.local/state/warren-connector", "", ""},
		{"XDG", "", env("HOME", "/h", "XDG_STATE_HOME", "/x"), "/x/warren-connector", "", ""},
		{"systemd", "", env("HOME", "/h", "STATE_DIRECTORY", "/var/lib/w:/b"), "/var/lib/w", "", ""},
		{"beside the file", "[connector]\nstate_dir = 's'\nprivate_key_file = 'k'\ntoken_file = 't'\n", home, "/etc/warren/s", "/etc/warren/k", "/etc/warren/t"},
		{"credentials", "[connector]\nprivate_key_file = 'k'\ntoken_file = 't'\n", env("HOME", "/h", "CREDENTIALS_DIRECTORY", "/cred"), "/h/.local/state/warren-connector", "/cred/k", "/cred/t"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := parseText(tt.env, tt.text+least)
			if err != nil {
				t.Fatal(err)
			}
			s := cfg.Spec
			if s.StateDir != tt.state || s.PrivateKeyFile != tt.key || cfg.TokenFile != tt.token || s.Name != host {
				t.Errorf("state %q, key %q, token %q, name %q", s.StateDir, s.PrivateKeyFile, cfg.TokenFile, s.Name)
			}
			if s.UDPIdle != connector.DefaultUDPIdle || s.Grace != connector.DefaultGrace ||
				s.MaxTCPFlows != connector.DefaultMaxTCPFlows || s.MaxUDPFlows != connector.DefaultMaxUDPFlows {
				t.Errorf("the file's defaults are not the Spec's: %+v", s)
			}
		})
	}
}

func TestNoDrain(t *testing.T) {
	cfg, err := parseText(home, "[connector]\ndrain = '0s'\n"+least)
	if err != nil || cfg.Spec.Grace >= 0 {
		t.Errorf("grace = %v, %v", cfg, err)
	}
}

func TestProblems(t *testing.T) {
	const inFile = "a secret has no place in a config; write the token into a file with mode 0600 and name that in token_file"
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"newer version", "version = 2\n" + least, []string{"1: version: 2: this release reads version 1; install a later release of warren"}},
		{"token in the file", "[connector]\ntoken = 'wrn1_secret'\n" + least, []string{"2: connector.token: " + inFile}},
		{"token of another type", "[connector]\ntoken = ['wrn1_secret']\n" + least, []string{"2: connector.token: expected a string, not a list; write one value without brackets"}},
		{"token in a wrong place", "token = 'wrn1_secret'\n" + least, []string{"1: token: unknown key; it belongs into [connector]"}},
		{"bad key is not shown", "[[edge]]\npublic_key = 'hunter2'\nurl = 'a.example:1'", []string{"2: edge[0].public_key: not a WireGuard key; write the 44 characters that `warren pubkey` prints"}},
		{"bad url", least + "[[edge]]\npublic_key = 'mKtXlLhCGVCRg3ZVBVB0fkbUbb8sMVKpXKQ9qU1XOGM='\nurl = 'fra2.example.net'", []string{
			`6: edge[1].url: "fra2.example.net": want a host and a port, such as fra1.example.net:51820`}},
		{"edge twice", least + strings.Replace(least, "fra1", "fra2", 1), []string{`5: edge[1].public_key: edge[0] has the same key: keep one of them`}},
		{"alias", least + "[[alias]]\nfrom = '10.0.0.1:5432'\nto = 'db'\n", []string{
			`5: alias[0].from: "10.0.0.1:5432": want it to start with "tcp/" or "udp/"`,
			`6: alias[0].to: "db": want a name or an address, and a port, such as db.internal:5432`}},
		{"alias twice", least + "[[alias]]\nfrom = 'tcp/10.0.0.1:1'\nto = 'db:1'\n[[alias]]\nfrom = 'tcp/10.0.0.1:1'\nto = 'dc:1'", []string{
			`8: alias[1].from: "tcp/10.0.0.1:1": alias[0] has the same address: keep one of them`}},
		{"guard", least + "[guard]\nallow = ['tcp/10.0.0.0/8:1', 'tcp/10.0.0.1/8']\ndeny = ['sctp/10.0.0.1']", []string{
			`5: guard.allow[1]: "tcp/10.0.0.1/8": "10.0.0.1/8" has bits set after its length: write "10.0.0.0/8"`,
			`6: guard.deny[0]: "sctp/10.0.0.1": want it to start with "tcp/" or "udp/"`}},
		{"empty allow", least + "[guard]\nallow = []\n", []string{`5: guard.allow: empty list; remove it to allow the granted routes, or list what may be dialled`}},
		{"limits", least + "[limits]\nudp_idle = '0s'\nmax_tcp_flows = 0", []string{
			`5: limits.udp_idle: "0s": out of range; use 1s to 24h`, `6: limits.max_tcp_flows: 0: out of range; use 1 to 1048576`}},
		{"profiles for everybody", least + "[metrics]\nlisten = ':9192'\npprof = true\n", []string{"6: metrics.pprof: true: profiles are for this machine alone: listen on a loopback address, such as 127.0.0.1:9191, or leave pprof off"}},
		{"metrics", least + "[metrics]\nlisten = '9192'\n", []string{`5: metrics.listen: "9192": want an address and a port, such as 127.0.0.1:9192`}},
		{"unknown", least + "[gaurd]\n", []string{`4: gaurd: unknown key; did you mean "guard"?`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseText(home, tt.text)
			if err == nil {
				t.Fatal("accepted")
			}
			var want []string
			for _, w := range tt.want {
				want = append(want, "/etc/warren/connector.toml:"+w)
			}
			if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

func TestNoPlaceForState(t *testing.T) {
	_, err := parseText(env(), least)
	if err == nil || !strings.Contains(err.Error(), "connector.state_dir: a directory for the connector's key") {
		t.Errorf("err = %v", err)
	}
}

// TestNoEdges: a token, or the state directory, may know them.
func TestNoEdges(t *testing.T) {
	cfg, err := parseText(home, "")
	if err != nil || len(cfg.Spec.Edges) != 0 {
		t.Fatal(cfg, err)
	}
	if byDefault := Default(home); !reflect.DeepEqual(cfg.Spec, byDefault.Spec) || cfg.LogLevel != byDefault.LogLevel {
		t.Errorf("an empty file gives %+v, Default %+v", cfg.Spec, byDefault.Spec)
	}
	if dir := Default(env()).Spec.StateDir; dir != "" {
		t.Errorf("without an environment the state is in %q", dir)
	}
}

func TestLocate(t *testing.T) {
	cfg, err := parseText(home, full)
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Locate(nil); err != nil {
		t.Errorf("nothing found, but %v", err)
	}
	err = cfg.Locate([]connector.Problem{{Path: "alias[0].to", Value: "x", Hint: "the name does not resolve"}})
	want := `/etc/warren/connector.toml:15: alias[0].to: "postgres.default.svc:5432": the name does not resolve`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
