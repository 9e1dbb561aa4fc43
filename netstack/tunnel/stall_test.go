package tunnel

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// stall carries the datagrams of one connector to an edge and back. While it
// is held it keeps them, and hands them over all at once when it is let go, as
// the sockets of a process do that stood still.
type stall struct {
	near, far *net.UDPConn // towards the connector, towards the edge

	mu     sync.Mutex
	held   bool
	kept   []func()
	hellos int      // handshake initiations among kept
	losing int      // handshake initiations to lose
	tape   [][]byte // every handshake initiation so far
}

func newStall(t *testing.T, edge netip.AddrPort) *stall {
	t.Helper()
	near, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(edge))
	if err != nil {
		t.Fatal(err)
	}
	s := &stall{near: near, far: far}
	var running sync.WaitGroup
	t.Cleanup(func() {
		near.Close()
		far.Close()
		running.Wait()
	})
	var connector netip.AddrPort
	buf, back := make([]byte, 1<<16), make([]byte, 1<<16)
	running.Go(func() {
		for {
			n, from, err := near.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			connector = from
			s.mu.Unlock()
			s.pass(buf[:n], func(b []byte) { _, _ = far.Write(b) })
		}
	})
	running.Go(func() {
		for {
			n, err := far.Read(back)
			if err != nil {
				return
			}
			s.pass(back[:n], func(b []byte) { _, _ = near.WriteToUDPAddrPort(b, connector) })
		}
	})
	return s
}

// pass sends b now, or keeps a copy. send is called with mu held.
func (s *stall) pass(b []byte, send func([]byte)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hello := b[0] == 1 // wireguard.com/protocol, first message
	if hello {
		s.tape = append(s.tape, append([]byte(nil), b...))
	}
	if hello && s.losing > 0 {
		s.losing--
		return
	}
	if !s.held {
		send(b)
		return
	}
	if hello {
		s.hellos++
	}
	b = append([]byte(nil), b...)
	s.kept = append(s.kept, func() { send(b) })
}

// recorded returns the handshake initiations that came by.
func (s *stall) recorded() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tape
}

// lose loses the next n handshake initiations.
func (s *stall) lose(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.losing = n
}

func (s *stall) hold(held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = held
	for _, send := range s.kept {
		send()
	}
	s.kept = nil
}

// TestEdgeThatStoodStill: an edge that wakes up answers what it finds in its
// socket. Answers in the session that the connector gave up must not make it
// stop calling: it has none to send in, and wireguard-go calls again only
// after five seconds.
func TestEdgeThatStoodStill(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	way := newStall(t, e.addr())
	c := &testConnector{events: newEvents()}
	key := newKey(t)
	if _, err := n.AddConnector(ConnectorConfig{Name: "b1", PublicKey: key.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}); err != nil {
		t.Fatal(err)
	}
	var (
		mu    sync.Mutex
		shook []time.Time // the newest handshake, each time that the edge came
	)
	var err error
	c.Tunnel, err = New(Config{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0"), OnPeer: func(p *Peer, s PeerState) {
		if s.Alive {
			p.tunnel.forgetDeviceState()
			mu.Lock()
			shook = append(shook, p.State().LastHandshake)
			mu.Unlock()
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

	way.hold(true)
	c.await(t, "the edge is given up", func() bool { return !c.edge.Alive() })
	c.await(t, "the edge is called again", func() bool {
		way.mu.Lock()
		defer way.mu.Unlock()
		return way.hellos >= 2
	})
	way.hold(false)
	c.await(t, "the edge is found again", c.edge.Alive)
	mu.Lock()
	defer mu.Unlock()
	if len(shook) != 2 || !shook[1].After(shook[0]) {
		t.Errorf("the edge came with sessions of %v, want two, each of its own", shook)
	}
}
