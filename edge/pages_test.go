package edge

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/netstack"
)

// TestAFailedStartWaitsForNoFlow: where the metrics' port is taken, the edge
// says so and ends, although a client has come through a listener already.
func TestAFailedStartWaitsForNoFlow(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	key := newKey(t)
	w := newWorld(t, network("berlin")+connector("berlin-1", "berlin", key, "10.0.0.0/24")+appTo("web", "berlin/10.0.0.10:7"))
	cfg, err := w.load()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Metrics.Listen = taken.Addr().(*net.TCPAddr).AddrPort()
	if err := os.Mkdir(cfg.Edge.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.Edge = &Edge{opts: Options{Grace: time.Hour}, log: slog.New(w.log), first: cfg, started: time.Now()}
	if err := w.Edge.open(cfg); err != nil {
		t.Fatal(err)
	}
	w.startSite("berlin-1", key, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo("berlin")})
	w.greeted("web")

	served := make(chan error, 1)
	go func() { served <- w.Edge.serve(context.Background()) }()
	select {
	case err := <-served:
		if err == nil || !strings.Contains(err.Error(), "for metrics") {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it waits for the flow")
	}
	if got := w.flows("web", 1)[0]; !strings.Contains(got.Why, "did not start") {
		t.Errorf("the flow's line: %+v", got)
	}
}
