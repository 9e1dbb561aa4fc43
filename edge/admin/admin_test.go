package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// edge is a hand-written Source and Control. Fields that are nil functions are
// not expected to be called.
type edge struct {
	status     client.Status
	apps       []client.App
	pools      []client.Pool
	networks   []client.Network
	connectors []client.Connector
	flows      client.FlowList
	events     client.EventList

	mu     sync.Mutex
	query  client.FlowQuery
	after  uint64 // of the last question for events
	limit  int
	killed []uint64
	asked  []string // of Enrollment, in words
	token  client.TokenRequest
	probe  func(context.Context, client.ProbeRequest) (client.ProbeResult, error)
	reload func(context.Context) (client.ReloadResult, error)
	drain  func(context.Context, client.DrainRequest) (client.DrainResult, error)
}

func (e *edge) Status() client.Status          { return e.status }
func (e *edge) Apps() []client.App             { return e.apps }
func (e *edge) Pools() []client.Pool           { return e.pools }
func (e *edge) Networks() []client.Network     { return e.networks }
func (e *edge) Connectors() []client.Connector { return e.connectors }

func (e *edge) Flows(q client.FlowQuery) client.FlowList {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.query = q
	return e.flows
}

func (e *edge) Events(after uint64, limit int) client.EventList {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.after, e.limit = after, limit
	return e.events
}

func (e *edge) DrainEndpoint(pool string, addr netip.AddrPort, keep time.Duration, off bool) (client.Pool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = append(e.asked, fmt.Sprintf("drain %s of %s, keep %s, off %v", addr, pool, keep, off))
	if pool != "db pool" {
		return client.Pool{}, &client.Error{Code: client.CodeNotFound, Message: fmt.Sprintf("there is no pool %q", pool)}
	}
	return client.Pool{Name: pool}, nil
}

func (e *edge) KillFlow(id uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.killed = append(e.killed, id)
	return id == 7
}

func (e *edge) Probe(ctx context.Context, r client.ProbeRequest) (client.ProbeResult, error) {
	return e.probe(ctx, r)
}

func (e *edge) Reload(ctx context.Context) (client.ReloadResult, error) { return e.reload(ctx) }

func (e *edge) Drain(ctx context.Context, r client.DrainRequest) (client.DrainResult, error) {
	return e.drain(ctx, r)
}

// serve runs a Server for e on a real socket until the test ends.
func serve(t *testing.T, e *edge) (socket string, c *client.Client) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "warren.sock")
	return socket, serveOn(t, socket, New(slog.New(slog.DiscardHandler), e, e))
}

// serveOn runs a Server on a socket until the test ends.
func serveOn(t *testing.T, socket string, s *Server) *client.Client {
	t.Helper()
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	c := client.New(socket)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

func full() *edge {
	return &edge{
		status: client.Status{Name: "fra1", Version: "v0.1.0", PID: 42, Since: epoch, Ready: true, PublicKey: "key=",
			Listen: "0.0.0.0:51820", ConfigRevision: 3, LastReloadError: "no", Networks: 2, ActiveFlows: 9},
		apps: []client.App{{Name: "db", Hostnames: []string{"db.apps.example.com."}, Listen: []string{"tcp/203.0.113.10:5432"},
			Pools: []string{"berlin-db"}, Allow: []string{"198.51.100.0/24"}, Endpoints: 2, EndpointsUp: 1, ActiveFlows: 4}},
		pools: []client.Pool{{Name: "berlin-db", Network: "berlin", Steering: "round_robin", Monitor: "pg", State: client.PoolDegraded,
			Endpoints: []client.Endpoint{
				{Network: "berlin", Address: "10.0.0.10:5432", State: client.EndpointUp, RTTMillis: 1.25, Since: epoch, Checked: epoch},
				{Network: "berlin", Address: "10.0.0.11:5432", State: client.EndpointDown, Why: "connection refused"}}}},
		networks: []client.Network{{Name: "berlin", Connectors: []string{"berlin-1"}, ConnectorsUp: 1, Routes: []string{"10.0.0.0/16"}}},
		connectors: []client.Connector{{Name: "berlin-1", Network: "berlin", State: client.ConnectorUp, Endpoint: "192.0.2.1:4000",
			Routes: []string{"10.0.0.0/16"}, RTTMillis: 12.5, PathMTU: 1400, Handshake: epoch, HandshakeAge: 1000, RxBytes: 1 << 60, Since: epoch}},
		flows: client.FlowList{Total: 12, Flows: []client.Flow{{ID: 1<<64 - 1, App: "db", Proto: "tcp", Client: "198.51.100.7:4000",
			Start: epoch, BytesIn: 5}}},
	}
}

func TestShow(t *testing.T) {
	e := full()
	_, c := serve(t, e)
	ctx := t.Context()
	check := func(what string, got any, err error, want any) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", what, diff)
		}
	}
	status, err := c.Status(ctx)
	check("status", status, err, e.status)
	apps, err := c.Apps(ctx)
	check("apps", apps, err, e.apps)
	pools, err := c.Pools(ctx)
	check("pools", pools, err, e.pools)
	networks, err := c.Networks(ctx)
	check("networks", networks, err, e.networks)
	connectors, err := c.Connectors(ctx)
	check("connectors", connectors, err, e.connectors)
	flows, err := c.Flows(ctx, client.FlowQuery{})
	check("flows", flows, err, e.flows)
	check("the default query", e.query, nil, client.FlowQuery{Limit: client.DefaultFlows})
	query := client.FlowQuery{App: "a&b=c", Network: "berlin", Connector: "berlin-1", Limit: 3}
	_, err = c.Flows(ctx, query)
	check("the query", e.query, err, query)
}

