package integration

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// wiretap is somebody on the path between a connector and the edge: a relay
// of datagrams that keeps the handshake initiations it sees.
type wiretap struct {
	near, far net.PacketConn // towards the connector, towards the edge
	edge      *net.UDPAddr

	mu          sync.Mutex
	connector   net.Addr // the latest
	initiations [][]byte
}

// tap relays between port 51820 of a host and the edge, until the test ends.
func tap(t *testing.T, host *netns.Host, at, edge netip.AddrPort) *wiretap {
	t.Helper()
	w := &wiretap{edge: net.UDPAddrFromAddrPort(edge)}
	var err error
	if w.near, err = host.ListenPacket(t.Context(), "udp4", at.String()); err != nil {
		t.Fatal(err)
	}
	if w.far, err = host.ListenPacket(t.Context(), "udp4", ":0"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { w.near.Close(); w.far.Close(); wg.Wait() })
	wg.Go(func() { relayDatagrams(w.near, w.out) })
	wg.Go(func() { relayDatagrams(w.far, w.back) })
	return w
}

func relayDatagrams(from net.PacketConn, to func(datagram []byte, sender net.Addr)) {
	buf := make([]byte, 1<<16)
	for {
		n, sender, err := from.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else the edge's host says by ICMP that nobody listens
			to(buf[:n], sender)
		}
	}
}

func (w *wiretap) out(datagram []byte, sender net.Addr) {
	w.mu.Lock()
	w.connector = sender
	if len(datagram) == 148 && binary.LittleEndian.Uint32(datagram) == 1 {
		w.initiations = append(w.initiations, append([]byte(nil), datagram...))
	}
	w.mu.Unlock()
	w.far.WriteTo(datagram, w.edge)
}

func (w *wiretap) back(datagram []byte, _ net.Addr) {
	w.mu.Lock()
	connector := w.connector
	w.mu.Unlock()
	if connector != nil {
		w.near.WriteTo(datagram, connector)
	}
}

// recorded are the initiations so far.
func (w *wiretap) recorded() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([][]byte(nil), w.initiations...)
}

// TestReplayedInitiation records the handshake of a connector and plays it to
// the edge again and again, from the path and from elsewhere, while the edge
// runs and as it starts anew and has forgotten when it heard the connector
// last. Once the connector is back, its traffic never stops for a second.
func TestReplayedInitiation(t *testing.T) {
	t.Parallel() // it waits more than it works
	d := &deployment{world: newWorld(t), warren: daemon.Find(t)}
	d.edgeKey, d.berlin1Key, d.berlin2Key, d.tokyo1Key = d.warren.GenKey(t), d.warren.GenKey(t), d.warren.GenKey(t), d.warren.GenKey(t)
	d.edged = d.warren.StartEdge(t, d.edge, daemon.EdgeConfig{Name: "edge", Key: d.edgeKey, Listen: ":51820", Tables: d.sharedTables() + faultApps})
	path := tap(t, d.internet, netip.MustParseAddrPort("192.0.2.13:51820"), at(51820))
	listen(t, d.tokyo, "10.0.0.10:9002", new(checkedEcho).serve)
	d.tokyo1d = d.warren.StartConnector(t, d.tokyo1, daemon.ConnectorConfig{Name: "tokyo-1", Key: d.tokyo1Key,
		Edges: []daemon.EdgeAt{{PublicKey: d.edgeKey.Public, URL: "192.0.2.13:51820"}}})
	recorded := path.recorded()
	if len(recorded) == 0 {
		t.Fatal("the wiretap saw no initiation")
	}

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	elsewhere, err := d.client.ListenPacket(t.Context(), "udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	for _, from := range []net.PacketConn{path.far, elsewhere} {
		wg.Go(func() {
			ticker := time.NewTicker(10 * time.Millisecond)
			defer ticker.Stop()
			for i := 0; ; i++ {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
					from.WriteTo(recorded[i%len(recorded)], path.edge)
				}
			}
		})
	}
	d.uninterrupted(t, "while the edge runs")
	d.edged.Kill()
	d.edged.Start()
	d.edged.WaitReady()
	started := time.Now()
	if err := pollFor(t, connectorsBackLimit, func() error { return request(t.Context(), d.client, at(9002).String(), 1) }); err != nil {
		t.Fatalf("after a restart of the edge: %v", err)
	}
	t.Logf("the connector was back %v after the edge was ready", time.Since(started).Round(time.Millisecond))
	d.uninterrupted(t, "after a restart of the edge")
}

// uninterrupted sends requests for some seconds and wants no second without a
// success.
func (d *deployment) uninterrupted(t *testing.T, when string) {
	t.Helper()
	const gapLimit = time.Second
	stop := load(t, d.client, at(9002).String(), 50)
	waitFor(t, 4*time.Second)
	outcomes := stop()
	var ends []time.Time
	failed := 0
	for _, o := range outcomes {
		if o.err != nil {
			failed++
			continue
		}
		ends = append(ends, o.start.Add(o.took))
	}
	gap := longestGap(ends)
	t.Logf("%s: %d requests, %d failed, at most %v without a success", when, len(outcomes), failed, gap.Round(time.Millisecond))
	if len(ends) < 10 || gap > patience(gapLimit) {
		t.Errorf("%s: traffic stood still for %v", when, gap)
	}
}

// longestGap is the longest time between two moments, in any order.
func longestGap(moments []time.Time) (gap time.Duration) {
	sorted := slices.SortedFunc(slices.Values(moments), time.Time.Compare)
	for i := 1; i < len(sorted); i++ {
		gap = max(gap, sorted[i].Sub(sorted[i-1]))
	}
	return gap
}
