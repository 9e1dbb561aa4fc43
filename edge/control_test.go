package edge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
)

// TestProbe asks for every verdict: is it the tunnel or the origin?
func TestProbe(t *testing.T) {
	key, quiet := newKey(t), newKey(t)
	w := startWorld(t, network("berlin", "tokyo", "empty")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+
		connector("berlin-2", "berlin", quiet, "10.2.0.0/24")+connector("tokyo-1", "tokyo", newKey(t), "10.0.0.0/24"))
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){
		"10.0.0.10:7": echo("berlin"),
		"10.0.0.10:9": reject(netx.ErrRefused),
		"10.0.0.12:7": reject(netx.ErrTimedOut),
	})
	draining := w.startSite("berlin-2", quiet, nil)
	draining.tunnel.SetDraining(true)
	await(t, "the drain of berlin-2", func() bool { return w.connectorState("berlin-2") == client.ConnectorDraining })
	for _, tc := range []struct {
		name           string
		ask            client.ProbeRequest
		tunnel, origin bool
		connector      string
		verdict        string
	}{
		{"well", client.ProbeRequest{Network: "berlin", Address: "10.0.0.10:7"}, true, true, "berlin-1", "the tunnel works and 10.0.0.10:7 accepts connections"},
		{"closed", client.ProbeRequest{Network: "berlin", Address: "10.0.0.10:9"}, true, false, "berlin-1", "10.0.0.10 refused: nothing listens on tcp/9"},
		{"unreachable", client.ProbeRequest{Network: "berlin", Address: "10.0.0.11:7"}, true, false, "berlin-1", `connector "berlin-1" cannot reach 10.0.0.11:7`},
		{"silent", client.ProbeRequest{Network: "berlin", Address: "10.0.0.12:7"}, true, false, "berlin-1", "10.0.0.12:7 did not answer it in time"},
		{"no route", client.ProbeRequest{Network: "berlin", Address: "10.9.0.1:7"}, false, false, "", `no connector of network "berlin" serves 10.9.0.1`},
		{"the connector drains", client.ProbeRequest{Network: "berlin", Address: "10.2.0.1:7"}, false, false, "", `connector "berlin-2" serves 10.2.0.0/24, but drains`},
		{"the connector is down", client.ProbeRequest{Network: "tokyo", Address: "10.0.0.10:7"}, false, false, "", `connector "tokyo-1" serves 10.0.0.0/24, but is down`},
		{"no connector", client.ProbeRequest{Network: "empty", Address: "10.0.0.10:7"}, false, false, "", `network "empty" has no connector`},
		{"UDP that answers", client.ProbeRequest{Network: "berlin", Address: "10.0.0.10:7", Proto: "udp"}, true, true, "berlin-1", "nothing says that 10.0.0.10:7 is closed"},
		{"UDP that is closed", client.ProbeRequest{Network: "berlin", Address: "10.0.0.10:9", Proto: "udp"}, true, false, "berlin-1", "refused: nothing listens on udp/9"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := w.admin.Probe(t.Context(), tc.ask)
			if err != nil {
				t.Fatal(err)
			}
			if r.TunnelOK != tc.tunnel || r.OriginOK != tc.origin || r.Connector != tc.connector || !strings.Contains(r.Verdict, tc.verdict) {
				t.Errorf("%+v, want tunnel %v, origin %v through %q, %q", r, tc.tunnel, tc.origin, tc.connector, tc.verdict)
			}
			if tc.origin != (r.Error == "") && tc.tunnel {
				t.Errorf("origin ok %v with error %q", tc.origin, r.Error)
			}
		})
	}
	var e *client.Error
	if _, err := w.admin.Probe(t.Context(), client.ProbeRequest{Network: "nowhere", Address: "10.0.0.1:1"}); !errors.As(err, &e) || e.Code != client.CodeNotFound {
		t.Errorf("a network that is not there: %v", err)
	}
	if n := w.observer.Table.Len(); n != 0 {
		t.Errorf("probes left %d flows", n)
	}
}