func TestListsOfNothingAreEmptyArrays(t *testing.T) {
	h := New(slog.New(slog.DiscardHandler), &edge{}, &edge{}).Handler()
	for _, path := range []string{"/v1/apps", "/v1/pools", "/v1/networks", "/v1/connectors", "/v1/flows"} {
		code, body := request(h, "GET", path, "")
		if code != 200 || strings.Contains(body, "null") || !strings.Contains(body, "[]") {
			t.Errorf("%s: %d %s, want an empty array", path, code, body)
		}
	}
}

func TestActions(t *testing.T) {
	e := full()
	_, c := serve(t, e)
	ctx := t.Context()

	e.probe = func(_ context.Context, r client.ProbeRequest) (client.ProbeResult, error) {
		return client.ProbeResult{Network: r.Network, Address: r.Address, Proto: r.Proto, TunnelOK: true,
			Verdict: "the tunnel is fine; the origin refuses"}, nil
	}
	got, err := c.Probe(ctx, client.ProbeRequest{Network: "berlin", Address: "[::ffff:10.0.0.10]:5432"})
	want := client.ProbeResult{Network: "berlin", Address: "10.0.0.10:5432", Proto: "tcp", TunnelOK: true,
		Verdict: "the tunnel is fine; the origin refuses"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("probe: %v (-want +got):\n%s", err, diff)
	}

	e.reload = func(context.Context) (client.ReloadResult, error) {
		return client.ReloadResult{ConfigRevision: 4, Changes: []string{`app "web" added`}}, nil
	}
	if r, err := c.Reload(ctx); err != nil || r.ConfigRevision != 4 || len(r.Changes) != 1 {
		t.Errorf("reload: %+v, %v", r, err)
	}

	e.drain = func(_ context.Context, r client.DrainRequest) (client.DrainResult, error) {
		return client.DrainResult{Draining: !r.Off, ActiveFlows: 3}, nil
	}
	if r, err := c.Drain(ctx, client.DrainRequest{}); err != nil || !r.Draining || r.ActiveFlows != 3 {
		t.Errorf("drain: %+v, %v", r, err)
	}
	if r, err := c.Drain(ctx, client.DrainRequest{Off: true}); err != nil || r.Draining {
		t.Errorf("drain off: %+v, %v", r, err)
	}

	if err := c.KillFlow(ctx, 7); err != nil {
		t.Errorf("kill: %v", err)
	}
	wantError(t, c.KillFlow(ctx, 8), client.CodeNotFound, "ending flow 8: no such flow is open")
	if diff := cmp.Diff([]uint64{7, 8}, e.killed); diff != "" {
		t.Errorf("killed differs (-want +got):\n%s", diff)
	}
}

func wantError(t *testing.T, err error, code, message string) {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Message, message) {
		t.Errorf("error = %#v, want code %q and %q", err, code, message)
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	e := &edge{}
	_, c := serve(t, e)
	refused := &client.Error{Code: client.CodeRefused, Message: `edge.toml:12: app[0].pools[0]: "x" is no pool`}
	tests := []struct {
		name, code, message string
		err                 error
	}{
		{"refused", client.CodeRefused, "edge.toml:12", refused},
		{"refused, in context", client.CodeRefused, "reloading: edge.toml:12", fmt.Errorf("reloading: %w", refused)},
		{"out of time", client.CodeTimedOut, "deadline", fmt.Errorf("reading: %w", context.DeadlineExceeded)},
		{"anything else", client.CodeInternal, "boom", errors.New("boom")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e.reload = func(context.Context) (client.ReloadResult, error) { return client.ReloadResult{}, test.err }
			_, err := c.Reload(t.Context())
			wantError(t, err, test.code, test.message)
		})
	}
}

func request(h http.Handler, method, path, body string) (int, string) {
	w := &recorder{header: make(http.Header), code: 200}
	r, err := http.NewRequest(method, "http://edge"+path, strings.NewReader(body))
	if err != nil {
		panic(err) // a mistake in the test
	}
	h.ServeHTTP(w, r)
	return w.code, w.body.String()
}

// recorder is the least of a ResponseWriter.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

