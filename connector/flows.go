package connector

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Why a flow is not admitted. Both reach the edge as host unreachable, so that
// it may try another connector.
var (
	errDraining = fmt.Errorf("%w: this connector is draining", netx.ErrUnreachable)
	errTooMany  = fmt.Errorf("%w: this connector has as many flows as it may", netx.ErrUnreachable)
)

// Why established flows are cut.
var (
	errCut      = errors.New("the connector ends")
	errLeft     = errors.New("the connector has left the edge")
	errNoLonger = errors.New("the edge's routes no longer hold the destination")
)

// flows admits flows, up to a bound for each protocol, and waits for their
// end. There is one for the connector and one for each edge, and a flow holds
// a place in both from before the dial until both its conns are closed. Where
// all places of UDP are taken, an idle flow yields its own.
//
//	open ⇄ draining ──cut──→ closed
type flows struct {
	// ctx is the context of every flow; cut cancels it.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	max      map[string]int // by protocol
	routes   *routes        // where flows may go; nil: anywhere
	live     map[string]int // by protocol
	places   map[*place]struct{}
	yielding []*place // established UDP flows
	hand     int      // the one in yielding that was looked at last
	draining bool
	empty    chan struct{} // made by drain, closed when the last flow ends
}

// newFlows makes flows that end with ctx.
func newFlows(ctx context.Context, maxTCP, maxUDP int) *flows {
	ctx, cancel := context.WithCancelCause(ctx)
	return &flows{
		max:    map[string]int{"tcp": maxTCP, "udp": maxUDP},
		live:   make(map[string]int),
		places: make(map[*place]struct{}),
		ctx:    ctx,
		cancel: cancel,
	}
}

// admit takes a place for a flow of proto to dst; the caller gives it back
// with done. end ends the flow, and does not block.
func (f *flows) admit(proto string, dst netip.Addr, end context.CancelCauseFunc) (*place, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.draining:
		return nil, errDraining
	case !f.routes.hold(dst):
		return nil, fmt.Errorf("%w: %s is outside the edge's routes: %s", errNotGranted, dst, f.routes)
	case f.live[proto] < f.max[proto]:
	case proto != "udp" || !f.takeLocked():
		return nil, errTooMany
	}
	f.live[proto]++
	p := &place{proto: proto, dst: dst, end: end}
	f.places[p] = struct{}{}
	return p, nil
}

// limit changes how many flows there may be. Those beyond it go on.
func (f *flows) limit(maxTCP, maxUDP int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.max["tcp"], f.max["udp"] = maxTCP, maxUDP
}

// restrict changes where flows may go, cuts those that go elsewhere, and
// returns how many.
func (f *flows) restrict(to *routes) (cut int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routes = to
	for p := range f.places {
		if !to.hold(p.dst) {
			p.end(errNoLonger)
			cut++
		}
	}
	return cut
}

// done gives a flow's place back.
func (f *flows) done(p *place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !p.taken {
		f.live[p.proto]--
		if p.idle != nil {
			f.forgetLocked(p)
		}
	}
	delete(f.places, p)
	if p.gone != nil {
		close(p.gone)
	}
	f.signalLocked()
}

// signalLocked closes empty where the last flow of a drain is gone. The caller
// holds mu.
func (f *flows) signalLocked() {
	if f.empty == nil || len(f.places) > 0 {
		return
	}
	select {
	case <-f.empty:
	default:
		close(f.empty)
	}
}

// count returns the live flows of proto.
func (f *flows) count(proto string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live[proto]
}

// total returns the flows that are there, those included that are ending.
func (f *flows) total() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.places)
}

// drain refuses new flows and returns a channel that is closed once no live
// one is left.
func (f *flows) drain() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining = true
	if f.empty == nil {
		f.empty = make(chan struct{})
	}
	f.signalLocked()
	return f.empty
}

// resume takes new flows again.
func (f *flows) resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining, f.empty = false, nil
}

// isDraining tells whether new flows are refused.
func (f *flows) isDraining() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.draining
}

// cut ends every live flow's context for the reason why, and returns a channel
// that is closed when the last of them is gone. It drains first.
func (f *flows) cut(why error) <-chan struct{} {
	empty := f.drain()
	f.cancel(why)
	return empty
}
