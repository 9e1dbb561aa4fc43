package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

const (
	// answerWithin is how long an address of an edge has to answer before the
	// next one is tried. The tunnel calls some eight times in it.
	answerWithin = 10 * time.Second
	// sayAfter is how long an edge may be silent before the log says why, the
	// first time: who waits for a connector to start looks right then.
	sayAfter = 3 * time.Second
	// aimCheck is how often a waiting edge looks whether the tunnel calls where
	// it should.
	aimCheck = 2 * time.Second
	// leaveCheck is how often an edge that is to be left is looked at for flows
	// that have bytes on the way.
	leaveCheck = 100 * time.Millisecond
)

// edge keeps one edge joined: it enrols there where that is needed, resolves
// the edge's name, points the tunnel at its addresses in turn, and says on the
// log what becomes of it.
//
//	enrol ──→ resolve ──→ try each address ──→ alive ──→ lost
//	  ↑          ↑ back-off      │ no answer     │         │
//	  └──────────┴───────────────┴───────────────│─────────┘
//	                                  refused ──→ gone
//	                                  drained ──→ looked in on ──→ resolve
//
// The tunnel does the handshakes, knows whether the edge is alive, and aborts
// the flows of one that restarted or stays away.
type edge struct {
	c        *Connector
	title    string
	spec     EdgeSpec
	declared bool // the edge knows this connector from its configuration
	log      *slog.Logger

	flows    *flows // those of this edge, within its grant
	failures failures
	ctl      control
	duty     duty
	news     chan struct{} // capacity 1: the tunnel reported a change
	quiet    atomic.Bool   // what is logged is for debugging: see lookIn
	again    atomic.Bool   // the tunnel is to call at once, however long it would have waited

	mu     sync.Mutex
	peer   Peer        // nil before the first resolution, and after the end
	gone   error       // why the edge is served no more; nil: it is
	member *state.Edge // the enrolment; nil: there was none. What it points to does not change
	grant  grant       // the last one of this run
	told   []EdgeURL   // where the edge says that it listens; nil: it did not
	worker *worker     // who does its work besides flows; nil: nobody

	invited  bool      // the token is for this edge; changed by run's goroutine alone
	unsaved  bool      // what member holds is not on the disk
	saveNext time.Time // not before

	// Of run's goroutine alone.
	at    netip.AddrPort // where the tunnel calls; zero before Join
	known bool           // a handshake was made in this run: the edge knows our key
	heard time.Time      // when the edge was lost, on the wall's clock
	said  bool           // the log says why the edge does not answer

	enrolNext time.Time // not before, where the edge has known the key
}

func newEdge(c *Connector, spec EdgeSpec) *edge {
	return &edge{
		c:     c,
		spec:  spec,
		news:  make(chan struct{}, 1),
		ctl:   control{urgent: make(chan struct{}, 1)},
		flows: newFlows(c.flows.ctx, math.MaxInt, math.MaxInt),
	}
}

// setName gives the edge its name, which is its own among the edges.
func (e *edge) setName(name string) {
	e.title = name
	e.log = slog.New(hush{e.c.log.Handler(), &e.quiet}).With("edge", name)
}

// name is what logs and metrics call the edge.
func (e *edge) name() string { return e.title }

// state returns the tunnel's word, the zero State before the edge is joined.
func (e *edge) state() State {
	e.mu.Lock()
	peer := e.peer
	e.mu.Unlock()
	if peer == nil {
		return State{}
	}
	return peer.State()
}

// run keeps the edge joined until ctx ends, or until trying again cannot help:
// it returns why, and the edge's flows are cut and its peer is removed then. An
// edge that drained this connector is left, and joined again when its operator
// has ended the drain.
func (e *edge) run(ctx context.Context) error {
	for {
		err := e.live(ctx)
		if err == nil {
			return nil
		}
		others := e.c.away()
		if !errors.Is(err, errDrained) {
			e.giveUp(err)
			return err
		}
		hint := ""
		if others {
			hint = "it is asked about once a minute whether the drain has ended"
		}
		e.log.Info("left", "reason", err, "hint", hint)
		e.part(err)
		if err := e.lookIn(ctx); err != nil {
			if !errors.Is(err, errDrained) {
				e.giveUp(err)
			}
			return err
		}
		e.c.back()
	}
}

// giveUp leaves the edge for good.
func (e *edge) giveUp(why error) {
	e.log.Error("given up", "reason", why)
	e.part(why)
	e.flows.cut(errLeft)
}

