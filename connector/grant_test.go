package connector

import (
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
)

func TestNewRoutesCutWhatTheyDoNotHold(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.echoes("10.0.0.10:80", "10.1.0.10:80")
		b.start()
		b.join()
		stays, staysEnd := b.flowAt(testEdge, "10.0.0.10:80")
		goes, goesEnd := b.flowAt(testEdge, "10.1.0.10:80")

		c.change(func(g *wire.Grant) { g.Routes = prefixes("10.0.0.0/16") })
		isCut(t, goes, goesEnd)
		stays.carries(t)
		if got := b.log.with("routes=[10.0.0.0/16]"); len(got) != 1 || !strings.Contains(got[0], "cut_flows=1") {
			t.Errorf("the log says %q", b.log.with("granted"))
		}
		refused := newTCPRequest("10.1.0.10:80")
		<-b.tcp(refused)
		if err := refused.verdict(t); netx.Classify(err) != netx.ErrUnreachable || !strings.Contains(err.Error(), "10.1.0.10 is outside the edge's routes: [10.0.0.0/16]") {
			t.Errorf("a flow outside the routes got %v", err)
		}
		if b.dials("tcp", resultDenied) != 1 {
			t.Error("it was not counted as denied")
		}
		c.change(func(g *wire.Grant) { g.Routes = prefixes("10.0.0.0/16", "10.1.0.10/32") })
		again, againEnd := b.flowAt(testEdge, "10.1.0.10:80")
		c.change(func(g *wire.Grant) { g.Routes = nil })
		isCut(t, again, againEnd)
		isCut(t, stays, staysEnd)
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestUDPFlowsKeepToTheRoutes(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		l, err := b.origins.ListenPacket(at("10.0.0.53:53")[0])
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		b.start()
		p := b.join()
		r := newUDPRequest("10.0.0.53:53")
		ended := make(chan struct{})
		go func() { defer close(ended); p.cfg.UDP(r) }()
		synctest.Wait()
		if err := r.verdict(t); err != nil {
			t.Fatal(err)
		}
		c.change(func(g *wire.Grant) { g.Routes = prefixes("192.0.2.0/24") })
		<-ended
		if n := b.c.Status().UDPFlows; n != 0 {
			t.Errorf("%d flows live", n)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestGrantedLimits(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.echoes("10.0.0.10:80")
		c.answer.Grant.MaxTCPFlows = 1
		b.start()
		b.join()
		first, ended := b.flowAt(testEdge, "10.0.0.10:80")
		second := newTCPRequest("10.0.0.10:80")
		<-b.tcp(second)
		if err := second.verdict(t); netx.Classify(err) != netx.ErrUnreachable || b.dials("tcp", resultLimit) != 1 {
			t.Errorf("beyond the edge's limit, a flow got %v", err)
		}
		c.change(func(g *wire.Grant) { g.MaxTCPFlows = 0 })
		third, thirdEnd := b.flowAt(testEdge, "10.0.0.10:80")
		c.change(func(g *wire.Grant) { g.MaxTCPFlows = 1 }) // cuts nobody
		first.carries(t)
		third.carries(t)
		first.hangUp(ended)
		third.hangUp(thirdEnd)
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// At the edge's limit, too, an idle UDP flow makes room; its other place is
// given back with it.
func TestGrantedLimitOfUDPFlows(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		l, err := b.origins.ListenPacket(at("10.0.0.53:53")[0])
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		c.answer.Grant.MaxUDPFlows = 1
		b.start()
		p := b.join()
		open := func() (*udpRequest, <-chan struct{}) {
			r, ended := newUDPRequest("10.0.0.53:53"), make(chan struct{})
			go func() { defer close(ended); p.cfg.UDP(r) }()
			synctest.Wait()
			return r, ended
		}
		first, firstEnd := open()
		second, secondEnd := open()
		<-secondEnd
		if err := errors.Join(first.verdict(t), second.verdict(t)); netx.Classify(err) != netx.ErrUnreachable || b.dials("udp", resultLimit) != 1 {
			t.Errorf("the flows got %v", err)
		}
		time.Sleep(yieldAfter)
		third, thirdEnd := open()
		<-firstEnd
		if err := third.verdict(t); err != nil {
			t.Error(err)
		}
		if n := b.c.Status().UDPFlows; n != 1 {
			t.Errorf("%d flows live", n)
		}
		_ = third.edge.Close()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
		<-thirdEnd
	})
}

func TestEdgeDrainsTheConnector(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.echoes("10.0.0.10:80")
		b.start()
		p := b.join()
		r, ended := b.flowAt(testEdge, "10.0.0.10:80")
		c.change(func(g *wire.Grant) { g.Drain = true })
		refused := newTCPRequest("10.0.0.10:80")
		<-b.tcp(refused)
		if err := refused.verdict(t); netx.Classify(err) != netx.ErrUnreachable || b.dials("tcp", resultDraining) != 1 {
			t.Errorf("a new flow got %v", err)
		}
		time.Sleep(time.Hour)
		r.carries(t)

		c.change(func(g *wire.Grant) { g.Drain = false }) // the operator thinks again
		other, otherEnd := b.flowAt(testEdge, "10.0.0.10:80")
		c.change(func(g *wire.Grant) { g.Drain = true })
		r.hangUp(ended)
		p.set(State{Alive: true, Flows: 1}) // the last bytes of the other are on the way
		other.hangUp(otherEnd)
		time.Sleep(time.Minute)
		synctest.Wait()
		if p.isRemoved() {
			t.Error("the edge was left before the last byte had reached it")
		}
		p.set(State{Alive: true})
		if err := <-b.end; err != nil {
			t.Errorf("Run returned %v", err)
		}
		if got := b.log.with("left reason=drained by the edge"); len(got) != 1 || !p.isRemoved() {
			t.Errorf("the log says %q; the peer was removed: %v", got, p.isRemoved())
		}
	})
}

