package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Trap 8: Remove ends the NIC's flows both ways before it goes, and leaves
// those of others alone.
func TestRemoveAbortsFlows(t *testing.T) {
	r := newReplicas(t)
	idle, idlePeer := r.pair(t, service4)
	busy, busyPeer := r.pair(t, service6)
	udp := r.dial(t, "udp", service4)
	other := r.dialThroughRival(t)

	errs := make(chan error, 4)
	go func() { _, err := idle.Read(make([]byte, 1)); errs <- err }()
	go func() { errs <- idle.WaitReadable() }()
	go func() { _, err := io.Copy(io.Discard, udp); errs <- err }()
	go func() {
		var err error
		for err == nil {
			_, err = busy.Write(make([]byte, 1<<20))
		}
		errs <- err
	}()
	if n := r.nic.Flows(); n != 3 {
		t.Errorf("%d flows, want 3", n)
	}
	r.nic.Remove()
	r.nic.Remove() // again does nothing
	for range 4 {
		if err := <-errs; !errors.Is(err, ErrAborted) {
			t.Errorf("a blocked call returned %v, want ErrAborted", err)
		}
	}
	if _, err := idle.Write([]byte("x")); !errors.Is(err, ErrAborted) {
		t.Errorf("write: %v, want ErrAborted", err)
	}
	// The peers were sent a RST.
	for _, peer := range []*TCPConn{idlePeer, busyPeer} {
		if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the peer read %v, want a reset", err)
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		if _, err := r.nic.DialContext(r.ctx, network, service4); !errors.Is(err, netx.ErrNoRoute) {
			t.Errorf("dialling %s through a NIC that was removed: %v", network, err)
		}
	}
	if _, err := r.nic.Listen(r.ctx, "tcp", netip.AddrPortFrom(source4, 0)); err == nil {
		t.Error("listening on a NIC that was removed worked")
	}
	if n := r.nic.Flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
	if _, err := other.Write([]byte("x")); err != nil {
		t.Errorf("the flow of another NIC: %v", err)
	}
}