// part removes the edge's peer, and notes why the edge is served no more.
func (e *edge) part(why error) {
	e.mu.Lock()
	peer := e.peer
	e.peer, e.gone = nil, why
	e.mu.Unlock()
	if peer != nil {
		peer.Remove()
	}
	e.c.rotation.poke()
}

func (e *edge) live(ctx context.Context) error {
	var retry backoff
	for ctx.Err() == nil {
		if e.mustEnrol() {
			if err := e.enrol(ctx); err != nil {
				return err
			}
			continue
		}
		called, came, err := e.attempt(ctx)
		if err != nil {
			return err
		}
		if called && !came && e.mayEnrol() {
			if err := e.enrol(ctx); err != nil {
				return err
			}
		}
		if !came && ctx.Err() == nil {
			delay := retry.next()
			e.log.Info("trying again", "in", delay.Round(time.Millisecond))
			came = e.wait(ctx, delay) // the tunnel calls on meanwhile
		}
		if came {
			if err := e.serve(ctx); err != nil {
				return err
			}
			retry.reset()
		}
	}
	return nil
}

// attempt resolves the edge and tries what it finds; called tells that there
// was something to try, came that the edge is alive.
func (e *edge) attempt(ctx context.Context) (called, came bool, err error) {
	addrs, err := e.resolve(ctx)
	if ctx.Err() != nil {
		return false, false, nil
	}
	if err != nil {
		e.log.Warn("resolving failed", "err", err)
		return false, false, nil
	}
	e.log.Info("resolved", "addresses", addrs)
	came, err = e.try(ctx, addrs)
	return true, came, err
}

// try points the tunnel at each address in turn and reports whether the edge
// answered from one.
func (e *edge) try(ctx context.Context, addrs []netip.AddrPort) (came bool, err error) {
	for _, addr := range addrs {
		if err := e.c.deps.Reach.Route(addr); err != nil {
			e.log.Warn("no answer", "reason", fmt.Sprintf("this machine has no way to %s: %v", addr, err))
			if len(addrs) > 1 {
				continue
			}
		}
		if err := e.call(addr); err != nil {
			return false, err
		}
		if e.answers(ctx, addr) {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, nil
		}
	}
	return false, nil
}

// answers gives addr its time to answer and reports whether the edge is alive.
// It says why not: after sayAfter where that is the first word of this
// silence, else when the time is up.
func (e *edge) answers(ctx context.Context, addr netip.AddrPort) bool {
	start := time.Now()
	patience := answerWithin
	if !e.said {
		patience = sayAfter
	}
	if e.wait(ctx, patience) {
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	reason := e.whyNoAnswer(ctx, addr, time.Since(start))
	if ctx.Err() != nil || e.state().Alive {
		return e.state().Alive // while the network was asked
	}
	e.log.Warn("no answer", "reason", reason)
	e.said = true
	if left := answerWithin - time.Since(start); left > 0 {
		return e.wait(ctx, left)
	}
	return false
}

// call points the tunnel at addr, and joins the edge the first time.
func (e *edge) call(addr netip.AddrPort) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.peer != nil {
		e.at = addr
		return e.aimLocked()
	}
	peer, err := e.c.device().Join(JoinConfig{
		Name:      e.name(),
		PublicKey: e.spec.PublicKey,
		Endpoint:  addr,
		OnState:   func(State) { e.notify() },
		TCP:       func(r TCPRequest) { e.c.serveTCP(e, r) },
		UDP:       func(r UDPRequest) { e.c.serveUDP(e, r) },
		Ping:      func(ctx context.Context, src, dst netip.Addr) error { return e.c.servePing(ctx, e, src, dst) },
	})
	if err != nil {
		return fmt.Errorf("joining edge %q: %w", e.name(), err)
	}
	e.peer, e.at = peer, addr
	return nil
}

// aimLocked makes the tunnel call at e.at, if it does not already: WireGuard
// follows the source of whatever comes, so a last packet from an edge's old
// address would turn it back. The caller holds mu, and the edge is not alive.
func (e *edge) aimLocked() error {
	calls := e.peer.State().Endpoint
	if calls.Port() == e.at.Port() && calls.Addr().WithZone("") == e.at.Addr().WithZone("") {
		return nil
	}
	return e.peer.SetEndpoint(e.at)
}

// aim is aimLocked for an edge that may not be joined yet. With again, the
// tunnel calls at once however long it would have waited.
func (e *edge) aim(again bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.peer == nil {
		return
	}
	err := error(nil)
	if again {
		err = e.peer.SetEndpoint(e.at)
	} else {
		err = e.aimLocked()
	}
	if err != nil {
		e.log.Warn("calling failed", "err", err)
	}
}

