package connector

import (
	"errors"
	"io"
	"maps"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
)

// flowAt gives the connector a connection of the edge's, which the origin
// accepts.
func (b *bench) flowAt(edge, dst string) (r *tcpRequest, ended <-chan struct{}) {
	b.t.Helper()
	r = newTCPRequest(dst)
	ended = b.tcpAt(edge, r)
	if err := r.verdict(b.t); err != nil {
		b.t.Fatal(err)
	}
	return r, ended
}

func (b *bench) tcpAt(edge string, r *tcpRequest) <-chan struct{} {
	b.t.Helper()
	p := b.tunnel.peer(b.t, edge)
	before := b.c.flows.all()
	answered, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(answered)
		p.cfg.TCP(r)
	}()
	synctest.Wait()
	gone := b.c.flows.endOfNew(before)
	go func() {
		defer close(over)
		<-answered
		for _, flow := range gone {
			<-flow
		}
	}()
	return over
}

// all returns the places that are taken.
func (f *flows) all() map[*place]struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.places)
}

// endOfNew returns for each flow that was not there before a channel that is
// closed at its end.
func (f *flows) endOfNew(before map[*place]struct{}) (ends []chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p := range f.places {
		if _, old := before[p]; !old {
			p.gone = make(chan struct{})
			ends = append(ends, p.gone)
		}
	}
	return ends
}

// carries checks that the flow lives.
func (r *tcpRequest) carries(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(r.edge, "still"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(r.edge, buf); err != nil || string(buf) != "still" {
		t.Fatalf("read %q, %v", buf, err)
	}
}

// hangUp ends the flow in order.
func (r *tcpRequest) hangUp(ended <-chan struct{}) {
	_ = r.edge.CloseWrite()
	_, _ = io.ReadAll(r.edge)
	<-ended
}

// isCut checks that the flow was aborted, and that no time was needed.
func isCut(t *testing.T, r *tcpRequest, ended <-chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	default:
		t.Fatal("the flow lives")
	}
	if _, err := r.edge.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the cut flow reads %v: want a reset, not an end", err)
	}
}

// echoes serves origins for as long as the test runs.
func (b *bench) echoes(addrs ...string) {
	for _, a := range addrs {
		l := b.echo(a)
		b.t.Cleanup(func() { _ = l.Close() })
	}
}

// controlled is a bench whose one declared edge has a control port.
func controlled(t *testing.T, f func(t *testing.T, b *bench, c *fakeControl)) {
	t.Helper()
	inBubble(t, func(t *testing.T, b *bench) { f(t, b, b.control(b.spec.Edges[0].PublicKey)) })
}

