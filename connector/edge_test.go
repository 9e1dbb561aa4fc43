package connector

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/netstack/tunnel"
)

func at(list ...string) (out []netip.AddrPort) {
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func TestEdgeJoins(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		var seen []string
		b.deps.OnEdge = func(url string, up bool) {
			if up {
				seen = append(seen, "up "+url)
			} else {
				seen = append(seen, "down "+url)
			}
		}
		b.start()
		if b.c.Status().Ready() {
			t.Error("ready before the edge answered")
		}
		p := b.join()
		if !b.c.Status().Ready() {
			t.Error("not ready though the edge answered")
		}
		p.set(State{})
		synctest.Wait()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
		want := []string{"made a private key", "connector starts", "routes", "resolved", "handshake", "ready", "no control", "lost", "resolved", "draining", "stopped"}
		if got := b.log.messages(); !slices.Equal(got, want) {
			t.Errorf("the log says %q, want %q", got, want)
		}
		if want := []string{"up " + testEdge, "down " + testEdge}; !slices.Equal(seen, want) {
			t.Errorf("OnEdge heard %q", seen)
		}
		if got := b.tunnel.peer(t, testEdge).called(); !slices.Equal(got, at("203.0.113.10:51820")) {
			t.Errorf("called %v", got)
		}
	})
}

func TestResolvingBacksOff(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		delete(b.resolver.names, "edge.example")
		b.start()
		time.Sleep(time.Hour)
		synctest.Wait()
		// 30 s with jitter once it has backed off.
		if n := b.resolver.count(); n < 3600/40 || n > 3600/20 {
			t.Errorf("%d lookups in an hour without DNS", n)
		}
		if got := b.log.with("resolving failed"); len(got) == 0 || !strings.Contains(got[0], `resolving edge "edge.example": lookup edge.example: no such host: is the name right`) {
			t.Errorf("the log says %q", got)
		}
		b.resolver.set("edge.example", "203.0.113.10")
		time.Sleep(40 * time.Second)
		synctest.Wait()
		b.join()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestBackoffStartsAgainAfterSuccess(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		p := b.join()
		delete(b.resolver.names, "edge.example")
		p.set(State{})
		time.Sleep(time.Hour) // far in the back-off
		synctest.Wait()
		b.join().set(State{})
		synctest.Wait()
		before := b.resolver.count()
		time.Sleep(2 * backoffFirst)
		synctest.Wait()
		if b.resolver.count() == before {
			t.Error("after a success the first wait is as long as the last before it")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestResolvingOfAnAddressAsksNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.spec.Edges[0].URLs[0].Host = "::ffff:203.0.113.9"
		b.start()
		defer func() { _ = b.finish() }()
		if n := b.resolver.count(); n != 0 {
			t.Errorf("%d lookups of an address", n)
		}
		p := b.tunnel.peer(t, b.spec.Edges[0].String())
		if got := p.called(); !slices.Equal(got, at("203.0.113.9:51820")) {
			t.Errorf("called %v", got)
		}
	})
}

