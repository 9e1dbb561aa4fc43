package tunnel

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestClockThatWentBack: a connector whose handshakes are dated before its last
// one is let in once it has been dead for a while, also where the edge has not
// heard a packet of it but a handshake alone. Its counts stay.
func TestClockThatWentBack(t *testing.T) {
	for _, heard := range []bool{true, false} {
		name := "never heard"
		if heard {
			name = "dead"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEdge(t, newKey(t), "127.0.0.1:0")
			n := e.network(t, "berlin")
			key := newKey(t)
			p, err := n.AddConnector(ConnectorConfig{Name: "b1", PublicKey: key.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
			if err != nil {
				t.Fatal(err)
			}
			if heard {
				first := newConnector(t, key, e, handlers{})
				e.await(t, "it joins", p.Alive)
				first.Close()
				e.await(t, "it leaves", func() bool { return !p.Alive() })
			}
			shake(t, e, key, time.Now().Add(time.Hour))
			e.forgetDeviceState()
			before := p.State()
			c := newConnector(t, key, e, handlers{tcp: greetTCP("hello")})
			c.await(t, "the edge is called", func() bool { return c.edge.State().TxBytes > 0 })
			if c.edge.Alive() {
				t.Fatal("a handshake that is dated before the last one was answered")
			}
			since := time.Now()
			e.await(t, "it is let in", p.Alive)
			t.Logf("let in after %v", time.Since(since))
			if s := p.State(); s.RxBytes < before.RxBytes || s.TxBytes < before.TxBytes {
				t.Errorf("counts fell from %d and %d to %d and %d", before.RxBytes, before.TxBytes, s.RxBytes, s.TxBytes)
			}
			conn, _ := dialTCP(t, n, "10.0.0.1:80")
			if b, err := io.ReadAll(conn); string(b) != "hello" || err != nil {
				t.Errorf("read %q, %v", b, err)
			}
		})
	}
}

// TestRecordedHandshakes: whoever recorded the handshakes of a connector plays
// them back to the edge after a restart, before the connector is back and once
// it is: the edge sends to the connector all the same.
func TestRecordedHandshakes(t *testing.T) {
	key, edgeKey := newKey(t), newKey(t)
	e := newEdge(t, edgeKey, "127.0.0.1:0")
	at := e.addr().String()
	cfg := ConnectorConfig{Name: "b1", PublicKey: key.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	if _, err := e.network(t, "berlin").AddConnector(cfg); err != nil {
		t.Fatal(err)
	}
	way := newStall(t, e.addr())
	c := &testConnector{events: newEvents()}
	var err error
	c.Tunnel, err = New(Config{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0"), OnPeer: c.onPeer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.edge, err = c.AddEdge(EdgeConfig{Name: "edge", PublicKey: e.PublicKey(), Endpoint: way.near.LocalAddr().(*net.UDPAddr).AddrPort()})
	if err != nil {
		t.Fatal(err)
	}
	c.await(t, "the edge is found", c.edge.Alive)
	_ = e.device.Down() // killed

	second := newEdge(t, edgeKey, at)
	n := second.network(t, "berlin")
	p, err := n.AddConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	attacker := send(t, second.addr(), way.recorded()[0])
	if !answered(t, attacker, patience) { // WireGuard cannot know better yet
		t.Fatal("the edge had forgotten nothing")
	}
	second.await(t, "the connector joins again", p.Alive)
	connector := way.far.LocalAddr().(*net.UDPAddr).AddrPort()
	endpoint := func() netip.AddrPort {
		second.forgetDeviceState()
		return p.State().Endpoint
	}
	if at := endpoint(); at != connector {
		t.Errorf("the edge sends to %v, want %v", at, connector)
	}
	received := second.bind.Stats().RxDatagrams
	for _, m := range way.recorded() {
		if _, err := attacker.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	second.await(t, "the recordings arrive", func() bool { return second.bind.Stats().RxDatagrams >= received+uint64(len(way.recorded())) })
	heard := c.edge.State().Heard
	c.await(t, "the edge is heard", func() bool { return c.edge.State().Heard.After(heard) })
	if at := endpoint(); at != connector {
		t.Errorf("the edge sends to %v, want %v", at, connector)
	}
	_ = attacker.SetReadDeadline(time.Now())
	if n, err := attacker.Read(make([]byte, 1500)); err == nil {
		t.Errorf("a recording was answered with %d bytes", n)
	}
}

// TestConnectorTakesNoHandshakes: one that the edge began once, recorded and
// played back, would point a connector that was restarted since at whoever sent
// it, and while the edge does not answer it would stay so.
func TestConnectorTakesNoHandshakes(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	c, _ := join(t, e, e.network(t, "berlin"), "b1", handlers{}, "10.0.0.0/8")
	unwanted := func() (count uint64) {
		c.Drops(func(where, why string, n uint64) {
			if where == "bind" && why == "handshake_unwanted" {
				count += n
			}
		})
		return count
	}
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(c.ListenPort()))
	attacker := send(t, to, initiation(t, e.key, c.PublicKey(), time.Now()))
	c.await(t, "the handshake is dropped", func() bool { return unwanted() == 1 })
	c.forgetDeviceState()
	if at := c.edge.State().Endpoint; at != e.addr() {
		t.Errorf("the connector sends to %v, want %v", at, e.addr())
	}
	_ = attacker.SetReadDeadline(time.Now())
	if n, err := attacker.Read(make([]byte, 1500)); err == nil {
		t.Errorf("it was answered with %d bytes", n)
	}
}

// TestThousandDeadConnectors says what they cost.
func TestThousandDeadConnectors(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	network := e.network(t, "berlin")
	const n = 1000
	for range n {
		if _, err := network.AddConnector(ConnectorConfig{Name: "b", PublicKey: newKey(t).PublicKey()}); err != nil {
			t.Fatal(err)
		}
	}
	e.forgetDeviceState()
	start := time.Now()
	for _, p := range network.Peers() {
		if due := p.silentSessions(start); len(due) > 0 {
			t.Fatalf("a connector that nobody heard of is to be renewed")
		}
	}
	t.Logf("to look at %d connectors: %v", n, time.Since(start))
	start = time.Now()
	for _, p := range network.Peers() {
		if err := p.session().renew(func() {}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("to renew one of them: %v", time.Since(start)/n)
}

// TestDeadConnectorIsRenewedOnce, and again only for what came since.
func TestDeadConnectorIsRenewedOnce(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	key := newKey(t)
	p, err := e.network(t, "berlin").AddConnector(ConnectorConfig{Name: "b1", PublicKey: key.PublicKey()})
	if err != nil {
		t.Fatal(err)
	}
	s := p.session()
	call := func() { shake(t, e, key, time.Now()) }
	look := func(at time.Time) bool { // as watch does, but for the clock
		e.forgetDeviceState()
		return len(p.silentSessions(at)) > 0
	}
	e.stop() // watch must not look too
	e.ended.Wait()
	now := time.Now()
	if look(now.Add(time.Hour)) {
		t.Error("renewed for nothing")
	}
	call()
	if look(now) || look(now.Add(deadSilence-time.Second)) {
		t.Error("due too early")
	}
	if !look(now.Add(deadSilence)) {
		t.Fatal("not due")
	}
	if err := s.renew(func() {}); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{deadSilence, time.Hour, 2 * time.Hour} {
		if look(now.Add(after)) {
			t.Errorf("due again after %v, though nothing came", after)
		}
	}
	call()
	again := time.Now()
	if look(again) || look(again.Add(deadAgain-time.Second)) {
		t.Error("due again too soon")
	}
	if !look(again.Add(deadAgain + time.Second)) {
		t.Error("not due again")
	}
}
