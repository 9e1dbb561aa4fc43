package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
)

// pattern sends and expects the same endless bytes on every flow.
var pattern = func() []byte {
	b := make([]byte, 64<<10)
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}()

// stream pushes the pattern through an echo until stop, then ends in order. It
// returns how many bytes came back right.
func stream(conn net.Conn, stop <-chan struct{}, progress *atomic.Int64) error {
	var sent int64
	var writer sync.WaitGroup
	var failed error
	writer.Go(func() {
		for {
			select {
			case <-stop:
				failed = conn.(netx.HalfCloser).CloseWrite()
				return
			default:
			}
			n, err := conn.Write(pattern)
			sent += int64(n)
			if err != nil {
				failed = fmt.Errorf("after %d bytes: %w", sent, err)
				return
			}
		}
	})
	var got int64
	b := make([]byte, len(pattern))
	for {
		n, err := conn.Read(b)
		at := int(got % int64(len(pattern)))
		if want := append(pattern[at:len(pattern):len(pattern)], pattern[:at]...)[:n]; !bytes.Equal(b[:n], want) {
			return fmt.Errorf("wrong bytes after %d", got)
		}
		got += int64(n)
		progress.Add(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", got, err)
		}
	}
	writer.Wait()
	if failed == nil && got != sent {
		failed = fmt.Errorf("%d bytes sent, %d came back", sent, got)
	}
	return failed
}

// keyChange is one connector at two edges, with flows of both under way.
type keyChange struct {
	*testConnector
	edges []*testEdge
	peers []*Peer // the connector, as each edge sees it
	far   []*Peer // each edge, as the connector sees it

	stop     chan struct{}
	flows    sync.WaitGroup
	progress []*atomic.Int64
}

func newKeyChange(t *testing.T) *keyChange {
	t.Helper()
	key := newKey(t)
	k := &keyChange{stop: make(chan struct{})}
	for i := range 2 {
		e := newEdge(t, newKey(t), "127.0.0.1:0")
		e.serveKeys(t, testControl)
		p, err := e.network(t, "berlin").AddConnector(ConnectorConfig{
			Name: "b1", PublicKey: key.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		})
		if err != nil {
			t.Fatal(err)
		}
		k.edges, k.peers = append(k.edges, e), append(k.peers, p)
		if i == 0 {
			k.testConnector = newConnector(t, key, e, handlers{tcp: echoTCP, udp: echoUDP})
			k.far = append(k.far, k.edge)
			continue
		}
		far, err := k.AddEdge(EdgeConfig{Name: "second", PublicKey: e.PublicKey(), Endpoint: e.addr()})
		if err != nil {
			t.Fatal(err)
		}
		if err := far.Stack().ForwardTCP(netstack.ForwardTCPConfig{Handler: echoTCP}); err != nil {
			t.Fatal(err)
		}
		k.far = append(k.far, far)
	}
	for i, e := range k.edges {
		e.await(t, "the connector joins", k.peers[i].Alive)
		k.await(t, "the edge is alive", k.far[i].Alive)
	}
	return k
}

// start begins one bulk flow through each edge.
func (k *keyChange) start(t *testing.T) {
	t.Helper()
	for i, e := range k.edges {
		conn, _ := dialTCP(t, e.networks["berlin"], "10.0.0.1:7")
		progress := new(atomic.Int64)
		k.progress = append(k.progress, progress)
		k.flows.Go(func() {
			if err := stream(conn, k.stop, progress); err != nil {
				t.Errorf("the flow through edge %d: %v", i, err)
			}
		})
	}
}

