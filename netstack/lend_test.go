package netstack

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

var (
	client4 = netip.MustParseAddrPort("198.51.100.7:40000")
	client6 = netip.MustParseAddrPort("[2001:db8::7]:40000")
)

// dialFrom opens a flow from a client's address and returns both ends.
func (l *lab) dialFrom(t testing.TB, n *NIC, conns <-chan *TCPConn, from, to netip.AddrPort) (edge, connector *TCPConn) {
	t.Helper()
	c, err := n.DialFrom(l.ctx, "tcp", from, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s := <-conns
	t.Cleanup(func() { _ = s.Close() })
	return c.(*TCPConn), s
}

func (n *NIC) lentCount(addr netip.Addr) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lent[addr]
}

func TestDialFromClient(t *testing.T) {
	for _, tt := range []struct{ from, to netip.AddrPort }{{client4, service4}, {client6, service6}} {
		t.Run(tt.from.String(), func(t *testing.T) {
			l := newLab(t)
			conns := l.acceptTCP(t)
			a, b := l.dialFrom(t, l.nic, conns, tt.from, tt.to)
			if got := b.key.remote; got != tt.from {
				t.Errorf("the far end sees %v, want %v", got, tt.from)
			}
			if !l.nic.Lends(tt.from, tt.to) || l.nic.Lends(netip.AddrPortFrom(tt.from.Addr(), 1), tt.to) || l.nic.Lends(tt.to, tt.from) {
				t.Error("the NIC does not know its flow, or knows others")
			}
			a2, b2 := l.dialFrom(t, l.nic, conns, tt.from, tt.to) // the port is taken
			if got := b2.key.remote; got.Addr() != tt.from.Addr() || got.Port() == tt.from.Port() {
				t.Errorf("the second flow comes from %v", got)
			}
			exchange(t, a, b, 100_000)
			exchange(t, a2, b2, 100_000)
			for _, c := range []*TCPConn{a, b, a2, b2} {
				_ = c.Close()
			}
			waitFor(t, func() bool { return l.nic.Flows() == 0 })
			if n := l.nic.lentCount(tt.from.Addr()); n != 0 || l.nic.Lends(tt.from, tt.to) {
				t.Errorf("the address is still lent to %d flows", n)
			}
			a, b = l.dialFrom(t, l.nic, conns, tt.from, tt.to)
			if got := b.key.remote; got.Addr() != tt.from.Addr() || got.Port() == tt.from.Port() {
				t.Errorf("right after its end the flow comes from %v again", got)
			}
			exchange(t, a, b, 1000)
		})
	}
}

// What cannot be lent is replaced by a source of the NIC's own.
func TestDialFromWhatCannotServe(t *testing.T) {
	l := newLab(t)
	conns := l.acceptTCP(t)
	for name, from := range map[string]netip.AddrPort{
		"nothing":        {},
		"another family": client6,
		"its own":        netip.AddrPortFrom(source4, 40000),
	} {
		_, b := l.dialFrom(t, l.nic, conns, from, service4)
		if got := b.key.remote.Addr(); got != source4 {
			t.Errorf("%s: the flow comes from %v", name, got)
		}
		if l.nic.Lends(b.key.remote, service4) {
			t.Errorf("%s: a flow from the NIC's own source counts as lent", name)
		}
	}
	_, b := l.dialFrom(t, l.nic, conns, netip.AddrPortFrom(client4.Addr(), 0), service4)
	if got := b.key.remote; got.Addr() != client4.Addr() || got.Port() == 0 {
		t.Errorf("without a port the flow comes from %v", got)
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(client4.Addr().As16()), client4.Port())
	if _, b := l.dialFrom(t, l.nic, conns, mapped, service4); b.key.remote != client4 {
		t.Errorf("from an IPv4-mapped address the flow comes from %v", b.key.remote)
	}
}

// Dials that fail, and flows that are aborted from any side, give the address
// back; nothing is left answering for it.
func TestLentAddressComesBack(t *testing.T) {
	l := newLab(t)
	refused, cancel := context.WithCancel(l.ctx)
	cancel()
	if _, err := l.nic.DialFrom(refused, "tcp", client4, service4); err == nil {
		t.Fatal("a dial without time succeeded")
	}
	if _, err := l.nic.DialFrom(l.ctx, "tcp", client4, service4); err == nil {
		t.Fatal("nobody accepts, and yet the dial succeeded")
	}
	conns := l.acceptTCP(t)
	a, _ := l.dialFrom(t, l.nic, conns, client4, service4)
	a.Abort()
	l.dialFrom(t, l.nic, conns, client4, service4)
	l.nic.AbortFlows(nil)
	waitFor(t, func() bool { return l.nic.Flows() == 0 })
	if n := l.nic.lentCount(client4.Addr()); n != 0 {
		t.Errorf("the address is still lent to %d flows", n)
	}
}

// Two connectors may carry flows of one client, each its own.
func TestLentAddressOnTwoNICs(t *testing.T) {
	r := newReplicas(t)
	conns := r.acceptTCP(t)
	got := &capture{}
	a, b := r.dialFrom(t, r.nic, conns, client4, service4)
	if r.rival.Lends(client4, service4) {
		t.Fatal("a NIC knows another's flow")
	}
	// The rival has a flow of the same client too, so it answers to the
	// address; it forges the other's.
	ctx, cancel := context.WithCancel(r.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = r.rival.DialFrom(ctx, "tcp", client4, service4)
	}()
	waitFor(t, func() bool { return r.rival.Lends(client4, service4) })
	r.connectorEnd.setFilter(func(p []byte) int { got.filter(p); return 0 })
	if _, err := b.Write([]byte("true")); err != nil {
		t.Fatal(err)
	}
	genuine := got.last()
	r.rivalEnd.deliver(forgeTCP(genuine, "lies"))
	r.connectorEnd.setFilter(func([]byte) int { return 1 })
	r.edgeEnd.deliver(genuine)
	buf := make([]byte, 16)
	if n, err := a.Read(buf); string(buf[:n]) != "true" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	cancel()
	<-done
	if !r.nic.Lends(client4, service4) || r.rival.Lends(client4, service4) {
		t.Error("the end of one NIC's flow ended the other's, or not its own")
	}
	exchange(t, a, b, 10_000)
}

// waitFor waits until ok says so.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

func TestPortsOfClientsRest(t *testing.T) {
	var r restedKeys
	key := func(port uint16) flowKey {
		return flowKey{proto: protoTCP, local: netip.AddrPortFrom(client4.Addr(), port), remote: service4}
	}
	now := time.Now()
	for i := range uint16(100) {
		r.add(key(i), now.Add(time.Duration(i)*time.Millisecond))
	}
	now = now.Add(lentRest + 50*time.Millisecond)
	for i := range uint16(101) {
		if got, want := r.has(key(i), now), i > 50 && i < 100; got != want {
			t.Errorf("port %d rests: %v", i, got)
		}
	}
	if r.has(key(99), now.Add(lentRest)) || r.keys != nil || r.queue != nil {
		t.Error("memory is kept for ports that have rested")
	}
}
