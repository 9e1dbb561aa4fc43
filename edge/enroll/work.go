package enroll

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
)

// Work is what connectors do for this edge besides flows, as who assigns it
// knows it. Its methods are called from any goroutine, several at a time, with
// no lock of the registry held, and must not wait for a method of it.
type Work interface {
	// Assigned returns all that the connector is to do, and its revision, which
	// is another where the work is another; 0: nothing. It is called often, and
	// what it returns is not written to.
	Assigned(connector string) (revision uint64, work wire.Work)
	// Report takes in what the connector says: of what was assigned to it, and
	// of nothing else. It is called with each request of the connector, so with
	// an empty report as well where there is no result: the connector is at it.
	Report(connector string, report WorkReport)
}

// WorkReport is what a connector says of its work, oldest first.
type WorkReport struct {
	Results []CheckResult
	Names   []Found
}

// CheckResult is what came of one check.
type CheckResult struct {
	ID      uint64        // wire.Check.ID
	RTT     time.Duration // 0 where Err is not nil, or nothing came back
	Expires time.Time     // when the endpoint's certificate ends; zero: none was seen
	// Err is nil where the check passed. It wraps the netx error that fits, or
	// ErrUnable where nothing is known of the endpoint.
	Err error
}

// Found is what a name resolved to.
type Found struct {
	Host  string
	Addrs []netip.Addr // at least one, at most wire.MaxAddrs, where Err is nil; of any kind
	TTL   time.Duration
	// Err wraps a *net.DNSError with IsNotFound where the resolver says that
	// there is no such name.
	Err error
}

// ErrUnable: a connector could not make a check. It wraps check.ErrUnable.
var ErrUnable = fmt.Errorf("the connector cannot check: %w", check.ErrUnable)

// duty is what is known of a connector's work; guarded by Registry.mu.
type duty struct {
	works    seat
	current  uint64        // revision of the work that there is; 0: none
	assigned *assigned     // what it was told last; nil: nothing, or no more
	asked    time.Time     // when it last asked
	pace     *rate.Limiter // of its requests; nil: it never asked
}

// assigned is what a connector was told to do. It does not change.
type assigned struct {
	revision, before uint64 // before: of what it was told before that
	ids              []uint64
	hosts            []string // both sorted
	answer           encoded  // the wire.WorkAnswer: a connector may ask as often as it likes
}

// stirred are the connectors whose work may have changed.
type stirred struct {
	news chan struct{} // capacity 1

	mu    sync.Mutex
	all   bool
	names map[string]bool
}

