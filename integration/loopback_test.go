package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/origins"
	"github.com/warrenmesh/warren/integration/proc"
)

// local is Warren on the loopback: one edge, two networks with the same
// prefix, a connector in each whose aliases lead to an origin of this test.
// It needs no tool and no right.
type local struct {
	warren        daemon.Warren
	edge          *daemon.Edge
	berlin, tokyo *daemon.Connector
	tables        func(extra string) string
	ports         map[string]netip.AddrPort // of the apps
}

// greeter says its name, then sends back what it reads, then its name again.
func greeter(name string) func(net.Conn) {
	return func(conn net.Conn) {
		io.WriteString(conn, name+"\n")
		if _, err := io.Copy(conn, conn); err != nil {
			return
		}
		io.WriteString(conn, name+"\n")
	}
}

func startLocal(t *testing.T) *local {
	t.Helper()
	w := daemon.Find(t)
	l := &local{warren: w, ports: map[string]netip.AddrPort{}}
	for _, app := range []string{"berlin", "tokyo", "denied", "closed"} {
		l.ports[app] = origins.FreePort(t)
	}
	edgeKey, berlinKey, tokyoKey := w.GenKey(t), w.GenKey(t), w.GenKey(t)
	wireguard := origins.FreePort(t) // a free TCP port is as good as any for UDP
	l.tables = func(extra string) string {
		return fmt.Sprintf(`
[[address]]
name = "main"
advertise = ["127.0.0.1"]
[[network]]
name = "berlin"
[[network]]
name = "tokyo"
[[connector]]
name = "berlin-1"
network = "berlin"
public_key = %q
routes = ["10.0.0.0/24"]
[[connector]]
name = "tokyo-1"
network = "tokyo"
public_key = %q
routes = ["10.0.0.0/24"]
[[app]]
name = "berlin"
hostnames = ["berlin.example.com"]
listen = ["tcp/%d"]
origin = "berlin/10.0.0.10:7"
[[app]]
name = "tokyo"
hostnames = ["tokyo.example.com"]
listen = ["tcp/%d"]
origin = "tokyo/10.0.0.10:7"
[[app]]
name = "denied"
hostnames = ["denied.example.com"]
listen = ["tcp/%d"]
origin = "tokyo/10.0.0.10:7"
deny = ["127.0.0.0/8"]
[[app]]
name = "closed"
hostnames = ["closed.example.com"]
listen = ["tcp/%d"]
origin = "tokyo/10.0.0.10:9"
`, berlinKey.Public, tokyoKey.Public, l.ports["berlin"].Port(), l.ports["tokyo"].Port(),
			l.ports["denied"].Port(), l.ports["closed"].Port()) + extra
	}
	l.edge = w.StartEdge(t, origins.Loopback{}, daemon.EdgeConfig{
		Name: "edge", Key: edgeKey, Listen: wireguard.String(), Metrics: origins.FreePort(t), Tables: l.tables(""),
	})
	connector := func(name string, key daemon.Key) *daemon.Connector {
		origin := serveLoopback(t, greeter(name))
		return w.StartConnector(t, origins.Loopback{}, daemon.ConnectorConfig{
			Name: name + "-1", Key: key,
			Edges: []daemon.EdgeAt{{PublicKey: edgeKey.Public, URL: wireguard.String()}},
			Tables: fmt.Sprintf("[[alias]]\nfrom = \"tcp/10.0.0.10:7\"\nto = %q\n[[alias]]\nfrom = \"tcp/10.0.0.10:9\"\nto = %q\n",
				origin, origins.FreePort(t)),
		})
	}
	l.berlin, l.tokyo = connector("berlin", berlinKey), connector("tokyo", tokyoKey)
	return l
}

