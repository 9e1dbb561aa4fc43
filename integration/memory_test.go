package integration

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/proc"
)

// What a flow and a network may cost, in bytes of HeapInuse + StackInuse. The
// connector, the clients and the origins are in other processes.
const (
	idleFlowLimit = 12 << 10
	fewFlowsLimit = 15 << 10 // where few flows share what the burst of their beginning leaves: holes in the heap, buffers
	networkLimit  = 72 << 10 // at rest: it has no stack
	syncedLimit   = 84 << 10 // of a network whose connector holds a sync: a TCP connection more
)

// TestMemoryOfIdleFlows opens thousands of connections, moves 64 KB each way
// over every one, leaves them idle, and weighs the edge and the connector. A
// flow at rest has no goroutine.
func TestMemoryOfIdleFlows(t *testing.T) {
	if daemon.Race {
		t.Skip("the race detector's shadow memory is not what is measured")
	}
	connections, idle, limit := 5000, 20*time.Second, int64(idleFlowLimit)
	switch {
	case full():
		idle = time.Minute
	case testing.Short():
		connections, idle, limit = 1000, 5*time.Second, fewFlowsLimit
	}
	const each = 64 << 10
	d, edged, tokyo := deployMeasured(t)
	listen(t, d.tokyo, "10.0.0.10:9006", func(conn net.Conn) {
		if _, err := io.CopyN(conn, conn, each); err != nil {
			return
		}
		io.Copy(io.Discard, conn) // idle until the end
	})
	address := at(9006).String()
	first := d.openIdle(t, address, 100, each) // whatever is made once, is made now
	first()
	waitFor(t, 2*time.Second)
	edgeBefore, tokyoBefore := edged.settled(t), tokyo.settled(t)
	closeAll := d.openIdle(t, address, connections, each)
	defer closeAll()
	waitFor(t, idle)
	for _, m := range []struct {
		name          string
		before, after memory
	}{
		{"edge", edgeBefore, edged.settled(t)},
		{"connector", tokyoBefore, tokyo.settled(t)},
	} {
		perFlow := (m.after.inUse() - m.before.inUse()) / int64(connections)
		t.Logf("%s: %d bytes a flow in heap and stacks (from %.1f to %.1f MiB), %d bytes of RSS, %.1f goroutines", m.name, perFlow,
			float64(m.before.inUse())/(1<<20), float64(m.after.inUse())/(1<<20),
			(m.after.rss-m.before.rss)/int64(connections), float64(m.after.goroutines-m.before.goroutines)/float64(connections))
		if perFlow > limit {
			t.Errorf("%s: an idle flow holds %d bytes, more than %d", m.name, perFlow, limit)
		}
		if perFlow < 1<<10 {
			t.Errorf("%s: an idle flow holds %d bytes: the flows are not there", m.name, perFlow)
		}
		if more := m.after.goroutines - m.before.goroutines; more > int64(connections)/20 {
			t.Errorf("%s: %d goroutines more with %d idle flows, want next to none", m.name, more, connections)
		}
	}
}

// deployMeasured is an edge and one connector whose memory can be asked for.
func deployMeasured(t *testing.T) (d *deployment, edged, tokyo *measured) {
	t.Helper()
	keys := daemon.Find(t)
	program, env := measuring()
	d = &deployment{world: newWorld(t), warren: keys}
	d.edgeKey, d.berlin1Key, d.berlin2Key, d.tokyo1Key = keys.GenKey(t), keys.GenKey(t), keys.GenKey(t), keys.GenKey(t)
	d.edged = program.NewEdge(t, d.edge, daemon.EdgeConfig{
		Name: "edge", Key: d.edgeKey, Listen: ":51820", Env: env, Log: `flows = "off"`, Plain: true,
		Tables: d.sharedTables() + "[[app]]\nname = \"idle\"\nlisten = [\"tcp/9006\"]\norigin = \"tokyo/10.0.0.10:9006\"\n",
	})
	d.edged.Start()
	d.edged.WaitReady()
	d.tokyo1d = program.StartConnector(t, d.tokyo1, daemon.ConnectorConfig{
		Name: "tokyo-1", Key: d.tokyo1Key, Env: env, Plain: true,
		Edges: []daemon.EdgeAt{{PublicKey: d.edgeKey.Public, URL: "203.0.113.10:51820"}},
	})
	return d, &measured{process: d.edged.Process}, &measured{process: d.tokyo1d.Process}
}

