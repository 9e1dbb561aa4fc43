package edge

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/flow"
	"github.com/warrenmesh/warren/edge/observe"
	"github.com/warrenmesh/warren/edge/public"
	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/relay"
)

// The terms of a connect. All tries together have connectTimeout, a wait in a
// pool's queue included. One has tryTimeout where there is somebody else to try:
// time for a SYN that is lost, and for the next pool after two that are silent.
// A pool gets poolTries, and no more after poolTimeouts that were not answered.
const (
	connectTimeout = 10 * time.Second
	tryTimeout     = 3 * time.Second
	poolTries      = 4
	poolTimeouts   = 2
)

// way is a flow's way to an endpoint: the Director's picks, one after the
// other, until one accepts. No byte has flowed by then, so a failure costs
// nothing but time.
type way struct {
	e        *Edge
	director *balance.Director
	app      string // as the Director knows it
	alone    bool   // the app has a single endpoint
	opening  bool   // an endpoint has to answer, and not only to accept
	flow     *flow.Flow
	entry    *observe.Entry

	left   time.Duration // of connectTimeout
	tried  []balance.Endpoint
	passed map[string]int // tries by pool; a timeout counts poolTries / poolTimeouts

	pick  balance.Pick // of the endpoint that has accepted
	taken bool         // pick is to be given back

	status flow.Status // of the last try that failed
	why    string
}

// find returns a connection to an endpoint that accepts; where it is nil, the
// flow's end. Where opening is set it goes on to the endpoint's first byte: one
// that fails before it is replaced, and told what the client has said so far.
func (w *way) find(ctx context.Context, client net.Conn, terms relay.Options) (net.Conn, flow.Status, string) {
	w.left, w.status, w.passed = connectTimeout, flow.StatusNoEndpoint, make(map[string]int)
	op := relay.NewOpening(client, terms)
	for {
		origin := w.connect(ctx, client)
		if origin == nil {
			return nil, w.status, w.why
		}
		if !w.opening {
			return origin, flow.StatusOpen, ""
		}
		again, res := op.Try(ctx, origin)
		if res.Err == nil {
			w.pick.Answered()
			return origin, flow.StatusOpen, ""
		}
		netx.Abort(origin)
		w.status, w.why = w.e.ended(w.flow, res)
		if !again {
			w.leave(res)
			return nil, w.status, w.why
		}
		w.taken = false
		w.blame(w.pick, res.Err, errors.Is(res.Err, netstack.ErrAborted), true)
	}
}

// connect dials what the Director picks until an endpoint accepts; nil: none
// does, and status and why say what became of the last try.
func (w *way) connect(ctx context.Context, client net.Conn) net.Conn {
	began := time.Now()
	defer func() { w.left -= time.Since(began) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer watchClient(client, cancel)()
	ctx, over := context.WithTimeoutCause(ctx, w.left, netx.ErrTimedOut)
	defer over()
	for ctx.Err() == nil {
		pick, reason, ok := w.director.Acquire(ctx, w.request())
		if !ok {
			if w.tried == nil {
				w.why = reason
			}
			if gaveUp(ctx) {
				break
			}
			return nil
		}
		conn, err := w.dial(ctx, pick, reason)
		if err == nil {
			return conn
		}
		w.status, w.why = failed(ctx, err)
	}
	if gaveUp(ctx) || w.tried == nil {
		w.status, w.why = failed(ctx, ctx.Err())
	}
	return nil
}

// gaveUp tells whether somebody has ended the flow, and not its time.
func gaveUp(ctx context.Context) bool {
	return ctx.Err() != nil && !errors.Is(context.Cause(ctx), netx.ErrTimedOut)
}

// request asks for an endpoint that was not tried, in a pool that has tries
// left.
func (w *way) request() balance.Request {
	return balance.Request{
		App: w.app, Client: w.flow.Snapshot().Client.Addr(),
		Tried:  func(ep balance.Endpoint) bool { return slices.Contains(w.tried, ep) },
		Passed: func(pool string) bool { return w.passed[pool] >= poolTries },
	}
}

// dial tries one endpoint, and tells the Director how that went.
func (w *way) dial(ctx context.Context, pick balance.Pick, reason string) (net.Conn, error) {
	to := pick.Endpoint
	w.flow.Update(func(r *flow.Record) { r.Network, r.Pool, r.Endpoint = to.Network, pick.Pool, to.Addr })
	r := w.flow.Snapshot()
	limit := tryTimeout
	if w.alone {
		limit = connectTimeout
	}
	try, cancel := context.WithTimeoutCause(ctx, limit, netx.ErrTimedOut)
	defer cancel()
	began := time.Now()
	conn, connector, err := w.e.dialFor(try, r, to)
	took := time.Since(began)
	w.flow.Update(func(r *flow.Record) { r.Connector = connector })
	if err == nil {
		w.flow.Update(func(r *flow.Record) { r.ConnectTime, r.Why = took, reason })
		w.entry.Connected(took)
		w.accept(pick, r.Proto, took)
		return conn, nil
	}
	switch {
	case gaveUp(ctx): // the client has left, say
		pick.Canceled()
	default:
		lost := netx.Classify(err) == netx.ErrNoRoute && connector != ""
		w.blame(pick, err, lost, took >= tryTimeout)
	}
	return nil, err
}

// accept notes that an endpoint has accepted. UDP hears of it only with the
// first answer.
func (w *way) accept(pick balance.Pick, proto string, took time.Duration) {
	w.pick, w.taken = pick, true
	if proto == "udp" {
		pick.Connected(0)
		return
	}
	pick.Connected(took)
	if !w.opening {
		pick.Answered()
	}
}

// blame gives back an endpoint that has failed the flow. It speaks against the
// endpoint only where nothing else can be the reason: lost tells that its
// connector was, so that a replica may serve it yet; patient that it had its
// time.
func (w *way) blame(pick balance.Pick, err error, lost, patient bool) {
	kind := netx.Classify(err)
	if kind == netx.ErrTimedOut {
		w.passed[pick.Pool] += poolTries/poolTimeouts - 1
	}
	w.passed[pick.Pool]++
	if lost {
		pick.Canceled()
		return
	}
	w.tried = append(w.tried, pick.Endpoint)
	switch {
	case kind == netx.ErrNoRoute, kind == netx.ErrTimedOut && !patient && !w.alone, ownTrouble(err):
		pick.Canceled()
	default:
		pick.Failed(err)
	}
}

// ownTrouble tells whether a dial failed for want of something of this edge's.
func ownTrouble(err error) bool {
	return errors.Is(err, public.ErrBusy) || errors.Is(err, public.ErrDescriptors) || errors.Is(err, public.ErrPingUnsupported)
}

// leave gives the endpoint back as the flow ends.
func (w *way) leave(res relay.Result) {
	if !w.taken {
		return
	}
	w.taken = false
	if w.flow.Snapshot().Proto == "udp" {
		if w.flow.BytesOut.Load() > 0 {
			w.pick.Answered()
		} else if res.End == relay.EndFailed && res.Side == relay.SideB && netx.Classify(res.Err) == netx.ErrRefused {
			w.pick.Failed(res.Err) // UDP learns only now that nobody listens
			return
		}
	}
	w.pick.Release()
}
