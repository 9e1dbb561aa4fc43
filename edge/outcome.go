package edge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/warrenmesh/warren/edge/flow"
	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/relay"
)

// relayDrops counts the datagrams that one side of a flow could not take.
type relayDrops struct{ tooBig, noBuffer atomic.Uint64 }

func (d *relayDrops) drop(why string) {
	if why == relay.DropTooBig {
		d.tooBig.Add(1)
		return
	}
	d.noBuffer.Add(1)
}

func (d *relayDrops) report(yield func(where, why string, n uint64)) {
	yield("relay", relay.DropTooBig, d.tooBig.Load())
	yield("relay", relay.DropNoBuffer, d.noBuffer.Load())
}

// failed maps a dial that failed to the flow's status.
func failed(ctx context.Context, err error) (flow.Status, string) {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errClientGone):
		return flow.StatusClientGone, cause.Error()
	case cause != nil && !errors.Is(cause, netx.ErrTimedOut):
		return flow.StatusCut, cause.Error()
	}
	switch netx.Classify(err) {
	case netx.ErrRefused:
		return flow.StatusRefused, err.Error()
	case netx.ErrUnreachable:
		return flow.StatusUnreachable, err.Error()
	case netx.ErrTimedOut:
		return flow.StatusTimeout, err.Error()
	case netx.ErrNoRoute:
		return flow.StatusNoRoute, err.Error()
	}
	return flow.StatusInternal, err.Error()
}

// ended maps the end of the relay of f, in which side A is the client, to the
// flow's status.
func (e *Edge) ended(f *flow.Flow, res relay.Result) (flow.Status, string) {
	switch res.End {
	case relay.EndOrderly:
		return flow.StatusClosed, "closed in order"
	case relay.EndIdle:
		return flow.StatusClosed, "idle timeout"
	case relay.EndCanceled:
		return flow.StatusCut, res.Err.Error()
	}
	if res.Side == relay.SideA {
		return flow.StatusClientGone, res.Err.Error()
	}
	if errors.Is(res.Err, netstack.ErrAborted) {
		if why := e.withdrawn(f.Snapshot()); why != "" {
			return flow.StatusCut, why
		}
	}
	if netx.Classify(res.Err) == netx.ErrRefused { // UDP learns it only now
		return flow.StatusRefused, res.Err.Error()
	}
	return flow.StatusOriginGone, res.Err.Error()
}

// withdrawn says what an operator took from under a flow that the tunnel has
// aborted; "" where its connector was lost, or restarted.
func (e *Edge) withdrawn(r flow.Record) string {
	p := e.nets.peer(r.Connector)
	switch {
	case p == nil:
		return fmt.Sprintf("connector %q was revoked, or taken from the config", r.Connector)
	case !slices.ContainsFunc(p.Routes(), func(route netip.Prefix) bool { return route.Contains(r.Endpoint.Addr()) }):
		return fmt.Sprintf("connector %q lost its route to %s", r.Connector, r.Endpoint.Addr())
	}
	return ""
}
