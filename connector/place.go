package connector

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

const (
	// yieldAfter is how long a UDP flow must have been idle to be ended for a
	// new one: a question has had its answer by then, or has none.
	yieldAfter = 5 * time.Second
	// yieldSample is how many flows are looked at to find one that yields, so
	// that a flood of new ones at the limit costs each no more than that. They
	// are taken in turn: max_udp_flows/64 attempts have seen every flow.
	yieldSample = 64
)

// errYield is the cause of the end of a flow that made room for a new one.
var errYield = errors.New("an idle UDP flow was ended for a new one: raise max_udp_flows, or lower udp_idle")

// dropYielded counts such ends in the drops metric.
const dropYielded = "udp_flow_yielded"

// place is what a flow holds while it lives. Of a UDP flow it may be taken
// away, once the flow is established and idle.
type place struct {
	proto string
	dst   netip.Addr
	end   context.CancelCauseFunc

	// Guarded by flows.mu.
	idle  func() time.Duration // nil until the flow is established
	at    int                  // in flows.yielding, while it is there
	taken bool                 // another flow has the place; this one is ending
	gone  chan struct{}        // closed by done, where somebody waits for it
}

// established makes p one that may be taken, once idle says so, which does not
// block.
func (f *flows) established(p *place, idle func() time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.idle, p.at = idle, len(f.yielding)
	f.yielding = append(f.yielding, p)
}

// takeLocked takes the place of the idlest UDP flow among the next yieldSample
// ones and begins to end it; false where none of them is idle enough. The
// caller holds mu.
func (f *flows) takeLocked() bool {
	var idlest *place
	longest := yieldAfter
	for range min(yieldSample, len(f.yielding)) {
		f.hand = (f.hand + 1) % len(f.yielding)
		p := f.yielding[f.hand]
		if idle := p.idle(); idle >= longest {
			idlest, longest = p, idle
		}
	}
	if idlest == nil {
		return false
	}
	f.forgetLocked(idlest)
	idlest.taken = true
	f.live[idlest.proto]--
	idlest.end(errYield)
	return true
}

// forgetLocked takes p out of the flows that may yield. The caller holds mu.
func (f *flows) forgetLocked(p *place) {
	last := len(f.yielding) - 1
	f.yielding[p.at] = f.yielding[last]
	f.yielding[p.at].at = p.at
	f.yielding[last] = nil
	f.yielding = f.yielding[:last]
}
