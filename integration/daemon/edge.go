package daemon

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// readyLimit is how long a daemon may take until it serves, on a machine that
// is busy with other tests; a pass line is measured by the test itself.
const readyLimit = 30 * time.Second

// Host is where a daemon runs and where its ports are asked. origins.Host and
// *netns.Host satisfy it.
type Host interface {
	proc.Place
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// EdgeConfig is an edge.toml: the tables of one machine from its fields, the
// shared ones as text.
type EdgeConfig struct {
	Name    string
	Key     Key
	Listen  string         // of WireGuard, ":51820"
	Calls   []string       // what connectors call, "203.0.113.10:51820": advertise of WireGuard
	Metrics netip.AddrPort // default 127.0.0.1:9191
	State   string         // the state directory; default: state in Dir
	Log     string         // the inside of a [log] table; default: flows to flows.jsonl in Dir
	Tables  string         // [[address]], [[network]], [[connector]], [[app]] …
	Env     []string       // of the process
	Plain   bool           // runs as the test itself does, not as an ordinary person

	Profiles bool // serves /debug/pprof beside the metrics
}

// Edge is an edge that was started at least once.
type Edge struct {
	*proc.Process // the latest
	Dir           string
	Config        string // path of edge.toml
	Socket        string // path of the admin socket
	Metrics       netip.AddrPort

	warren Warren
	tb     require.TB
	host   Host
	cfg    EdgeConfig
}

// StartEdge writes a config into a directory of its own, starts the edge on
// host, and returns once it is ready.
func (w Warren) StartEdge(tb require.TB, host Host, cfg EdgeConfig) *Edge {
	tb.Helper()
	e := w.NewEdge(tb, host, cfg)
	e.Start()
	e.WaitReady()
	return e
}

// NewEdge writes a config and starts nothing.
func (w Warren) NewEdge(tb require.TB, host Host, cfg EdgeConfig) *Edge {
	tb.Helper()
	if !cfg.Metrics.IsValid() {
		cfg.Metrics = netip.MustParseAddrPort("127.0.0.1:9191")
	}
	dir := netns.Directory(tb, "edge")
	e := &Edge{
		Dir: dir, Config: filepath.Join(dir, "edge.toml"), Metrics: cfg.Metrics,
		Socket: filepath.Join(dir, "admin.sock"),
		warren: w, tb: tb, host: host, cfg: cfg,
	}
	writeFile(tb, filepath.Join(dir, "edge.key"), cfg.Key.Private+"\n")
	e.Write(cfg.Tables)
	return e
}

// Write writes edge.toml anew with other shared tables. A running edge reads
// it when it is told to reload.
func (e *Edge) Write(tables string) {
	e.tb.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "version = 1\n\n[edge]\nname = %s\nstate_dir = %s\n", quote(e.cfg.Name), quote(cmp.Or(e.cfg.State, filepath.Join(e.Dir, "state"))))
	fmt.Fprintf(&b, "\n[wireguard]\nlisten = %s\nprivate_key_file = %s\n", quote(e.cfg.Listen), quote(filepath.Join(e.Dir, "edge.key")))
	if len(e.cfg.Calls) > 0 {
		fmt.Fprintf(&b, "advertise = [\"%s\"]\n", strings.Join(e.cfg.Calls, `", "`))
	}
	fmt.Fprintf(&b, "\n[admin]\nsocket = %s\n\n[metrics]\nlisten = %s\n", quote(e.Socket), quote(e.Metrics.String()))
	if e.cfg.Profiles {
		b.WriteString("pprof = true\n")
	}
	fmt.Fprintf(&b, "\n[log]\n%s\n", cmp.Or(e.cfg.Log, `flows = "flows.jsonl"`))
	fmt.Fprintf(&b, "\n%s\n", tables)
	writeFile(e.tb, e.Config, b.String())
	netns.Give(e.tb, e.Dir)
}

// Start starts the edge, or starts it again after it ended. It does not wait.
// The test's end is the process's at once; a drain is a test of its own.
func (e *Edge) Start() {
	e.tb.Helper()
	e.Process = proc.Start(e.tb, e.host, proc.Spec{Name: "edge " + e.cfg.Name, Path: e.warren.Path,
		Args: []string{"edge", "run", "-c", e.Config}, Dir: e.Dir, Env: e.cfg.Env, Attr: attr(e.cfg.Plain), StopSignal: syscall.SIGKILL})
}

// WaitReady waits until /readyz says so, and fails the test when the edge ends
// or readyLimit passes first.
func (e *Edge) WaitReady() {
	e.tb.Helper()
	ctx, cancel := context.WithTimeout(e.tb.Context(), readyLimit)
	defer cancel()
	err := proc.Poll(ctx, func() error {
		select {
		case <-e.Done():
			return proc.Fatal(fmt.Errorf("it ended with exit code %d", e.ExitCode()))
		default:
		}
		status, body, err := e.Get(ctx, "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz is %d: %s", status, strings.TrimSpace(body))
		}
		return err
	})
	if err != nil {
		e.tb.Fatalf("waiting for edge %q: %v", e.cfg.Name, err)
	}
}

// Get asks the edge's HTTP port for a path.
func (e *Edge) Get(ctx context.Context, path string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return get(ctx, e.host, e.Metrics, path)
}

// Reload tells the edge to read its config again, as systemd does.
func (e *Edge) Reload() {
	e.tb.Helper()
	if err := e.Signal(syscall.SIGHUP); err != nil {
		e.tb.Fatalf("%v", err)
	}
}

// Ask runs a command against the edge's admin socket.
func (e *Edge) Ask(ctx context.Context, args ...string) (string, error) {
	return e.warren.Command(ctx, e.host, append(args, "--socket", e.Socket)...)
}

// get is one HTTP request from a host; the connection is not kept.
func get(ctx context.Context, host Host, addr netip.AddrPort, path string) (int, string, error) {
	conn, err := host.Dial(ctx, "tcp", addr.String())
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr.String()+path, nil)
	if err != nil {
		return 0, "", err
	}
	request.Close = true
	if err := request.Write(conn); err != nil {
		return 0, "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	var body strings.Builder
	_, err = bufio.NewReader(response.Body).WriteTo(&body)
	return response.StatusCode, body.String(), err
}

func writeFile(tb require.TB, path, text string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatalf("%v", err)
	}
}

// attr is how a daemon runs: as nobody special, without a capability, unless
// it is to be plain.
func attr(plain bool) *syscall.SysProcAttr {
	if plain {
		return nil
	}
	attr, _, _ := netns.Ordinary()
	return attr
}
