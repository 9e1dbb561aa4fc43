package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience ends a test that would fail anyhow.
const patience = 20 * time.Second

// world is an edge that runs, on ports of the loopback that the kernel picks,
// with whatever connectors a test starts:
//
//	test ── TCP, UDP ──▶ edge ══ WireGuard ══▶ site ── handlers of the test
type world struct {
	*Edge
	t     *testing.T
	dir   string
	key   wgtypes.Key
	log   *journal
	admin *client.Client
	stop  context.CancelFunc
	force chan struct{}
	ended chan struct{}
	err   error // of Run; read after ended

	mu     sync.Mutex
	head   string // the tables of the machine
	tables string // the shared tables
}

// head is the part of the config that speaks of the machine.
const head = `version = 1
[edge]
name = "here"
state_dir = "state"
[wireguard]
listen = "127.0.0.1:0"
private_key_file = "edge.key"
[metrics]
listen = "127.0.0.1:0"
[log]
flows = "flows.jsonl"
[[address]]
name = "main"
advertise = ["127.0.0.1"]
[dns]
listen = ["127.0.0.1:0"]
`

// newWorld prepares an edge and does not run it.
func newWorld(t *testing.T, tables string) *world {
	t.Helper()
	w := &world{
		t: t, dir: t.TempDir(), key: newKey(t), log: newJournal(t), head: head, tables: tables,
		force: make(chan struct{}), ended: make(chan struct{}),
	}
	if err := os.WriteFile(filepath.Join(w.dir, "edge.key"), []byte(w.key.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// startWorld runs an edge until the test ends.
func startWorld(t *testing.T, tables string) *world {
	t.Helper()
	w := newWorld(t, tables)
	w.run(5 * time.Second)
	return w
}

// run starts the edge and waits until it serves.
func (w *world) run(grace time.Duration) {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	ready := make(chan *Edge, 1)
	go func() {
		defer close(w.ended)
		w.err = Run(ctx, Options{
			Load: w.load, Log: slog.New(w.log), Version: "test", ConfigFiles: []string{"edge.toml"},
			Grace: grace, Force: w.force, Ready: func(e *Edge) { ready <- e },
		})
	}()
	w.t.Cleanup(func() {
		stop()
		<-w.ended
	})
	select {
	case w.Edge = <-ready:
	case <-w.ended:
		w.t.Fatalf("the edge did not start: %v", w.err)
	}
	w.admin = client.New(w.first.Admin.Socket)
	w.t.Cleanup(w.admin.Close)
}

// noEnv is an environment without a variable.
func noEnv(string) string { return "" }

func (w *world) load() (*config.Config, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return config.Parse(noEnv, strict.Source{Name: filepath.Join(w.dir, "edge.toml"), Text: []byte(w.head + w.tables)})
}

// replace changes a text of the machine's tables for the next reload.
func (w *world) replace(from, to string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !strings.Contains(w.head, from) {
		w.t.Fatalf("%q is not in the config", from)
	}
	w.head = strings.Replace(w.head, from, to, 1)
}

// write changes the shared tables that the next reload reads.
func (w *world) write(tables string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tables = tables
}

// port returns the port that an app got.
func (w *world) port(app, network string) string {
	w.t.Helper()
	for _, l := range w.ingress.Listening() {
		if l.Spec.App == app && l.Spec.Network == network {
			return l.Addr.String()
		}
	}
	w.t.Fatalf("app %q does not listen on %s", app, network)
	return ""
}

// dialApp connects to an app until the test ends.
func (w *world) dialApp(app, network string) net.Conn {
	w.t.Helper()
	conn, err := net.Dial(network, w.port(app, network))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	return conn
}

// converse sends text to an app, half-closes, and returns what came back.
func (w *world) converse(app, text string) (string, error) {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.port(app, "tcp"))
	if err != nil {
		return "", err // a flow that is denied may be gone before Dial returns
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	return string(got), err
}

// line is a line of the flow log.
type line struct {
	App, Event, Proto, Network, Pool, Connector, Endpoint, Why string

	Status     int
	ClientIP   string `json:"client_ip"`
	Listener   string
	BytesIn    int     `json:"bytes_in"`
	BytesOut   int     `json:"bytes_out"`
	ConnectMs  float64 `json:"connect_ms"`
	DurationMs float64 `json:"duration_ms"`
}

// flows returns the lines of an app, waiting until there are n.
func (w *world) flows(app string, n int) []line {
	w.t.Helper()
	var found []line
	await(w.t, fmt.Sprintf("%d lines of app %q in the flow log", n, app), func() bool {
		text, err := os.ReadFile(filepath.Join(w.dir, "flows.jsonl"))
		if err != nil {
			return false
		}
		found = nil
		for raw := range bytes.Lines(text) {
			var l line
			if err := json.Unmarshal(raw, &l); err == nil && l.App == app {
				found = append(found, l)
			}
		}
		return len(found) >= n
	})
	return found
}

// await waits until done says so.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for !done() {
		select {
		case <-poll.C:
		case <-limit.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// site is a private network behind a connector, at the level of the tunnel: it
// answers what the edge asks for as handlers say. An address without a handler
// is unreachable.
type site struct {
	tunnel *tunnel.Tunnel
	peer   *tunnel.Peer

	mu   sync.Mutex
	tcp  map[string]func(*netstack.TCPRequest)
	seen []string // every destination that was asked for
}

// startSite runs a connector with key until the test ends, and waits until the
// edge knows it as name.
func (w *world) startSite(name string, key wgtypes.Key, tcp map[string]func(*netstack.TCPRequest)) *site {
	w.t.Helper()
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(w.Edge.tunnel.ListenPort()))
	return w.startSiteAt(at, name, key, tcp)
}

// startSiteAt is startSite for a connector that calls the edge at another
// address.
func (w *world) startSiteAt(at netip.AddrPort, name string, key wgtypes.Key, tcp map[string]func(*netstack.TCPRequest)) *site {
	w.t.Helper()
	s := &site{tcp: tcp}
	var err error
	if s.tunnel, err = tunnel.New(tunnel.Config{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0")}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.tunnel.Close)
	if s.peer, err = s.tunnel.AddEdge(tunnel.EdgeConfig{Name: "edge", PublicKey: w.key.PublicKey(), Endpoint: at}); err != nil {
		w.t.Fatal(err)
	}
	if err := s.peer.Stack().ForwardTCP(netstack.ForwardTCPConfig{Handler: s.serveTCP}); err != nil {
		w.t.Fatal(err)
	}
	if err := s.peer.Stack().ForwardUDP(netstack.ForwardUDPConfig{Handler: s.serveUDP}); err != nil {
		w.t.Fatal(err)
	}
	await(w.t, "connector "+name, func() bool { return w.connectorState(name) == client.ConnectorUp })
	return s
}

// connectorState is what the edge thinks of a connector.
func (w *world) connectorState(name string) string {
	for _, c := range w.Connectors() {
		if c.Name == name {
			return c.State
		}
	}
	return ""
}

func (s *site) serveTCP(r *netstack.TCPRequest) {
	to := r.Destination().String()
	s.mu.Lock()
	s.seen = append(s.seen, to)
	serve := s.tcp[to]
	s.mu.Unlock()
	if serve == nil {
		r.Reject(netx.ErrUnreachable)
		return
	}
	serve(r)
}

// serveUDP answers each datagram with itself, on port 7 of every address.
func (s *site) serveUDP(r *netstack.UDPRequest) {
	if r.Destination().Port() != 7 {
		r.Reject(netx.ErrRefused)
		return
	}
	conn, err := r.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(r.Context(), func() { _ = conn.Close() })()
	buf := make([]byte, 65536)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

// asked counts how often a destination was asked for.
func (s *site) asked(to string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, seen := range s.seen {
		if seen == to {
			n++
		}
	}
	return n
}

// reject answers every SYN with err.
func reject(err error) func(*netstack.TCPRequest) {
	return func(r *netstack.TCPRequest) { r.Reject(err) }
}

// echo greets with name and sends back what it reads; its end follows the
// client's.
func echo(name string) func(*netstack.TCPRequest) {
	return func(r *netstack.TCPRequest) {
		conn, err := r.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		defer context.AfterFunc(r.Context(), conn.Abort)()
		if _, err := io.WriteString(conn, name+"\n"); err != nil {
			return
		}
		if _, err := io.Copy(conn, conn); err != nil {
			conn.Abort()
		}
	}
}

func newKey(t *testing.T) wgtypes.Key {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// connector is the config of a connector.
func connector(name, network string, key wgtypes.Key, routes ...string) string {
	return fmt.Sprintf("[[connector]]\nname = %q\nnetwork = %q\npublic_key = \"%s\"\nroutes = [\"%s\"]\n",
		name, network, key.PublicKey(), strings.Join(routes, `", "`))
}

// network is the config of networks.
func network(names ...string) string {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "[[network]]\nname = %q\n", name)
	}
	return b.String()
}

// appTo is the config of an app on a free TCP port with an origin.
func appTo(name, origin string, more ...string) string {
	return fmt.Sprintf("[[app]]\nname = %q\nlisten = [\"tcp/0\"]\norigin = %q\n%s\n", name, origin, strings.Join(more, "\n"))
}

// journal is a slog.Handler that keeps what the edge logs.
type journal struct {
	t *testing.T

	mu    sync.Mutex
	lines []string
	attrs string
	root  *journal
}

func newJournal(t *testing.T) *journal {
	j := &journal{t: t}
	j.root = j
	return j
}

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s%s", r.Level, r.Message, j.attrs)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	j.root.mu.Lock()
	defer j.root.mu.Unlock()
	j.root.lines = append(j.root.lines, b.String())
	return nil
}

func (j *journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	text := j.attrs
	for _, a := range attrs {
		text += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return &journal{t: j.t, attrs: text, root: j.root}
}

func (j *journal) WithGroup(string) slog.Handler { return j }

// has reports whether a line holds text.
func (j *journal) has(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, l := range j.lines {
		if strings.Contains(l, text) {
			return true
		}
	}
	return false
}
