package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/origins"
)

// resolveWith makes server the resolver of every host of the test: the tests
// have a mount namespace of their own.
func resolveWith(t *testing.T, server netip.Addr) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+server.String()+"\noptions timeout:1 attempts:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("covering /etc/resolv.conf: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/etc/resolv.conf", unix.MNT_DETACH); err != nil {
			t.Errorf("uncovering /etc/resolv.conf: %v", err)
		}
	})
}

// nameZone says which address web.example.test has, for a second at a time.
func nameZone(addr string) string {
	return "$ORIGIN example.test.\n$TTL 1\n@ SOA ns hostmaster 1 3600 600 86400 1\n@ NS ns\nns A 10.0.0.10\nweb 1 A " + addr + "\n"
}

// TestPrivateName publishes a server by a name that only the private network's
// own resolver knows, and follows it when its address changes, without a
// reload.
func TestPrivateName(t *testing.T) {
	resolveWith(t, origin)
	d := deploy(t, `
[[pool]]
name = "named"
network = "berlin"
[[pool.endpoints]]
host = "web.example.test:80"
[[app]]
name = "named"
hostnames = ["named.example.com"]
listen = ["tcp/8080"]
pools = ["named"]
[[app]]
name = "short"
hostnames = ["short.example.com"]
listen = ["tcp/8081"]
origin = "berlin/web.example.test:80"
`)
	d.berlin.IP("address add 10.0.0.12/24 dev lan")
	d.webServer(t, 11)
	d.webServer(t, 12)
	nsd := netip.AddrPortFrom(origin, 53)
	server := origins.NSD(t, d.berlin, nsd, "example.test", nameZone("10.0.0.11"))
	served := func(by string) func() error {
		return func() error {
			for _, port := range []uint16{8080, 8081} {
				body, err := d.page(t.Context(), at(port).String())
				if err != nil {
					return err
				}
				if got := strings.TrimSpace(body); got != "hello from "+by {
					return fmt.Errorf("port %d was served %q, want it from %s", port, got, by)
				}
			}
			return nil
		}
	}
	if err := pollFor(t, 30*time.Second, served(".11")); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	if err := served(".11")(); err != nil { // the last known address is good
		t.Errorf("without a resolver: %v", err)
	}
	origins.NSD(t, d.berlin, nsd, "example.test", nameZone("10.0.0.12"))
	if err := pollFor(t, 60*time.Second, served(".12")); err != nil {
		t.Fatal(err)
	}
	p, err := d.pool(t.Context(), "named")
	if err != nil || len(p.Names) != 1 || !slices.Equal(p.Names[0].Addresses, []string{"10.0.0.12"}) || p.Endpoints[0].Host == "" {
		t.Errorf("the pool shows %+v, %v", p, err)
	}
}

