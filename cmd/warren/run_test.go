package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// fakeEdge answers on an admin socket with what each path has; a function is
// given the request's body.
func fakeEdge(t *testing.T, answers map[string]any) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "edge.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			t.Errorf("asked for %s %s", r.Method, r.URL.Path)
		}
		if ask, ok := answer.(func(body string) any); ok {
			body, _ := io.ReadAll(r.Body)
			answer = ask(string(body))
		}
		if _, refusal := answer.(client.Error); refusal {
			w.WriteHeader(http.StatusConflict)
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	_ = server.Listener.Close()
	server.Listener = ln
	server.Start()
	t.Cleanup(server.Close)
	return socket
}

// command runs a command in this process.
func command(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return commandFed(t, "", env, args...)
}

// commandFed is command with something on standard input.
func commandFed(t *testing.T, stdin string, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, complaints strings.Builder
	code = run(t.Context(), program{
		args: args, env: func(key string) string { return env[key] }, unsetenv: func(key string) { delete(env, key) },
		stdin: strings.NewReader(stdin), stdout: &out, stderr: &complaints,
	})
	return code, out.String(), complaints.String()
}

func TestExitCodeOfAnswers(t *testing.T) {
	for code, want := range map[string]int{
		client.CodeRefused: 3, client.CodeNotFound: 3, client.CodeBadRequest: 3,
		client.CodeInternal: 1, client.CodeTimedOut: 1, client.CodeUnknown: 1,
	} {
		socket := fakeEdge(t, map[string]any{"POST /v1/reload": client.Error{Code: code, Message: "reloading: because"}})
		got, stdout, stderr := command(t, map[string]string{"WARREN_SOCKET": socket}, "edge", "reload")
		if got != want || stderr != "warren: reloading: because\n" || stdout != "" {
			t.Errorf("%s: exit code %d, %q, %q, want %d", code, got, stdout, stderr, want)
		}
	}
	if got := exitCode(errors.New("something else")); got != exitFailed {
		t.Errorf("another error: %d", got)
	}
}

// TestFindSocket: flags before the environment, the closest before the
// general.
func TestFindSocket(t *testing.T) {
	all := map[string]string{"WARREN_SOCKET": "/env.sock", "WARREN_STATE_DIR": "/env-state"}
	state := map[string]string{"WARREN_STATE_DIR": "/env-state"}
	for _, tc := range []struct {
		name        string
		socket, dir string
		env         map[string]string
		want        string
	}{
		{"a flag", "/flag.sock", "/flag-state", all, "/flag.sock"},
		{"the directory's flag", "", "/flag-state", all, "/flag-state/edge.sock"},
		{"a variable", "", "", all, "/env.sock"},
		{"the directory's variable", "", "", state, "/env-state/edge.sock"},
	} {
		p := &program{env: func(key string) string { return tc.env[key] }}
		if got, err := p.findSocket(tc.socket, tc.dir); got != tc.want || err != nil {
			t.Errorf("%s: %q, %v, want %q", tc.name, got, err, tc.want)
		}
	}
	t.Run("where an edge of this user has it", func(t *testing.T) {
		home := t.TempDir()
		socket := filepath.Join(home, "warren-edge.sock")
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		env := map[string]string{"HOME": home, "XDG_RUNTIME_DIR": home}
		p := &program{env: func(key string) string { return env[key] }}
		if got, err := p.findSocket("", ""); got != socket || err != nil {
			t.Errorf("%q, %v, want %q", got, err, socket)
		}
	})
}

