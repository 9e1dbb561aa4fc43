package tunnel

import (
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestNetworksRest: a network has a stack while it carries something, and a
// flow after a rest is as good as one before.
func TestNetworksRest(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	_, p := join(t, e, n, "b1", handlers{tcp: echoTCP, udp: echoUDP}, "10.0.0.0/8")
	at := time.Now()
	long := func() time.Time { at = at.Add(2 * restAfter); return at }
	for round := range 3 {
		if n.stack.Load() != nil || p.nic.Load() != nil {
			t.Fatalf("round %d: a network that carries nothing has a stack", round)
		}
		if n.rest(long()) {
			t.Fatalf("round %d: a network at rest was put to rest", round)
		}
		for _, network := range []string{"tcp", "udp"} {
			conn, _, err := n.Dial(t.Context(), network, netip.MustParseAddrPort("10.0.0.10:7"))
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			for _, word := range []string{"one", "two"} {
				if _, err := conn.Write([]byte(word)); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, len(word))
				if _, err := io.ReadFull(conn, b); err != nil || string(b) != word {
					t.Fatalf("round %d: %s: %q came back, %v, want %q", round, network, b, err, word)
				}
				if n.rest(long()) {
					t.Fatalf("round %d: a network with a flow over %s was put to rest", round, network)
				}
			}
			_ = conn.Close()
		}
		e.await(t, "the flows are over", func() bool { return p.Flows() == 0 })
		if n.rest(time.Now()) {
			t.Fatalf("round %d: a network was put to rest at once", round)
		}
		e.await(t, "the network rests", func() bool { return n.rest(long()) })
	}
	if p.Remove(); n.stack.Load() != nil {
		t.Error("to remove a connector woke its network")
	}
}

// TestRestBesideDials: whatever is put to rest meanwhile, no dial fails, and
// nothing is lost.
func TestRestBesideDials(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	for _, name := range []string{"b1", "b2"} { // replicas: one stack, two NICs
		join(t, e, n, name, handlers{tcp: greetTCP(name)}, "10.0.0.0/8")
	}
	var dialling sync.WaitGroup
	var over atomic.Bool
	const each = 200
	for range 2 {
		dialling.Go(func() {
			for range each {
				conn, p, err := n.Dial(t.Context(), "tcp", netip.MustParseAddrPort("10.0.0.10:7"))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(conn)
				if err != nil || string(got) != p.Name() {
					t.Errorf("%q came through %q, %v", got, p.Name(), err)
				}
				_ = conn.Close()
				for range 20 { // the origin closes first: there is no TIME_WAIT here
					if runtime.Gosched(); p.Flows() == 0 {
						break
					}
				}
			}
		})
	}
	rested := 0
	var resting sync.WaitGroup
	resting.Go(func() {
		at := time.Now()
		for last := false; !last; {
			last = over.Load()
			if at = at.Add(2 * restAfter); n.rest(at) {
				rested++
			}
			runtime.Gosched()
		}
	})
	dialling.Wait()
	e.await(t, "the flows are over", func() bool {
		for _, p := range n.Peers() {
			if p.Flows() > 0 {
				return false
			}
		}
		return true
	})
	over.Store(true)
	resting.Wait()
	if t.Logf("put to rest %d times in %d dials", rested, 2*each); rested == 0 {
		t.Error("the network was never put to rest")
	}
	n.Close()
	if n.stack.Load() != nil {
		t.Error("a closed network has a stack")
	}
}

// TestMemoryOfPeers weighs networks at rest, each with a connector that the
// device knows, and the same networks awake.
func TestMemoryOfPeers(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's memory would be measured")
	}
	const networks = 200
	const limit, awakeLimit = 44 << 10, 76 << 10 // 24 KB are WireGuard's two queues and its two lists of a batch
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	var peers []*Peer
	add := func(i int) {
		n := e.network(t, fmt.Sprint("n", i))
		p, err := n.AddConnector(ConnectorConfig{Name: "c", PublicKey: newKey(t).PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
		if err != nil {
			t.Fatal(err)
		}
		peers = append(peers, p)
	}
	add(-1)
	before := inUse()
	for i := range networks {
		add(i)
	}
	atRest := (inUse() - before) / networks
	for _, p := range peers {
		if _, err := p.enter(); err != nil {
			t.Fatal(err)
		}
		p.leave()
	}
	awake := (inUse() - before) / networks
	t.Logf("a network with a connector: %d bytes at rest, %d awake", atRest, awake)
	if awake > awakeLimit {
		t.Errorf("a network awake holds %d bytes, more than %d", awake, awakeLimit)
	}
	if atRest > limit {
		t.Errorf("a network at rest holds %d bytes, more than %d", atRest, limit)
	}
	e.restNetworks(time.Now().Add(2 * restAfter))
	rested := 0
	for _, p := range peers {
		if p.nic.Load() == nil {
			rested++
		}
	}
	if rested != restAtOnce {
		t.Errorf("%d networks were put to rest at once, want %d", rested, restAtOnce)
	}
}

// inUse is heap and stacks after a collection.
func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func BenchmarkWakeNetwork(b *testing.B) {
	e := newEdge(b, newKey(b), "127.0.0.1:0")
	n := e.network(b, "berlin")
	p, err := n.AddConnector(ConnectorConfig{Name: "b1", PublicKey: newKey(b).PublicKey()})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := p.enter(); err != nil {
			b.Fatal(err)
		}
		p.leave()
		if !n.rest(time.Now().Add(2 * restAfter)) {
			b.Fatal("the network did not rest")
		}
	}
}
