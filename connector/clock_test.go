package connector

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestClocksThatDiffer(t *testing.T) {
	controlled(t, func(t *testing.T, b *bench, c *fakeControl) {
		c.ahead = time.Hour + 2*time.Second
		b.start()
		b.join()
		said := func(n int, want string) {
			t.Helper()
			c.set(func() { c.answer.Revision++ })
			synctest.Wait()
			if got := b.log.with("clocks differ"); len(got) != n || n > 0 && !strings.Contains(got[n-1], want) {
				t.Fatalf("the log says %q, want %d lines, the last with %q", got, n, want)
			}
			if _, offset, timed := b.c.edges[0].ctl.status(); !timed || offset != c.ahead {
				t.Errorf("the offset is %v, want %v", offset, c.ahead)
			}
		}
		said(1, "this machine's clock is 1h0m2s behind edge edge.example:51820: WireGuard needs clocks that do not go back: set it (NTP)")
		time.Sleep(time.Hour)
		said(1, "1h0m2s behind")
		c.set(func() { c.ahead += 20 * time.Second })
		said(1, "1h0m2s behind") // a drift is no news
		c.set(func() { c.ahead = -time.Hour })
		said(2, "this machine's clock is 1h0m0s ahead of edge")
		c.set(func() { c.ahead = -20 * time.Second })
		said(2, "ahead of") // neither good nor worth a word
		c.set(func() { c.ahead = 10 * time.Second })
		said(2, "ahead of")
		if n := len(b.log.with("agrees with the edge's again")); n != 1 {
			t.Errorf("the log says %d times that the clocks agree", n)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// After a step back the edge refuses handshakes until it renews its peer; what
// can be done here is to call often from then on.
func TestClockThatStepsBack(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		p := b.join()
		time.Sleep(time.Minute)
		b.asleep.Store(int64(-time.Hour))
		time.Sleep(clockCheck)
		synctest.Wait()
		if got := b.log.with("the machine's clock was set back"); len(got) != 1 || !strings.Contains(got[0], "by=1h0m0s") {
			t.Errorf("the log says %q", got)
		}
		before := len(p.called())
		p.set(State{})
		synctest.Wait()
		if n := len(p.called()); n != before+1 {
			t.Errorf("called %d times at once after the loss", n-before)
		}
		time.Sleep(time.Hour)
		if n := len(b.log.with("set back")); n != 1 {
			t.Errorf("the log says it %d times", n)
		}
		b.join()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}
