package tunnel

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gaissmai/bart"

	"github.com/warrenmesh/warren/netstack"
)

// replicaSet is a network of peers without a device, with one route each.
func replicaSet(names []string, route func(i int) string) (*Network, []*Peer) {
	n := &Network{name: "berlin"}
	n.steering.Store(leastConnections)
	n.table.Store(new(bart.Table[[]*Peer]))
	for i, name := range names {
		p := &Peer{name: name, network: n}
		p.routes.Store(newRouteSet([]netip.Prefix{netip.MustParsePrefix(route(i))}))
		n.peers = append(n.peers, p)
	}
	n.rebuildLocked()
	return n, n.peers
}

// failoverOracle says it the long way: all that may have the flow, those of the
// longest prefix first, then by place in the order, then by name.
func failoverOracle(peers []*Peer, order []string, dst netip.Addr) *Peer {
	var may []*Peer
	for _, p := range peers {
		if p.open.Load() && !p.held.Load() && !p.draining.Load() && p.Routes()[0].Contains(dst) {
			may = append(may, p)
		}
	}
	if len(may) == 0 {
		return nil
	}
	place := func(p *Peer) int {
		if i := slices.Index(order, p.name); i >= 0 {
			return i
		}
		return 1 << 20
	}
	return slices.MinFunc(may, func(a, b *Peer) int {
		if d := b.Routes()[0].Bits() - a.Routes()[0].Bits(); d != 0 {
			return d
		}
		if d := place(a) - place(b); d != 0 {
			return d
		}
		return strings.Compare(a.name, b.name)
	})
}

func TestFailoverAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	dst := netip.MustParseAddr("10.1.0.9")
	none := 0
	for range 3000 {
		names := []string{"a", "b", "c", "d", "e", "f"}
		rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		n, peers := replicaSet(names, func(int) string { return []string{"10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16"}[rng.IntN(3)] })
		order := slices.Clone(names[:rng.IntN(len(names)+1)])
		order = append(order, "not there")
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		if err := n.SetSteering(Failover, order); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			for _, p := range peers {
				p.open.Store(rng.IntN(3) > 0)
				p.draining.Store(rng.IntN(5) == 0)
				p.held.Store(rng.IntN(5) == 0)
				p.suspect.Store(rng.IntN(2) == 0) // of no account
			}
			want, got := failoverOracle(peers, order, dst), n.Pick(dst)
			if got != want {
				t.Fatalf("order %v: picked %v, want %v", order, name(got), name(want))
			}
			if want == nil {
				none++
			}
		}
	}
	if none == 0 || none > 30_000 {
		t.Errorf("in %d of 60000 cases there was nobody: the test is one-sided", none)
	}
}

func name(p *Peer) string {
	if p == nil {
		return "nobody"
	}
	return p.name
}

func TestPickDoesNotAllocate(t *testing.T) {
	n, peers := replicaSet([]string{"a", "b", "c"}, func(int) string { return "10.0.0.0/8" })
	for _, p := range peers {
		p.open.Store(true)
	}
	dst := netip.MustParseAddr("10.1.0.9")
	least := testing.AllocsPerRun(1000, func() { n.Pick(dst) })
	if err := n.SetSteering(Failover, []string{"b"}); err != nil {
		t.Fatal(err)
	}
	if failover := testing.AllocsPerRun(1000, func() { n.Pick(dst) }); failover > least || failover > 0 {
		t.Errorf("picking allocates %v times, by an order %v times", least, failover)
	}
}

func TestSetSteering(t *testing.T) {
	n, _ := replicaSet([]string{"a"}, func(int) string { return "10.0.0.0/8" })
	for _, tc := range []struct {
		policy string
		order  []string
		err    string
		now    string
	}{
		{"", nil, "", LeastConnections},
		{Failover, []string{"b", "a"}, "", Failover},
		{LeastConnections, nil, "", LeastConnections},
		{Failover, nil, "", Failover},
		{"least_flows", nil, `write "least_connections" or "failover"`, Failover},
		{Failover, []string{"a", "b", "a"}, `"a" is in the order twice`, Failover},
		{LeastConnections, []string{"a"}, `for "failover" alone`, Failover},
	} {
		err := n.SetSteering(tc.policy, tc.order)
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%q by %v: %v, want %q", tc.policy, tc.order, err, tc.err)
		}
		policy, order := n.Steering()
		if policy != tc.now || err == nil && !slices.Equal(order, tc.order) {
			t.Errorf("%q by %v: now %q by %v", tc.policy, tc.order, policy, order)
		}
	}
}

// TestFailoverReturns: flows go to the first connector of the order while it
// lives, to the next while it does not, and to the first again. What a dead one
// carried ends at once where another can have it, and is left in peace where
// none can.
func TestFailoverReturns(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	_, spare := join(t, e, n, "b1", handlers{tcp: echoTCP}, "10.0.0.0/8")
	c, first := join(t, e, n, "b2", handlers{tcp: echoTCP}, "10.0.0.0/8", "192.168.0.0/16")
	if err := n.SetSteering(Failover, []string{"b2", "b1"}); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, p := dialTCP(t, n, "10.0.0.10:7"); p != first {
			t.Fatalf("a flow went through %s, want %s", p.Name(), first.Name())
		}
	}
	replaceable, _ := dialTCP(t, n, "10.0.0.10:7")
	alone, _ := dialTCP(t, n, "192.168.0.1:7")
	c.mute()
	// Nothing but its connector's death ends it: it is silent.
	if _, err := replaceable.Read(make([]byte, 1)); !errors.Is(err, netstack.ErrAborted) {
		t.Errorf("a flow of the dead connector ended with %v, want %v", err, netstack.ErrAborted)
	}
	if first.Alive() {
		t.Error("the flow ended before its connector was found dead")
	}
	conn, p := dialTCP(t, n, "10.0.0.10:7")
	if p != spare {
		t.Errorf("a flow went through %s, want %s", p.Name(), spare.Name())
	}
	if err := c.device.Up(); err != nil {
		t.Fatal(err)
	}
	e.await(t, "b2 is back", first.Alive)
	if _, p := dialTCP(t, n, "10.0.0.10:7"); p != first {
		t.Errorf("a flow went through %s, want %s again", p.Name(), first.Name())
	}
	for what, conn := range map[string]io.ReadWriter{"of the spare connector": conn, "that nobody else could have": alone} {
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Errorf("the flow %s: %v", what, err)
			continue
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Errorf("the flow %s: %v", what, err)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, policy := range []string{LeastConnections, Failover} {
		b.Run(fmt.Sprintf("%s/replicas=8", policy), func(b *testing.B) {
			n, peers := replicaSet([]string{"a", "b", "c", "d", "e", "f", "g", "h"}, func(int) string { return "10.0.0.0/8" })
			for _, p := range peers {
				p.open.Store(true)
			}
			if err := n.SetSteering(policy, nil); err != nil {
				b.Fatal(err)
			}
			dst := netip.MustParseAddr("10.1.0.9")
			b.ReportAllocs()
			for b.Loop() {
				n.Pick(dst)
			}
		})
	}
}
