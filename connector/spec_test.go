package connector

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
)

func TestParseEdgeURL(t *testing.T) {
	good := map[string]string{
		"fra1.example.net:51820":       "fra1.example.net:51820",
		"udp://fra1.example.net:51820": "fra1.example.net:51820",
		"203.0.113.10:51820":           "203.0.113.10:51820",
		"[2001:db8::10]:51820":         "[2001:db8::10]:51820",
		"udp://[2001:db8::10]:1":       "[2001:db8::10]:1",
	}
	for in, want := range good {
		if got, err := ParseEdgeURL(in); err != nil || got.String() != want {
			t.Errorf("ParseEdgeURL(%q) = %q, %v", in, got, err)
		}
	}
	bad := map[string]string{
		"": "want a host and a port", "fra1.example.net": "want a host and a port", "fra1.example.net:": "1 to 65535",
		"fra1.example.net:0": "1 to 65535", "fra1.example.net:051820": "1 to 65535", "fra1.example.net:wg": "1 to 65535",
		"https://fra1.example.net:443": `the scheme "https" is not known`, "udp://a:1/path": "nothing but a host and a port",
		"udp://user@a:1": "nothing but", ":51820": "empty", "2001:db8::10:51820": "host and a port", "0.0.0.0:51820": "no address that an edge can have",
		"a b:1": "no host name", "10.0.0:1": "neither an address nor a host name",
	}
	for in, want := range bad {
		if got, err := ParseEdgeURL(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseEdgeURL(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzParseEdgeURL(f *testing.F) {
	for _, s := range []string{"fra1.example.net:51820", "udp://a:1", "[2001:db8::1]:2", "udp://[::1%eth0]:3", "https://a:1", "udp://a:1?x", "1.2.3:4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseEdgeURL(s)
		if err != nil {
			return
		}
		again, err := ParseEdgeURL(u.String())
		if err != nil || again != u || u.Port == 0 {
			t.Fatalf("ParseEdgeURL(%q) = %+v, but %q reads as %+v, %v", s, u, u.String(), again, err)
		}
	})
}

// goodSpec is a spec without a problem.
func goodSpec(t *testing.T) Spec {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return Spec{
		StateDir: filepath.Join(t.TempDir(), "state"),
		Edges:    []EdgeSpec{{PublicKey: key.PublicKey(), URLs: []EdgeURL{{Host: "edge.example", Port: 51820}}}},
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(s *Spec)
		want   []string
	}{
		{name: "good", change: func(*Spec) {}},
		{name: "zero", change: func(s *Spec) { *s = Spec{} }, want: []string{"connector.state_dir", "edge"}},
		{name: "no key", change: func(s *Spec) { s.Edges[0].PublicKey = wgtypes.Key{} }, want: []string{"edge[0].public_key"}},
		{name: "no url", change: func(s *Spec) { s.Edges[0].URLs = nil }, want: []string{"edge[0].url"}},
		{name: "empty url", change: func(s *Spec) { s.Edges[0].URLs[0] = EdgeURL{} }, want: []string{"edge[0].url"}},
		{name: "an edge twice", change: func(s *Spec) { s.Edges = append(s.Edges, s.Edges[0]) }, want: []string{"edge[1].public_key", "edge[1].url"}},
		{name: "guard", change: func(s *Spec) { s.Guard.Deny = []guard.Rule{{}} }, want: []string{"guard.deny[0]"}},
		{name: "alias", change: func(s *Spec) { s.Origin.Aliases = []origin.Alias{{}} }, want: []string{"alias[0].from", "alias[0].to"}},
		{name: "limits", change: func(s *Spec) { s.MaxTCPFlows, s.MaxUDPFlows, s.UDPIdle = -1, MaxFlows+1, time.Millisecond },
			want: []string{"limits.max_tcp_flows", "limits.max_udp_flows", "limits.udp_idle"}},
		{name: "drain", change: func(s *Spec) { s.Grace = 25 * time.Hour }, want: []string{"connector.drain"}},
		{name: "no drain", change: func(s *Spec) { s.Grace = -1 }},
		{name: "profiles", change: func(s *Spec) { s.MetricsListen, s.Profiles = "127.0.0.1:9192", true }},
		{name: "profiles without a listener", change: func(s *Spec) { s.Profiles = true }, want: []string{"metrics.pprof"}},
		{name: "metrics", change: func(s *Spec) { s.MetricsListen = "localhost" }, want: []string{"metrics.listen"}},
		{name: "metrics on any port", change: func(s *Spec) { s.MetricsListen = "127.0.0.1:0" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := goodSpec(t)
			tt.change(&s)
			var got []string
			s.Validate(func(path, _, hint string) {
				if hint == "" {
					t.Errorf("%s has no hint", path)
				}
				got = append(got, path)
			})
			if !slices.Equal(got, tt.want) {
				t.Errorf("Validate reports %q, want %q", got, tt.want)
			}
			if _, err := New(s, Deps{}); (err == nil) != (len(tt.want) == 0) {
				t.Errorf("New fails with %v", err)
			}
		})
	}
}