// dialThroughRival gives the second NIC a connector of its own and dials.
func (r *replicas) dialThroughRival(t *testing.T) net.Conn {
	t.Helper()
	s := newStack(t, Config{Promiscuous: true})
	addNIC(t, s, NICConfig{Link: r.rivalEnd.peer})
	s.ForwardTCP(ForwardTCPConfig{Handler: func(q *TCPRequest) {
		if c, err := q.Accept(); err == nil {
			defer c.Close()
			io.Copy(io.Discard, c)
		}
	}})
	c, err := r.rival.DialContext(r.ctx, "tcp", service4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAbortFlowsByMatch(t *testing.T) {
	l := newLab(t)
	conns := l.acceptTCP(t)
	lost := netip.MustParsePrefix("10.1.0.0/16")
	kept := l.dial(t, "tcp", service4)
	<-conns
	gone := l.dial(t, "tcp", netip.MustParseAddrPort("10.1.2.3:80"))
	peer := <-conns
	n := l.nic.AbortFlows(func(local, remote netip.AddrPort) bool {
		return local.Addr() == source4 && lost.Contains(remote.Addr())
	})
	if n != 1 {
		t.Errorf("%d flows were aborted, want 1", n)
	}
	if _, err := gone.Read(make([]byte, 1)); !errors.Is(err, ErrAborted) {
		t.Errorf("read %v, want ErrAborted", err)
	}
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer read %v, want a reset", err)
	}
	if _, err := kept.Write([]byte("x")); err != nil {
		t.Errorf("the other flow: %v", err)
	}
}

// A conn that was closed is still a flow until its bytes have arrived, and
// goes with its NIC.
func TestClosedButUndeliveredIsAborted(t *testing.T) {
	l := newLab(t)
	a, _ := l.pair(t, service4)
	l.edgeEnd.setFilter(func([]byte) int { return 0 })
	a.Write([]byte("never arrives"))
	a.Close()
	if n := l.nic.Flows(); n != 1 {
		t.Fatalf("%d flows, want the closed one", n)
	}
	l.nic.Remove()
	if n := l.nic.Flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

// A dial under way ends with its NIC and says that there is no way any more.
func TestRemoveEndsDials(t *testing.T) {
	l := newLab(t)
	sent := make(chan struct{})
	var once sync.Once
	l.edgeEnd.setFilter(func([]byte) int { once.Do(func() { close(sent) }); return 0 })
	dialled := make(chan error)
	go func() { _, err := l.nic.DialContext(l.ctx, "tcp", service4); dialled <- err }()
	<-sent
	l.nic.Remove()
	if err := <-dialled; !errors.Is(err, netx.ErrNoRoute) {
		t.Errorf("the dial ended with %v", err)
	}
}

// stuckLink takes nothing once it is stuck, until it is closed: the link of a
// tunnel that nobody reads.
type stuckLink struct {
	*wireEnd
	stuck atomic.Bool
	freed chan struct{}
	once  sync.Once
}

func (s *stuckLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	if s.stuck.Load() {
		<-s.freed
		return 0, &tcpip.ErrClosedForSend{}
	}
	return s.wireEnd.WritePackets(pkts)
}

func (s *stuckLink) Close() {
	s.once.Do(func() { close(s.freed) })
	s.wireEnd.Close()
}

// A sender that waits for room in the link holds its endpoint's lock, which
// Remove needs: it must not wait for ever.
func TestRemoveWithStuckLink(t *testing.T) {
	near, far := newWire(1400)
	link := &stuckLink{wireEnd: near, freed: make(chan struct{})}
	edge, connector := newStack(t, Config{}), newStack(t, Config{Promiscuous: true})
	nic := addNIC(t, edge, NICConfig{Link: link, Sources: []netip.Addr{source4}})
	l := &lab{edge: edge, connector: connector, nic: nic, cnic: addNIC(t, connector, NICConfig{Link: far}), ctx: t.Context()}
	a, _ := l.pair(t, service4)
	link.stuck.Store(true)
	wrote := make(chan error)
	go func() {
		var err error
		for err == nil {
			_, err = a.Write(make([]byte, 1<<20))
		}
		wrote <- err
	}()
	nic.Remove()
	if err := <-wrote; !errors.Is(err, ErrAborted) {
		t.Errorf("the blocked write returned %v", err)
	}
}

// NICs come and go while others carry traffic.
func TestNICsUnderTraffic(t *testing.T) {
	rounds := 20
	edge := newStack(t, Config{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range rounds {
				near, far := newWire(1400)
				connector, err := New(Config{Promiscuous: true})
				if err != nil {
					t.Error(err)
					return
				}
				connector.ForwardTCP(ForwardTCPConfig{Handler: func(q *TCPRequest) {
					if c, err := q.Accept(); err == nil {
						defer c.Close()
						io.Copy(c, c)
					}
				}})
				_, err = connector.AddNIC(NICConfig{Link: far})
				if err != nil {
					t.Error(err)
				}
				nic, err := edge.AddNIC(NICConfig{Link: near, Sources: []netip.Addr{source4}})
				if err != nil {
					t.Error(err)
					return
				}
				c, err := nic.DialContext(t.Context(), "tcp", service4)
				if err != nil {
					t.Error(err)
					return
				}
				go io.Copy(io.Discard, c)
				c.Write(make([]byte, 100<<10))
				nic.Remove()
				connector.Close()
			}
		})
	}
	wg.Wait()
}

func TestAddNICRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		source string
	}{
		{"unspecified", "0.0.0.0"}, {"multicast", "224.0.0.1"}, {"loopback", "127.0.0.1"}, {"zone", "fe80::1%lo"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near, far := newWire(1400)
			defer near.Close()
			defer far.Close()
			s := newStack(t, Config{})
			if _, err := s.AddNIC(NICConfig{Link: near, Sources: []netip.Addr{netip.MustParseAddr(tt.source)}}); err == nil {
				t.Error("it was taken")
			}
		})
	}
	t.Run("no link", func(t *testing.T) {
		if _, err := newStack(t, Config{}).AddNIC(NICConfig{}); err == nil {
			t.Error("it was taken")
		}
	})
	t.Run("second on a promiscuous stack", func(t *testing.T) {
		l := newLab(t)
		near, far := newWire(1400)
		defer near.Close()
		defer far.Close()
		if _, err := l.connector.AddNIC(NICConfig{Link: near}); err == nil {
			t.Error("it was taken")
		}
		l.cnic.Remove()
		if _, err := l.connector.AddNIC(NICConfig{Link: near}); err != nil {
			t.Errorf("after the first was removed: %v", err)
		}
	})
	t.Run("closed stack", func(t *testing.T) {
		near, far := newWire(1400)
		defer near.Close()
		defer far.Close()
		s := newStack(t, Config{})
		s.Close()
		if _, err := s.AddNIC(NICConfig{Link: near}); err == nil {
			t.Error("it was taken")
		}
	})
}

