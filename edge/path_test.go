package edge

import (
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
)

// TestWalk sends one flow through each app, and compares what the client sees
// and what the flow log says with what should have become of it.
func TestWalk(t *testing.T) {
	key := newKey(t)
	w := startWorld(t, network("berlin", "tokyo")+
		connector("berlin-1", "berlin", key, "10.0.0.0/24")+
		connector("tokyo-1", "tokyo", newKey(t), "10.0.0.0/24")+ // never calls
		appTo("echo", "berlin/10.0.0.10:7")+
		appTo("allowed", "berlin/10.0.0.10:7", `allow = ["127.0.0.0/8"]`)+
		appTo("denied", "berlin/10.0.0.99:7", `deny = ["127.0.0.1/32"]`)+
		appTo("stranger", "berlin/10.0.0.99:7", `allow = ["192.0.2.0/24"]`)+
		appTo("refused", "berlin/10.0.0.10:9")+
		appTo("unreachable", "berlin/10.0.0.11:7")+
		appTo("timeout", "berlin/10.0.0.12:7")+
		appTo("noroute", "tokyo/10.0.0.10:7")+
		appTo("aborting", "berlin/10.0.0.13:7")+
		"[[monitor]]\nname = \"m\"\ninterval = \"1s\"\n"+
		"[[pool]]\nname = \"dead\"\nnetwork = \"berlin\"\nmonitor = \"m\"\n[[pool.endpoints]]\naddress = \"10.0.0.10:9\"\n"+
		"[[app]]\nname = \"nothing\"\nlisten = [\"tcp/0\"]\npools = [\"dead\"]\n")
	s := w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){
		"10.0.0.10:7": echo("berlin"),
		"10.0.0.10:9": reject(netx.ErrRefused),
		"10.0.0.12:7": reject(netx.ErrTimedOut),
		"10.0.0.13:7": func(r *netstack.TCPRequest) {
			if conn, err := r.Accept(); err == nil {
				_, _ = io.ReadFull(conn, make([]byte, 5)) // so that the client's bytes have passed
				conn.Abort()
			}
		},
	})
	const text, back = "hello", "berlin\nhello"
	for _, tc := range []struct {
		app  string
		back string // what the client reads before the end
		want line   // Why is a regular expression
	}{
		{"echo", back, line{Status: 200, Network: "berlin", Connector: "berlin-1", Endpoint: "10.0.0.10:7", BytesIn: len(text), BytesOut: len(back), Why: "closed in order"}},
		{"allowed", back, line{Status: 200, Network: "berlin", Connector: "berlin-1", Endpoint: "10.0.0.10:7", BytesIn: len(text), BytesOut: len(back), Why: "closed"}},
		{"denied", "", line{Status: 403, Why: `deny.*127\.0\.0\.1`}},
		{"stranger", "", line{Status: 403, Why: `allow`}},
		{"refused", "", line{Status: 520, Network: "berlin", Connector: "berlin-1", Endpoint: "10.0.0.10:9", Why: "connection refused"}},
		{"unreachable", "", line{Status: 521, Network: "berlin", Connector: "berlin-1", Endpoint: "10.0.0.11:7", Why: "host unreachable"}},
		{"timeout", "", line{Status: 522, Network: "berlin", Connector: "berlin-1", Endpoint: "10.0.0.12:7", Why: "timed out"}},
		{"noroute", "", line{Status: 523, Network: "tokyo", Endpoint: "10.0.0.10:7", Why: "no live connector"}},
		{"nothing", "", line{Status: 530, Why: `"dead".*10\.0\.0\.10:9|dead`}},
		{"aborting", "", line{Status: 449, Network: "berlin", Connector: "berlin-1", Endpoint: "10.0.0.13:7", BytesIn: len(text), Why: "."}},
	} {
		t.Run(tc.app, func(t *testing.T) {
			if got, _ := w.converse(tc.app, text); got != tc.back {
				t.Errorf("the client read %q, want %q", got, tc.back)
			}
			lines := w.flows(tc.app, 1)
			if len(lines) != 1 {
				t.Fatalf("%d lines for one flow: %+v", len(lines), lines)
			}
			got := lines[0]
			if ok, err := regexp.MatchString(tc.want.Why, got.Why); err != nil || !ok || got.Why == "" {
				t.Errorf("why = %q, want %q", got.Why, tc.want.Why)
			}
			if got.ClientIP != "127.0.0.1" || got.Proto != "tcp" || got.Listener != w.port(tc.app, "tcp") || got.DurationMs <= 0 {
				t.Errorf("the line does not say who, where or how long: %+v", got)
			}
			if (tc.want.Status == 200 || tc.want.Status == 449) != (got.ConnectMs > 0) {
				t.Errorf("connect_ms = %v at status %d", got.ConnectMs, got.Status)
			}
			short := line{Status: got.Status, Network: got.Network, Connector: got.Connector, Endpoint: got.Endpoint, BytesIn: got.BytesIn, BytesOut: got.BytesOut, Why: tc.want.Why}
			if short != tc.want {
				t.Errorf("flow log: %+v, want %+v", short, tc.want)
			}
		})
	}
	if s.asked("10.0.0.99:7") > 0 {
		t.Error("the private side was touched before the policy had decided")
	}
	if n := w.observer.Table.Len(); n != 0 {
		t.Errorf("%d flows are open after their end", n)
	}
}

