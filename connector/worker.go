package connector

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
)

const (
	// maxChecking and maxResolving are how many checks are made and names asked
	// for at one time, for one edge. A check holds a socket. 5,000 checks each
	// 5 s, of which each tenth is met with silence for 2 s, need 200.
	maxChecking  = 512
	maxResolving = 16
	// startSpread is the time within which new checks and names begin, at most.
	startSpread = 2 * time.Second

	// A name is asked for again when its TTL has passed, within these bounds,
	// and after failedAgain where the resolver gave no answer. One that does not
	// exist is asked for again after its negative TTL, up to absentMost; so is one
	// of which nothing may be told, as the edge's routes may change.
	minTTL      = time.Second
	maxTTL      = time.Hour
	failedAgain = 5 * time.Second
	absentMost  = time.Minute
	// lookupWithin bounds one lookup.
	lookupWithin = 10 * time.Second
	// nameWait is how long an answer waits for others that is the one before.
	nameWait = 500 * time.Millisecond
)

// errUnable: a check that cannot be made here.
var errUnable = fmt.Errorf("this connector cannot make it: %w", check.ErrUnable)

// errOutside: a name has addresses, and no flow of the edge may go to any.
var errOutside = errors.New("all its addresses are outside of the connector's [guard] and of its routes")

// worker makes the checks and asks for the names that one edge wants it to,
// and keeps what came of it for the edge.
type worker struct {
	e      *edge
	checks *rota
	names  *rota

	mu    sync.Mutex
	out   outbox
	tasks map[uint64]*task
	hosts map[string]*asked
}

func newWorker(e *edge) *worker {
	return &worker{
		e: e, checks: newRota(maxChecking), names: newRota(maxResolving),
		tasks: make(map[uint64]*task), hosts: make(map[string]*asked),
		out: outbox{earlier: make(chan struct{}, 1)},
	}
}

// probe is one way to check.
type probe struct {
	check *check.Check // nil: it cannot be made,
	err   error        // because
	spec  wire.WorkSpec
}

// same tells whether p checks as s says.
func (p *probe) same(s wire.WorkSpec) bool {
	return p.spec.Interval == s.Interval && p.spec.Timeout == s.Timeout && p.spec.Retries == s.Retries && bytes.Equal(p.spec.Check, s.Check)
}

// newProbe reads a spec. What this release does not know of it would be left
// out of the check, so that it would pass where it should not: such a check is
// not made.
func newProbe(s wire.WorkSpec) *probe {
	p := &probe{spec: s}
	var spec check.Spec
	in := json.NewDecoder(bytes.NewReader(s.Check))
	in.DisallowUnknownFields()
	err := in.Decode(&spec)
	if err == nil {
		p.check, err = check.New(spec)
	}
	if err != nil {
		p.err = fmt.Errorf("%w: it may be of a later release: %w", errUnable, err)
	}
	return p
}

// task is one check of one endpoint. Its last results are guarded by the
// worker's mu.
type task struct {
	job
	id    uint64
	addr  netip.AddrPort
	probe *probe

	last wire.CheckResult
	run  int // how many results in a row have passed, or have not; 0: there was none
}

// asked is a name. What it resolved to last is guarded by the worker's mu.
type asked struct {
	job
	host string
	last wire.Found
	told bool // there is a last
}

// apply makes work all that there is to do. What stays goes on as it was.
func (w *worker) apply(work wire.Work) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applyChecks(work)
	hosts := make(map[string]*asked, len(work.Names))
	for _, n := range work.Names {
		h := w.hosts[n.Host]
		if h == nil {
			h = &asked{host: n.Host}
			h.do = func(ctx context.Context) time.Duration { return w.resolve(ctx, h) }
			w.names.add(&h.job, spread(minTTL))
		}
		hosts[n.Host] = h
	}
	for host, h := range w.hosts {
		if hosts[host] == nil {
			w.names.remove(&h.job)
		}
	}
	w.hosts = hosts
}

func (w *worker) applyChecks(work wire.Work) {
	probes := make([]*probe, len(work.Specs))
	tasks := make(map[uint64]*task, len(work.Checks))
	for _, c := range work.Checks {
		old := w.tasks[c.ID]
		if old != nil && old.addr == c.Addr && old.probe.same(work.Specs[c.Spec]) {
			tasks[c.ID] = old
			continue
		}
		if probes[c.Spec] == nil {
			probes[c.Spec] = newProbe(work.Specs[c.Spec])
		}
		t := &task{id: c.ID, addr: c.Addr, probe: probes[c.Spec]}
		t.do = func(ctx context.Context) time.Duration { return w.check(ctx, t) }
		tasks[c.ID] = t
		w.checks.add(&t.job, spread(t.probe.spec.Interval))
	}
	for id, t := range w.tasks {
		if tasks[id] != t {
			w.checks.remove(&t.job)
		}
	}
	w.tasks = tasks
}

// spread is when something new begins that is done about each d.
func spread(d time.Duration) time.Duration { return rand.N(min(d, startSpread)) }

// counts returns how much there is to do.
func (w *worker) counts() (checks, names int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.tasks), len(w.hosts)
}