// serveLoopback serves connections on a free port until the test ends.
func serveLoopback(t *testing.T, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{conns: map[net.Conn]bool{}}
	s.accept(ln, serve)
	t.Cleanup(func() { ln.Close(); s.close(); s.wg.Wait() })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// converse sends text to an app, half-closes, and returns all that came back.
func (l *local) converse(app, text string) (string, error) {
	conn, err := net.DialTimeout("tcp", l.ports[app].String(), 5*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func TestLoopback(t *testing.T) {
	l := startLocal(t)
	t.Run("the same address is another server in each network", func(t *testing.T) {
		for _, app := range []string{"berlin", "tokyo"} {
			got, err := l.converse(app, "over and out\n")
			if want := app + "\nover and out\n" + app + "\n"; err != nil || got != want {
				t.Errorf("app %q said %q, %v, want %q", app, got, err, want)
			}
		}
	})
	t.Run("a server that speaks first is heard first", func(t *testing.T) {
		conn, err := net.Dial("tcp", l.ports["tokyo"].String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		greeting := make([]byte, len("tokyo\n"))
		if _, err := io.ReadFull(conn, greeting); err != nil || string(greeting) != "tokyo\n" {
			t.Errorf("greeting = %q, %v", greeting, err)
		}
	})
	for _, app := range []string{"denied", "closed"} {
		t.Run(app+" ends without a byte", func(t *testing.T) {
			got, err := l.converse(app, "hello?")
			if got != "" || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the client read %q, %v", got, err)
			}
		})
	}
	t.Run("flow log", l.testFlowLog)
	t.Run("reload", l.testReload)
	t.Run("drain", l.testDrain)
}

// testFlowLog looks for the flows of the subtests before it: every one has a
// line that says how it ended, and the bytes are those that the client saw.
func (l *local) testFlowLog(t *testing.T) {
	type line struct {
		App, Network, Connector, Endpoint, Why string

		Status   int
		ClientIP string `json:"client_ip"`
		BytesIn  int    `json:"bytes_in"`
		BytesOut int    `json:"bytes_out"`
	}
	over := len("over and out\n")
	want := []line{
		{App: "berlin", Status: 200, Network: "berlin", Connector: "berlin-1", Endpoint: "10.0.0.10:7", BytesIn: over, BytesOut: over + 2*len("berlin\n")},
		{App: "tokyo", Status: 200, Network: "tokyo", Connector: "tokyo-1", Endpoint: "10.0.0.10:7", BytesIn: over, BytesOut: over + 2*len("tokyo\n")},
		{App: "denied", Status: 403},
		{App: "closed", Status: 520, Network: "tokyo", Endpoint: "10.0.0.10:9"},
	}
	var text []byte
	err := pollFor(t, 10*time.Second, func() (err error) {
		if text, err = os.ReadFile(filepath.Join(l.edge.Dir, "flows.jsonl")); err != nil {
			return err
		}
		var lines []line
		for raw := range bytes.Lines(text) {
			var l line
			if err := json.Unmarshal(raw, &l); err != nil {
				return fmt.Errorf("the line %q: %w", raw, err)
			}
			if l.Status != 200 && l.Why == "" {
				return proc.Fatal(fmt.Errorf("the line %q does not say why", raw))
			}
			if l.ClientIP != "127.0.0.1" {
				return proc.Fatal(fmt.Errorf("the line %q does not name the client", raw))
			}
			l.ClientIP, l.Why = "", ""
			if l.Status != 200 {
				l.Connector = "" // refused by whom: the endpoint matters
			}
			lines = append(lines, l)
		}
		for _, w := range want {
			if !slices.Contains(lines, w) {
				return fmt.Errorf("no line %+v", w)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v in the flow log:\n%s", err, text)
	}
}

// testReload adds an app while a connection is open, then breaks the file.
func (l *local) testReload(t *testing.T) {
	conn, err := net.Dial("tcp", l.ports["berlin"].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	talk := func() error {
		if _, err := io.WriteString(conn, "ping\n"); err != nil {
			return err
		}
		var line [5]byte
		if _, err := io.ReadFull(conn, line[:]); err != nil || string(line[:]) != "ping\n" {
			return fmt.Errorf("read %q: %w", line, err)
		}
		return nil
	}
	if _, err := io.ReadFull(conn, make([]byte, len("berlin\n"))); err != nil {
		t.Fatal(err)
	}
	l.ports["new"] = origins.FreePort(t)
	l.edge.Write(l.tables(fmt.Sprintf(`
[[app]]
name = "new"
hostnames = ["new.example.com"]
listen = ["tcp/%d"]
origin = "tokyo/10.0.0.10:7"
`, l.ports["new"].Port())))
	l.edge.Reload()
	if err := pollFor(t, 10*time.Second, func() error {
		got, err := l.converse("new", "")
		if err == nil && got != "tokyo\ntokyo\n" {
			err = fmt.Errorf("the new app said %q", got)
		}
		return err
	}); err != nil {
		t.Errorf("after the reload: %v", err)
	}
	if err := talk(); err != nil {
		t.Errorf("the open connection after a reload: %v", err)
	}
	l.edge.Write(l.tables("\n[[app]]\nname = \"broken\"\nlisten = [\"tcp/1\"]\norigin = \"nowhere/10.0.0.10:7\"\n"))
	out, err := l.edge.Ask(t.Context(), "edge", "reload")
	if err == nil || !strings.Contains(out, "nowhere") {
		t.Errorf("a broken config was loaded: %v, %q", err, out)
	}
	if err := talk(); err != nil {
		t.Errorf("the open connection after a failed reload: %v", err)
	}
	if got, err := l.converse("new", ""); err != nil || got != "tokyo\ntokyo\n" {
		t.Errorf("after a failed reload the app said %q, %v", got, err)
	}
}

// testDrain ends the edge while a connection is open: new ones are refused,
// the open one goes on to its end, and the edge ends with it.
func (l *local) testDrain(t *testing.T) {
	conn, err := net.Dial("tcp", l.ports["berlin"].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(conn, make([]byte, len("berlin\n"))); err != nil {
		t.Fatal(err)
	}
	if err := l.edge.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := pollFor(t, 10*time.Second, func() error {
		other, err := net.Dial("tcp", l.ports["berlin"].String())
		if err == nil {
			other.Close()
			return errors.New("new connections are still accepted")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(conn, "late\n"); err != nil {
		t.Errorf("the open connection during a drain: %v", err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	rest, err := io.ReadAll(conn)
	if err != nil || string(rest) != "late\nberlin\n" {
		t.Errorf("the open connection ended with %q, %v", rest, err)
	}
	select {
	case <-l.edge.Done():
		if code := l.edge.ExitCode(); code != 0 {
			t.Errorf("the edge ended with exit code %d", code)
		}
	case <-time.After(10 * time.Second):
		t.Error("the edge goes on with nothing left to do")
	}
}
