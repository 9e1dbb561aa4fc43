package connector

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Why a flow is not admitted. Both reach the edge as host unreachable, so that
// it may try another connector.
var (
	errDraining = fmt.Errorf("%w: this connector is draining", netx.ErrUnreachable)
	errTooMany  = fmt.Errorf("%w: this connector has as many flows as it may", netx.ErrUnreachable)
)

// errCut is the cause of the end of the flows that a drain did not wait for.
var errCut = errors.New("the connector ends")

// flows admits flows, up to a bound for each protocol, and waits for their
// end. A flow holds its place from before the dial until both its conns are
// closed; where all places of UDP are taken, an idle flow yields its own.
//
//	open ──drain──→ draining ──cut──→ closed
type flows struct {
	max map[string]int // by protocol

	// ctx is every flow's context; cut cancels it.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	live     map[string]int // by protocol
	yielding []*place       // established UDP flows
	hand     int            // the one in yielding that was looked at last
	ending   int            // flows that yielded and are not gone yet
	draining bool
	empty    chan struct{} // made by drain, closed when the last flow ends
}

func newFlows(maxTCP, maxUDP int) *flows {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &flows{
		max:    map[string]int{"tcp": maxTCP, "udp": maxUDP},
		live:   make(map[string]int),
		ctx:    ctx,
		cancel: cancel,
	}
}

// admit takes a place for a flow of proto; the caller gives it back with done.
func (f *flows) admit(proto string) (*place, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.draining:
		return nil, errDraining
	case f.live[proto] < f.max[proto]:
	case proto != "udp" || !f.takeLocked():
		return nil, errTooMany
	}
	f.live[proto]++
	return &place{proto: proto}, nil
}

// done gives a flow's place back.
func (f *flows) done(p *place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case p.taken:
		f.ending--
	case p.end != nil:
		f.forgetLocked(p)
		fallthrough
	default:
		f.live[p.proto]--
	}
	f.signalLocked()
}

// signalLocked closes empty where the last flow of a drain is gone. The caller
// holds mu.
func (f *flows) signalLocked() {
	if f.empty == nil || f.live["tcp"]+f.live["udp"]+f.ending > 0 {
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

// isDraining tells whether new flows are refused.
func (f *flows) isDraining() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.draining
}

// cut ends every live flow's context, and returns a channel that is closed
// when the last of them is gone. It drains first.
func (f *flows) cut() <-chan struct{} {
	empty := f.drain()
	f.cancel(errCut)
	return empty
}