func TestConnectorReportsAndHoldsOn(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.start()
		started := time.Now()
		time.Sleep(time.Second)
		b.join()
		syncs := c.seen()
		if len(syncs) != 2 || syncs[0].Revision != 0 || syncs[1].Revision != 1 {
			t.Fatalf("the edge saw %+v", syncs)
		}
		r := syncs[0].Report
		if r.Version != "v1" || r.Hostname == "" || !r.Time.Equal(time.Now()) || !r.Started.Equal(started) || r.Load.CPUs < 1 || r.Load.Memory == 0 || r.Load.Dropped != 7 {
			t.Errorf("reported %+v", r)
		}
		s := b.c.Status().Edges[0]
		if s.Name != "berlin-1" || s.Network != "berlin" || s.Revision != 1 || !s.Controlled || s.Gone != "" {
			t.Errorf("status %+v", s)
		}
		time.Sleep(wire.HoldSync + time.Second)
		synctest.Wait()
		if n := len(c.seen()); n != 3 {
			t.Errorf("%d syncs after the edge has held one for its time, want 3", n)
		}
		if got := b.log.with("granted"); len(got) != 1 {
			t.Errorf("the log says %q", got)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestControlBacksOff(t *testing.T) {
	hour := 3600.0
	tests := []struct {
		name     string
		fail     func(c *fakeControl)
		min, max float64 // dials in an hour
		says     string
	}{
		{"nothing listens", func(c *fakeControl) { c.dialErr = netx.ErrRefused }, hour / 375, hour / 225, "nothing listens at port 7802"},
		{"another version", func(c *fakeControl) { c.refusal = wire.Refuse(wire.CodeVersion, "version 2 is spoken here") }, hour / 375, hour / 225, "version 2 is spoken here"},
		{"no such path", func(c *fakeControl) { c.raw = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n" }, hour / 375, hour / 225, "status 404"},
		{"busy", func(c *fakeControl) { c.refusal = wire.Refuse(wire.CodeBusy, "too many ask") }, hour / 38, hour / 20, "too many ask"},
		{"not known just now", func(c *fakeControl) { c.refusal = wire.Refuse(wire.CodeUnknown, "who are you?") }, hour / 38, hour / 20, "who are you?"},
		{"silence", func(c *fakeControl) { c.silent = true }, hour / 48, hour / 30, "deadline exceeded"},
		{"no HTTP", func(c *fakeControl) { c.raw = "SSH-2.0-OpenSSH_9.9\r\n" }, hour / 38, hour / 20, "malformed HTTP"},
		{"no JSON", func(c *fakeControl) { c.raw = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" }, hour / 38, hour / 20, "reading a message"},
		{"no grant", func(c *fakeControl) { c.raw = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}" }, hour / 38, hour / 20, "no revision"},
		{"an endless header", func(c *fakeControl) {
			c.raw = "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 400)
		}, hour / 38, hour / 20, "unexpected EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
				b.echoes("10.0.0.10:80")
				tt.fail(c)
				b.start()
				b.join()
				r, ended := b.flowAt(testEdge, "10.0.0.10:80") // it is served all the same
				time.Sleep(time.Hour)
				synctest.Wait()
				if n := float64(c.dials); n < tt.min || n > tt.max+6 {
					t.Errorf("%v dials in an hour, want %.0f to %.0f", n, tt.min, tt.max)
				}
				var told []string
				for _, line := range b.log.with("no control") {
					if strings.Contains(line, "hint=") {
						told = append(told, line)
					}
				}
				if len(told) != 1 || !strings.Contains(told[0], tt.says) {
					t.Errorf("the log says %q, want once %q", told, tt.says)
				}
				r.hangUp(ended)
				c.set(func() { c.dialErr, c.refusal, c.raw, c.silent = nil, nil, "", false })
				time.Sleep(2 * controlSlow)
				synctest.Wait()
				if n := len(b.log.with("control is back")); n != 1 || b.c.Status().Edges[0].Revision != 1 {
					t.Errorf("the log says %d times that control is back; revision %d", n, b.c.Status().Edges[0].Revision)
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// An edge that answers every sync at once does not make this connector spin.
func TestHastyEdgeIsPaced(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.start()
		b.join()
		for range 60_000 {
			time.Sleep(time.Millisecond)
			c.change(func(*wire.Grant) {})
		}
		if n, most := len(c.seen()), int(time.Minute/syncEvery)+syncBurst+2; n > most || n < most/2 {
			t.Errorf("%d syncs in a minute of 60,000 grants, want at most %d", n, most)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestNewsOfOriginsIsToldSoon(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.start()
		b.join()
		time.Sleep(time.Second)
		fail := func(dst string) {
			t.Helper()
			r := newTCPRequest(dst)
			<-b.tcp(r)
			synctest.Wait()
		}
		fail("10.0.0.10:80")
		errs := c.last(t).Errors
		if len(errs) != 1 || errs[0].Destination != "tcp/10.0.0.10:80" || errs[0].Result != resultRefused || errs[0].Count != 1 || !errs[0].Last.Equal(time.Now()) || errs[0].Error == "" {
			t.Fatalf("reported %+v", errs)
		}
		// The same again is no news; another one waits for its turn.
		before := len(c.seen())
		fail("10.0.0.10:80")
		fail("10.0.0.11:80")
		if n := len(c.seen()); n != before {
			t.Errorf("%d syncs at once", n-before)
		}
		time.Sleep(urgentEvery)
		synctest.Wait()
		errs = c.last(t).Errors
		if len(errs) != 2 || errs[0].Destination != "tcp/10.0.0.11:80" || errs[1].Count != 2 {
			t.Errorf("reported %+v", errs)
		}
		if n := c.last(t).Load.Failed; n != 3 {
			t.Errorf("%d failed dials were reported", n)
		}
		// However many there are.
		dials := c.dials
		for i := range 100 {
			fail("10.0.1.1:" + string(rune('1'+i%9)) + "00")
			time.Sleep(100 * time.Millisecond)
		}
		if n := c.dials - dials; n > 6 {
			t.Errorf("%d sessions in 10 s of failures", n)
		}
		if n := len(c.last(t).Errors); n > wire.MaxOriginErrors {
			t.Errorf("%d errors in a report", n)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// News does not keep a session from its first answer, however slow that is.
func TestNewsDoesNotStarveASlowEdge(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		c.slow = 3 * urgentEvery
		b.start()
		b.join()
		for i := range 200 {
			<-b.tcp(newTCPRequest("10.0.0.1:" + strconv.Itoa(1000+i)))
			time.Sleep(100 * time.Millisecond)
		}
		if b.c.Status().Edges[0].Revision != 1 {
			t.Error("no grant was received")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// What one edge's flows want is nothing to another edge.
func TestFailuresAreOfTheirEdge(t *testing.T) {
	const other = "other.example:51820"
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		d := b.declare(other, "198.51.100.7")
		b.start()
		b.joinAt(testEdge)
		b.joinAt(other)
		time.Sleep(time.Second)
		<-b.tcpAt(testEdge, newTCPRequest("10.0.0.10:80"))
		<-b.tcpAt(other, newTCPRequest("10.0.0.11:80"))
		time.Sleep(2 * wire.HoldSync)
		synctest.Wait()
		first, second := c.last(t).Errors, d.last(t).Errors
		if len(first) != 1 || len(second) != 1 || first[0].Destination != "tcp/10.0.0.10:80" || second[0].Destination != "tcp/10.0.0.11:80" {
			t.Errorf("reported %+v and %+v", first, second)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestSilentControlGivesUpItsSync(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		c.raw, c.stall = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", true
		b.start()
		b.join()
		time.Sleep(wire.HoldSync + postWithin + time.Second)
		synctest.Wait()
		if got := b.log.with("no control"); len(got) != 1 {
			t.Errorf("the log says %q", got)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestMetricsOfControl(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		c.ahead = 90 * time.Second
		b.start()
		p := b.join()
		metric := func(name, value string) {
			t.Helper()
			line := "warren_connector_" + name + `{edge="edge.example:51820"} ` + value
			if _, body := get(t, b.c.Handler(), "/metrics"); !strings.Contains(body, line+"\n") {
				t.Errorf("/metrics lacks %q", line)
			}
		}
		metric("control_up", "1")
		metric("grant_revision", "1")
		metric("clock_offset_seconds", "90")
		p.set(State{})
		synctest.Wait()
		metric("control_up", "0")
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestLossEndsControl(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		b.start()
		p := b.join()
		p.set(State{})
		synctest.Wait()
		if s := b.c.Status().Edges[0]; s.Controlled || s.Revision != 1 {
			t.Errorf("after a loss: %+v", s)
		}
		n := len(c.seen())
		p.set(State{Alive: true})
		synctest.Wait()
		if got := c.seen(); len(got) != n+2 || got[n].Revision != 0 {
			t.Errorf("after the return: %+v", got[n:])
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}
