package resolve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	minTTL         = time.Second     // a resolver that says 0 is not asked more often than that
	maxTTL         = time.Hour       // an address that moved is noticed within that
	maxNotFoundTTL = 5 * time.Minute // RFC 2308 section 5 advises hours; a name that was just made should not wait for them
	maxBackoff     = time.Minute     // between two attempts while there is no answer
	minReported    = time.Minute     // a connector that is restarted is back by then
	// lookupTimeout bounds a lookup that does not bound itself.
	lookupTimeout = 15 * time.Second
	// coalesce is how long OnChange waits for more changes: at a start and at
	// a connector's return, every name changes within milliseconds.
	coalesce           = 50 * time.Millisecond
	defaultConcurrency = 32
)

// Resolver keeps the addresses. The zero value is not usable; call New.
type Resolver struct {
	deps    Deps
	places  chan struct{} // one token for each lookup under way
	changed chan struct{} // holds one token while a change is to be told
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	names   map[Name]*entry
	stopped bool
}

// entry is what is known of a name. Its fields are guarded by Resolver.mu.
type entry struct {
	Status
	ttl     time.Duration // of the last good answer, within its bounds
	gone    time.Time     // when "no such name" was first heard since the last good answer
	removed bool
	first   chan struct{} // closed once the name was asked or reported
	timer   *time.Timer   // what is next: a lookup (public), or a report that is overdue
	due     time.Time     // when that is; a timer that fires before is an old one
}