func TestRevokedConnectorEnds(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.echoes("10.0.0.10:80")
		b.start()
		p := b.join()
		r, ended := b.flowAt(testEdge, "10.0.0.10:80")
		c.set(func() {
			c.refusal = wire.Refuse(wire.CodeRevoked, "connector %q was revoked on 2026-01-02", "berlin-1")
		})
		err := <-b.end
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `edge "edge.example:51820": connector "berlin-1" was revoked on 2026-01-02`) {
			t.Errorf("Run returned %v", err)
		}
		synctest.Wait()
		isCut(t, r, ended)
		if got := b.log.with("given up"); len(got) != 1 || !p.isRemoved() {
			t.Errorf("the log says %q; the peer was removed: %v", got, p.isRemoved())
		}
		if s := b.c.Status().Edges[0]; !strings.Contains(s.Gone, "revoked") || b.c.Status().Ready() {
			t.Errorf("status %+v", s)
		}
	})
}

// Each edge is for itself: what one refuses, drains or grants is nothing to
// the other.
func TestEdgesAreIndependent(t *testing.T) {
	const other = "other.example:51820"
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.echoes("10.0.0.10:80", "10.1.0.10:80")
		d := b.declare(other, "198.51.100.7")
		b.start()
		first, second := b.joinAt(testEdge), b.joinAt(other)
		goes, goesEnd := b.flowAt(testEdge, "10.0.0.10:80")
		stays, staysEnd := b.flowAt(other, "10.0.0.10:80")
		c.change(func(g *wire.Grant) { g.Routes, g.MaxTCPFlows = prefixes("10.1.0.0/16"), 1 })
		isCut(t, goes, goesEnd)
		stays.carries(t)
		_, limitEnd := b.flowAt(testEdge, "10.1.0.10:80")
		more, moreEnd := b.flowAt(other, "10.0.0.10:80")

		c.set(func() { c.refusal = wire.Refuse(wire.CodeRevoked, "revoked") })
		synctest.Wait()
		<-limitEnd
		if !first.isRemoved() || second.isRemoved() {
			t.Errorf("removed: %v and %v", first.isRemoved(), second.isRemoved())
		}
		stays.carries(t)
		more.hangUp(moreEnd)
		if !b.c.Status().Ready() {
			t.Error("not ready, though an edge is served")
		}
		stays.hangUp(staysEnd)
		d.set(func() { d.refusal = wire.Refuse(wire.CodeRevoked, "revoked there too") })
		if err := <-b.end; !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `"edge.example:51820": revoked; edge "other.example:51820": revoked there too`) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestRefusedAndThenDrainedIsNoFailure(t *testing.T) {
	const other = "other.example:51820"
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		d := b.declare(other, "198.51.100.7")
		b.start()
		b.joinAt(testEdge)
		b.joinAt(other)
		c.set(func() { c.refusal = wire.Refuse(wire.CodeRevoked, "revoked") })
		synctest.Wait()
		d.change(func(g *wire.Grant) { g.Drain = true })
		if err := <-b.end; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestGrantBeforeTheFirstIsAny(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.echoes("192.0.2.1:80")
		c.silent = true
		b.start()
		b.join()
		r, ended := b.flowAt(testEdge, "192.0.2.1:80")
		r.hangUp(ended)
		never := newTCPRequest("169.254.169.254:80")
		<-b.tcp(never)
		if err := never.verdict(t); netx.Classify(err) != netx.ErrUnreachable {
			t.Errorf("a metadata address got %v", err)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestLimitOfNoLimit(t *testing.T) {
	g, err := readGrant(wire.SyncAnswer{Revision: 1}, newKey(t).PublicKey())
	if err != nil || g.maxTCP != math.MaxInt || g.routes.hold(at("10.0.0.1:1")[0].Addr()) {
		t.Errorf("%+v, %v", g, err)
	}
}
