package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/origins"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// What monitors of these tests share: checks so often that a test need not wait
// for them, and the first answer decides.
const (
	often  = "interval = \"500ms\"\ntimeout = \"400ms\"\n"
	atOnce = "rise = 1\nfall = 1\n"
)

// endpoints are those of the pool above them.
func endpoints(addresses ...string) (tables string) {
	for _, a := range addresses {
		tables += fmt.Sprintf("[[pool.endpoints]]\naddress = %q\n", a)
	}
	return tables
}

// directorTables are pools of real servers at berlin.
var directorTables = `
[[monitor]]
name = "quick"
type = "tcp"
` + often + atOnce + `
[[monitor]]
name = "page"
type = "http"
` + often + `path = "/index.html"
expected_body = "hello"
rise = 1
fall = 2

[[monitor]]
name = "zone"
type = "dns"
question = "www.example.test"
` + often + atOnce + `
[[pool]]
name = "web"
network = "berlin"
steering = "round_robin"
monitor = "page"
[pool.ejection]
failures = 2
time = "1s"
max_time = "2s"
max_percent = 50
` + endpoints("10.0.0.10:80", "10.0.0.11:80", "10.0.0.12:80") + `
[[pool]]
name = "db"
network = "berlin"
steering = "least_connections"
monitor = "quick"
` + endpoints("10.0.0.10:5432", "10.0.0.11:5432") + `
[[pool]]
name = "names"
network = "berlin"
steering = "round_robin"
monitor = "zone"
` + endpoints("10.0.0.10:53", "10.0.0.11:53") + `
[[app]]
name = "web"
hostnames = ["web.example.com"]
listen = ["tcp/8080"]
pools = ["web"]
retry = "first_byte"
[[app]]
name = "db"
hostnames = ["db.example.com"]
listen = ["tcp/5432"]
pools = ["db"]
[[app]]
name = "names"
hostnames = ["names.example.com"]
listen = ["udp/5353"]
pools = ["names"]
[app.affinity]
by = "client_ip"
ttl = "1h"
`

// deployDirector is a deployment with three web servers, two databases and two
// name servers behind pools; stopped, each is started by its test.
func deployDirector(t *testing.T) *deployment {
	t.Helper()
	d := deploy(t, directorTables)
	d.berlin.IP("address add 10.0.0.12/24 dev lan")
	d.waitConnectors(t, 3, 10*time.Second)
	return d
}

// webServers starts the web server at each of the addresses.
func (d *deployment) webServer(t *testing.T, last int) *proc.Process {
	t.Helper()
	return origins.Nginx(t, d.berlin, origins.NginxConfig{
		Addr:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(last)}), 80),
		Files: map[string]string{"index.html": fmt.Sprintf("hello from .%d\n", last)},
	})
}

// TestRollingKill kills the web servers of a pool one after the other, without
// warning, under a steady load of one request a connection: no client notices,
// not even by a reset before its first byte.
func TestRollingKill(t *testing.T) {
	d := deployDirector(t)
	servers := map[int]*proc.Process{}
	for last := 10; last <= 12; last++ {
		servers[last] = d.webServer(t, last)
	}
	d.waitPool(t, "web", 3)
	rate, rounds := 1000, 2
	if daemon.Race {
		rate, rounds = 50, 1
	}
	stop := d.pages(t, at(8080).String(), rate)
	waitFor(t, time.Second)
	for range rounds {
		for last := 10; last <= 12; last++ {
			servers[last].Kill()
			waitFor(t, 1500*time.Millisecond)
			servers[last] = d.webServer(t, last)
			d.waitPool(t, "web", 3)
		}
	}
	outcomes, served := stop()
	failed := map[string]int{}
	for _, o := range outcomes {
		if o.err != nil {
			failed[reason(o.err)]++
		}
	}
	t.Logf("%d requests, served by %v", len(outcomes), served)
	if len(failed) > 0 {
		t.Errorf("of %d requests failed: %v", len(outcomes), failed)
	}
	if len(served) != 3 {
		t.Errorf("served by %v, want all three", served)
	}
	d.checkEvents(t)
}

