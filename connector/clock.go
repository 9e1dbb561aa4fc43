package connector

import (
	"context"
	"fmt"
	"time"
)

const (
	// clockCheck is how often the clock on the wall is held against the
	// runtime's, which neither jumps nor runs while the machine is suspended.
	clockCheck = 2 * time.Second
	// clockAhead and clockBack are how far the one may part from the other
	// before that is a jump: NTP slews by 1 ms in 2 s.
	clockAhead = 5 * time.Second
	clockBack  = time.Second
	// clockApart is how far an edge's clock may be from ours before it is said.
	// Nothing of ours needs them to agree; certificates and logs do.
	clockApart = 30 * time.Second
)

// watchClock notices, until ctx ends, that the machine was suspended, or that
// its clock was set: edges that do not answer are called at once then. An edge
// takes no handshake with a time before that of the last one (the WireGuard
// paper, section 5.1), and renews a peer that it has not heard for a while.
func (c *Connector) watchClock(ctx context.Context) {
	ticker := time.NewTicker(clockCheck)
	defer ticker.Stop()
	wall, running := c.deps.Wall(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, passed := c.deps.Wall(), time.Since(running)
		jump := now.Sub(wall) - passed
		wall, running = now, running.Add(passed)
		switch {
		case jump > clockAhead:
			c.log.Info("the machine was suspended, or its clock set ahead", "by", jump.Round(time.Second))
		case jump < -clockBack:
			c.log.Warn("the machine's clock was set back", "by", -jump.Round(time.Second),
				"hint", "WireGuard needs clocks that do not go back: an edge may be silent for some 15 s at its next handshake")
		default:
			continue
		}
		for _, e := range c.list() {
			e.again.Store(true)
			e.notify()
		}
	}
}

// compareClocks says where the edge's clock, which showed edgeTime a moment
// ago, is far from this machine's: once, and again where that changes.
func (e *edge) compareClocks(edgeTime time.Time) {
	if edgeTime.IsZero() {
		return
	}
	offset := edgeTime.Sub(e.c.deps.Wall()) // beyond 292 years it is that
	e.ctl.mu.Lock()
	e.ctl.offset, e.ctl.timed = offset, true
	e.ctl.mu.Unlock()
	apart, word := offset.Abs(), "behind"
	if offset < 0 {
		word = "ahead of"
	}
	switch {
	case apart <= clockApart/2 && e.ctl.clockSaid != 0:
		e.ctl.clockSaid = 0
		e.log.Info("this machine's clock agrees with the edge's again")
	case apart > clockApart && (offset-e.ctl.clockSaid).Abs() > clockApart:
		e.ctl.clockSaid = offset
		e.log.Warn("clocks differ", "reason", fmt.Sprintf("this machine's clock is %v %s edge %s: WireGuard needs clocks that do not go back: set it (NTP)",
			apart.Round(time.Second), word, e.name()))
	}
}
