package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/relay"
)

// What became of a flow's dial: the label "result" of the dials metric, and
// the reason in the log.
const (
	resultOK          = "ok"
	resultDenied      = "denied"      // by the guard
	resultRefused     = "refused"     // by the origin
	resultUnreachable = "unreachable" // no way to the origin
	resultTimeout     = "timeout"     // the origin is silent
	resultResolve     = "resolve"     // an alias's name gave no address
	resultLimit       = "limit"       // as many flows as there may be, or no descriptor left
	resultDraining    = "draining"    // the connector ends
	resultGone        = "edge_gone"   // the edge gave up before the origin answered
	resultCanceled    = "canceled"    // the connector ended during the dial
)

// results are all of them, for the metrics to show from the start.
var results = []string{
	resultOK, resultDenied, resultRefused, resultUnreachable, resultTimeout,
	resultResolve, resultLimit, resultDraining, resultGone, resultCanceled,
}

// resultOf names what err means to an operator.
func resultOf(err error) string {
	switch {
	case err == nil:
		return resultOK
	case errors.Is(err, errDraining):
		return resultDraining
	case errors.Is(err, errTooMany), errors.Is(err, origin.ErrDescriptors), errors.Is(err, origin.ErrTooManyPings):
		return resultLimit
	case errors.Is(err, errDenied), errors.Is(err, errNotGranted), errors.Is(err, origin.ErrDenied):
		return resultDenied
	case errors.Is(err, origin.ErrResolve):
		return resultResolve
	}
	switch netx.Classify(err) {
	case netx.ErrRefused:
		return resultRefused
	case netx.ErrTimedOut:
		return resultTimeout
	case nil:
		return resultCanceled
	}
	return resultUnreachable
}

// Why a destination that the edge asked for is denied.
var (
	errDenied     = fmt.Errorf("%w: denied by the connector's guard", netx.ErrUnreachable)
	errNotGranted = fmt.Errorf("%w: denied by the edge's grant", netx.ErrUnreachable)
)

// request is what the two kinds of request have in common.
type request interface {
	Context() context.Context
	Source() netip.AddrPort
	Destination() netip.AddrPort
	Reject(err error)
}

// admitted is a flow that holds its places: among those of its edge, and among
// all.
type admitted struct {
	of, all *place

	ctx context.Context // ends when the flow is cut; nil once the relay has it

	mu     sync.Mutex
	cancel context.CancelCauseFunc // of ctx; nil with it
	stream *relay.Stream           // of a TCP flow, once the relay has it
	cause  error                   // of cut
}

// cut ends the flow. It may be called at any time, from any goroutine.
func (f *admitted) cut(cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stream != nil {
		f.stream.Cut(cause)
		return
	}
	f.cause = cause
	f.cancel(cause)
}

// handOver notes that the relay has the flow.
func (f *admitted) handOver(s *relay.Stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancel(nil)
	f.stream, f.ctx, f.cancel = s, nil, nil
	if f.cause != nil {
		s.Cut(f.cause)
	}
}

// begin asks the guard and takes the flow's places. Where either says no, it
// answers the edge and returns nil; else the caller owes a call of done.
func (c *Connector) begin(e *edge, proto string, r request) *admitted {
	f, err := c.admit(e, proto, r.Destination())
	if err != nil {
		r.Reject(err)
		c.failed(e, proto, r, err)
		return nil
	}
	return f
}

func (c *Connector) admit(e *edge, proto string, dst netip.AddrPort) (*admitted, error) {
	if v, why := c.guard.Allow(proto, dst); v != guard.Allow {
		return nil, fmt.Errorf("%w: \"%s/%s\": %s", errDenied, proto, dst, why)
	}
	f := new(admitted)
	f.ctx, f.cancel = context.WithCancelCause(e.flows.ctx)
	end := f.cut
	var err error
	if f.of, err = e.flows.admit(proto, dst.Addr(), end); err != nil {
		f.cancel(err)
		return nil, err
	}
	if f.all, err = c.flows.admit(proto, dst.Addr(), end); err != nil {
		e.flows.done(f.of)
		f.cut(err)
		return nil, err
	}
	return f, nil
}

// done gives the flow's places back.
func (c *Connector) done(e *edge, f *admitted) {
	f.mu.Lock()
	if f.cancel != nil {
		f.cancel(nil)
	}
	f.mu.Unlock()
	e.flows.done(f.of)
	c.flows.done(f.all)
}

// failed counts and logs a flow that did not come to be.
func (c *Connector) failed(e *edge, proto string, r request, err error) {
	result := resultOf(err)
	c.count.dialed(proto, result)
	if tellsOfOrigin(result) {
		destination := proto + "/" + r.Destination().String()
		if e.failures.note(destination, result, err, c.deps.Wall()) {
			e.ctl.tell()
		}
	}
	if result == resultCanceled {
		return // the connector ends; it says so once
	}
	c.complain(e, proto, r, result, err)
}

