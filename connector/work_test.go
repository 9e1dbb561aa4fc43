package connector

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
)

func TestChecksForAnEdge(t *testing.T) {
	employed(t, func(t *testing.T, b *bench, c *fakeControl, o *fakeOrigins, _ *fakeNames) {
		b.alias("tcp/10.0.0.9:80", "127.0.0.1:8080")
		b.spec.Guard = guard.Spec{Deny: []guard.Rule{must(guard.ParseRule("tcp/10.6.0.0/16"))}}
		o.fail["10.0.0.2:80"] = netx.ErrRefused
		o.quiet["10.0.0.3:80"] = true
		o.fail["10.0.0.4:80"] = errors.New("too strange")
		b.deps.OriginPing = &fakePinger{errs: map[string]error{"10.0.0.21": syscall.EHOSTUNREACH, "10.0.0.22": origin.ErrTooManyPings}}
		b.start()
		b.join()
		specs := []wire.WorkSpec{tcpEvery(5 * time.Second), {Check: json.RawMessage(`{"type":"telepathy"}`)}, {Check: json.RawMessage(`{"type":"tcp","thoroughly":true}`)}, {Check: json.RawMessage(`{"type":"icmp"}`), Interval: 5 * time.Second, Timeout: time.Second}}
		checks := checksOf("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.6.0.1:80", "192.168.0.1:80", "169.254.169.254:80", "10.0.0.9:80", "10.0.0.1:81", "10.0.0.1:82", "10.0.0.20:0", "10.0.0.21:0", "192.168.0.1:0", "10.0.0.22:0")
		checks[8].Spec, checks[9].Spec = 1, 2
		for i := 10; i < len(checks); i++ {
			checks[i].Spec = 3
		}
		c.employ(wire.Work{Specs: specs, Checks: checks})
		after(5 * time.Second)
		results, _, _ := c.told()
		for id, want := range map[uint64]struct {
			class wire.Class
			words string
		}{
			1: {"", ""}, 2: {wire.ClassRefused, "10.0.0.2:80"}, 3: {wire.ClassTimedOut, "10.0.0.3:80"}, 4: {wire.ClassUnreachable, "strange"},
			5: {wire.ClassDenied, "[guard] deny"}, 6: {wire.ClassDenied, "outside the edge's routes"}, 7: {wire.ClassDenied, "metadata"},
			8: {"", ""}, 9: {wire.ClassUnable, "telepathy"}, 10: {wire.ClassUnable, "thoroughly"},
			11: {"", ""}, 12: {wire.ClassUnreachable, "10.0.0.21"}, 13: {wire.ClassDenied, "outside the edge's routes"}, 14: {wire.ClassUnable, "ping"},
		} {
			r := lastOf(results, id)
			if r.ID != id || r.Class != want.class || !strings.Contains(r.Error, want.words) || (r.Error == "") != (want.words == "") {
				t.Errorf("check %d: %+v, want %+v", id, r, want)
			}
		}
		if o.count("127.0.0.1:8080") == 0 || o.count("10.0.0.9:80")+o.count("10.6.0.1:80")+o.count("192.168.0.1:80")+o.count("169.254.169.254:80") != 0 {
			t.Errorf("dialled %v", o.dials)
		}
		if passed, failed, unable := b.c.count.checksPassed.Load(), b.c.count.checksFailed.Load(), b.c.count.checksUnable.Load(); passed < 2 || failed < 6 || unable < 2 {
			t.Errorf("counted %d passed, %d failed, %d unable", passed, failed, unable)
		}
		if n := b.c.flows.total(); n != 0 {
			t.Errorf("%d flows: checks are none", n)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// What is news is told at once, and what is none waits for company.
func TestResultsAreToldInBatches(t *testing.T) {
	employed(t, func(t *testing.T, b *bench, c *fakeControl, o *fakeOrigins, _ *fakeNames) {
		b.start()
		b.join()
		var list []string
		for i := range 1000 {
			list = append(list, fmt.Sprintf("10.0.%d.%d:80", i>>8, i&255))
		}
		c.employ(wire.Work{Specs: []wire.WorkSpec{tcpEvery(time.Second)}, Checks: checksOf(list...)})
		after(10 * time.Second)
		c.told()
		o.set(func() { clear(o.dials) })
		after(20 * time.Second)
		results, _, requests := c.told()
		if made := o.total(); len(results) < made-500 || made < 17_000 {
			t.Errorf("%d checks were made, and %d results told", made, len(results))
		}
		if requests > 20*6 { // a batch each 200 ms, and one that it overflows into
			t.Errorf("%d requests in 20 s", requests)
		}
		// A change is told as soon as it is seen.
		before := time.Now()
		o.set(func() { o.fail["10.0.0.7:80"] = netx.ErrRefused })
		for {
			after(10 * time.Millisecond)
			results, _, _ := c.told()
			if r := lastOf(results, 8); r.Error != "" {
				break
			}
			if time.Since(before) > 1300*time.Millisecond+workEvery {
				t.Fatal("the change was not told")
			}
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// The check is made each interval or so, by a jittered clock, and retried at
// once as often as it says.
func TestIntervalAndRetries(t *testing.T) {
	employed(t, func(t *testing.T, b *bench, c *fakeControl, o *fakeOrigins, _ *fakeNames) {
		o.fail["10.0.0.2:80"] = netx.ErrRefused
		b.start()
		b.join()
		spec := tcpEvery(10 * time.Second)
		spec.Retries = 2
		c.employ(wire.Work{Specs: []wire.WorkSpec{spec}, Checks: checksOf("10.0.0.1:80", "10.0.0.2:80")})
		after(100 * time.Second)
		results, _, _ := c.told()
		passed, failed := 0, 0
		for _, r := range results {
			if r.ID == 1 {
				passed++
			} else {
				failed++
			}
		}
		if n := o.count("10.0.0.1:80"); n < 9 || n > 12 || passed < n-1 {
			t.Errorf("%d checks in 100 s, and %d results", n, passed)
		}
		if n := o.count("10.0.0.2:80"); n < 27 || n > 36 || n%3 != 0 || failed < n/3-1 || failed > n/3 {
			t.Errorf("%d tries in 100 s, and %d results", n, failed)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// Without work there is no second connection, and each way for work to end
// ends the checks.
func TestWorkStops(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(t *testing.T, b *bench, c *fakeControl, p *fakePeer)
		over bool // the connector's run is
	}{
		{"the grant has none", func(_ *testing.T, _ *bench, c *fakeControl, _ *fakePeer) { c.employ(wire.Work{}) }, false},
		{"the edge drains it", func(_ *testing.T, _ *bench, c *fakeControl, _ *fakePeer) {
			c.change(func(g *wire.Grant) { g.Drain = true })
		}, true},
		{"it is revoked", func(_ *testing.T, _ *bench, c *fakeControl, _ *fakePeer) {
			c.set(func() { c.refusal = wire.Refuse(wire.CodeRevoked, "it was") })
		}, true},
		{"the edge is lost", func(_ *testing.T, _ *bench, _ *fakeControl, p *fakePeer) { p.set(State{}) }, false},
		{"it stops", func(_ *testing.T, b *bench, _ *fakeControl, _ *fakePeer) { b.stop() }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			employed(t, func(t *testing.T, b *bench, control *fakeControl, o *fakeOrigins, n *fakeNames) {
				n.set("db.internal", fakeAnswer{addrs: addrs("10.0.0.1"), ttl: time.Second})
				b.start()
				p := b.join()
				if control.dials != 1 {
					t.Errorf("%d connections without work", control.dials)
				}
				control.employ(wire.Work{Specs: []wire.WorkSpec{tcpEvery(time.Second)}, Checks: checksOf("10.0.0.1:80", "10.0.0.2:80"), Names: []wire.Name{{Host: "db.internal"}}})
				o.set(func() { o.quiet["10.0.0.2:80"] = true })
				after(20 * time.Second)
				if o.count("10.0.0.1:80") < 10 || n.count("db.internal") < 10 || control.dials != 2 {
					t.Errorf("dialled %v, asked %v, %d connections", o.dials, n.asked, control.dials)
				}
				c.end(t, b, control, p)
				after(time.Second)
				made, asked := o.total(), n.count("db.internal")
				after(10 * time.Second)
				if o.total() != made || n.count("db.internal") != asked {
					t.Error("it works on")
				}
				control.mu.Lock()
				if open := len(control.open); open > 1 {
					t.Errorf("%d connections are open", open)
				}
				control.mu.Unlock()
				if c.over {
					b.stop()
					<-b.end
					return
				}
				_ = b.finish()
			})
		})
	}
}

// A connection that ends costs nothing but itself: the checks go on, and the
// edge is told all again.
func TestWorkAfterALostConnection(t *testing.T) {
	employed(t, func(t *testing.T, b *bench, c *fakeControl, o *fakeOrigins, n *fakeNames) {
		n.set("db.internal", fakeAnswer{addrs: addrs("10.0.0.1"), ttl: time.Hour})
		b.start()
		b.join()
		spec := tcpEvery(time.Hour)
		c.employ(wire.Work{Specs: []wire.WorkSpec{spec}, Checks: checksOf("10.0.0.1:80", "10.0.0.2:80"), Names: []wire.Name{{Host: "db.internal"}}})
		after(4 * time.Second)
		c.told()
		c.hangUp()
		after(3 * time.Second)
		if r := c.revisions(); len(r) < 2 || r[0] != 0 || r[1] != 1 {
			t.Errorf("asked with %v", r)
		}
		results, names, _ := c.told()
		if len(results) != 2 || len(names) != 1 || lastOf(results, 1).ID != 1 || lastOf(results, 2).ID != 2 || o.total() != 2 || n.count("db.internal") != 1 {
			t.Errorf("told %+v, %+v; %d dials", results, names, o.total())
		}
		// What changes leaves alone what does not.
		checks := checksOf("10.0.0.1:80", "10.0.0.3:80", "10.0.0.4:80")
		c.employ(wire.Work{Specs: []wire.WorkSpec{spec}, Checks: checks, Names: []wire.Name{{Host: "db.internal"}, {Host: "other"}}})
		after(4 * time.Second)
		results, names, _ = c.told()
		if o.count("10.0.0.1:80") != 1 || o.count("10.0.0.3:80") != 1 || o.count("10.0.0.4:80") != 1 || len(results) != 2 || len(names) != 1 || names[0].Host != "other" {
			t.Errorf("told %+v, %+v; dialled %v", results, names, o.dials)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestNamesForAnEdge(t *testing.T) {
	employed(t, func(t *testing.T, b *bench, c *fakeControl, _ *fakeOrigins, n *fakeNames) {
		gone := &net.DNSError{Err: "no such host", Name: "gone", IsNotFound: true}
		n.set("quick", fakeAnswer{addrs: addrs("10.0.0.2", "10.0.0.1"), ttl: 0})
		n.set("slow", fakeAnswer{addrs: addrs("10.9.0.1"), ttl: 24 * time.Hour})
		n.set("minute", fakeAnswer{addrs: addrs("10.0.0.1"), ttl: time.Minute})
		n.set("gone", fakeAnswer{err: fmt.Errorf("asking: %w", gone), ttl: time.Hour})
		n.set("broken", fakeAnswer{err: errors.New("no server answers")})
		n.set("hangs", fakeAnswer{hangs: true})
		b.start()
		b.join()
		var names []wire.Name
		for host := range n.answers {
			names = append(names, wire.Name{Host: host})
		}
		c.employ(wire.Work{Names: names})
		after(2 * time.Minute)
		_, told, _ := c.told()
		latest := map[string]wire.Found{}
		for _, f := range told {
			latest[f.Host] = f
		}
		for host, want := range map[string]struct {
			addrs      []netip.Addr
			from, to   int // how often it was asked for in two minutes
			absent, ok bool
		}{
			"quick": {addrs("10.0.0.1", "10.0.0.2"), 110, 121, false, true}, "slow": {addrs("10.9.0.1"), 1, 1, false, true},
			"minute": {addrs("10.0.0.1"), 2, 3, false, true}, "gone": {nil, 2, 3, true, false}, "broken": {nil, 20, 25, false, false}, "hangs": {nil, 7, 9, false, false},
		} {
			f := latest[host]
			if !slices.Equal(f.Addrs, want.addrs) || f.NotFound != want.absent || (f.Error == "") != want.ok {
				t.Errorf("%s: told %+v", host, f)
			}
			if asked := n.count(host); asked < want.from || asked > want.to {
				t.Errorf("%s: asked for %d times, want %d to %d", host, asked, want.from, want.to)
			}
		}
		// A change is told at once.
		n.set("quick", fakeAnswer{addrs: addrs("10.0.0.3"), ttl: 0})
		after(minTTL + 2*workEvery)
		if _, told, _ = c.told(); !slices.ContainsFunc(told, func(f wire.Found) bool { return f.Host == "quick" && f.Addrs[0] == addrs("10.0.0.3")[0] }) {
			t.Errorf("told %+v", told)
		}
		if b.c.count.namesFound.Load() == 0 || b.c.count.namesAbsent.Load() == 0 || b.c.count.namesFailed.Load() == 0 {
			t.Error("names are not counted")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// Endpoints and resolvers that never answer take no place from the others for
// long, and no more places than there are.
func TestSilenceHurtsNothingElse(t *testing.T) {
	employed(t, func(t *testing.T, b *bench, c *fakeControl, o *fakeOrigins, n *fakeNames) {
		b.start()
		b.join()
		var list []string
		for i := range 4000 {
			a := fmt.Sprintf("10.0.%d.%d:80", i>>8, i&255)
			if list = append(list, a); i%4 != 0 {
				o.quiet[a] = true
			}
		}
		work := wire.Work{Specs: []wire.WorkSpec{tcpEvery(5 * time.Second)}, Checks: checksOf(list...)}
		for i := range wire.MaxNames {
			n.set(fmt.Sprint("n", i), fakeAnswer{hangs: true})
			work.Names = append(work.Names, wire.Name{Host: fmt.Sprint("n", i)})
		}
		c.employ(work)
		after(30 * time.Second)
		results, _, _ := c.told()
		heard := map[uint64]bool{}
		for _, r := range results {
			heard[r.ID] = true
			if (r.Error == "") != ((r.ID-1)%4 == 0) {
				t.Fatalf("told %+v", r)
			}
		}
		if len(heard) != len(list) {
			t.Errorf("%d of %d checks were heard of in 30 s", len(heard), len(list))
		}
		if o.most > maxChecking {
			t.Errorf("%d checks at one time", o.most)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// Edges have work of their own, and hear nothing of another's.
func TestEachEdgeHasItsOwnWork(t *testing.T) {
	employed(t, func(t *testing.T, b *bench, c *fakeControl, o *fakeOrigins, _ *fakeNames) {
		const second = "other.example:51820"
		other := b.declare(second, "198.51.100.7")
		b.start()
		p := b.join()
		b.joinAt(second)
		c.employ(wire.Work{Specs: []wire.WorkSpec{tcpEvery(time.Second)}, Checks: checksOf("10.0.0.1:80")})
		other.employ(wire.Work{Specs: []wire.WorkSpec{tcpEvery(time.Second)}, Checks: checksOf("10.0.0.2:80", "10.0.0.3:80")})
		after(5 * time.Second)
		mine, _, _ := c.told()
		theirs, _, _ := other.told()
		if len(mine) < 3 || lastOf(mine, 2).ID != 0 || lastOf(theirs, 2).ID != 2 {
			t.Errorf("told %+v and %+v", mine, theirs)
		}
		p.set(State{})
		after(2 * time.Second)
		made := o.count("10.0.0.1:80")
		other.told()
		after(5 * time.Second)
		if theirs, _, _ = other.told(); o.count("10.0.0.1:80") != made || len(theirs) < 6 {
			t.Errorf("told %+v", theirs)
		}
		_ = b.finish()
	})
}

// An edge that answers nonsense costs attempts, at the pace of the back-off,
// and no flow.
func TestWorkOfAnEdgeThatMakesNoSense(t *testing.T) {
	for _, c := range []struct {
		name string
		work wire.WorkAnswer
		said int
	}{
		{"there is none, after all", wire.WorkAnswer{}, 0},
		{"a check of nothing", wire.WorkAnswer{Revision: 3, Work: wire.Work{Checks: []wire.Check{{ID: 1, Spec: 7}, {ID: 2, Spec: -1}}}}, 0},
		{"a spec that is none", wire.WorkAnswer{Revision: 3, Work: wire.Work{Specs: []wire.WorkSpec{{Check: json.RawMessage(`[]`)}}, Checks: checksOf("10.0.0.1:80")}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			employed(t, func(t *testing.T, b *bench, control *fakeControl, o *fakeOrigins, _ *fakeNames) {
				b.start()
				b.join()
				control.set(func() {
					control.work = c.work
					control.answer.Grant.Work = true
					control.answer.Revision++
				})
				after(time.Minute)
				if o.total() != 0 || control.dials > 12 || len(b.log.with("no work can be had")) != c.said {
					t.Errorf("dialled %v, %d connections, the log says %q", o.dials, control.dials, b.log.with("work"))
				}
				if !b.c.Status().Edges[0].Controlled {
					t.Error("there is no control")
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