// check makes one check, and tells how long to wait until the next one. A
// check that is cut short says nothing of the endpoint.
func (w *worker) check(ctx context.Context, t *task) time.Duration {
	s := &t.probe.spec
	var result check.Result
	for try := 0; ; try++ {
		result = w.once(ctx, t)
		if result.Err == nil || try >= s.Retries || t.probe.err != nil || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() == nil {
		w.checked(t, result)
	}
	return s.Interval*9/10 + rand.N(s.Interval/5)
}

func (w *worker) once(ctx context.Context, t *task) check.Result {
	if t.probe.err != nil {
		return check.Result{Err: t.probe.err}
	}
	ctx, cancel := context.WithTimeout(ctx, t.probe.spec.Timeout)
	defer cancel()
	return t.probe.check.Run(ctx, checkDialer{w.e}, t.addr)
}

// checked takes in what came of a check.
func (w *worker) checked(t *task, result check.Result) {
	r := wire.CheckResult{ID: t.id, RTT: result.RTT}
	if !result.Expires.IsZero() {
		r.Expires = result.Expires.Unix()
	}
	if result.Err != nil {
		r.RTT, r.Error, r.Class = 0, plain(result.Err.Error(), wire.MaxCheckError), classOf(result.Err)
	}
	w.e.c.count.checked(result.Err)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tasks[t.id] != t {
		return
	}
	if (t.last.Error == "") != (r.Error == "") {
		t.run = 0
	}
	t.run++
	t.last = r
	w.out.result(r, wait(t.run, t.probe.spec.Interval))
}

// classOf says in wire's words why a check failed.
func classOf(err error) wire.Class {
	switch {
	case errors.Is(err, check.ErrUnable), errors.Is(err, origin.ErrDescriptors),
		errors.Is(err, origin.ErrPingForbidden), errors.Is(err, origin.ErrTooManyPings):
		return wire.ClassUnable
	case errors.Is(err, errDenied), errors.Is(err, errNotGranted), errors.Is(err, origin.ErrDenied):
		return wire.ClassDenied
	}
	switch netx.Classify(err) {
	case netx.ErrRefused:
		return wire.ClassRefused
	case netx.ErrTimedOut:
		return wire.ClassTimedOut
	case nil:
		return ""
	}
	return wire.ClassUnreachable
}

// resolve asks for a name once, and tells when to ask again.
func (w *worker) resolve(ctx context.Context, h *asked) time.Duration {
	within, cancel := context.WithTimeout(ctx, lookupWithin)
	defer cancel()
	addrs, ttl, err := w.e.c.deps.Lookup(within, h.host)
	if ctx.Err() != nil {
		return failedAgain
	}
	if err == nil && len(addrs) == 0 {
		err = fmt.Errorf("resolving %q: the name has no address", h.host)
	}
	found := wire.Found{Host: h.host, TTL: max(ttl, 0)}
	if err == nil {
		found.Addrs, err = w.e.mayLearn(addrs)
	}
	slices.SortFunc(found.Addrs, netip.Addr.Compare) // a resolver turns them round
	pause := min(max(ttl, minTTL), maxTTL)
	if err != nil {
		var dns *net.DNSError
		found.Addrs, found.Error = nil, plain(err.Error(), wire.MaxCheckError)
		pause = failedAgain
		found.NotFound = errors.As(err, &dns) && dns.IsNotFound
		if found.NotFound || errors.Is(err, errOutside) {
			pause = min(max(ttl, failedAgain), absentMost)
		}
	}
	w.e.c.count.named(found)
	w.found(h, found)
	return pause
}

// found takes in what a name resolved to.
func (w *worker) found(h *asked, f wire.Found) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hosts[h.host] != h {
		return
	}
	pause := nameWait
	if !h.told || h.last.Error != f.Error || !slices.Equal(h.last.Addrs, f.Addrs) {
		pause = 0
	}
	h.last, h.told = f, true
	w.out.name(f, pause)
}

// listen opens the outbox, for an edge that knows nothing of what came of the
// work before.
func (w *worker) listen() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out.close()
	w.out.open = true
	for _, t := range w.tasks {
		if t.run > 0 {
			w.out.result(t.last, 0)
		}
	}
	for _, h := range w.hosts {
		if h.told {
			w.out.name(h.last, 0)
		}
	}
}

// checkDialer reaches what a flow of the edge would reach.
type checkDialer struct{ e *edge }

// Dial implements check.Dialer.
func (d checkDialer) Dial(ctx context.Context, proto string, addr netip.AddrPort) (net.Conn, error) {
	if err := d.e.reachable(proto, addr); err != nil {
		return nil, err
	}
	return d.e.c.origin.DialContext(ctx, proto, addr)
}

// Ping implements check.Dialer.
func (d checkDialer) Ping(ctx context.Context, addr netip.Addr) error {
	return d.e.c.ping(ctx, d.e, addr)
}

// mayLearn is what of a name's addresses the edge may learn: those that some
// flow of it could reach. Others are nobody's business outside, or a connector
// would tell an edge all that its resolver knows of the private network.
func (e *edge) mayLearn(addrs []netip.Addr) (told []netip.Addr, err error) {
	routes := e.granted().routes
	for _, a := range addrs {
		if v, _ := e.c.guard.AllowHost(a); v == guard.Allow && routes.hold(a) {
			told = append(told, a)
		}
	}
	if len(told) == 0 {
		return nil, errOutside
	}
	return told, nil
}

// reachable asks the guard, and the edge's routes.
func (e *edge) reachable(proto string, addr netip.AddrPort) error {
	if v, why := e.c.guard.Allow(proto, addr); v != guard.Allow {
		return fmt.Errorf("%w: \"%s/%s\": %s", errDenied, proto, addr, why)
	}
	if routes := e.granted().routes; !routes.hold(addr.Addr()) {
		return fmt.Errorf("%w: %s is outside the edge's routes: %s", errNotGranted, addr.Addr(), routes)
	}
	return nil
}