// WorkChanged tells that the work of these connectors, or of all where none is
// named, may be another. Run then asks for it, and lets them know. It does not
// wait, and may be called with any lock held.
func (r *Registry) WorkChanged(connectors ...string) {
	if r.work == nil {
		return
	}
	s := &r.stirred
	s.mu.Lock()
	if s.all = s.all || len(connectors) == 0; s.all {
		s.names = nil
	} else {
		if s.names == nil {
			s.names = make(map[string]bool)
		}
		for _, name := range connectors {
			s.names[name] = true
		}
	}
	s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// take returns the connectors whose work may have changed, and forgets them.
func (s *stirred) take() (all bool, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all = s.all
	for name := range s.names {
		names = append(names, name)
	}
	s.all, s.names = false, nil
	return all, names
}

// reassign finds out whose work has changed, and wakes them.
func (r *Registry) reassign() {
	all, names := r.stirred.take()
	if all {
		r.mu.Lock()
		for name := range r.connectors {
			names = append(names, name)
		}
		r.mu.Unlock()
	}
	for _, name := range names {
		revision, _ := r.work.Assigned(name)
		r.setWork(name, revision)
	}
}

// setWork notes that the work of a connector has that revision.
func (r *Registry) setWork(name string, revision uint64) {
	r.mu.Lock()
	c := r.connectors[name]
	known := c == nil || c.current == revision && c.working == (revision != 0)
	r.mu.Unlock()
	if known {
		return
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	r.mu.Lock()
	c = r.connectors[name]
	if c == nil {
		r.mu.Unlock()
		return
	}
	c.current, c.working = revision, revision != 0
	if !c.working {
		c.assigned = nil
	}
	c.works.wakeLocked()
	r.mu.Unlock()
	r.refresh(c)
}

// holdUnparked is how long a request for work is held on a connection that
// cannot be parked, where the next one is not seen coming.
const holdUnparked = time.Second

// workEvery and workBurst bound the requests for work of one connector, which
// reports ten times in a second at most.
const (
	workEvery = 50 * time.Millisecond
	workBurst = 40
)

// paceWork refuses a request before it is read, where a connector sends too
// many.
func (r *Registry) paceWork(key wgtypes.Key) *wire.Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.byKey[key]
	if c == nil {
		return r.strangerLocked(key)
	}
	if c.pace == nil {
		c.pace = rate.NewLimiter(rate.Every(workEvery), workBurst)
	}
	if !c.pace.Allow() {
		r.metrics.worksRefused.Add(1)
		return wire.Refuse(wire.CodeBusy, "connector %q asks for work more often than each %v", c.rec.Name, workEvery)
	}
	return nil
}

func (r *Registry) serveWork(ctx context.Context, key wgtypes.Key, decode func(any) *wire.Refusal) (any, *wire.Refusal) {
	if refusal := r.paceWork(key); refusal != nil {
		return nil, refusal
	}
	var req wire.WorkRequest
	if refusal := decode(&req); refusal != nil {
		return nil, refusal
	}
	if refusal := r.arriveWork(key, &req); refusal != nil {
		return nil, refusal
	}
	p := &workPoll{r, key, req.Revision}
	if at, ok := placeOf(ctx); ok {
		return lookParked(at, p)
	}
	return await(ctx, p, holdUnparked)
}

// arriveWork takes in what a request for work reports.
func (r *Registry) arriveWork(key wgtypes.Key, req *wire.WorkRequest) *wire.Refusal {
	req.Clean()
	now := r.now()
	r.mu.Lock()
	c := r.byKey[key]
	if c == nil {
		defer r.mu.Unlock()
		return r.strangerLocked(key)
	}
	c.asked = now
	c.works.supersedeLocked()
	name, given := c.rec.Name, c.assigned
	r.mu.Unlock()
	r.work.Report(name, r.accept(req, given))
	return nil
}

// accept is what of a request the connector may report that was given that.
func (r *Registry) accept(req *wire.WorkRequest, given *assigned) (report WorkReport) {
	n := len(req.Results) + len(req.Names)
	if n == 0 {
		return report
	}
	if given == nil || req.Revision == 0 || req.Revision != given.revision && req.Revision != given.before {
		r.metrics.stale.Add(uint64(n))
		return report
	}
	report.Results = make([]CheckResult, 0, len(req.Results))
	for _, result := range req.Results {
		if _, mine := slices.BinarySearch(given.ids, result.ID); mine {
			report.Results = append(report.Results, resultOf(result))
		}
	}
	for _, found := range req.Names {
		if _, mine := slices.BinarySearch(given.hosts, found.Host); mine {
			report.Names = append(report.Names, foundOf(found))
		}
	}
	taken := len(report.Results) + len(report.Names)
	r.metrics.taken.Add(uint64(taken))
	r.metrics.foreign.Add(uint64(n - taken))
	return report
}

// reported is an error that a connector has told.
type reported struct {
	text    string
	classes []error
}

func (e *reported) Error() string   { return e.text }
func (e *reported) Unwrap() []error { return e.classes }

var classes = map[wire.Class][]error{
	wire.ClassRefused:     {netx.ErrRefused},
	wire.ClassUnreachable: {netx.ErrUnreachable},
	wire.ClassDenied:      {netx.ErrUnreachable},
	wire.ClassTimedOut:    {netx.ErrTimedOut},
	wire.ClassUnable:      {ErrUnable},
}

// resultOf is a result that wire has cleaned.
func resultOf(c wire.CheckResult) CheckResult {
	out := CheckResult{ID: c.ID, RTT: c.RTT}
	if c.Expires > 0 {
		out.Expires = cleanTime(time.Unix(c.Expires, 0))
	}
	if c.Error != "" {
		out.Err = &reported{c.Error, classes[c.Class]}
	}
	return out
}

func foundOf(f wire.Found) Found {
	out := Found{Host: f.Host, Addrs: f.Addrs, TTL: f.TTL}
	if f.NotFound {
		out.Err = &reported{f.Error, []error{&net.DNSError{Err: "no such host", Name: f.Host, IsNotFound: true}}}
	} else if f.Error != "" {
		out.Err = &reported{f.Error, nil}
	}
	return out
}

// workPoll is the poll of a request for work.
type workPoll struct {
	r        *Registry
	key      wgtypes.Key
	revision uint64 // of the work that the connector does
}

func (p *workPoll) look(mine *hold, wake func(), overdue bool) (any, *hold, *wire.Refusal) {
	r := p.r
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.byKey[p.key]
	switch {
	case mine != nil && mine.superseded:
		return nil, nil, errSuperseded
	case c == nil:
		return nil, nil, r.strangerLocked(p.key)
	case c.current == 0:
		c.works.leaveLocked(mine)
		return nil, nil, wire.Refuse(wire.CodeNotAllowed, "there is no work for connector %q: its grant will say when there is", c.rec.Name)
	case p.revision != c.current:
		c.works.leaveLocked(mine)
		answer, refusal := r.assignLocked(c, p.key)
		return answer, nil, refusal
	case overdue:
		c.works.leaveLocked(mine)
		return wire.WorkAnswer{Revision: p.revision}, nil, nil
	}
	return c.works.sitLocked(mine, wake)
}

// assignLocked gives c, which has that key, its work of now. It lets go of mu
// while it asks for it, and asks again where setWork has heard of other work
// meanwhile: nobody would be woken for that.
func (r *Registry) assignLocked(c *connector, key wgtypes.Key) (any, *wire.Refusal) {
	for c.assigned == nil || c.assigned.revision != c.current {
		name, expected := c.rec.Name, c.current
		r.mu.Unlock()
		given := r.assignment(name)
		r.mu.Lock()
		switch {
		case r.byKey[key] != c:
			return nil, r.strangerLocked(key)
		case c.current != expected && c.current != given.revision:
			continue
		case given.revision == 0:
			return nil, wire.Refuse(wire.CodeNotAllowed, "there is no work for connector %q any more", name)
		}
		if c.assigned != nil {
			given.before = c.assigned.revision
		}
		c.assigned, c.current = given, given.revision
	}
	return c.assigned.answer, nil
}

// assignment asks for the work of a connector, and makes the answer of it; its
// revision is 0 where there is none.
func (r *Registry) assignment(name string) *assigned {
	revision, work := r.work.Assigned(name)
	given := &assigned{revision: revision}
	if revision == 0 {
		return given
	}
	checks, names := work.Clean()
	for _, task := range work.Checks {
		given.ids = append(given.ids, task.ID)
	}
	for _, n := range work.Names {
		given.hosts = append(given.hosts, n.Host)
	}
	slices.Sort(given.ids)
	slices.Sort(given.hosts)
	if checks+names > 0 {
		r.log.Error("a connector is not given all of its work: it is more than one takes", "connector", name, "left_out_checks", checks, "left_out_names", names)
	}
	_, body, err := encode(wire.WorkAnswer{Revision: revision, Work: work}, nil)
	if err != nil { // Clean has left out what is no JSON
		r.log.Error("answering a connector: " + err.Error())
	}
	given.answer = body
	return given
}

func (p *workPoll) giveUp(mine *hold) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if c := p.r.byKey[p.key]; c != nil {
		c.works.leaveLocked(mine)
	}
}

func (p *workPoll) held() *atomic.Int64 { return &p.r.metrics.worksHeld }

func (p *workPoll) hurried() bool { return true }

func (p *workPoll) holdFor() time.Duration { return wire.HoldWork }