func (e *edge) notify() {
	select {
	case e.news <- struct{}{}:
	default:
	}
}

// whyNoAnswer says why, as far as it can be told from here: WireGuard answers
// nobody whom it does not know, so a closed firewall, a dead edge and a
// foreign key look the same unless the network itself speaks up.
func (e *edge) whyNoAnswer(ctx context.Context, addr netip.AddrPort, after time.Duration) string {
	err := e.c.deps.Reach.Probe(ctx, addr)
	switch {
	case errors.Is(err, errPortClosed):
		return fmt.Sprintf("nothing listens at UDP %s (port unreachable): does the edge run, and is the port right?", addr)
	case err != nil:
		return fmt.Sprintf("UDP to %s fails: %v", addr, err)
	}
	reason := fmt.Sprintf("no answer from %s over UDP for %.0f s: is UDP %d open, and does the edge run?", addr, after.Seconds(), addr.Port())
	return reason + e.whyUnknown()
}

// whyUnknown says why an edge that runs may not answer this connector.
func (e *edge) whyUnknown() string {
	member, _ := e.membership()
	switch {
	case member != nil && !member.Confirmed && !e.invited:
		return " If so: " + hintPending
	case member != nil && member.Confirmed && e.awayFor(forgetAfter):
		return " If so: " + hintForgotten
	case member == nil && !e.known:
		return fmt.Sprintf(" If so, the handshake is not answered: does the edge know this connector's public key %s, and is %s the edge's?",
			tunnel.Abbreviate(e.c.ownKey().PublicKey()), tunnel.Abbreviate(e.spec.PublicKey))
	}
	return ""
}

// awayFor tells whether the edge was not heard for d, or never in this run.
func (e *edge) awayFor(d time.Duration) bool {
	return !e.known || e.c.deps.Wall().Sub(e.heard) > d
}

// wait waits until the edge is alive and reports true, or until d has passed
// or ctx ends. Where the clock jumped, as that of a machine that was suspended,
// the tunnel calls at once, and the edge has the time of a fresh call.
func (e *edge) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	ticker := time.NewTicker(aimCheck)
	defer ticker.Stop()
	for {
		if e.state().Alive {
			return true
		}
		if e.again.Swap(false) {
			e.aim(true)
			timer.Reset(min(d, answerWithin))
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return false
		case <-e.news:
		case <-ticker.C:
			e.aim(false)
		}
	}
}

// serve stays while the edge is alive and says what happens to it. It returns
// an error where that is over for good.
func (e *edge) serve(ctx context.Context) error {
	e.known, e.said = true, false
	s := e.state()
	e.log.Info("handshake", "endpoint", s.Endpoint, "edge_key", tunnel.Abbreviate(e.spec.PublicKey))
	e.log.Info("ready", "rtt", s.RTT)
	e.c.edgeChanged(e, true)
	defer e.c.edgeChanged(e, false)

	controlled, stop := context.WithCancel(ctx)
	verdict := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() { verdict <- e.control(controlled) })
	defer running.Wait()
	defer stop()
	if err := e.watch(ctx, s, verdict); err != nil || ctx.Err() != nil {
		return err
	}
	s = e.state()
	reason := fmt.Sprintf("no answer from %s over UDP for 3 s", s.Endpoint)
	if s.Left {
		reason = "the edge said farewell: it was stopped, or restarts"
	}
	e.log.Warn("lost", "reason", reason)
	e.heard = e.c.deps.Wall()
	return nil
}

// watch waits until the edge is lost, ctx ends, control comes to a verdict, or
// the edge that wants us to leave has no flow of ours any more.
func (e *edge) watch(ctx context.Context, s State, verdict <-chan error) error {
	draining := false
	urgent, soon := e.ctl.urgent, time.NewTimer(urgentEvery)
	defer soon.Stop()
	look := time.NewTicker(leaveCheck)
	defer look.Stop()
	for s.Alive {
		if s.Draining != draining {
			draining = s.Draining
			e.log.Info("edge drains", "draining", draining)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-verdict:
			return err
		case <-urgent:
			e.ctl.hurry()
			urgent = nil
			soon.Reset(urgentEvery)
		case <-soon.C:
			urgent = e.ctl.urgent
		case <-look.C:
		case <-e.news:
		}
		s = e.state()
		if !e.granted().drain {
			look.Stop()
			continue
		}
		if e.flows.total() == 0 && s.Flows == 0 { // to the last byte
			return errDrained
		}
		look.Reset(leaveCheck)
	}
	return nil
}