// complain logs what became of a flow, within the bounds of the failLog.
func (c *Connector) complain(e *edge, proto string, r request, result string, err error) {
	c.fails.write(result, err,
		slog.String("edge", e.name()), slog.String("proto", proto),
		slog.Any("source", r.Source()), slog.Any("destination", r.Destination()))
}

// dial opens the origin's side of an admitted flow, or answers the edge with
// why it cannot. The dial ends with the flow, and with the edge's NIC.
func (c *Connector) dial(e *edge, proto string, r request, f *admitted) (net.Conn, bool) {
	cancel := f.cancel // which handOver forgets
	defer context.AfterFunc(r.Context(), func() { cancel(context.Canceled) })()
	private, err := c.origin.DialContext(f.ctx, proto, r.Destination())
	if err != nil {
		r.Reject(err)
		c.failed(e, proto, r, err)
		return nil, false
	}
	return private, true
}

// serveTCP carries one connection. The edge's SYN is answered only once the
// origin has accepted, so that the edge knows the truth before a byte flows.
// It returns when both sides are connected: from then on the relay owns the
// flow, until it hands it back to the function that ends it.
func (c *Connector) serveTCP(e *edge, r TCPRequest) {
	f := c.begin(e, "tcp", r)
	if f == nil {
		return
	}
	private, ok := c.dial(e, "tcp", r, f)
	if !ok {
		c.done(e, f)
		return
	}
	inner, err := r.Accept()
	if err != nil {
		netx.Abort(private)
		c.count.dialed("tcp", notAccepted(err))
		c.done(e, f)
		return
	}
	c.count.dialed("tcp", resultOK)
	terms := relay.Options{AToB: &c.count.toOrigin, BToA: &c.count.fromOrigin, Poller: c.poller}
	source, destination := r.Source(), r.Destination() // the request itself holds the SYN
	f.handOver(relay.Start(e.flows.ctx, inner, private, terms, func(res relay.Result) {
		c.ended(e, "tcp", source, destination, res)
		c.done(e, f)
	}))
}

// notAccepted is the result of a dial whose connection the edge did not keep. A
// reset came after the edge had taken it: so checks end, of which there are
// many.
func notAccepted(err error) string {
	if errors.Is(err, syscall.ECONNRESET) {
		return resultOK
	}
	return resultGone
}

// serveUDP carries one UDP flow, until it is idle, the edge ends its session,
// it yields to a new one, or one side is gone. When the origin says that nobody
// listens there, the edge is told.
func (c *Connector) serveUDP(e *edge, r UDPRequest) {
	f := c.begin(e, "udp", r)
	if f == nil {
		return
	}
	defer c.done(e, f)
	private, ok := c.dial(e, "udp", r, f)
	if !ok {
		return
	}
	inner, err := r.Accept()
	if err != nil {
		_ = private.Close()
		c.count.dialed("udp", resultGone)
		return
	}
	c.count.dialed("udp", resultOK)
	var meter relay.Meter
	e.flows.established(f.of, meter.Idle)
	c.flows.established(f.all, meter.Idle)
	res := relay.Datagrams(f.ctx, inner, private, relay.Options{
		Idle:   c.spec.UDPIdle,
		Meter:  &meter,
		AToB:   &c.count.toOrigin,
		BToA:   &c.count.fromOrigin,
		OnDrop: func(why string) { c.count.drops.Add(why, 1) },
	})
	if res.End == relay.EndFailed && res.Side == relay.SideB {
		inner.Unreachable(res.Err)
	}
	if errors.Is(res.Err, errYield) {
		c.count.drops.Add(dropYielded, 1)
		c.complain(e, "udp", r, resultLimit, res.Err)
		return
	}
	if res.End == relay.EndFailed && res.Side == relay.SideA && errors.Is(res.Err, netx.ErrRefused) {
		// The edge's session is over: how a UDP flow ends in order.
		res.End, res.Err = relay.EndOrderly, nil
	}
	c.ended(e, "udp", r.Source(), r.Destination(), res)
}

// ended notes how an established flow ended; only a debugging operator wants
// a line for that, the edge writes the flow log.
func (c *Connector) ended(e *edge, proto string, source, destination netip.AddrPort, res relay.Result) {
	if !c.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	c.log.Debug("flow ended", "edge", e.name(), "proto", proto, "source", source, "destination", destination,
		"to_origin", res.AToB, "from_origin", res.BToA, "end", res.End, "err", res.Err)
}