// openIdle opens connections, a few at a time, and moves each bytes both ways
// over every one. The function it returns closes them.
func (d *deployment) openIdle(t *testing.T, address string, count int, each int64) (closeAll func()) {
	t.Helper()
	conns, errs := make([]net.Conn, count), make([]error, count)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range conns {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			conns[i], errs[i] = d.client.Dial(t.Context(), "tcp", address)
			if errs[i] != nil {
				return
			}
			conns[i].SetDeadline(time.Now().Add(30 * time.Second))
			var sent sync.WaitGroup
			sent.Go(func() { io.CopyN(conns[i], plan{Seed: uint64(i)}.bytesOf(0), each) })
			_, errs[i] = io.CopyN(io.Discard, conns[i], each)
			sent.Wait()
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	return func() {
		for _, c := range conns {
			c.Close()
		}
	}
}

// TestMemoryOfNetworks weighs an edge with a thousand networks, each with a
// connector that is up; and with a hundred whose connectors hold a sync.
func TestMemoryOfNetworks(t *testing.T) {
	if daemon.Race {
		t.Skip("the race detector's shadow memory is not what is measured")
	}
	networks := 1000
	if testing.Short() {
		networks = 100
	}
	t.Run("up", func(t *testing.T) { weighNetworks(t, networks, "", networkLimit) })
	t.Run("synced", func(t *testing.T) { weighNetworks(t, 100, "syncs", syncedLimit) })
}

// weighNetworks adds so many networks to an edge; kind is the fourth field of
// their members of the crowd.
func weighNetworks(t *testing.T, networks int, kind string, limit int64) {
	t.Helper()
	keys := daemon.Find(t)
	program, env := measuring()
	d := &deployment{world: newWorld(t), warren: keys, edgeKey: keys.GenKey(t)}
	var tables, members strings.Builder
	tables.WriteString("[[address]]\nname = \"main\"\nadvertise = [\"203.0.113.10\"]\n")
	one := func(i int) {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&tables, "[[network]]\nname = \"n%d\"\n[[connector]]\nname = \"c%d\"\nnetwork = \"n%d\"\npublic_key = %q\nroutes = [\"10.0.0.0/8\"]\n",
			i, i, i, key.PublicKey())
		fmt.Fprintf(&members, "%s 203.0.113.10:51820 %s %s\n", d.edgeKey.Public, key, kind)
	}
	one(0) // the first one makes what all share
	d.edged = program.NewEdge(t, d.edge, daemon.EdgeConfig{
		Name: "edge", Key: d.edgeKey, Listen: ":51820", Env: env, Log: `flows = "off"`, Plain: true, Tables: tables.String(),
	})
	d.edged.Start()
	d.edged.WaitReady()
	d.startCrowd(t, program, members.String())
	d.waitConnectors(t, 1, 30*time.Second)
	edged := &measured{process: d.edged.Process}
	before := edged.settled(t)

	members.Reset()
	for i := range networks {
		one(i + 1)
	}
	d.edged.Write(tables.String())
	started := time.Now()
	d.edged.Reload()
	d.startCrowd(t, program, members.String())
	d.waitConnectors(t, 1+networks, time.Minute)
	t.Logf("%d networks were up %v after the reload", networks, time.Since(started).Round(time.Millisecond))
	waitFor(t, 3*time.Second)
	after := edged.settled(t)
	each := (after.inUse() - before.inUse()) / int64(networks)
	t.Logf("%d bytes a network in heap and stacks (%d and %d; from %.1f to %.1f MiB), %d bytes of RSS, %.1f goroutines", each, (after.heap-before.heap)/int64(networks), (after.stack-before.stack)/int64(networks),
		float64(before.inUse())/(1<<20), float64(after.inUse())/(1<<20), (after.rss-before.rss)/int64(networks),
		float64(after.goroutines-before.goroutines)/float64(networks))
	if each > limit {
		t.Errorf("a network with its connector holds %d bytes, more than %d", each, limit)
	}
}

// startCrowd starts a process with a member for each line.
func (d *deployment) startCrowd(t *testing.T, program daemon.Warren, members string) {
	t.Helper()
	crowd := proc.Start(t, d.tokyo1, proc.Spec{Name: "crowd", Path: program.Path, Stdin: members, Env: []string{envRole + "=" + roleCrowd}})
	if err := pollFor(t, time.Minute, func() error {
		if !strings.Contains(crowd.Output(), "crowd ready") {
			return fmt.Errorf("the crowd is not ready")
		}
		return nil
	}); err != nil {
		t.Fatalf("%v: %s", err, crowd.Output())
	}
}