// TestConnectorChecks lets connectors check: one of the replicas does, and the
// other goes on when that one is killed.
func TestConnectorChecks(t *testing.T) {
	d := deploy(t, `
[[monitor]]
name = "near"
type = "http"
`+often+atOnce+`run_by = "connector"
[[monitor]]
name = "echo"
type = "icmp"
`+often+`[[pool]]
name = "web"
network = "berlin"
monitor = "near"
`+endpoints("10.0.0.10:80", "10.0.0.11:80")+`[[pool]]
name = "hosts"
network = "berlin"
monitor = "echo"
`+endpoints("10.0.0.10:80", "10.0.0.77:80")+`[[app]]
name = "web"
hostnames = ["web.example.com"]
listen = ["tcp/8080"]
pools = ["web"]
[[app]]
name = "hosts"
hostnames = ["hosts.example.com"]
listen = ["tcp/8081"]
pools = ["hosts"]
`)
	for _, host := range []*netns.Host{d.berlin1, d.berlin2} { // as most distributions have it
		host.Sysctl("net/ipv4/ping_group_range", "0 65534")
	}
	d.webServer(t, 10)
	other := d.webServer(t, 11)
	d.waitPool(t, "web", 2)
	d.waitPool(t, "hosts", 1) // 10.0.0.77 answers no ping
	checkers := func() (by []string) {
		p, err := d.pool(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Endpoints {
			by = append(by, e.CheckedBy)
		}
		return by
	}
	before := checkers()
	for _, by := range before {
		if by != "berlin-1" && by != "berlin-2" {
			t.Fatalf("checked by %q, want the connectors", before)
		}
	}
	d.berlin1d.Kill()
	if err := pollFor(t, 20*time.Second, func() error {
		if by := checkers(); by[0] != "berlin-2" || by[1] != "berlin-2" {
			return fmt.Errorf("checked by %q, want berlin-2", by)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	d.waitPool(t, "web", 2)
	other.Kill()
	d.waitPool(t, "web", 1)
	p, err := d.pool(t.Context(), "web")
	if err != nil || p.Endpoints[1].State != client.EndpointDown || p.Endpoints[1].LastError == "" {
		t.Errorf("the killed one shows %+v, %v", p.Endpoints, err)
	}
}

// TestPublicOrigin leads a flow to an origin of the Internet, which the edge
// dials itself. Its address is listed: it is documentation space, which nobody
// should dial by accident.
func TestPublicOrigin(t *testing.T) {
	d := deploy(t, `
[public]
allow = ["192.0.2.0/24"]
[[monitor]]
name = "page"
type = "http"
`+often+`[[pool]]
name = "out"
network = "@public"
monitor = "page"
`+endpoints("192.0.2.6:80")+`[[app]]
name = "out"
hostnames = ["out.example.com"]
listen = ["tcp/8080"]
pools = ["out"]
`)
	origins.Nginx(t, d.berlin2, origins.NginxConfig{
		Addr: netip.MustParseAddrPort("192.0.2.6:80"), Files: map[string]string{"index.html": "hello from outside\n"},
	})
	d.waitPool(t, "out", 1)
	if body, err := d.page(t.Context(), at(8080).String()); err != nil || body != "hello from outside\n" {
		t.Errorf("served %q, %v", body, err)
	}
	p, err := d.pool(t.Context(), "out")
	if err != nil || p.Network != "@public" || p.Endpoints[0].CheckedBy != "edge" || p.Endpoints[0].Picks != 1 {
		t.Errorf("the pool shows %+v, %v", p, err)
	}
}

// hook is a webhook that hangs until it is told not to, and remembers what it
// was told then.
type hook struct {
	mu      sync.Mutex
	hanging chan struct{}
	events  []client.Event
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case <-h.hanging:
	case <-r.Context().Done():
		return
	}
	var told struct {
		Events []client.Event `json:"events"`
	}
	if err := json.NewDecoder(r.Body).Decode(&told); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, told.Events...)
}

// TestSteeringOverReloads reloads under load, with sessions open, affinity
// bound, an endpoint drained and a webhook that hangs: nothing fails, the
// client keeps its endpoint, the drain stays, and the webhook hears of all of
// it in the end.
func TestSteeringOverReloads(t *testing.T) {
	tables := func(steering string) string {
		return fmt.Sprintf(`
[[webhook]]
name = "ops"
url = "http://203.0.113.1:9000/events"
timeout = "1s"
[[monitor]]
name = "quick"
type = "tcp"
`+often+`[[pool]]
name = "web"
network = "berlin"
steering = %q
monitor = "quick"
`+endpoints("10.0.0.10:80", "10.0.0.11:80", "10.0.0.12:80")+`[[app]]
name = "web"
hostnames = ["web.example.com"]
listen = ["tcp/8080"]
pools = ["web"]
[[app]]
name = "affine"
hostnames = ["affine.example.com"]
listen = ["tcp/8081"]
pools = ["web"]
[app.affinity]
by = "client_ip"
`, steering)
	}
	d := deploy(t, tables("round_robin"))
	d.berlin.IP("address add 10.0.0.12/24 dev lan")
	ops := &hook{hanging: make(chan struct{})}
	ln, err := d.internet.Listen(t.Context(), "tcp", "203.0.113.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: ops}
	go server.Serve(ln)
	t.Cleanup(func() { server.Close() })
	for last := 10; last <= 12; last++ {
		d.webServer(t, last)
	}
	d.waitPool(t, "web", 3)

	mine, err := d.page(t.Context(), at(8081).String())
	if err != nil {
		t.Fatal(err)
	}
	drained := "10.0.0.10:80"
	if strings.Contains(mine, ".10") {
		drained = "10.0.0.11:80"
	}
	if _, err := d.edged.Admin().DrainEndpoint(t.Context(), "web", client.EndpointDrainRequest{Endpoint: drained}); err != nil {
		t.Fatal(err)
	}
	stop := d.pages(t, at(8080).String(), 100)
	for i := range 12 {
		d.edged.Write(d.sharedTables() + tables([]string{"least_connections", "random", "hash", "latency", "failover", "round_robin"}[i%6]))
		d.edged.Reload()
		waitFor(t, 200*time.Millisecond)
		if again, err := d.page(t.Context(), at(8081).String()); err != nil || again != mine {
			t.Errorf("after reload %d the client with affinity got %q, %v; want %q", i+1, again, err, mine)
		}
	}
	outcomes, served := stop()
	for _, o := range outcomes {
		if o.err != nil {
			t.Errorf("a request failed: %v", o.err)
		}
	}
	last, _, _ := strings.Cut(strings.TrimPrefix(drained, "10.0.0"), ":")
	if n := served["hello from "+last]; n > 0 {
		t.Errorf("the drained endpoint got %d of %d requests: %v", n, len(outcomes), served)
	}
	p, err := d.pool(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range p.Endpoints {
		if (e.State == client.EndpointDraining) != (e.Address == drained) {
			t.Errorf("endpoint %s is %s; drained is %s", e.Address, e.State, drained)
		}
	}
	close(ops.hanging)
	if err := pollFor(t, 60*time.Second, func() error {
		ops.mu.Lock()
		defer ops.mu.Unlock()
		for _, e := range ops.events {
			if e.Kind == "endpoint" && e.Pool == "web" && e.Endpoint == drained && e.To == client.EndpointDraining {
				return nil
			}
		}
		return errors.New("the webhook was not told of the drain")
	}); err != nil {
		t.Error(err)
	}
}