// TestShow compares what the admin socket shows with what is.
func TestShow(t *testing.T) {
	key := newKey(t)
	w := startWorld(t, network("tokyo", "berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24", "fd00::/64")+
		connector("berlin-2", "berlin", newKey(t), "10.0.0.0/24")+
		"[[monitor]]\nname = \"m\"\ninterval = \"100ms\"\nrise = 1\nfall = 1\n"+
		"[[pool]]\nname = \"db\"\nnetwork = \"berlin\"\nmonitor = \"m\"\n[[pool.endpoints]]\naddress = \"10.0.0.10:7\"\n[[pool.endpoints]]\naddress = \"10.0.0.10:9\"\n"+
		listApp("db", "db")+appTo("far", "tokyo/10.0.0.10:7"))
	if pools, err := w.admin.Pools(t.Context()); err != nil || pools[0].State != string(balance.StateUnknown) || pools[0].Endpoints[0].State != client.EndpointUnknown {
		t.Errorf("before a connector is up: %+v, %v", pools, err)
	}
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("berlin"), "10.0.0.10:9": reject(netx.ErrRefused)})
	await(t, "the checks", func() bool {
		pools, err := w.admin.Pools(t.Context())
		return err == nil && pools[0].Endpoints[0].State == client.EndpointUp && pools[0].Endpoints[1].State == client.EndpointDown
	})
	w.greeted("db")
	pools, err := w.admin.Pools(t.Context())
	if err != nil || len(pools) != 1 {
		t.Fatalf("pools: %+v, %v", pools, err)
	}
	up, down := pools[0].Endpoints[0], pools[0].Endpoints[1]
	if p := pools[0]; p.Network != "berlin" || p.State != client.PoolDegraded || !slices.Equal(p.Apps, []string{"db"}) || p.Monitor != "m" {
		t.Errorf("pool: %+v", p)
	}
	if up.Flows != 1 || up.RTTMillis <= 0 || up.Why != "" || down.Flows != 0 || !strings.Contains(down.Why+down.LastError, "refused") {
		t.Errorf("endpoints: %+v", pools[0].Endpoints)
	}
	s, err := w.admin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "here" || !s.Ready || s.PublicKey != w.key.PublicKey().String() || s.Listen != net.JoinHostPort("127.0.0.1", port(w.Edge.tunnel.ListenPort())) ||
		s.Networks != 2 || s.Connectors != 2 || s.ConnectorsUp != 1 || s.Apps != 2 || s.Endpoints != 3 || s.EndpointsUp != 1 || s.ActiveFlows != 1 {
		t.Errorf("status: %+v", s)
	}
	nets, err := w.admin.Networks(t.Context())
	if err != nil || len(nets) != 2 || nets[0].Name != "berlin" || nets[0].ConnectorsUp != 1 || !slices.Equal(nets[0].Connectors, []string{"berlin-1", "berlin-2"}) ||
		!slices.Equal(nets[0].Routes, []string{"10.0.0.0/24", "fd00::/64"}) || len(nets[1].Connectors) != 0 {
		t.Errorf("networks: %+v, %v", nets, err)
	}
	connectors, err := w.admin.Connectors(t.Context())
	if err != nil || len(connectors) != 2 {
		t.Fatalf("connectors: %+v, %v", connectors, err)
	}
	if c := connectors[0]; c.PublicKey != key.PublicKey().String() || c.Handshake.IsZero() || c.PathMTU < 1280 || c.RxBytes == 0 || !strings.HasPrefix(c.Endpoint, "127.0.0.1:") {
		t.Errorf("the connector that is up: %+v", c)
	}
	if c := connectors[1]; c.State != client.ConnectorDown || !strings.Contains(c.Why, "has not called yet") || !c.Handshake.IsZero() {
		t.Errorf("the connector that is down: %+v", c)
	}
	apps, err := w.admin.Apps(t.Context())
	if err != nil || len(apps) != 2 {
		t.Fatalf("apps: %+v, %v", apps, err)
	}
	if a := apps[0]; a.EndpointsUp != 1 || a.Endpoints != 2 || a.ActiveFlows != 1 || a.Why != "" {
		t.Errorf("the app that is served: %+v", a)
	}
	if a := apps[1]; a.EndpointsUp != 0 || a.Origin != "tokyo/10.0.0.10:7" || !strings.Contains(a.Why, `network "tokyo" has no connector`) {
		t.Errorf("the app that is not: %+v", a)
	}
}

