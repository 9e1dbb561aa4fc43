package connector

import (
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/netstack/netx"
)

func TestUDPEchoesAndEndsIdle(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.spec.UDPIdle = 10 * time.Second
		server, err := b.origins.ListenPacket(netip.MustParseAddrPort("10.0.0.53:53"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			buf := make([]byte, 65536)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(buf[:n], from)
			}
		}()
		defer func() { _ = server.Close() }()
		b.start()
		p := b.join()
		r := newUDPRequest("10.0.0.53:53")
		var flow sync.WaitGroup
		flow.Go(func() { p.cfg.UDP(r) })
		big := strings.Repeat("x", 65507)
		for range 3 {
			if _, err := io.WriteString(r.edge, big); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 65536)
			if n, err := r.edge.Read(buf); err != nil || string(buf[:n]) != big {
				t.Fatalf("%d bytes came back, %v", n, err)
			}
			time.Sleep(9 * time.Second)
		}
		synctest.Wait()
		if b.c.Status().UDPFlows != 1 {
			t.Error("the flow ended though datagrams came within its idle time")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		flow.Wait()
		if b.c.Status().UDPFlows != 0 {
			t.Error("the flow lives after its idle time")
		}
		if len(r.conn.told) != 0 {
			t.Errorf("an idle end told the edge %v", r.conn.told)
		}
		_ = r.edge.Close()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestUDPFailures(t *testing.T) {
	tests := []struct {
		name     string
		set      func(b *bench)
		rejected error // at once
		told     error // once the flow was accepted
		result   string
	}{
		{name: "denied", set: func(b *bench) { b.spec.Guard.Deny = []guard.Rule{rule("udp/10.0.0.53")} }, rejected: netx.ErrUnreachable, result: resultDenied},
		{name: "no place", set: func(b *bench) { b.spec.MaxUDPFlows = 1 }, rejected: netx.ErrUnreachable, result: resultLimit},
		{name: "closed port", told: netx.ErrRefused, result: resultOK},
		{name: "alias to nowhere", set: func(b *bench) { b.alias("udp/10.0.0.53:53", "none.example:53") }, rejected: netx.ErrUnreachable, result: resultResolve},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				if tt.set != nil {
					tt.set(b)
				}
				b.start()
				p := b.join()
				var other *place
				if tt.name == "no place" {
					var err error
					if other, err = b.c.flows.admit("udp", netip.Addr{}, func(error) {}); err != nil {
						t.Fatal(err)
					}
				}
				r := newUDPRequest("10.0.0.53:53")
				defer func() { _ = r.edge.Close() }()
				if _, err := io.WriteString(r.edge, "query"); err != nil {
					t.Fatal(err)
				}
				p.cfg.UDP(r)
				if err := r.verdict(t); netx.Classify(err) != tt.rejected {
					t.Errorf("answered %v, want %v", err, tt.rejected)
				}
				if b.dials("udp", tt.result) != 1 {
					t.Errorf("%q was counted %d times", tt.result, b.dials("udp", tt.result))
				}
				if tt.told != nil && (len(r.conn.told) != 1 || netx.Classify(r.conn.told[0]) != tt.told) {
					t.Errorf("the edge was told %v, want %v", r.conn.told, tt.told)
				}
				if tt.name == "no place" {
					b.c.flows.done(other)
				}
				if n := b.c.Status().UDPFlows; n != 0 {
					t.Errorf("%d flows are live", n)
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// udp begins a flow with a datagram, on a goroutine as the tunnel does.
func (b *bench) udp(r *udpRequest) (ended <-chan struct{}) {
	b.t.Helper()
	p := b.tunnel.peer(b.t, testEdge)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.cfg.UDP(r)
	}()
	if _, err := io.WriteString(r.edge, "query"); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
	return done
}

// At the limit the flow that has been idle longest makes room, but only where
// it has been idle for a while.
func TestUDPIdlestFlowYields(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		const places = 3
		b.spec.MaxUDPFlows = places
		server, err := b.origins.ListenPacket(netip.MustParseAddrPort("10.0.0.53:53"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Close() }()
		b.start()
		b.join()
		var flows []*udpRequest
		var ended []<-chan struct{}
		begin := func() *udpRequest {
			r := newUDPRequest("10.0.0.53:53")
			flows = append(flows, r)
			ended = append(ended, b.udp(r))
			return r
		}
		for range places {
			begin()
			time.Sleep(time.Second)
		}
		time.Sleep(yieldAfter - places*time.Second - time.Millisecond)
		if err := begin().verdict(t); netx.Classify(err) != netx.ErrUnreachable {
			t.Errorf("a flow too many, while none is idle enough, gets %v", err)
		}
		// The oldest is the idlest no more.
		if _, err := io.WriteString(flows[0].edge, "again"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if err := begin().verdict(t); err != nil {
			t.Errorf("though a flow was idle, a new one gets %v", err)
		}
		for i, want := range []bool{true, false, true} {
			alive := true
			select {
			case <-ended[i]:
				alive = false
			default:
			}
			if alive != want {
				t.Errorf("flow %d lives: %v", i, alive)
			}
		}
		if n := b.c.Status().UDPFlows; n != places {
			t.Errorf("%d flows are live, want %d", n, places)
		}
		if got := b.log.with("raise max_udp_flows"); len(got) != 1 || !strings.Contains(got[0], "reason="+resultLimit) {
			t.Errorf("the log says %q", got)
		}
		if n := b.c.count.drops.Count(dropYielded); n != 1 {
			t.Errorf("%d were counted", n)
		}
		for i := range flows {
			<-ended[i] // idle, by now or soon
			_ = flows[i].edge.Close()
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// However the flows come and go, every place is found, and given back once.
func TestUDPPlacesUnderChurn(t *testing.T) {
	const places = 3 * yieldSample
	f := newFlows(t.Context(), 1, places)
	defer f.cut(errCut)
	var live []*place
	ended := 0
	for i := range 2000 {
		p, err := f.admit("udp", netip.Addr{}, func(error) { ended++ })
		if err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
		f.established(p, func() time.Duration { return yieldAfter })
		live = append(live, p)
		if i%7 == 0 {
			k := i * 31 % len(live)
			f.done(live[k])
			if live[k].taken {
				ended--
			}
			live = append(live[:k], live[k+1:]...)
		}
		if n := f.count("udp"); n > places || n != len(live)-ended || len(f.yielding) != n || len(f.places) != len(live) {
			t.Fatalf("after %d flows: %d live, %d may yield, %d end; the test holds %d of which %d were ended", i+1, n, len(f.yielding), len(f.places)-n, len(live), ended)
		}
	}
	for _, p := range live {
		f.done(p)
	}
	select {
	case <-f.drain():
	default:
		t.Errorf("%d places are held by nobody", len(f.places))
	}
}