// New returns a Resolver that knows no name yet. Stop ends it.
func New(deps Deps) *Resolver {
	if deps.Concurrency <= 0 {
		deps.Concurrency = defaultConcurrency
	}
	r := &Resolver{
		deps:    deps,
		places:  make(chan struct{}, deps.Concurrency),
		changed: make(chan struct{}, 1),
		names:   make(map[Name]*entry),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if deps.OnChange != nil {
		r.wg.Go(r.tell)
	}
	return r
}

// Apply makes names all that is known from now on. What stays keeps its
// addresses; what is new is asked for at once, and unknown until then.
func (r *Resolver) Apply(names []Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	wanted := make(map[Name]bool, len(names))
	for _, n := range names {
		wanted[n] = true
		if r.names[n] == nil {
			r.addLocked(n)
		}
	}
	for n, e := range r.names {
		if !wanted[n] {
			r.removeLocked(e)
		}
	}
}

func (r *Resolver) addLocked(n Name) {
	e := &entry{Status: Status{Name: n}, first: make(chan struct{})}
	r.names[n] = e
	if n.Network == Public {
		e.Err = fmt.Errorf("resolving %q: %w", n.Host, ErrUnknown)
		r.scheduleLocked(e, 0)
		return
	}
	e.Err = fmt.Errorf("resolving %q in network %q: %w: no connector of it has told its addresses", n.Host, n.Network, ErrUnknown)
}

func (r *Resolver) removeLocked(e *entry) {
	e.removed = true
	if e.Asked.IsZero() {
		close(e.first) // whoever waits in Settle need not wait for it
	}
	if e.timer != nil {
		e.timer.Stop()
	}
	delete(r.names, e.Name)
}

// scheduleLocked makes act run after d, instead of what was to be.
func (r *Resolver) scheduleLocked(e *entry, d time.Duration) {
	e.due = time.Now().Add(d)
	if e.timer == nil {
		e.timer = time.AfterFunc(d, func() { r.act(e) })
		return
	}
	e.timer.Reset(d)
}

// act does what is due for e.
func (r *Resolver) act(e *entry) {
	r.mu.Lock()
	if r.stopped || e.removed || time.Now().Before(e.due) {
		r.mu.Unlock()
		return
	}
	if e.Network != Public {
		r.overdueLocked(e)
		r.mu.Unlock()
		return
	}
	r.wg.Add(1) // before Stop can begin to wait
	r.mu.Unlock()
	defer r.wg.Done()
	r.ask(e)
}

// ask looks a public name up and says when it is next.
func (r *Resolver) ask(e *entry) {
	select {
	case r.places <- struct{}{}:
	case <-r.ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, lookupTimeout)
	addrs, ttl, err := r.deps.Lookup(ctx, e.Host)
	cancel()
	<-r.places

	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped || e.removed {
		return
	}
	r.heardLocked(e, addrs, ttl, err)
	r.scheduleLocked(e, e.pause(ttl))
}

// pause is the time to the next lookup, after one that had ttl. A cache holds
// the old answer until the TTL ends, so the question comes a little after.
func (e *entry) pause(ttl time.Duration) time.Duration {
	switch {
	case e.Err == nil:
		return e.ttl + rand.N(e.ttl/10+1)
	case notFound(e.Err):
		ttl = min(max(ttl, minTTL), maxNotFoundTTL)
		return ttl + rand.N(ttl/10+1)
	}
	backoff := maxBackoff
	if e.Failures < 7 {
		backoff = min(backoff, time.Second<<(e.Failures-1))
	}
	return backoff - backoff/4 + rand.N(backoff/2+1)
}

// Report is a connector's answer for a private name, with err where it could
// not resolve it: one that wraps a *net.DNSError with IsNotFound where there is
// no such name. A name that nobody asked for is passed over, and so is a public
// one, for which no connector speaks. An error is passed over while an answer
// is fresh: it is another connector's, whose resolver knows less.
func (r *Resolver) Report(n Name, addrs []netip.Addr, ttl time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.names[n]
	if r.stopped || e == nil || n.Network == Public {
		return
	}
	if err != nil && e.Err == nil && time.Now().Before(e.Expires) {
		return
	}
	r.heardLocked(e, addrs, ttl, err)
	if e.Err == nil {
		r.scheduleLocked(e, e.patience())
		return
	}
	r.watchAgeLocked(e)
}

// watchAgeLocked schedules the end of the last known addresses of a private
// name, which nobody may report any more.
func (r *Resolver) watchAgeLocked(e *entry) {
	if len(e.Addrs) == 0 {
		return
	}
	end := e.At.Add(MaxAge)
	if gone := e.gone.Add(NotFoundAge); notFound(e.Err) && gone.Before(end) {
		end = gone
	}
	r.scheduleLocked(e, time.Until(end))
}

// patience is how long the next report may take.
func (e *entry) patience() time.Duration { return max(3*e.ttl, minReported) }

// overdueLocked notes that no connector has reported in time.
func (r *Resolver) overdueLocked(e *entry) {
	if e.Err == nil {
		e.Failures++
		e.Err = fmt.Errorf("resolving %q in network %q: no connector of it has reported for %v", e.Host, e.Network, e.patience())
	}
	r.ageLocked(e)
	r.watchAgeLocked(e)
}

// heardLocked takes in an answer or a failure.
func (r *Resolver) heardLocked(e *entry, addrs []netip.Addr, ttl time.Duration, err error) {
	now := time.Now()
	if e.Asked.IsZero() {
		close(e.first)
	}
	e.Asked = now
	if err == nil {
		addrs, err = tidy(e.Name, addrs)
	}
	if err != nil {
		e.Err = err
		e.Failures++
		if notFound(err) && e.gone.IsZero() {
			e.gone = now
		}
		r.ageLocked(e)
		return
	}
	changed := !slices.Equal(e.Addrs, addrs)
	e.ttl = min(max(ttl, minTTL), maxTTL)
	e.Answer = Answer{Addrs: addrs, At: now, Expires: now.Add(e.ttl)}
	e.Failures, e.gone = 0, time.Time{}
	if changed {
		r.change()
	}
}

// ageLocked forgets addresses that are too old to go on with.
func (r *Resolver) ageLocked(e *entry) {
	now := time.Now()
	tooOld := now.Sub(e.At) >= MaxAge
	gone := notFound(e.Err) && now.Sub(e.gone) >= NotFoundAge
	if len(e.Addrs) > 0 && (tooOld || gone) {
		e.Addrs, e.At, e.Expires = nil, time.Time{}, time.Time{}
		r.change()
	}
}

// notFound reports whether err says that the name does not exist.
func notFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

// tidy returns the addresses of n that an endpoint can have, sorted. Whether a
// public one may be dialled is for edge/public to say, in its own words; in a
// virtual network, loopback and link-local are the connector's own machine.
func tidy(n Name, addrs []netip.Addr) ([]netip.Addr, error) {
	out := make([]netip.Addr, 0, min(len(addrs), MaxAddrs))
	for _, a := range addrs {
		a = a.Unmap()
		ok := a.IsValid() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() &&
			(n.Network == Public || !a.IsLoopback() && !a.IsLinkLocalUnicast())
		if ok {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		why := "it has no address"
		if len(addrs) > 0 {
			why = fmt.Sprintf("it has no address that an endpoint can have, such as %s", addrs[0])
		}
		return nil, fmt.Errorf("resolving %q: %w", n.Host, &net.DNSError{Err: why, Name: n.Host, IsNotFound: true})
	}
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.Compact(out)
	return slices.Clip(out[:min(len(out), MaxAddrs)]), nil
}

// Addrs returns what is known of n. It reads memory only.
func (r *Resolver) Addrs(n Name) Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.names[n]; e != nil {
		return e.Answer
	}
	return Answer{Err: fmt.Errorf("resolving %q: %w: nothing names it", n.Host, ErrUnknown)}
}

// Snapshot returns what is known of every name, sorted by network and host.
func (r *Resolver) Snapshot() []Status {
	r.mu.Lock()
	list := make([]Status, 0, len(r.names))
	for _, e := range r.names {
		list = append(list, e.Status)
	}
	r.mu.Unlock()
	slices.SortFunc(list, func(a, b Status) int {
		return cmp.Or(strings.Compare(a.Network, b.Network), strings.Compare(a.Host, b.Host))
	})
	return list
}

// Settle waits until each public name has been asked for once, with whatever
// success, or ctx is done, whose error it returns.
func (r *Resolver) Settle(ctx context.Context) error {
	r.mu.Lock()
	var open []chan struct{}
	for n, e := range r.names {
		if n.Network == Public {
			open = append(open, e.first)
		}
	}
	r.mu.Unlock()
	for _, first := range open {
		select {
		case <-first:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.ctx.Done():
			return errors.New("the resolver was stopped")
		}
	}
	return nil
}

// change lets OnChange be called.
func (r *Resolver) change() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// tell calls OnChange, once for the changes that come together.
func (r *Resolver) tell() {
	for {
		select {
		case <-r.changed:
		case <-r.ctx.Done():
			return
		}
		wait := time.NewTimer(coalesce)
		select {
		case <-wait.C:
		case <-r.ctx.Done():
			wait.Stop()
			return
		}
		select {
		case <-r.changed: // what came meanwhile is told now
		default:
		}
		r.deps.OnChange()
	}
}

// Stop ends every lookup and waits for them, and for OnChange. Answers stay
// readable; Apply and Report do nothing any more.
func (r *Resolver) Stop() {
	r.mu.Lock()
	r.stopped = true
	for _, e := range r.names {
		if e.timer != nil {
			e.timer.Stop()
		}
	}
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}