// TestEnds is how flows end that were carried: by the client, by time, by an
// operator, by the reset of the private side.
func TestEnds(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	w := startWorld(t, network("berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+
		appTo("abort", "berlin/10.0.0.10:7")+appTo("killed", "berlin/10.0.0.10:7")+
		appTo("slow", "berlin/10.0.0.11:7")+appTo("idle", "berlin/10.0.0.10:7", `tcp_idle = "1s"`))
	asked := make(chan struct{}, 1)
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){
		"10.0.0.10:7": echo("berlin"),
		"10.0.0.11:7": func(r *netstack.TCPRequest) { asked <- struct{}{}; <-r.Context().Done() },
	})
	greeted := func(app string) net.Conn {
		conn := w.dialApp(app, "tcp")
		if _, err := io.ReadFull(conn, make([]byte, len("berlin\n"))); err != nil {
			t.Fatalf("app %q: %v", app, err)
		}
		return conn
	}
	idle := greeted("idle") // goes on while the others end

	t.Run("the client aborts", func(t *testing.T) {
		conn := greeted("abort").(*net.TCPConn)
		if err := conn.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		if got := w.flows("abort", 1)[0]; got.Status != 499 {
			t.Errorf("status %d (%s), want 499", got.Status, got.Why)
		}
	})
	t.Run("the client aborts during the connect", func(t *testing.T) {
		conn := w.dialApp("slow", "tcp").(*net.TCPConn)
		<-asked
		if err := conn.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		// Without the look-out it is 522, seven seconds later.
		if got := w.flows("slow", 1)[0]; got.Status != 499 {
			t.Errorf("status %d (%s), want 499", got.Status, got.Why)
		}
	})
	t.Run("an operator kills it", func(t *testing.T) {
		conn := greeted("killed")
		var list client.FlowList
		await(t, "the greeting is counted", func() bool { // after the client has it
			var err error
			list, err = w.admin.Flows(t.Context(), client.FlowQuery{App: "killed"})
			return err == nil && len(list.Flows) == 1 && list.Flows[0].BytesOut == 7
		})
		if f := list.Flows[0]; f.Connector != "berlin-1" || f.Endpoint != "10.0.0.10:7" {
			t.Errorf("the open flow is shown as %+v", f)
		}
		if err := w.admin.KillFlow(t.Context(), list.Flows[0].ID); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client of a killed flow read %v, want a reset", err)
		}
		if got := w.flows("killed", 1)[0]; got.Status != 498 || got.Why != errKilled.Error() {
			t.Errorf("status %d, %q", got.Status, got.Why)
		}
		if err := w.admin.KillFlow(t.Context(), list.Flows[0].ID); err == nil {
			t.Error("a flow can be killed twice")
		}
	})
	t.Run("idle", func(t *testing.T) {
		if _, err := idle.Read(make([]byte, 1)); err == nil {
			t.Error("the flow goes on")
		}
		if got := w.flows("idle", 1)[0]; got.Status != 200 || got.Why != "idle timeout" {
			t.Errorf("status %d, %q", got.Status, got.Why)
		}
	})
}

