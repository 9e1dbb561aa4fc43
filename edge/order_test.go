package edge

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/ingress"
	"github.com/warrenmesh/warren/netstack"
)

// TestReloadMovesPoolsWithoutAGap: an app that moves to an endpoint which a
// monitor has found well is served all the while, however long the connectors
// that the same reload removes take to go.
func TestReloadMovesPoolsWithoutAGap(t *testing.T) {
	const leaving = 64
	key := newKey(t)
	base := network("berlin") + connector("berlin-1", "berlin", key, "10.0.0.0/24") + "[[monitor]]\nname = \"m\"\ninterval = \"1s\"\n"
	pool := func(addr string) string {
		return fmt.Sprintf("[[pool]]\nname = \"web\"\nnetwork = \"berlin\"\nmonitor = \"m\"\n[[pool.endpoints]]\naddress = %q\n"+
			"[[app]]\nname = \"web\"\nlisten = [\"tcp/0\"]\npools = [\"web\"]\n", addr)
	}
	var others strings.Builder
	for i := range leaving {
		others.WriteString(connector(fmt.Sprintf("other-%d", i), "berlin", newKey(t), fmt.Sprintf("10.1.%d.0/24", i)))
	}
	w := startWorld(t, base+others.String()+pool("10.0.0.10:7"))
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("ten"), "10.0.0.11:7": echo("eleven")})
	await(t, "the endpoint is up", func() bool { return w.Pools()[0].Endpoints[0].State == "up" })

	w.write(base + pool("10.0.0.11:7"))
	stop := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if now := w.current.Load(); now.revision == 2 {
				if _, why, ok := now.director.Pick(balance.Request{App: "web"}); !ok {
					t.Errorf("a flow of the new config finds nothing: %s", why)
					return
				}
			}
		}
	})
	_, err := w.admin.Reload(t.Context())
	close(stop)
	asking.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.converse("web", ""); got != "eleven\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestReloadWarnsWhoAsked: what a reload could not make sure of is in its
// answer, not in the log alone.
func TestReloadWarnsWhoAsked(t *testing.T) {
	key := newKey(t)
	base := network("berlin") + connector("berlin-1", "berlin", key, "10.0.0.0/24")
	w := startWorld(t, base)
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){
		"10.0.0.66:7": func(r *netstack.TCPRequest) { <-r.Context().Done() },
	})
	w.write(base + "[[monitor]]\nname = \"m\"\ninterval = \"10s\"\ntimeout = \"9s\"\n" +
		"[[pool]]\nname = \"web\"\nnetwork = \"berlin\"\nmonitor = \"m\"\n[[pool.endpoints]]\naddress = \"10.0.0.66:7\"\n")
	result, err := w.admin.Reload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0], "count as down: 1") {
		t.Errorf("warnings %q, want one of a check that has told nothing", result.Warnings)
	}
}

// TestListenerGone: a flow that a reload catches between Accept and its route
// is reset, and counted where the flow log cannot have it.
func TestListenerGone(t *testing.T) {
	w := startWorld(t, network("berlin")+appTo("web", "berlin/10.0.0.10:7"))
	spec := w.current.Load().cfg.IngressSpecs()[0]
	w.write(network("berlin"))
	if _, err := w.admin.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	client, conn := net.Pipe()
	defer client.Close()
	w.walk(t.Context(), ingress.Accepted{Conn: conn, Spec: spec, At: time.Now()})
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("the flow goes on")
	}
	const want = `warren_drops_total{where="edge",why="listener_gone"} 1`
	if _, text := w.get("/metrics"); !strings.Contains(text, want) {
		t.Errorf("no %s in /metrics", want)
	}
}