// checkEvents wants each kill to be told once, with its reason.
func (d *deployment) checkEvents(t *testing.T) {
	t.Helper()
	list, err := d.edged.Admin().Events(t.Context(), 0, client.MaxEvents)
	if err != nil {
		t.Fatal(err)
	}
	state := map[string]string{}
	falls := map[string]int{}
	for _, e := range list.Events {
		if e.Kind != "endpoint" || e.Monitor == "" || !strings.HasSuffix(e.Endpoint, ":80") {
			continue
		}
		if was, known := state[e.Endpoint]; known && was != e.From || e.From == e.To {
			t.Errorf("endpoint %s: from %s to %s, after an event that it is %s", e.Endpoint, e.From, e.To, was)
		}
		state[e.Endpoint] = e.To
		if e.To == "down" {
			falls[e.Endpoint]++
			if e.Why == "" {
				t.Errorf("no reason: %+v", e)
			}
		}
	}
	if len(falls) != 3 {
		t.Errorf("falls told: %v, want some of each of three", falls)
	}
}

// waitPool waits until so many endpoints of a pool take flows.
func (d *deployment) waitPool(t *testing.T, pool string, want int) {
	t.Helper()
	err := pollFor(t, 30*time.Second, func() error {
		p, err := d.pool(t.Context(), pool)
		if err != nil {
			return err
		}
		up := 0
		for _, e := range p.Endpoints {
			if e.Takes() {
				up++
			}
		}
		if up != want {
			return fmt.Errorf("%d endpoints of %s are up, want %d: %+v", up, pool, want, p.Endpoints)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pool asks the edge for one pool.
func (d *deployment) pool(ctx context.Context, name string) (client.Pool, error) {
	all, err := d.edged.Admin().Pools(ctx)
	if err != nil {
		return client.Pool{}, err
	}
	for _, p := range all {
		if p.Name == name {
			return p, nil
		}
	}
	return client.Pool{}, fmt.Errorf("there is no pool %q", name)
}

// pages asks for a page at a fixed rate, each on a connection of its own, until
// stop is called, which also says which servers answered.
func (d *deployment) pages(t *testing.T, address string, rate int) (stop func() ([]outcome, map[string]int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		outcomes []outcome
		served   = map[string]int{}
	)
	wg.Go(func() {
		ticker := time.NewTicker(time.Second / time.Duration(rate))
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			wg.Go(func() {
				o := outcome{start: time.Now()}
				var body string
				body, o.err = d.page(t.Context(), address)
				o.took = time.Since(o.start)
				mu.Lock()
				defer mu.Unlock()
				outcomes = append(outcomes, o)
				if o.err == nil {
					served[strings.TrimSpace(body)]++
				}
			})
		}
	})
	stop = func() ([]outcome, map[string]int) {
		cancel()
		wg.Wait()
		return outcomes, served
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return stop
}

// page asks for a page on a connection of its own.
func (d *deployment) page(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	conn, err := d.client.Dial(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	request, err := http.NewRequest(http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	request.Close = true
	if err := request.Write(conn); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body := make([]byte, 64)
	n, _ := response.Body.Read(body)
	if response.StatusCode != http.StatusOK || !strings.HasPrefix(string(body[:n]), "hello from ") {
		return "", fmt.Errorf("status %d, %q", response.StatusCode, body[:n])
	}
	return string(body[:n]), nil
}

// TestDatabaseKilled kills one of two PostgreSQL servers: sessions that begin
// afterwards reach the other one, from the first on.
func TestDatabaseKilled(t *testing.T) {
	d := deployDirector(t)
	first := origins.Postgres(t, d.berlin, netip.MustParseAddrPort("10.0.0.10:5432"))
	origins.Postgres(t, d.berlin, netip.MustParseAddrPort("10.0.0.11:5432"))
	d.waitPool(t, "db", 2)
	served := func() string {
		return strings.TrimSpace(d.run(t, "psql", "postgresql-client", origins.PsqlArgs(at(5432), "-c", "select inet_server_addr()")...))
	}
	seen := map[string]int{}
	for range 10 {
		seen[served()]++
	}
	if len(seen) != 2 {
		t.Errorf("ten sessions went to %v, want both", seen)
	}
	first.Kill()
	for i := range 10 {
		if got := served(); got != "10.0.0.11" {
			t.Errorf("session %d after the kill went to %q", i, got)
		}
	}
	d.waitPool(t, "db", 1)
	p, err := d.pool(t.Context(), "db")
	if err != nil || p.State != client.PoolDegraded || p.Endpoints[0].LastError == "" {
		t.Errorf("the pool shows %+v, %v; want it degraded, and why", p, err)
	}
}

// TestNameServerKilled kills the name server that a client with affinity has:
// the client moves to the other one once the check has failed, and back when
// it is there again.
func TestNameServerKilled(t *testing.T) {
	d := deployDirector(t)
	dig := require.Tool(t, "dig", "bind9-dnsutils")
	start := func(last int) *proc.Process {
		return origins.NSD(t, d.berlin, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(last)}), 53), "example.test",
			origins.ExampleZone(fmt.Sprintf("192.0.2.%d", last)))
	}
	servers := map[string]*proc.Process{"192.0.2.10": start(10), "192.0.2.11": start(11)}
	d.waitPool(t, "names", 2)
	ask := func() (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := proc.Run(ctx, d.client, proc.Spec{Path: dig, Args: []string{
			"@" + edgeAddr.String(), "-p", "5353", "+short", "+tries=1", "+time=2", "+norecurse", "www.example.test", "A"}})
		return strings.TrimSpace(out), err
	}
	mine, err := ask()
	if err != nil || servers[mine] == nil {
		t.Fatalf("the first answer is %q, %v", mine, err)
	}
	for range 5 { // each question is a session of its own: dig takes another port
		if again, err := ask(); err != nil || again != mine {
			t.Errorf("with affinity to %s: %q, %v", mine, again, err)
		}
	}
	servers[mine].Kill()
	d.waitPool(t, "names", 1)
	if other, err := ask(); err != nil || other == mine || servers[other] == nil {
		t.Errorf("after the kill: %q, %v; want the other one", other, err)
	}
	last := 10
	if mine == "192.0.2.11" {
		last = 11
	}
	start(last)
	d.waitPool(t, "names", 2)
	if back, err := ask(); err != nil || back != mine {
		t.Errorf("with the server back: %q, %v; want %s", back, err, mine)
	}
}

// TestEndpointFlaps starts and stops a server every two seconds: within thirty
// seconds it changes its state at most once after it was found to flap, and
// with nothing else in the pool clients get the error that says so.
func TestEndpointFlaps(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	d := deploy(t, `
[[monitor]]
name = "quick"
type = "tcp"
`+often+atOnce+`[[pool]]
name = "flappy"
network = "berlin"
monitor = "quick"
`+endpoints("10.0.0.10:9001")+`[[app]]
name = "flappy"
hostnames = ["flappy.example.com"]
listen = ["tcp/9001"]
pools = ["flappy"]
`)
	d.waitConnectors(t, 3, 10*time.Second)
	flap := func() {
		ln, err := d.berlin.Listen(t.Context(), "tcp", "10.0.0.10:9001")
		if err != nil {
			t.Fatal(err)
		}
		accepting := make(chan struct{})
		go func() {
			defer close(accepting)
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		}()
		waitFor(t, 2*time.Second)
		ln.Close()
		<-accepting
		waitFor(t, 2*time.Second)
	}
	flap()
	flap() // found to flap by its second fall
	before, err := d.edged.Admin().Events(t.Context(), 0, client.MaxEvents)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for time.Since(began) < 30*time.Second {
		flap()
	}
	var last uint64
	for _, e := range before.Events {
		last = e.ID
	}
	after, err := d.edged.Admin().Events(t.Context(), last, client.MaxEvents)
	if err != nil {
		t.Fatal(err)
	}
	changes := 0
	for _, e := range after.Events {
		if e.Kind == "endpoint" {
			changes++
			t.Logf("%s: %s to %s: %s", e.Time.Format(time.TimeOnly), e.From, e.To, e.Why)
		}
	}
	if changes > 1 {
		t.Errorf("%d changes of state within 30 s, want at most 1", changes)
	}
	conn, err := d.client.Dial(t.Context(), "tcp", at(9001).String())
	if err == nil { // the kernel has accepted for the edge, which resets
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Timeout() {
		t.Errorf("a client of a pool that is down got %v, want a reset", err)
	}
}