func port(n int) string {
	return netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(n)).String()[len("0.0.0.0:"):]
}

// TestMetrics looks for the metrics of DESIGN §9 after one flow, and for
// nothing that an app of before has left.
func TestMetrics(t *testing.T) {
	w := served(t, time.Second)
	if got, err := w.converse("web", "hello"); got != "berlin\nhello" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	w.flows("web", 1)
	status, text := w.get("/metrics")
	for _, want := range []string{
		`warren_build_info{`, `warren_flows_total{app="web",status="200"} 1`, `warren_flow_bytes_total{app="web",direction="in"} 5`,
		`warren_flow_bytes_total{app="web",direction="out"} 12`, `warren_active_flows{app="web"} 0`, `warren_connect_seconds_count{app="web"} 1`,
		`warren_connector_up{connector="berlin-1",network="berlin"} 1`, `warren_tunnel_rtt_seconds{`,
		`warren_drops_total{where="relay",why="datagram_too_big"} 0`, `warren_drops_total{where="relay",why="no_buffer"} 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%d: no %s in /metrics", status, want)
		}
	}
	if t.Failed() {
		for l := range strings.Lines(text) {
			if strings.HasPrefix(l, "warren_") {
				t.Log(strings.TrimSpace(l))
			}
		}
	}
}

// TestDNS: the edge answers for its apps with the advertised addresses, and
// with the new ones right after a reload.
func TestDNS(t *testing.T) {
	zone := network("berlin") + "[[zone]]\nname = \"example.com\"\nnameservers = [\"ns1.example.com\"]\n"
	w := startWorld(t, zone+appTo("web", "berlin/10.0.0.10:7", `hostnames = ["web"]`))
	at := w.dns.Addrs()
	if len(at) == 0 {
		t.Fatal("DNS listens nowhere")
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, at[0].String())
	}}
	ask := func(name string) []netip.Addr {
		addrs, err := resolver.LookupNetIP(t.Context(), "ip4", name+".example.com.")
		var gone *net.DNSError
		if err != nil && !(errors.As(err, &gone) && gone.IsNotFound) {
			t.Fatalf("asking for %q: %v", name, err)
		}
		return addrs
	}
	main := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if got := ask("web"); !slices.Equal(got, main) {
		t.Errorf("web is %v", got)
	}
	w.write(zone + appTo("web", "berlin/10.0.0.10:7", `hostnames = ["www"]`))
	if _, err := w.admin.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask("www"); !slices.Equal(got, main) {
		t.Errorf("www is %v after the reload", got)
	}
	if got := ask("web"); len(got) != 0 {
		t.Errorf("web is still %v after the reload", got)
	}
	if _, text := w.get("/metrics"); !strings.Contains(text, "warren_dns_queries_total{") {
		t.Error("no warren_dns_queries_total in /metrics")
	}
}

// TestFlowLogRotates: after a rename, reopening goes on in a new file.
func TestFlowLogRotates(t *testing.T) {
	w := served(t, time.Second)
	if _, err := w.converse("web", "one"); err != nil {
		t.Fatal(err)
	}
	w.flows("web", 1)
	path := filepath.Join(w.dir, "flows.jsonl")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := w.ReopenFlowLog(); err != nil {
		t.Fatal(err)
	}
	await(t, "the new file", func() bool {
		if _, err := w.converse("web", "two"); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		return err == nil && len(text) > 0
	})
}
