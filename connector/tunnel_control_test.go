package connector

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
)

// The tests of this file run control through the real tunnel.

// enrolled makes the edges of b ones at which it has enrolled.
func (b *realBench) enrolled() {
	b.t.Helper()
	dir := filepath.Join(b.t.TempDir(), "state")
	d, err := state.Open(dir)
	if err != nil {
		b.t.Fatal(err)
	}
	defer d.Close()
	writeFile(b.t, filepath.Join(dir, state.KeyName), b.key.String()+"\n", 0o600)
	for _, e := range b.spec.Edges {
		if err := d.SaveEdge(state.Edge{PublicKey: wire.Key{Key: e.PublicKey}, URLs: texts(e.URLs), Confirmed: true}); err != nil {
			b.t.Fatal(err)
		}
	}
	b.edges = len(b.spec.Edges)
	b.spec.Edges, b.spec.PrivateKeyFile, b.spec.StateDir = nil, "", dir
}

// revision awaits the grant with that revision at the edge with that number.
func (b *realBench) revision(edge int, want uint64) {
	b.t.Helper()
	await(b.t, "the grant arrives", func() bool { return b.c.Status().Edges[edge].Revision >= want })
}

func TestControlThroughTheTunnel(t *testing.T) {
	b := newRealBench(t)
	b.alias("tcp/10.0.0.10:80", echoTCP(t))
	b.alias("tcp/10.1.0.10:80", echoTCP(t))
	key := newKey(t)
	e := openEdge(t, key, b.key, "127.0.0.1:0")
	c := e.serveControl(t)
	b.serve(key, e.addr())
	b.start()
	b.revision(0, 1)
	stays, goes := e.mustDial(t, "tcp", "10.0.0.10:80"), e.mustDial(t, "tcp", "10.1.0.10:80")
	for _, flow := range []io.ReadWriter{stays, goes} {
		exchange(t, flow)
	}
	c.set(func() { c.answer.Revision, c.answer.Grant.Routes = 2, prefixes("10.0.0.0/24") })
	if _, err := goes.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the flow outside the new routes reads %v", err)
	}
	exchange(t, stays)
	if _, err := e.dial(t, "tcp", "10.1.0.10:80"); netx.Classify(err) != netx.ErrUnreachable {
		t.Errorf("a flow outside the routes gets %v", err)
	}
	await(t, "the denial is reported", func() bool {
		all := c.seen()
		errs := all[len(all)-1].Report.Errors
		return len(errs) > 0 && errs[0].Destination == "tcp/10.1.0.10:80" && errs[0].Result == resultDenied
	})

	c.set(func() { c.refusal = wire.Refuse(wire.CodeRevoked, "revoked on 2026-01-02") })
	if _, err := stays.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the revoked connector's flow reads %v", err)
	}
	select {
	case err := <-b.end:
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "revoked on 2026-01-02") {
			t.Errorf("Run returned %v", err)
		}
		b.end <- err
	case <-time.After(patience):
		t.Fatal("Run goes on")
	}
}

func TestEdgeDrainsThroughTheTunnel(t *testing.T) {
	b := newRealBench(t)
	b.alias("tcp/10.0.0.10:80", echoTCP(t))
	key := newKey(t)
	e := openEdge(t, key, b.key, "127.0.0.1:0")
	c := e.serveControl(t)
	b.serve(key, e.addr())
	b.start()
	b.revision(0, 1)
	flow := e.mustDial(t, "tcp", "10.0.0.10:80")
	exchange(t, flow)
	c.set(func() { c.answer.Revision, c.answer.Grant.Drain = 2, true })
	b.revision(0, 2)
	if _, err := e.dial(t, "tcp", "10.0.0.10:80"); netx.Classify(err) == nil {
		t.Errorf("a new flow gets %v", err)
	}
	roundTrip(t, flow, random(1<<20))
	select {
	case err := <-b.end:
		if err != nil {
			t.Errorf("Run returned %v", err)
		}
		b.end <- err
	case <-time.After(patience):
		t.Fatal("the connector does not leave")
	}
}

// Flows through two edges go on while the key changes, and both edges know
// only the new one in the end.
func TestKeyChangesUnderFlows(t *testing.T) {
	b := newRealBench(t)
	b.alias("tcp/10.0.0.10:80", echoTCP(t))
	var edges []*realEdge
	var controls []*fakeControl
	for range 2 {
		key := newKey(t)
		e := openEdge(t, key, b.key, "127.0.0.1:0")
		edges, controls = append(edges, e), append(controls, e.serveControl(t))
		b.serve(key, e.addr())
	}
	b.enrolled()
	b.start()
	b.revision(0, 1)
	b.revision(1, 1)
	old := b.c.Status().PublicKey

	var flows sync.WaitGroup
	stop := make(chan struct{})
	for _, e := range edges {
		for range 4 {
			c := e.mustDial(t, "tcp", "10.0.0.10:80")
			flows.Go(func() {
				for {
					select {
					case <-stop:
						roundTrip(t, c, random(1000))
						return
					default:
						exchange(t, c)
					}
				}
			})
		}
	}
	controls[1].set(func() { controls[1].answer.Revision, controls[1].answer.Grant.Rotate = 2, true })
	await(t, "both edges hear from the new key", func() bool {
		now := b.c.Status().PublicKey
		return now != old && controls[0].who() == now && controls[1].who() == now
	})
	close(stop)
	flows.Wait()
	for _, e := range edges {
		if key := e.peer.PublicKey(); key == old || key != b.c.Status().PublicKey {
			t.Error("an edge knows the connector by another key")
		}
		roundTrip(t, e.mustDial(t, "tcp", "10.0.0.10:80"), random(1000))
	}
	if saved := (&bench{t: t, spec: b.spec}).savedKey(); saved.PublicKey() != b.c.Status().PublicKey {
		t.Error("the saved key is another one")
	}
	if n := len(b.log.with("lost")); n != 0 {
		t.Errorf("an edge was lost %d times", n)
	}
}

// who is the key that synced last.
func (c *fakeControl) who() wgtypes.Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// exchange sends a little through an echo and awaits it.
func exchange(t *testing.T, c io.ReadWriter) {
	t.Helper()
	sent := random(64)
	got := make([]byte, len(sent))
	if _, err := c.Write(sent); err != nil {
		t.Error(err)
		return
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != string(sent) {
		t.Errorf("%d bytes do not come back: %v", len(sent), err)
	}
}

// TestEdgeThatWasLeftIsJoinedAgain: as one that drained the connector is.
func TestEdgeThatWasLeftIsJoinedAgain(t *testing.T) {
	edgeKey, key := newKey(t), newKey(t)
	edge := openEdge(t, edgeKey, key, "127.0.0.1:0")
	device, err := openTunnel(TunnelConfig{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	for range 3 {
		peer, err := device.Join(JoinConfig{
			Name: testEdge, PublicKey: edgeKey.PublicKey(), Endpoint: edge.addr(), OnState: func(State) {},
		})
		if err != nil {
			t.Fatal(err)
		}
		await(t, "the edge answers", func() bool { return peer.State().Alive })
		peer.Remove()
	}
}