// change takes all through one change of the connector's key.
func (k *keyChange) change(t *testing.T) {
	t.Helper()
	old, next := k.PublicKey(), newKey(t)
	for _, p := range k.peers {
		if err := p.AddKey(next.PublicKey()); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.SetPrivateKey(next); err != nil {
		t.Fatal(err)
	}
	for i, p := range k.peers {
		k.edges[i].await(t, "the edge follows", func() bool { return p.PublicKey() == next.PublicKey() })
		if p.Overlay() != k.Overlay() || k.Overlay() != OverlayAddr(next.PublicKey()) {
			t.Errorf("the edge says %v, the connector %v", p.Overlay(), k.Overlay())
		}
	}
	for i, e := range k.edges {
		if key, err := overlayGet(t, k.Tunnel, netip.AddrPortFrom(e.Overlay(), testControl)); err != nil || key != next.PublicKey().String() {
			t.Errorf("the control port answered %q, %v; want the new key", key, err)
		}
		k.peers[i].DropKey(old)
		if _, ok := e.KeyAt(OverlayAddr(old)); ok {
			t.Error("the old key is known still")
		}
	}
}

// TestKeyChangesUnderLoad: a connector at two edges changes its key again and
// again, and no flow notices.
func TestKeyChangesUnderLoad(t *testing.T) {
	changes := 20
	if testing.Short() || raceEnabled {
		changes = 4
	}
	k := newKeyChange(t)
	k.start(t)
	counted := make([]PeerState, len(k.peers))
	for range changes {
		before := []int64{k.progress[0].Load(), k.progress[1].Load()}
		start := time.Now()
		k.change(t)
		took := time.Since(start)
		for i, p := range k.peers {
			k.edges[i].await(t, "the flow goes on", func() bool { return k.progress[i].Load() > before[i]+1<<20 })
			s := p.State()
			if s.RxBytes < counted[i].RxBytes || s.TxBytes < counted[i].TxBytes {
				t.Errorf("counts fell from %d and %d to %d and %d", counted[i].RxBytes, counted[i].TxBytes, s.RxBytes, s.TxBytes)
			}
			if counted[i] = s; !s.Alive || s.Flows != 1 {
				t.Errorf("after a change: %+v", s)
			}
		}
		t.Logf("changed in %v", took)
	}
	close(k.stop)
	k.flows.Wait()
	for i := range k.edges {
		if n := k.far[i].State(); !n.Alive {
			t.Errorf("edge %d: %+v", i, n)
		}
	}
}

// TestKeyAddedBeforeAnythingWasHeard: an edge that restarts in the middle of a
// change knows both keys, and takes whichever calls.
func TestKeyAddedBeforeAnythingWasHeard(t *testing.T) {
	for _, changed := range []bool{false, true} {
		t.Run(fmt.Sprintf("changed %v", changed), func(t *testing.T) {
			e := newEdge(t, newKey(t), "127.0.0.1:0")
			n := e.network(t, "berlin")
			old, next := newKey(t), newKey(t)
			p, err := n.AddConnector(ConnectorConfig{Name: "b1", PublicKey: old.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second does nothing
				if err := p.AddKey(next.PublicKey()); err != nil {
					t.Fatal(err)
				}
			}
			calls := old
			if changed {
				calls = next
			}
			c := newConnector(t, calls, e, handlers{tcp: greetTCP("hello")})
			e.await(t, "it joins", p.Alive)
			if p.PublicKey() != calls.PublicKey() {
				t.Errorf("the key in use is %v, want %v", p.PublicKey(), calls.PublicKey())
			}
			conn, _ := dialTCP(t, n, "10.0.0.1:80")
			if b, err := io.ReadAll(conn); string(b) != "hello" || err != nil {
				t.Errorf("read %q, %v", b, err)
			}
			if changed {
				return
			}
			if err := c.SetPrivateKey(next); err != nil {
				t.Fatal(err)
			}
			e.await(t, "the change is followed", func() bool { return p.PublicKey() == next.PublicKey() })
		})
	}
}

// TestOldKeyIsTakenUntilItIsDropped, and does not turn the edge back.
func TestOldKeyIsTakenUntilItIsDropped(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	old, next := newKey(t), newKey(t)
	p, err := n.AddConnector(ConnectorConfig{Name: "b1", PublicKey: old.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AddKey(next.PublicKey()); err != nil {
		t.Fatal(err)
	}
	now, before := newHostile(t, "next", next, e), newHostile(t, "old", old, e)
	from := func(h *hostile) [][]byte {
		return [][]byte{h.wrap(e, udp(privateHost, netip.MustParseAddrPort("100.127.0.1:53"), make([]byte, 8)), nil)}
	}
	before.out <- from(before)
	e.await(t, "the old key is taken", func() bool { return e.admitted.Load() == 1 })
	if p.PublicKey() != old.PublicKey() {
		t.Error("the edge follows the old key")
	}
	now.out <- from(now)
	e.await(t, "the new key is taken", func() bool { return e.admitted.Load() == 2 })
	if p.PublicKey() != next.PublicKey() {
		t.Error("the edge does not follow the new key")
	}
	heard := p.heardAt.Load()
	before.out <- from(before)
	e.await(t, "the old key is taken still", func() bool { return e.admitted.Load() == 3 })
	if p.PublicKey() != next.PublicKey() || p.heardAt.Load() != heard {
		t.Error("the old key turned the edge back, or passes for a sign of life")
	}
	p.DropKey(next.PublicKey()) // in use: not dropped
	p.DropKey(old.PublicKey())
	before.out <- from(before)
	now.out <- from(now)
	e.await(t, "the new key is taken still", func() bool { return e.admitted.Load() == 4 })
	if got := e.sessionAt(OverlayAddr(old.PublicKey())); got != nil {
		t.Error("the old key has a session still")
	}

	third := newKey(t).PublicKey()
	if err := p.AddKey(third); err != nil {
		t.Fatal(err)
	}
	if err := p.AddKey(old.PublicKey()); err != nil { // replaces it
		t.Error(err)
	}
	if _, ok := e.KeyAt(OverlayAddr(third)); ok {
		t.Error("a key that was replaced is known")
	}
	p.Remove()
	if err := p.AddKey(third); err == nil {
		t.Error("a key was added to a connector that was removed")
	}
	for _, key := range []wgtypes.Key{old.PublicKey(), next.PublicKey(), third} {
		if _, err := n.AddConnector(ConnectorConfig{PublicKey: key}); err != nil {
			t.Errorf("adding a key that was given up: %v", err)
		}
	}
}

// TestKnownKeysAreRefused, in every way that a key can come in.
func TestKnownKeysAreRefused(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	private := map[string]wgtypes.Key{}
	for _, who := range []string{"connector", "connector's next", "another connector", "guest", "edge", "demoted"} {
		private[who] = newKey(t)
	}
	key := func(who string) wgtypes.Key { return private[who].PublicKey() }
	p, err := n.AddConnector(ConnectorConfig{Name: "p", PublicKey: key("connector")})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AddKey(key("connector's next")); err != nil {
		t.Fatal(err)
	}
	q, err := n.AddConnector(ConnectorConfig{Name: "q", PublicKey: key("another connector")})
	if err != nil {
		t.Fatal(err)
	}
	d, err := n.AddConnector(ConnectorConfig{Name: "d", PublicKey: key("demoted")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Demote(testControl); err != nil {
		t.Fatal(err)
	}
	e.guest(t, private["guest"])
	if _, err := e.AddEdge(EdgeConfig{PublicKey: key("edge")}); err != nil {
		t.Fatal(err)
	}
	former := e.key
	private["own"] = newKey(t)
	if err := e.SetPrivateKey(private["own"]); err != nil {
		t.Fatal(err)
	}
	private["own, former"] = former
	for who, k := range private {
		public := k.PublicKey()
		for way, add := range map[string]func() error{
			"AddConnector": func() error { _, err := n.AddConnector(ConnectorConfig{PublicKey: public}); return err },
			"AddEdge":      func() error { _, err := e.AddEdge(EdgeConfig{PublicKey: public}); return err },
			"AddGuest":     func() error { _, err := e.AddGuest(GuestConfig{PublicKey: public}); return err },
			"AddKey":       func() error { return q.AddKey(public) },
		} {
			if err := add(); !errors.Is(err, ErrKnownKey) {
				t.Errorf("%s with the key of %s: %v, want %v", way, who, err, ErrKnownKey)
			}
		}
		if who != "own" && who != "own, former" {
			if err := e.SetPrivateKey(k); !errors.Is(err, ErrKnownKey) {
				t.Errorf("SetPrivateKey with the key of %s: %v, want %v", who, err, ErrKnownKey)
			}
		}
	}
	if err := e.SetPrivateKey(former); err != nil { // back again
		t.Error(err)
	}
	if err := e.SetPrivateKey(former); err != nil {
		t.Error(err)
	}
	if e.PublicKey() != former.PublicKey() || e.Overlay() != OverlayAddr(former.PublicKey()) {
		t.Error("the key is not ours")
	}
	fresh := newKey(t)
	if err := e.SetPrivateKey(fresh); err != nil {
		t.Fatal(err)
	}
	if _, err := e.AddGuest(GuestConfig{PublicKey: private["own"].PublicKey()}); err != nil {
		t.Errorf("adding a key that was ours twice ago: %v", err)
	}
	e.Close()
	for _, key := range []wgtypes.Key{newKey(t), former} {
		if err := e.SetPrivateKey(key); !errors.Is(err, ErrClosed) {
			t.Errorf("changing the key of a closed tunnel: %v", err)
		}
	}
}

// TestEdgeThatDoesNotKnowTheNewKey is given up, and the other one serves on.
func TestEdgeThatDoesNotKnowTheNewKey(t *testing.T) {
	k := newKeyChange(t)
	next := newKey(t)
	if err := k.peers[0].AddKey(next.PublicKey()); err != nil {
		t.Fatal(err)
	}
	if err := k.SetPrivateKey(next); err != nil {
		t.Fatal(err)
	}
	k.edges[0].await(t, "the first edge follows", func() bool { return k.peers[0].PublicKey() == next.PublicKey() })
	k.edges[1].await(t, "the second edge gives the connector up", func() bool { return !k.peers[1].Alive() })
	k.await(t, "and is given up", func() bool { return !k.far[1].Alive() })
	if !k.far[0].Alive() || !k.peers[0].Alive() {
		t.Error("the first edge was given up too")
	}
	if err := k.peers[1].AddKey(next.PublicKey()); err != nil {
		t.Fatal(err)
	}
	k.edges[1].await(t, "the second edge follows", func() bool { return k.peers[1].Alive() })
	k.await(t, "the second edge is found again", k.far[1].Alive)
}

// TestLostHandshakeOfAKeyChange: it is begun again within a second or so, where
// wireguard-go alone would take five and both ends have given up by then.
func TestLostHandshakeOfAKeyChange(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	way := newStall(t, e.addr())
	key, next := newKey(t), newKey(t)
	p, err := n.AddConnector(ConnectorConfig{Name: "b1", PublicKey: key.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AddKey(next.PublicKey()); err != nil {
		t.Fatal(err)
	}
	c := &testConnector{events: newEvents()}
	deaths := new(atomic.Int64)
	c.Tunnel, err = New(Config{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0"), OnPeer: func(p *Peer, s PeerState) {
		if !s.Alive {
			deaths.Add(1)
		}
		c.onPeer(p, s)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.edge, err = c.AddEdge(EdgeConfig{Name: "edge", PublicKey: e.PublicKey(), Endpoint: way.near.LocalAddr().(*net.UDPAddr).AddrPort()})
	if err != nil {
		t.Fatal(err)
	}
	c.await(t, "the edge is found", c.edge.Alive)
	way.lose(1)
	if err := c.SetPrivateKey(next); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	e.await(t, "the change is followed", func() bool { return p.PublicKey() == next.PublicKey() })
	t.Logf("followed after %v, given up %d times", time.Since(start), deaths.Load())
}

// TestCloseDuringAKeyChange: whichever is first, nothing is left (the leak
// check sees to it).
func TestCloseDuringAKeyChange(t *testing.T) {
	for range 20 {
		e := newEdge(t, newKey(t), "127.0.0.1:0")
		c := newConnector(t, newKey(t), e, handlers{})
		var both sync.WaitGroup
		both.Go(func() {
			if err := c.SetPrivateKey(newKey(t)); err != nil && !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
		both.Go(c.Close)
		both.Wait()
	}
}