func TestEveryAddressIsTried(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.resolver.set("edge.example", "2001:db8::10", "203.0.113.10", "203.0.113.11")
		b.reach.routes["[2001:db8::10]:51820"] = errors.New("network is unreachable")
		b.start()
		time.Sleep(answerWithin + time.Second)
		synctest.Wait()
		p := b.tunnel.peer(t, testEdge)
		if got := p.called(); !slices.Equal(got, at("203.0.113.10:51820", "203.0.113.11:51820")) {
			t.Fatalf("called %v", got)
		}
		b.join()
		// The one that answered is called first after it was lost.
		p.set(State{})
		time.Sleep(answerWithin - time.Second)
		synctest.Wait()
		if got := p.called(); len(got) != 2 {
			t.Errorf("after a loss, called %v", got)
		}
		b.join()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestEdgeMoves(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		p := b.join()
		b.resolver.set("edge.example", "198.51.100.7")
		p.set(State{})
		synctest.Wait()
		if got := p.called(); !slices.Equal(got, at("203.0.113.10:51820", "198.51.100.7:51820")) {
			t.Errorf("called %v", got)
		}
		b.join()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestLatePacketFromTheOldAddress(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		p := b.join()
		b.resolver.set("edge.example", "198.51.100.7")
		p.set(State{})
		synctest.Wait()
		// WireGuard turns back to where the packet came from.
		p.set(State{Endpoint: netip.MustParseAddrPort("203.0.113.10:51820")})
		time.Sleep(aimCheck)
		synctest.Wait()
		if got := p.called(); !slices.Equal(got, at("203.0.113.10:51820", "198.51.100.7:51820", "198.51.100.7:51820")) {
			t.Errorf("called %v", got)
		}
		b.join()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestEdgeMovesWhileDNSIsDown(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		p := b.join()
		delete(b.resolver.names, "edge.example")
		p.set(State{})
		time.Sleep(time.Minute)
		synctest.Wait()
		if b.c.Status().Ready() {
			t.Error("ready without an edge")
		}
		b.join() // the old address answers again: no DNS is needed
		if n := len(b.log.with("ready")); n != 2 {
			t.Errorf("the log says %d times ready", n)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestNeverASecondWithoutAWayBack(t *testing.T) {
	// Whatever the state of the edge's life, it is noticed when it answers.
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		p := b.tunnel.peer(t, testEdge)
		for i := range 200 {
			time.Sleep(time.Duration(i*i) * 37 * time.Millisecond)
			synctest.Wait()
			p.set(State{Alive: true})
			synctest.Wait()
			if n := len(b.log.with("ready")); n != i+1 {
				t.Fatalf("the edge came %d times and was noticed %d times", i+1, n)
			}
			p.set(State{})
			synctest.Wait()
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestReasons(t *testing.T) {
	const addr = "203.0.113.10:51820"
	tests := []struct {
		name   string
		probe  error
		joined bool // the edge was there before
		want   string
		not    string
	}{
		{name: "silence", want: "no answer from 203.0.113.10:51820 over UDP for 3 s: is UDP 51820 open, and does the edge run? If so, the handshake is not answered: does the edge know this connector's public key "},
		{name: "silence of an edge that knows us", joined: true, want: "over UDP for 3 s: is UDP 51820 open, and does the edge run?", not: "public key"},
		{name: "closed port", probe: errPortClosed, want: "nothing listens at UDP 203.0.113.10:51820 (port unreachable): does the edge run"},
		{name: "filtered", probe: errors.New("no route to host"), want: "UDP to 203.0.113.10:51820 fails: no route to host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.reach.probes[addr] = tt.probe
				b.start()
				if tt.joined {
					b.join().set(State{})
				}
				time.Sleep(sayAfter + time.Second)
				synctest.Wait()
				lines := b.log.with("no answer reason=")
				if len(lines) != 1 || !strings.Contains(lines[0], tt.want) || tt.not != "" && strings.Contains(lines[0], tt.not) {
					t.Errorf("the log says %q, want %q", lines, tt.want)
				}
				if tt.name == "silence" && !strings.Contains(lines[0], tunnel.Abbreviate(b.c.ownKey().PublicKey())) {
					t.Errorf("%q does not name the connector's key %s", lines[0], tunnel.Abbreviate(b.c.ownKey().PublicKey()))
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The first word comes soon, and then one for each address that was given its
// time; an edge that was there and falls silent is a new silence.
func TestReasonIsSaidEarlyOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.resolver.set("edge.example", "203.0.113.10", "203.0.113.11")
		b.start()
		said := func(n int, when string) {
			t.Helper()
			synctest.Wait()
			if got := b.log.with("no answer reason="); len(got) != n {
				t.Fatalf("%s the log says %q, want %d lines", when, got, n)
			}
		}
		time.Sleep(sayAfter - time.Millisecond)
		said(0, "before 3 s")
		time.Sleep(time.Millisecond)
		said(1, "after 3 s")
		time.Sleep(answerWithin - sayAfter)
		said(1, "when the second address is tried")
		p := b.tunnel.peer(t, testEdge)
		if got := p.called(); !slices.Equal(got, at("203.0.113.10:51820", "203.0.113.11:51820")) {
			t.Fatalf("called %v", got)
		}
		time.Sleep(answerWithin - time.Millisecond)
		said(1, "before the second address's time is up")
		time.Sleep(time.Millisecond)
		said(2, "when it is up")
		b.join().set(State{})
		time.Sleep(sayAfter)
		said(3, "3 s after a loss")
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestLostSaysWhy(t *testing.T) {
	tests := []struct {
		name  string
		state State
		want  string
	}{
		{name: "silence", want: "no answer from 203.0.113.10:51820 over UDP for 3 s"},
		{name: "farewell", state: State{Left: true}, want: "the edge said farewell"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.start()
				b.join().set(tt.state)
				synctest.Wait()
				if got := b.log.with("lost"); len(got) != 1 || !strings.Contains(got[0], tt.want) {
					t.Errorf("the log says %q, want %q", got, tt.want)
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestEdgeDrains(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		p := b.join()
		p.set(State{Alive: true, Draining: true})
		synctest.Wait()
		p.set(State{Alive: true, Draining: true})
		synctest.Wait()
		if got := b.log.with("edge drains"); len(got) != 1 {
			t.Errorf("the log says %q", got)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestSuspendedMachineCallsAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		p := b.join()
		p.set(State{})
		time.Sleep(5 * time.Minute) // far in the back-off
		synctest.Wait()
		before := len(p.called())
		b.asleep.Store(int64(8 * time.Hour))
		time.Sleep(clockCheck)
		synctest.Wait()
		if got := len(p.called()); got != before+1 {
			t.Errorf("called %d times after waking up", got-before)
		}
		time.Sleep(clockCheck)
		synctest.Wait()
		if n := len(b.log.with("suspended")); n != 1 {
			t.Errorf("the log says %d times that the machine was suspended", n)
		}
		b.join()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestUnjoinableEdgeEndsTheRun(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.tunnel.joinErr = errors.New("the public key is in use already")
		b.start()
		if err := b.finish(); err == nil || !strings.Contains(err.Error(), `joining edge "edge.example:51820": the public key is in use`) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestBackoff(t *testing.T) {
	var b backoff
	distinct := make(map[time.Duration]bool)
	for i := range 200 {
		centre := backoffMax
		if i < 5 {
			centre = backoffFirst << i
		}
		d := b.next()
		if d < centre*3/4 || d > centre*5/4 {
			t.Fatalf("wait number %d is %v, want %v and a quarter to either side", i, d, centre)
		}
		distinct[d] = true
	}
	if len(distinct) < 150 {
		t.Errorf("only %d of 200 waits differ: no jitter", len(distinct))
	}
	b.reset()
	if d := b.next(); d > 2*backoffFirst {
		t.Errorf("the first wait after a reset is %v", d)
	}
}
