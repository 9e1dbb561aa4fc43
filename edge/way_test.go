package edge

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/flow"
	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
)

// pool writes a [[pool]] in berlin.
func pool(name, more string, endpoints ...string) string {
	text := fmt.Sprintf("[[pool]]\nname = %q\nnetwork = \"berlin\"\n%s\n", name, more)
	for _, e := range endpoints {
		text += fmt.Sprintf("[[pool.endpoints]]\naddress = %q\n", e)
	}
	return text
}

// hangUp accepts, reads some, and resets.
func hangUp(r *netstack.TCPRequest) {
	conn, err := r.Accept()
	if err != nil {
		return
	}
	_, _ = conn.Read(make([]byte, 1))
	conn.Abort()
}

// TestNextPoolIsReached: however many endpoints of one pool refuse, or have no
// connector, a flow comes to the next pool.
func TestNextPoolIsReached(t *testing.T) {
	key := newKey(t)
	var dead []string
	serve := map[string]func(*netstack.TCPRequest){"10.0.0.200:7": echo("standby")}
	for i := range 12 {
		at := fmt.Sprintf("10.0.0.%d:7", 10+i)
		dead = append(dead, at)
		serve[at] = reject(netx.ErrRefused)
	}
	w := startWorld(t, network("berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+
		connector("gone", "berlin", newKey(t), "10.9.0.0/24")+
		pool("dead", "", dead...)+pool("nowhere", "", "10.9.0.1:7", "10.9.0.2:7", "10.9.0.3:7", "10.9.0.4:7", "10.9.0.5:7")+
		pool("standby", "", "10.0.0.200:7")+
		"[[app]]\nname = \"web\"\nlisten = [\"tcp/0\"]\npools = [\"nowhere\", \"dead\", \"standby\"]\n")
	w.startSite("berlin-1", key, serve)
	for range 3 {
		if got, err := w.converse("web", "x"); got != "standby\nx" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	line := w.flows("web", 3)[0]
	if line.Pool != "standby" || line.Status != int(flow.StatusClosed) {
		t.Errorf("logged %+v", line)
	}
}

// TestRetryUntilTheFirstByte: an app that says so has another endpoint tried
// until one answers, which is told what the client has said; another app has
// not. What ends a flow that nobody answers is the last of them.
func TestRetryUntilTheFirstByte(t *testing.T) {
	key := newKey(t)
	w := startWorld(t, network("berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+
		pool("mixed", `steering = "failover"`, "10.0.0.10:7", "10.0.0.11:7")+pool("bad", "", "10.0.0.10:7")+
		"[[app]]\nname = \"again\"\nlisten = [\"tcp/0\"]\npools = [\"mixed\"]\nretry = \"first_byte\"\n"+
		"[[app]]\nname = \"once\"\nlisten = [\"tcp/0\"]\npools = [\"mixed\"]\n"+
		"[[app]]\nname = \"nobody\"\nlisten = [\"tcp/0\"]\npools = [\"bad\"]\nretry = \"first_byte\"\n")
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){
		"10.0.0.10:7": hangUp,
		"10.0.0.11:7": func(r *netstack.TCPRequest) { // speaks second
			conn, err := r.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if text, err := io.ReadAll(conn); err == nil {
				_, _ = conn.Write(text)
			}
		},
	})
	if got, err := w.converse("again", "hello"); got != "hello" || err != nil {
		t.Errorf("with a second try: %q, %v", got, err)
	}
	if got, err := w.converse("once", "hello"); err == nil {
		t.Errorf("without one: %q", got)
	}
	if got, err := w.converse("nobody", "hello"); err == nil {
		t.Errorf("with nobody to try: %q", got)
	}
	if l := w.flows("nobody", 1)[0]; l.Status != int(flow.StatusOriginGone) || l.Why == "" {
		t.Errorf("with nobody to try: logged %+v", l)
	}
	if l := w.flows("again", 1)[0]; l.Endpoint != "10.0.0.11:7" || l.BytesIn != 5 || l.BytesOut != 5 {
		t.Errorf("with a second try: logged %+v", l)
	}
}

// TestEjection: connects that fail in a row take an endpoint out, also UDP's,
// which tells of it only later, and an operator is told once.
func TestEjection(t *testing.T) {
	key := newKey(t)
	ejection := "steering = \"failover\"\n[pool.ejection]\nfailures = 2\ntime = \"1m\"\nmax_time = \"1m\"\nmax_percent = 50"
	w := startWorld(t, network("berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+
		pool("web", ejection, "10.0.0.10:7", "10.0.0.11:7")+pool("dns", ejection, "10.0.0.10:9", "10.0.0.11:7")+
		"[[app]]\nname = \"web\"\nlisten = [\"tcp/0\"]\npools = [\"web\"]\n"+
		"[[app]]\nname = \"dns\"\nlisten = [\"udp/0\"]\npools = [\"dns\"]\n")
	s := w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){
		"10.0.0.10:7": reject(netx.ErrRefused), "10.0.0.11:7": echo("eleven"),
	})
	for range 4 {
		if got, err := w.converse("web", ""); got != "eleven\n" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if n := s.asked("10.0.0.10:7"); n != 2 {
		t.Errorf("the endpoint that refuses was asked %d times, want 2", n)
	}
	await(t, "a datagram that is answered", func() bool {
		conn := w.dialApp("dns", "udp")
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = conn.Write([]byte("x"))
		_, err := conn.Read(make([]byte, 1))
		return err == nil
	})
	ejected := map[string]int{}
	for _, e := range w.Events(0, client.MaxEvents).Events {
		if e.To == client.EndpointEjected {
			ejected[e.Pool+" "+e.Endpoint]++
			if e.Why == "" || e.From != client.EndpointUp {
				t.Errorf("the event says %+v", e)
			}
		}
	}
	if ejected["web 10.0.0.10:7"] != 1 || ejected["dns 10.0.0.10:9"] != 1 || len(ejected) != 2 {
		t.Errorf("ejections told: %v", ejected)
	}
}

// TestSessionsLeaveAnEndpointThatIsDown: a UDP session ends when its monitor
// finds its endpoint down, and not for another pool's monitor.
func TestSessionsLeaveAnEndpointThatIsDown(t *testing.T) {
	key := newKey(t)
	monitor := "[[monitor]]\nname = \"m\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nfall = 1\n"
	w := startWorld(t, network("berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+monitor+
		pool("checked", `monitor = "m"`, "10.0.0.10:7")+pool("unchecked", "", "10.0.0.10:7")+
		"[[app]]\nname = \"checked\"\nlisten = [\"udp/0\", \"tcp/0\"]\npools = [\"checked\"]\n"+
		"[[app]]\nname = \"unchecked\"\nlisten = [\"udp/0\"]\npools = [\"unchecked\"]\n")
	s := w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("ten")})
	await(t, "the endpoint is up", func() bool { return w.Pools()[0].State == client.PoolHealthy })
	var conns []net.Conn
	for _, app := range []string{"checked", "unchecked"} {
		conn := w.dialApp(app, "udp")
		defer conn.Close()
		_, _ = conn.Write([]byte("x"))
		conns = append(conns, conn)
	}
	await(t, "two sessions", func() bool { return w.observer.Table.Len() == 2 })
	s.mu.Lock()
	delete(s.tcp, "10.0.0.10:7")
	s.mu.Unlock()
	l := w.flows("checked", 1)[0]
	if l.Status != int(flow.StatusCut) || !strings.Contains(l.Why, "the endpoint is down") {
		t.Errorf("logged %+v", l)
	}
	_ = conns[1].SetDeadline(time.Now().Add(patience))
	got := make([]byte, 1)
	for range 2 { // the first answer is that to the first datagram
		if _, err := conns[1].Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		if _, err := conns[1].Read(got); err != nil {
			t.Fatalf("the session of the pool without a monitor: %v", err)
		}
	}
	if w.observer.Table.Len() != 1 {
		t.Errorf("%d sessions are open, want that of the pool without a monitor", w.observer.Table.Len())
	}
}