// TestLists: a table for people, and the API's own JSON for programs.
func TestLists(t *testing.T) {
	pool := client.Pool{
		Name: "db", Network: "berlin", Steering: "round_robin", Monitor: "tcp", State: client.PoolDegraded, Apps: []string{"db"},
		Why: "1 of 2 endpoints usable", MinimumHealthy: 1, Connections: 2, Endpoints: []client.Endpoint{
			{Network: "berlin", Address: "10.0.0.10:5432", State: client.EndpointUp, RTTMillis: 1.5, ConnectMillis: 2, CheckedBy: "edge",
				Weight: 4, EffectiveWeight: 1.5, Flows: 2, MaxConnections: 9, Picks: 5},
			{Network: "berlin", Address: "10.0.0.11:5432", State: client.EndpointDown, Why: "2 checks failed", LastError: "connection refused", Weight: 1, Failures: 3},
		},
	}
	whole := "pool             db\nnetwork          berlin\nstate            degraded\nwhy              1 of 2 endpoints usable\n" +
		"steering         round_robin\nmonitor          tcp\nminimum healthy  1\napps             db\nopen flows       2\n\n" +
		"ENDPOINT        STATE  SINCE  CHECKED  BY    TOOK     CONNECT  WEIGHT    FLOWS   PICKS  FAILED  WHY\n" +
		"10.0.0.10:5432  up     -      -        edge  1.50 ms  2.00 ms  1.5 of 4  2 of 9  5      0       -\n" +
		"10.0.0.11:5432  down   -      -        -     -        -        1         0       0      3       connection refused\n"
	drained := client.Pool{Name: "db", Endpoints: []client.Endpoint{{Address: "10.0.0.10:5432", State: client.EndpointDraining, Flows: 2}}}
	events := client.EventList{Events: []client.Event{{ID: 1, Kind: "endpoint", Pool: "db", Network: "berlin", Endpoint: "10.0.0.10:5432",
		Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.Local), From: "up", To: "down", Why: "connection refused"}}}
	flows := client.FlowList{Total: 3, Flows: []client.Flow{{
		ID: 7, App: "db", Proto: "tcp", Client: "198.51.100.7:4242", Network: "berlin", Connector: "berlin-1",
		Endpoint: "10.0.0.10:5432", Start: time.Now().Add(-time.Hour), BytesIn: 2048, BytesOut: 3 << 20,
	}}}
	socket := fakeEdge(t, map[string]any{
		"GET /v1/pools": []client.Pool{pool}, "GET /v1/flows": flows, "GET /v1/apps": nil, "GET /v1/networks": []client.Network{},
		"POST /v1/pools/db/drain": drained, "GET /v1/events": events,
	})
	for _, tc := range []struct{ name, args, stdout, stderr string }{
		{"a list", "pool list", "POOL  NETWORK  STATE     ENDPOINTS UP  STEERING     MONITOR  FLOWS  APPS  WHY\n" +
			"db    berlin   degraded  1 of 2        round_robin  tcp      2      db    1 of 2 endpoints usable\n", ""},
		{"one", "pool show db", whole, ""},
		{"all", "pools", whole, ""},
		{"a drain", "pool drain db 10.0.0.10:5432 --keep 10m", "endpoint 10.0.0.10:5432 of pool db gets no new flows, " +
			"until its drain is ended with --off or the edge restarts; it is draining; open flows: 2\n", ""},
		{"events", "event list", "TIME                 KIND       WHAT                                      STATE                   WHY\n" +
			"2026-03-01 12:00:00  endpoint   db berlin/10.0.0.10:5432                  up → down               connection refused\n", ""},
		{"flows", "flow list", "ID  APP  PROTO  CLIENT             NETWORK  CONNECTOR  ENDPOINT        AGE   IN       OUT\n" +
			"7   db   tcp    198.51.100.7:4242  berlin   berlin-1   10.0.0.10:5432  1h0m  2.0 KiB  3.0 MiB\n",
			"2 more are open: choose with --app, --network or --connector, or raise --limit\n"},
		{"none", "app list", "", "the edge has no apps: add a [[app]] to its config\n"},
		{"none as JSON", "app list --json", "[]\n", ""},
	} {
		code, stdout, stderr := command(t, nil, append(strings.Fields(tc.args), "--socket", socket)...)
		if code != 0 || stdout != tc.stdout || stderr != tc.stderr {
			t.Errorf("%s: exit code %d\n%s%s\nwant\n%s%s", tc.name, code, stdout, stderr, tc.stdout, tc.stderr)
		}
	}
	code, stdout, _ := command(t, nil, "pool", "show", "db", "--json", "--socket", socket)
	var got client.Pool
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 || len(got.Endpoints) != 2 || got.Endpoints[1] != pool.Endpoints[1] {
		t.Errorf("as JSON: %d, %v, %s", code, err, stdout)
	}
	code, _, stderr := command(t, nil, "pool", "show", "web", "--socket", socket)
	if code != exitRefused || !strings.Contains(stderr, `no such pool: it has db`) {
		t.Errorf("one that is not there: %d, %q", code, stderr)
	}
}
