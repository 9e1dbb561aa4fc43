package edge

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/flow"
	"github.com/warrenmesh/warren/edge/ingress"
	"github.com/warrenmesh/warren/edge/observe"
	"github.com/warrenmesh/warren/edge/policy"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/relay"
)

// walk is the journey of one flow, from Accept to Done, with one owner:
//
//	ingress.Accept → route.Match → policy.Decide → balance.Pick → network.Dial
//	               → relay.Start → observe.Done
//
// Between policy.Decide and relay.Start the flow looks for an endpoint that
// takes it: way.go.
//
// Its goroutine is the owner up to relay.Start. Then the relay is, which needs
// none while a TCP flow is at rest, until it hands the flow back to finish.
// Of UDP, policy has decided before that (see admit), and the goroutine stays.
//
// The flow keeps the config that it began with; which connectors serve a
// network is always the present's to say.
func (e *Edge) walk(ctx context.Context, in ingress.Accepted) {
	now := e.current.Load()
	app, offset, ok := now.routes.Match(in.Spec.Network, in.Spec.Addr, in.Spec.App)
	if !ok { // its listener was removed between Accept and here
		e.dropped.Add(dropListenerGone, 1)
		netx.Abort(in.Conn)
		return
	}
	f := flow.New(flow.Record{
		ID: e.flowID.Add(1), App: app.Name, Proto: in.Spec.Network,
		Listener: in.Local, Client: in.Client, Start: in.At,
	})
	p := &passage{e: e, flow: f}
	connecting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.cancel = cancel
	p.entry = e.observer.Begin(f, p.cut)

	verdict, why := app.rules.Decide(in.Client.Addr())
	if verdict != policy.Allow {
		netx.Abort(in.Conn)
		p.end(flow.StatusDenied, why)
		return
	}
	terms := p.terms(app.idle(in.Spec.Network))
	p.way = &way{
		e: e, director: now.director, app: app.SteeredAt(offset), alone: app.alone,
		opening: app.RetryFirstByte && in.Spec.Network == "tcp", flow: f, entry: p.entry,
	}
	origin, status, why := p.way.find(connecting, in.Conn, terms)
	if origin == nil {
		netx.Abort(in.Conn)
		p.end(status, why)
		return
	}
	if in.Spec.Network == "udp" {
		p.finish(relay.Datagrams(connecting, in.Conn, origin, terms))
		return
	}
	if p.done = in.Keep(); p.done == nil {
		p.finish(relay.Copy(connecting, in.Conn, origin, terms))
		return
	}
	p.handOver(relay.Start(ctx, in.Conn, origin, terms, p.finish))
}

// passage is a flow on its way, with what ends it and what its end needs.
type passage struct {
	e     *Edge
	flow  *flow.Flow
	entry *observe.Entry
	done  func() // of the ingress; nil where the flow ends with its goroutine
	way   *way   // to the endpoint; nil before the flow may have one

	mu     sync.Mutex
	stream *relay.Stream           // once the relay has the flow
	cancel context.CancelCauseFunc // until then
	killed error                   // cut's cause
}

// cut ends the flow. It may be called at any time, from any goroutine.
func (p *passage) cut(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stream != nil {
		p.stream.Cut(cause)
		return
	}
	p.killed = cause
	p.cancel(cause)
}

// handOver notes that the relay has the flow.
func (p *passage) handOver(s *relay.Stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream, p.cancel = s, nil
	if p.killed != nil {
		s.Cut(p.killed)
	}
}

// terms are the relay's.
func (p *passage) terms(idle time.Duration) relay.Options {
	return relay.Options{
		Idle: idle, AToB: &p.flow.BytesIn, BToA: &p.flow.BytesOut,
		OnDrop: p.e.relayed.drop, Poller: p.e.poller,
	}
}

// finish takes the flow back from the relay.
func (p *passage) finish(res relay.Result) {
	p.way.leave(res)
	p.end(p.e.ended(p.flow, res))
}

// end is the last act of the flow's owner.
func (p *passage) end(status flow.Status, why string) {
	p.flow.Done(time.Now(), status, why)
	p.entry.End()
	if p.done != nil {
		p.done()
	}
}

// admit says whether a UDP client may begin a session, by the rules that walk
// asks too. It comes before the session, so that sources which anyone can
// forge fill neither the table of sessions nor the flow log.
func (e *Edge) admit(spec *ingress.Spec, client netip.Addr) bool {
	app, _, ok := e.current.Load().routes.Match(spec.Network, spec.Addr, spec.App)
	if !ok {
		return true // its listener goes just now: walk counts that
	}
	verdict, _ := app.rules.Decide(client)
	return verdict == policy.Allow
}

// dial opens one flow of the edge's own to a private endpoint and says through
// which connector.
func (e *Edge) dial(ctx context.Context, network, proto string, addr netip.AddrPort) (net.Conn, string, error) {
	return e.dialFor(ctx, flow.Record{Proto: proto}, balance.Endpoint{Network: network, Addr: addr})
}

// dialFor is dial for a client's flow, which may come from the client's own
// address; not from one of this machine's, where a program of it is the client.
func (e *Edge) dialFor(ctx context.Context, r flow.Record, to balance.Endpoint) (net.Conn, string, error) {
	if to.Network == config.Public {
		conn, err := e.public.Load().DialContext(ctx, r.Proto, to.Addr)
		return conn, "", err
	}
	n := e.network(to.Network)
	if n == nil {
		return nil, "", fmt.Errorf("dialling %q in network %q: %w", to.Addr, to.Network, netx.ErrNoRoute)
	}
	client := r.Client
	if client.Addr() == r.Listener.Addr() || e.nets.isOwn(client.Addr()) {
		client = netip.AddrPort{}
	}
	conn, peer, err := n.DialFor(ctx, r.Proto, client, to.Addr)
	if peer == nil {
		return nil, "", err
	}
	return conn, peer.Name(), err
}

// dropListenerGone is why a flow was dropped that has no app, and so no line
// in the flow log: a reload removed its listener before it was routed.
const dropListenerGone = "listener_gone"

// reportDrops yields the flows that the walk itself dropped.
func (e *Edge) reportDrops(yield func(where, why string, n uint64)) {
	yield("edge", dropListenerGone, e.dropped.Count(dropListenerGone))
}
