package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/daemon"
)

// atRestLimit bounds the RSS of an edge and of a connector that have moved
// next to nothing. 24 and 23 MB were measured, of which 20 and 19 are pages of
// the program's file, and 4 its memory: the 16 MB of WireGuard's buffers are
// not touched before there is traffic.
const atRestLimit = 40 << 20

// TestMemoryAtRest weighs the real program with one network and one connector.
func TestMemoryAtRest(t *testing.T) {
	if daemon.Race {
		t.Skip("the race detector's shadow memory is not what is measured")
	}
	program := daemon.Find(t)
	d := &deployment{world: newWorld(t), warren: program}
	d.edgeKey, d.tokyo1Key = program.GenKey(t), program.GenKey(t)
	d.edged = program.NewEdge(t, d.edge, daemon.EdgeConfig{
		Name: "edge", Key: d.edgeKey, Listen: ":51820", Log: `flows = "off"`,
		Tables: fmt.Sprintf(`
[[address]]
name = "main"
advertise = ["203.0.113.10"]
[[network]]
name = "tokyo"
[[connector]]
name = "tokyo-1"
network = "tokyo"
public_key = %q
routes = ["10.0.0.0/24"]
[[app]]
name = "echo"
listen = ["tcp/9006"]
origin = "tokyo/10.0.0.10:9006"
`, d.tokyo1Key.Public),
	})
	d.edged.Start()
	d.edged.WaitReady()
	d.tokyo1d = program.StartConnector(t, d.tokyo1, daemon.ConnectorConfig{
		Name: "tokyo-1", Key: d.tokyo1Key,
		Edges: []daemon.EdgeAt{{PublicKey: d.edgeKey.Public, URL: "203.0.113.10:51820"}},
	})
	d.waitConnectors(t, 1, 30*time.Second)
	listen(t, d.tokyo, "10.0.0.10:9006", func(conn net.Conn) { io.Copy(conn, conn) })
	closeAll := d.openIdle(t, at(9006).String(), 4, 64<<10)
	closeAll()
	waitFor(t, 3*time.Second)
	for name, pid := range map[string]int{"edge": d.edged.Process.Pid(), "connector": d.tokyo1d.Process.Pid()} {
		all, own := residentOf(t, pid)
		t.Logf("%s: %.1f MB of RSS, %.1f of them its own", name, float64(all)/1e6, float64(own)/1e6)
		if all > atRestLimit {
			t.Errorf("%s: %d bytes of RSS, more than %d", name, all, atRestLimit)
		}
		if own < 1<<20 {
			t.Errorf("%s: %d bytes of its own: that is not a daemon", name, own)
		}
	}
}

// residentOf is VmRSS and RssAnon of a process (proc_pid_status(5), in KiB).
func residentOf(t *testing.T, pid int) (all, own int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for name, into := range map[string]*int64{"VmRSS:": &all, "RssAnon:": &own} {
		_, after, _ := strings.Cut(string(status), name)
		if _, err := fmt.Sscan(after, into); err != nil {
			t.Fatalf("reading %s of process %d: %v", name, pid, err)
		}
		*into <<= 10
	}
	return all, own
}