// The link stays silent until somebody dials: no solicitations, no reports.
func TestNoChatter(t *testing.T) {
	near, far := newWire(1400)
	sent := &capture{}
	near.setFilter(sent.filter)
	s := newStack(t, Config{})
	n := addNIC(t, s, NICConfig{Link: near, Sources: []netip.Addr{source4, source6}})
	u, err := n.DialContext(t.Context(), "udp", service6)
	if err != nil {
		t.Fatal(err)
	}
	u.Close()
	n.Remove()
	far.Close()
	if len(sent.pkts) > 0 {
		t.Errorf("%d packets were sent, the first %x", len(sent.pkts), sent.pkts[0])
	}
}

// Stack.Close cancels handlers, ends their flows and waits for them.
func TestStackCloseWaitsForHandlers(t *testing.T) {
	l := newLab(t)
	var running atomic.Int64
	started := make(chan struct{}, 2)
	l.connector.ForwardTCP(ForwardTCPConfig{Handler: func(r *TCPRequest) {
		running.Add(1)
		defer running.Add(-1)
		c, err := r.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		started <- struct{}{}
		io.Copy(io.Discard, c)
		<-r.Context().Done()
	}})
	l.connector.ForwardUDP(ForwardUDPConfig{Handler: func(r *UDPRequest) {
		running.Add(1)
		defer running.Add(-1)
		started <- struct{}{}
		<-r.Context().Done()
		if _, err := r.Accept(); err == nil {
			t.Error("Accept worked after Close")
		}
	}})
	l.dial(t, "tcp", service4)
	l.dial(t, "udp", service4).Write([]byte("x"))
	<-started
	<-started
	l.connector.Close()
	if n := running.Load(); n != 0 {
		t.Errorf("%d handlers still run", n)
	}
	l.connector.Close()
}

func TestListener(t *testing.T) {
	l := newTwoEdges(t)
	at := netip.MustParseAddrPort("100.64.0.2:7777")
	ln, err := l.b.Listen(l.ctx, "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.b.Listen(l.ctx, "tcp", at); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listening twice: %v", err)
	}
	if _, err := l.b.Listen(l.ctx, "udp", at); err == nil {
		t.Error("listening on udp worked")
	}
	accepted := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := l.a.DialContext(l.ctx, "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		s := <-accepted
		s.Write([]byte("hi"))
		s.Close()
		if b, err := io.ReadAll(c); string(b) != "hi" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		c.Close()
	}
	ln.Close()
	if _, open := <-accepted; open {
		t.Error("something was accepted after Close")
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if _, err := l.a.DialContext(l.ctx, "tcp", at); !errors.Is(err, netx.ErrRefused) {
		t.Errorf("dialling after Close: %v", err)
	}
}

// TestFlowsOfOneHostAreBounded: what a host holds open beyond its bound is
// reset, closed by us or not; another host is served, and it too, once it let
// go.
func TestFlowsOfOneHostAreBounded(t *testing.T) {
	here, there := newWire(1400)
	t.Cleanup(here.Close)
	local := netip.MustParseAddr("100.64.0.2")
	greedy, other := netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.3")
	server := newStack(t, Config{})
	nic := addNIC(t, server, NICConfig{Link: here, Sources: []netip.Addr{local}, MaxFlowsPerHost: 2})
	client := newStack(t, Config{})
	through := addNIC(t, client, NICConfig{Link: there, Sources: []netip.Addr{greedy}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ln, err := nic.Listen(ctx, "tcp", netip.AddrPortFrom(local, 80))
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		c, err := through.DialContext(ctx, "tcp", netip.AddrPortFrom(local, 80))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first, second := dial(), dial()
	served := <-accepted
	if next := <-accepted; next.RemoteAddr().String() == first.LocalAddr().String() {
		served = next
	}
	served.Close() // which its peer does not answer
	third, err := through.DialContext(ctx, "tcp", netip.AddrPortFrom(local, 80))
	if err == nil { // else it was told before it knew that it was connected
		_, err = third.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a third flow of the host: %v, want a reset", err)
	}
	if n := server.drops.Count(whyHostFlows); n != 1 {
		t.Errorf("%d flows refused by count, want 1", n)
	}
	through.index.mu.Lock()
	through.index.sources[0] = []netip.Addr{other}
	through.index.mu.Unlock()
	through.assign(other)
	dial()
	<-accepted
	through.index.mu.Lock()
	through.index.sources[0] = []netip.Addr{greedy}
	through.index.mu.Unlock()
	first.Close()
	second.(*TCPConn).Abort()
	for nic.Flows() > 1 && ctx.Err() == nil { // TIME_WAIT is a second
		time.Sleep(time.Millisecond)
	}
	dial()
	<-accepted
}
