package edge

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/netstack"
)

// refused reports whether err is the edge's answer to a reload that it will
// not do, and says why in a text that holds why.
func refused(err error, why string) bool {
	var e *client.Error
	return errors.As(err, &e) && e.Code == client.CodeRefused && strings.Contains(e.Message, why)
}

// TestReload: what a reload changes is in force at once, what it does not
// change goes on, open flows and the sockets of unchanged listeners included.
func TestReload(t *testing.T) {
	key, other := newKey(t), newKey(t)
	base := network("berlin") + connector("berlin-1", "berlin", key, "10.0.0.0/24")
	w := startWorld(t, base+appTo("stays", "berlin/10.0.0.10:7")+appTo("goes", "berlin/10.0.0.10:7"))
	handlers := map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("berlin"), "10.0.0.11:7": echo("eleven")}
	w.startSite("berlin-1", key, handlers)
	stays, goes := w.port("stays", "tcp"), w.port("goes", "tcp")
	live, leaving := w.greeted("stays"), w.greeted("goes")

	w.write(base + network("tokyo") + connector("tokyo-1", "tokyo", other, "10.0.0.0/24") +
		appTo("stays", "berlin/10.0.0.11:7", `deny = ["192.0.2.1/32"]`) + appTo("new", "tokyo/10.0.0.10:7"))
	result, err := w.admin.Reload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`network "tokyo" added`, `connector "tokyo-1" added`, `app "stays" changed`, `app "new" added`, `app "goes" removed`}
	if !slices.Equal(result.Changes, want) || result.ConfigRevision != 2 {
		t.Errorf("changes %q at revision %d, want %q at 2", result.Changes, result.ConfigRevision, want)
	}
	w.startSite("tokyo-1", other, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("tokyo")})

	t.Run("open flows go on", func(t *testing.T) {
		for _, conn := range []net.Conn{live, leaving} {
			if err := talk(conn); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("an unchanged listener survives under its new terms", func(t *testing.T) {
		if got := w.port("stays", "tcp"); got != stays {
			t.Errorf("it moved from %s to %s", stays, got)
		}
		if got, err := w.converse("stays", ""); got != "eleven\n" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("what is gone is refused", func(t *testing.T) {
		if conn, err := net.Dial("tcp", goes); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dialling it: %v, %v", conn, err)
		}
	})
	t.Run("what is new serves", func(t *testing.T) {
		if got, err := w.converse("new", ""); got != "tokyo\n" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("a connector that is removed takes its flows along", func(t *testing.T) {
		conn := w.greeted("new")
		w.write(base + appTo("stays", "berlin/10.0.0.11:7", `deny = ["192.0.2.1/32"]`))
		if _, err := w.admin.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("its flow read %v, want a reset", err)
		}
		if nets := w.Networks(); len(nets) != 1 || nets[0].Name != "berlin" {
			t.Errorf("networks: %+v", nets)
		}
		if err := talk(live); err != nil {
			t.Errorf("another connector's flow: %v", err)
		}
	})
	t.Run("a connector with another key", func(t *testing.T) {
		w.write(network("berlin") + connector("berlin-1", "berlin", other, "10.0.0.0/24", "10.1.0.0/24") + appTo("stays", "berlin/10.0.0.11:7"))
		if _, err := w.admin.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := live.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a flow of the old key's read %v, want a reset", err)
		}
		w.startSite("berlin-1", other, handlers)
		if got, err := w.converse("stays", ""); got != "eleven\n" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("a connector with other routes keeps the flows that they cover", func(t *testing.T) {
		conn := w.greeted("stays")
		w.write(network("berlin") + connector("berlin-1", "berlin", other, "10.0.0.11/32") + appTo("stays", "berlin/10.0.0.11:7"))
		if _, err := w.admin.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := talk(conn); err != nil {
			t.Error(err)
		}
		if c := w.Connectors(); len(c) != 1 || !slices.Equal(c[0].Routes, []string{"10.0.0.11/32"}) {
			t.Errorf("connectors: %+v", c)
		}
	})
}

// greeted opens a flow that has gone through.
func (w *world) greeted(app string) net.Conn {
	w.t.Helper()
	conn := w.dialApp(app, "tcp")
	for b := make([]byte, 1); b[0] != '\n'; {
		if _, err := conn.Read(b); err != nil {
			w.t.Fatalf("app %q: %v", app, err)
		}
	}
	return conn
}

// talk sends a line to an echo and wants it back.
func talk(conn net.Conn) error {
	if _, err := io.WriteString(conn, "ping"); err != nil {
		return err
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		return errors.Join(err, errors.New("read "+string(got)))
	}
	return nil
}

// TestReloadRefused: a config that cannot be brought into force changes
// nothing, whatever part of it was the wrong one.
func TestReloadRefused(t *testing.T) {
	key, other := newKey(t), newKey(t)
	base := network("berlin") + connector("berlin-1", "berlin", key, "10.0.0.0/24") + appTo("web", "berlin/10.0.0.10:7")
	w := startWorld(t, base)
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("berlin")})
	live := w.greeted("web")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	more := network("tokyo") + connector("tokyo-1", "tokyo", other, "10.0.0.0/24") + appTo("more", "tokyo/10.0.0.10:7")

	const dns = `listen = ["127.0.0.1:0"]`
	for _, tc := range []struct{ name, tables, why string }{
		{"a DNS port that is taken, beside much that is new", base + more + "[[zone]]\nname = \"example.com\"\nnameservers = [\"ns1.example.com\"]\n", "listening for DNS"},
		{"a name that dangles", base + appTo("more", "tokyo/10.0.0.10:7"), "no such network"},
		{"a port that is taken, beside much that is new", base + more +
			"[[app]]\nname = \"taken\"\nlisten = [\"tcp/" + port + "\"]\norigin = \"berlin/10.0.0.10:7\"\n", "in use by"},
		{"the edge's own key as a new connector's", base + network("tokyo") + connector("tokyo-1", "tokyo", w.key, "10.0.0.0/24"), "edge's own"},
		{"the edge's own key as a known connector's", network("berlin") + connector("berlin-1", "berlin", w.key, "10.0.0.0/24") +
			appTo("web", "berlin/10.0.0.10:7") + more, "edge's own"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := w.Networks()
			w.write(tc.tables)
			if strings.Contains(tc.tables, "[[zone]]") {
				w.replace(dns, `listen = ["`+taken.Addr().String()+`"]`)
				defer w.replace(`listen = ["`+taken.Addr().String()+`"]`, dns)
			}
			if _, err := w.admin.Reload(t.Context()); !refused(err, tc.why) {
				t.Errorf("reloading: %v, want a refusal with %q", err, tc.why)
			}
			s := w.Status()
			if s.ConfigRevision != 1 || s.Apps != 1 || !strings.Contains(s.LastReloadError, tc.why) {
				t.Errorf("status: %+v", s)
			}
			if after := w.Networks(); len(after) != len(before) || !slices.Equal(after[0].Connectors, before[0].Connectors) || after[0].ConnectorsUp != 1 {
				t.Errorf("networks: %+v, before %+v", after, before)
			}
			if w.network("tokyo") != nil || len(w.nets.connectors()) != 1 {
				t.Errorf("in the tunnel: %v, %d connectors", w.network("tokyo"), len(w.nets.connectors()))
			}
			if len(w.ingress.Listening()) != 1 {
				t.Errorf("listening: %+v", w.ingress.Listening())
			}
			if err := talk(live); err != nil {
				t.Errorf("the open flow: %v", err)
			}
			if got, err := w.converse("web", "x"); got != "berlin\nx" || err != nil {
				t.Errorf("a new flow: %q, %v", got, err)
			}
		})
	}
	t.Run("and once it is right", func(t *testing.T) {
		w.write(base + more)
		if _, err := w.admin.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := w.Status(); s.ConfigRevision != 2 || s.LastReloadError != "" || s.Apps != 2 {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestReloadNode: what is bound to the process is not changed by a reload, and
// every such change is named.
func TestReloadNode(t *testing.T) {
	w := startWorld(t, network("berlin"))
	old, err := w.load()
	if err != nil {
		t.Fatal(err)
	}
	next := *old
	next.Edge.StateDir += "2"
	next.WireGuard.PrivateKeyFile += "2"
	next.Admin.Socket += "2"
	next.Log.Flows = "-"
	next.Metrics.On = false
	err = unchangeable(old, &next)
	for _, key := range []string{"edge.state_dir", "wireguard.private_key_file", "admin.socket", "log", "metrics.listen"} {
		if err == nil || !strings.Contains(err.Error(), "changing "+key+" ") {
			t.Errorf("the change of %s is not in %v", key, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "wireguard.listen") {
		t.Errorf("what did not change is in %v", err)
	}
	if err := unchangeable(old, old); err != nil {
		t.Error(err)
	}
}

// TestDifference: a reload says what it changed, pools and zones too.
func TestDifference(t *testing.T) {
	pool := func(address string) string {
		return "[[pool]]\nname = \"p\"\nnetwork = \"berlin\"\n[[pool.endpoints]]\naddress = \"" + address + "\"\n"
	}
	zone := "[[zone]]\nname = \"example.com\"\nnameservers = [\"ns1.example.com\"]\n"
	w := startWorld(t, network("berlin")+pool("10.0.0.10:7"))
	for _, tc := range []struct {
		tables string
		want   []string
	}{
		{network("berlin") + pool("10.0.0.11:7"), []string{`pool "p" changed`}},
		{network("berlin") + pool("10.0.0.11:7") + zone, []string{`zone "example.com" added`, "dns listeners changed"}},
		{network("berlin") + zone, []string{`pool "p" removed`}},
		{network("berlin") + zone, nil},
		{network("berlin") + zone + "[[monitor]]\nname = \"m\"\n", []string{`monitor "m" added`}},
	} {
		w.write(tc.tables)
		result, err := w.admin.Reload(t.Context())
		if err != nil || !slices.Equal(result.Changes, tc.want) {
			t.Errorf("changes %q, %v, want %q", result.Changes, err, tc.want)
		}
	}
}