// TestFailover: a dial that fails before any byte has moved is tried at the
// next endpoint, and at the next pool.
func TestFailover(t *testing.T) {
	key := newKey(t)
	pool := func(name string, endpoints ...string) string {
		text := fmt.Sprintf("[[pool]]\nname = %q\nnetwork = \"berlin\"\n", name)
		for _, e := range endpoints {
			text += fmt.Sprintf("[[pool.endpoints]]\naddress = %q\n", e)
		}
		return text
	}
	w := startWorld(t, network("berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+
		pool("half", "10.0.0.10:9", "10.0.0.11:7", "10.0.0.10:7")+
		pool("closed", "10.0.0.10:9")+pool("open", "10.0.0.10:7")+
		pool("all-closed", "10.0.0.10:9", "10.0.0.11:9")+
		listApp("endpoint", "half")+listApp("pool", "closed", "open")+listApp("none", "all-closed"))
	s := w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){
		"10.0.0.10:7": echo("berlin"),
		"10.0.0.10:9": reject(netx.ErrRefused),
		"10.0.0.11:9": reject(netx.ErrRefused),
	})
	for _, name := range []string{"endpoint", "pool"} {
		for i := range 4 {
			if got, err := w.converse(name, "x"); got != "berlin\nx" || err != nil {
				t.Errorf("app %q, flow %d: %q, %v", name, i, got, err)
			}
		}
		for _, l := range w.flows(name, 4) {
			if l.Status != 200 || l.Endpoint != "10.0.0.10:7" || name == "pool" && l.Pool != "open" {
				t.Errorf("app %q: %+v", name, l)
			}
		}
	}
	before := s.asked("10.0.0.10:9")
	if got, _ := w.converse("none", "x"); got != "" {
		t.Errorf("an app without an endpoint that accepts said %q", got)
	}
	if l := w.flows("none", 1)[0]; l.Status != 520 {
		t.Errorf("status %d, want the last endpoint's 520", l.Status)
	}
	if s.asked("10.0.0.10:9") != before+1 {
		t.Error("an endpoint was tried more than once by one flow")
	}
}

// listApp is the config of an app on a free TCP port with pools.
func listApp(name string, pools ...string) string {
	return fmt.Sprintf("[[app]]\nname = %q\nlisten = [\"tcp/0\"]\npools = [\"%s\"]\n", name, strings.Join(pools, `", "`))
}

// TestReplicas: flows go to both connectors of a route, and to the one that is
// left when the other has gone.
func TestReplicas(t *testing.T) {
	keys := []string{"a", "b"}
	first, second := newKey(t), newKey(t)
	w := startWorld(t, network("berlin")+connector("a", "berlin", first, "10.0.0.0/24")+
		connector("b", "berlin", second, "10.0.0.0/24")+appTo("web", "berlin/10.0.0.10:7"))
	a := w.startSite("a", first, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("a")})
	b := w.startSite("b", second, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("b")})
	for range 6 {
		if got, err := w.converse("web", ""); err != nil || !slices.Contains(keys, strings.TrimSpace(got)) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if a.asked("10.0.0.10:7") == 0 || b.asked("10.0.0.10:7") == 0 {
		t.Errorf("a was asked %d times and b %d times, want both", a.asked("10.0.0.10:7"), b.asked("10.0.0.10:7"))
	}
	a.tunnel.SetDraining(true)
	await(t, "the drain of a", func() bool { return w.connectorState("a") == "draining" })
	before := a.asked("10.0.0.10:7")
	for range 4 {
		if got, err := w.converse("web", ""); err != nil || got != "b\n" {
			t.Errorf("while a drains: %q, %v", got, err)
		}
	}
	if a.asked("10.0.0.10:7") != before {
		t.Error("a connector that drains was asked for a new flow")
	}
	a.tunnel.Close()
	await(t, "the end of a", func() bool { return w.connectorState("a") == "down" })
	if got, err := w.converse("web", ""); err != nil || got != "b\n" {
		t.Errorf("after a has gone: %q, %v", got, err)
	}
}

