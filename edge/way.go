package edge

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/flow"
	"github.com/warrenmesh/warren/edge/observe"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/relay"
)

// The terms of a connect. The private side has connectTimeout for all tries
// together, a wait in a pool's queue included, and tryTimeout for each: time
// for two SYNs that are lost, and for another endpoint after one that is
// silent.
const (
	connectTimeout = 10 * time.Second
	tryTimeout     = 4 * time.Second
	connectTries   = 8
)

// way is a flow's way to an endpoint: the Director's picks, one after the
// other, until one accepts. No byte has flowed by then, so a failure costs
// nothing but time.
type way struct {
	e        *Edge
	director *balance.Director
	app      string // as the Director knows it
	flow     *flow.Flow
	entry    *observe.Entry

	tried []balance.Endpoint
	pick  balance.Pick // of the endpoint that has accepted
	taken bool         // pick is to be given back
}

// find returns a connection to an endpoint that accepts; where it is nil, the
// flow's end. With opening it goes on to the endpoint's first byte: one that
// fails before it is replaced, and told what the client has said so far.
func (w *way) find(ctx context.Context, client net.Conn, opening bool, terms relay.Options) (net.Conn, flow.Status, string) {
	if !opening {
		return w.connect(ctx, client)
	}
	op := relay.NewOpening(client, terms)
	for {
		origin, status, why := w.connect(ctx, client)
		if origin == nil {
			return nil, status, why
		}
		again, res := op.Try(ctx, origin)
		if res.Err == nil {
			return origin, flow.StatusOpen, ""
		}
		netx.Abort(origin)
		if !again {
			w.leave(res)
			status, why = w.e.ended(w.flow, res)
			return nil, status, why
		}
		w.failed(res.Err)
	}
}

// connect dials what the Director picks until an endpoint accepts.
func (w *way) connect(ctx context.Context, client net.Conn) (net.Conn, flow.Status, string) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer watchClient(client, cancel)()
	ctx, over := context.WithTimeoutCause(ctx, connectTimeout, netx.ErrTimedOut)
	defer over()
	status, why := flow.StatusNoEndpoint, ""
	for try := range connectTries {
		if ctx.Err() != nil {
			status, why = failed(ctx, ctx.Err())
			break
		}
		pick, reason, ok := w.director.Acquire(ctx, w.request())
		if !ok {
			if try == 0 && len(w.tried) == 0 {
				why = reason
				if ctx.Err() != nil && context.Cause(ctx) != netx.ErrTimedOut {
					status, why = failed(ctx, ctx.Err())
				}
			}
			break
		}
		conn, err := w.dial(ctx, pick, reason)
		if err == nil {
			return conn, flow.StatusOpen, ""
		}
		status, why = failed(ctx, err)
	}
	return nil, status, why
}

// request asks for an endpoint that was not tried.
func (w *way) request() balance.Request {
	return balance.Request{
		App: w.app, Client: w.flow.Snapshot().Client.Addr(),
		Tried: func(ep balance.Endpoint) bool { return slices.Contains(w.tried, ep) },
	}
}

// dial tries one endpoint, and tells the Director how that went.
func (w *way) dial(ctx context.Context, pick balance.Pick, reason string) (net.Conn, error) {
	to := pick.Endpoint
	w.flow.Update(func(r *flow.Record) { r.Network, r.Pool, r.Endpoint = to.Network, pick.Pool, to.Addr })
	r := w.flow.Snapshot()
	try, cancel := context.WithTimeoutCause(ctx, tryTimeout, netx.ErrTimedOut)
	defer cancel()
	began := time.Now()
	conn, connector, err := w.e.dialFor(try, r, to)
	took := time.Since(began)
	w.flow.Update(func(r *flow.Record) { r.Connector = connector })
	switch {
	case err == nil:
		w.flow.Update(func(r *flow.Record) { r.ConnectTime, r.Why = took, reason })
		w.entry.Connected(took)
		if r.Proto == "udp" {
			took = 0 // nobody has answered yet
		}
		pick.Connected(took)
		pick.Answered()
		w.pick, w.taken = pick, true
		return conn, nil
	case ctx.Err() != nil && context.Cause(ctx) != netx.ErrTimedOut: // the client left, say
		pick.Canceled()
	case netx.Classify(err) == netx.ErrNoRoute: // of the endpoint nothing was learnt
		pick.Canceled()
		if connector == "" {
			w.tried = append(w.tried, to)
		} // else the connector was lost: a replica may serve it
	default:
		pick.Failed(err)
		w.tried = append(w.tried, to)
	}
	return nil, err
}

// failed gives back an endpoint that had accepted, and has failed the flow.
func (w *way) failed(err error) {
	w.tried = append(w.tried, w.pick.Endpoint)
	w.taken = false
	w.pick.Failed(err)
}

// leave gives the endpoint back as the flow ends.
func (w *way) leave(res relay.Result) {
	if !w.taken {
		return
	}
	w.taken = false
	if res.End == relay.EndFailed && res.Side == relay.SideB && w.flow.Snapshot().Proto == "udp" && netx.Classify(res.Err) == netx.ErrRefused {
		w.pick.Failed(res.Err) // UDP learns only now that nobody listens
		return
	}
	w.pick.Release()
}