func TestRefusals(t *testing.T) {
	e := full()
	h := New(slog.New(slog.DiscardHandler), e, e).Handler()
	tests := []struct {
		name, method, path, body string
		code                     int
		want                     string
	}{
		{"another path", "GET", "/v1/nothing", "", 404, `"code":"not_found"`},
		{"another version", "GET", "/v2/status", "", 404, "is it older than the command"},
		{"the root", "GET", "/", "", 404, `"code":"not_found"`},
		{"wrong method", "POST", "/v1/status", "", 405, "use GET"},
		{"wrong method for an action", "GET", "/v1/drain", "", 405, "use POST"},
		{"wrong method for a flow", "GET", "/v1/flows/7", "", 405, "use DELETE"},
		{"not a number", "DELETE", "/v1/flows/seven", "", 400, `reading flow id \"seven\"`},
		{"a negative number", "DELETE", "/v1/flows/-1", "", 400, "reading flow id"},
		{"too large a number", "DELETE", "/v1/flows/18446744073709551616", "", 400, "reading flow id"},
		{"limit 0", "GET", "/v1/flows?limit=0", "", 400, "use 1 to 10000"},
		{"limit too large", "GET", "/v1/flows?limit=10001", "", 400, "use 1 to 10000"},
		{"limit twice", "GET", "/v1/flows?limit=1&limit=2", "", 400, "give it once"},
		{"another parameter", "GET", "/v1/flows?client=x", "", 400, `reading parameter \"client\"`},
		{"probe without a body", "POST", "/v1/probe", "", 400, "naming a network is required"},
		{"probe without a port", "POST", "/v1/probe", `{"network":"a","address":"10.0.0.1"}`, 400, `reading address \"10.0.0.1\"`},
		{"probe of port 0", "POST", "/v1/probe", `{"network":"a","address":"10.0.0.1:0"}`, 400, "port 0"},
		{"probe of a zone", "POST", "/v1/probe", `{"network":"a","address":"[fe80::1%eth0]:1"}`, 400, "reading address"},
		{"probe by another protocol", "POST", "/v1/probe", `{"network":"a","address":"10.0.0.1:1","proto":"icmp"}`, 400, `use \"tcp\" or \"udp\"`},
		{"an unknown field", "POST", "/v1/drain", `{"off":true,"grace":3}`, 400, `unknown field \"grace\"`},
		{"a field for one that takes none", "POST", "/v1/reload", `{"force":true}`, 400, `unknown field \"force\"`},
		{"another type", "POST", "/v1/drain", `{"off":"yes"}`, 400, "reading the request"},
		{"two objects", "POST", "/v1/drain", `{}{}`, 400, "more follows"},
		{"not JSON", "POST", "/v1/drain", `off`, 400, "reading the request"},
		{"half an object", "POST", "/v1/drain", `{"off":`, 400, "reading the request"},
		{"a long body", "POST", "/v1/drain", `{"off":` + strings.Repeat(" ", maxBody), 413, `"code":"too_large"`},
		{"a long tail", "POST", "/v1/drain", `{}` + strings.Repeat(" ", maxBody), 413, `"code":"too_large"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			code, body := request(h, test.method, test.path, test.body)
			if code != test.code || !strings.Contains(body, test.want) || !strings.Contains(body, `"error":"`) {
				t.Errorf("got %d %s, want %d and %s", code, body, test.code, test.want)
			}
		})
	}
}

func TestHeadIsGetWithoutABody(t *testing.T) {
	socket, _ := serve(t, full())
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HEAD /v1/status HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")
	text, err := io.ReadAll(conn)
	head, body, _ := strings.Cut(string(text), "\r\n\r\n")
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 200 OK") || body != "" {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestServeEndsRequestsThatRun(t *testing.T) {
	e := &edge{}
	began, ended := make(chan struct{}), make(chan struct{})
	e.reload = func(ctx context.Context) (client.ReloadResult, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return client.ReloadResult{}, ctx.Err()
	}
	socket := filepath.Join(t.TempDir(), "warren.sock")
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- New(slog.New(slog.DiscardHandler), e, e).Serve(ctx, ln) }()
	c := client.New(socket)
	defer c.Close()
	asked := make(chan error, 1)
	go func() {
		_, err := c.Reload(context.Background())
		asked <- err
	}()
	<-began
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
	<-ended
	if err := <-asked; err == nil {
		t.Error("the request that was cut short succeeded")
	}
}

func TestACallerThatGoesAwayEndsItsAction(t *testing.T) {
	e := &edge{}
	began, ended := make(chan struct{}), make(chan struct{})
	e.probe = func(ctx context.Context, _ client.ProbeRequest) (client.ProbeResult, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return client.ProbeResult{}, ctx.Err()
	}
	_, c := serve(t, e)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-began
		cancel(errors.New("interrupted"))
	}()
	_, err := c.Probe(ctx, client.ProbeRequest{Network: "a", Address: "10.0.0.1:1"})
	if err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("error = %v", err)
	}
	<-ended
}