// TestUDP: a session's datagrams come back whole, its end is in the log, and a
// refusal is known by what came instead of an answer.
func TestUDP(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	w := startWorld(t, network("berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+
		"[[app]]\nname = \"dns\"\nlisten = [\"udp/0\"]\norigin = \"berlin/10.0.0.53:7\"\nudp_idle = \"1s\"\n"+
		"[[app]]\nname = \"closed\"\nlisten = [\"udp/0\"]\norigin = \"berlin/10.0.0.53:9\"\n"+
		"[[app]]\nname = \"denied\"\nlisten = [\"udp/0\"]\norigin = \"berlin/10.0.0.53:7\"\ndeny = [\"127.0.0.0/8\"]\n")
	w.startSite("berlin-1", key, nil)
	conn := w.dialApp("dns", "udp")
	sizes := []int{1, 1400, 20_000, 65_507}
	total := 0
	for _, size := range sizes {
		total += size
		sent := strings.Repeat("d", size)
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 65_536)
		n, err := conn.Read(got)
		if err != nil || string(got[:n]) != sent {
			t.Fatalf("a datagram of %d bytes came back with %d, %v", size, n, err)
		}
	}
	l := w.flows("dns", 1)[0]
	if l.Status != 200 || l.Why != "idle timeout" || l.Proto != "udp" || l.BytesIn != total || l.BytesOut != total || l.Endpoint != "10.0.0.53:7" {
		t.Errorf("flow log: %+v, want %d bytes each way", l, total)
	}
	if _, err := io.WriteString(w.dialApp("closed", "udp"), "anyone?"); err != nil {
		t.Fatal(err)
	}
	if l := w.flows("closed", 1)[0]; l.Status != 520 {
		t.Errorf("a session to a closed port ended with %d, %q, want 520", l.Status, l.Why)
	}
	denied := w.dialApp("denied", "udp")
	for range 3 {
		if _, err := io.WriteString(denied, "let me in"); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "three datagrams that are denied", func() bool {
		_, text := w.get("/metrics")
		return strings.Contains(text, `warren_drops_total{where="ingress",why="denied"} 3`)
	})
	if l := w.flows("denied", 0); len(l) > 0 {
		t.Errorf("denied datagrams, whose source can be forged, are in the flow log: %+v", l)
	}
}

// TestLostConnector: a connector that dies without a word, while a flow waits
// for its endpoint, costs the flow nothing but time where a replica is left.
func TestLostConnector(t *testing.T) {
	t.Parallel()
	first, second := newKey(t), newKey(t)
	w := startWorld(t, network("berlin")+connector("a", "berlin", first, "10.0.0.0/24")+
		connector("b", "berlin", second, "10.0.0.0/24")+appTo("web", "berlin/10.0.0.10:7")+appTo("only-a", "berlin/10.0.0.10:7"))
	cut := w.detour()
	a := w.startSiteAt(cut.at, "a", first, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("a")})
	b := w.startSite("b", second, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("b")})
	b.tunnel.SetDraining(true) // so that the flow goes to a
	await(t, "the drain of b", func() bool { return w.connectorState("b") == client.ConnectorDraining })
	cut.close()
	type answer struct {
		text string
		err  error
	}
	got := make(chan answer, 1)
	address := w.port("web", "tcp")
	go func() {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			got <- answer{"", err}
			return
		}
		defer conn.Close()
		_ = conn.(*net.TCPConn).CloseWrite()
		text, err := io.ReadAll(conn)
		got <- answer{string(text), err}
	}()
	await(t, "the flow to be on its way through a", func() bool { return w.observer.Table.Len() == 1 })
	b.tunnel.SetDraining(false)
	if r := <-got; r.text != "b\n" || r.err != nil {
		t.Errorf("the client read %q, %v, want what b says", r.text, r.err)
	}
	if l := w.flows("web", 1)[0]; l.Status != 200 || l.Connector != "b" {
		t.Errorf("flow log: %+v", l)
	}
	if n := a.asked("10.0.0.10:7"); n > 0 {
		t.Errorf("the connector that was cut off was asked %d times", n)
	}
	b.tunnel.Close()
	await(t, "the end of b", func() bool { return w.connectorState("b") == client.ConnectorDown })
	if got, _ := w.converse("only-a", ""); got != "" {
		t.Errorf("without a connector the app said %q", got)
	}
	if l := w.flows("only-a", 1)[0]; l.Status != 523 {
		t.Errorf("without a connector: %+v", l)
	}
}
