package edge

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/resolve"
	"github.com/warrenmesh/warren/edge/wire"
)

// work is what connectors do on the edge's behalf: the checks of monitors that
// say so, each by one connector that serves the endpoint, and the resolution of
// private names, each by one connector of the network. It stays with who has it
// for as long as that one lives.
type work struct {
	e    *Edge
	news chan struct{} // capacity 1: what there is to do, or who is there, has changed
	over chan struct{} // closed by stop
	loop sync.WaitGroup

	mu       sync.Mutex
	names    []resolve.Name    // private ones, that are wanted
	checks   map[uint64]string // task → connector
	hosts    map[resolve.Name]string
	failed   map[resolve.Name]map[string]time.Time // who could not resolve it, and when
	idle     map[string]time.Time                  // who did not ask for its work; of what start it was
	assigned map[string]assignment                 // by connector
	revision uint64
	noRoom   int // that the log has told of
}

// assignment is one connector's part.
type assignment struct {
	revision uint64
	network  string
	since    time.Time // when the connector first had any
	work     wire.Work
}

// idleLimit is how long a connector may have work without asking for it. One
// that does not is of another kind, as an older release or a WireGuard router:
// others do it, until it calls anew.
const idleLimit = 15 * time.Second

// member is a live connector that may get work.
type member struct {
	name   string
	routes []netip.Prefix
	speaks bool // control, since this edge started
	checks int  // that it has
	names  int
}

func newWork(e *Edge) *work {
	return &work{
		e: e, news: make(chan struct{}, 1), over: make(chan struct{}), checks: make(map[uint64]string),
		hosts: make(map[resolve.Name]string), failed: make(map[resolve.Name]map[string]time.Time),
		idle: make(map[string]time.Time), assigned: make(map[string]assignment),
	}
}

// stir asks for work to be shared out anew, soon.
func (w *work) stir() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// want makes names those that connectors resolve.
func (w *work) want(names []resolve.Name) {
	w.mu.Lock()
	w.names = slices.DeleteFunc(slices.Clone(names), func(n resolve.Name) bool { return n.Network == resolve.Public })
	slices.SortFunc(w.names, func(a, b resolve.Name) int { // the same names are the same work
		return cmp.Or(strings.Compare(a.Network, b.Network), strings.Compare(a.Host, b.Host))
	})
	w.names = slices.Compact(w.names)
	maps.DeleteFunc(w.failed, func(n resolve.Name, _ map[string]time.Time) bool { return !slices.Contains(w.names, n) })
	w.mu.Unlock()
	w.stir()
}

// start shares work out whenever it is stirred, until stop.
func (w *work) start() {
	w.loop.Go(func() {
		look := time.NewTicker(idleLimit / 3) // for those that do not ask for their work
		defer look.Stop()
		for {
			select {
			case <-w.over:
				return
			case <-w.news:
				w.share()
			case <-look.C:
				if w.lookForIdle() {
					w.share()
				}
			}
		}
	})
}

func (w *work) stop() {
	close(w.over)
	w.loop.Wait()
}

// lookForIdle notes who has had work for a while and has not asked for it, and
// tells whether there is any work.
func (w *work) lookForIdle() (any bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.assigned) == 0 {
		return false
	}
	for _, c := range w.e.registry.Connectors() {
		a, has := w.assigned[c.Name]
		if has && time.Since(a.since) > idleLimit && c.LastWork.Before(a.since) {
			w.idle[c.Name] = c.Report.Started
		}
	}
	return true
}

// share gives every task to a connector, and tells those whose work has
// changed, and the monitor what nobody can do.
func (w *work) share() {
	tasks := w.e.monitor.Tasks()
	members := w.members()
	w.mu.Lock()
	next := &sharing{parts: make(map[string]assignment), specs: make(map[string]map[*monitor.Spec]int)}
	checks, hosts := make(map[uint64]string, len(tasks)), make(map[resolve.Name]string, len(w.names))
	for _, t := range tasks {
		if m := choose(members[t.Network], t.Addr.Addr(), w.checks[t.ID]); m != nil && next.add(m, t) {
			checks[t.ID] = m.name
			continue
		}
		next.unserved = append(next.unserved, t.ID)
		if slices.ContainsFunc(members[t.Network], func(m *member) bool { return longest(m.routes, t.Addr.Addr()) >= 0 }) {
			next.noRoom++
		}
	}
	for _, n := range w.names {
		if m := resolverOf(members[n.Network], w.hosts[n], w.failed[n]); m != nil {
			hosts[n] = m.name
			next.addName(m, n)
		} else if len(members[n.Network]) > 0 {
			next.noRoom++
		}
	}
	changed := w.replaceLocked(next.parts)
	w.checks, w.hosts = checks, hosts
	w.tellOfRoomLocked(next)
	w.mu.Unlock()
	for _, id := range next.unserved {
		w.e.monitor.Unserved(id)
	}
	if len(changed) > 0 {
		w.e.registry.WorkChanged(changed...)
	}
}

// sharing is how work is being shared out.
type sharing struct {
	parts    map[string]assignment
	specs    map[string]map[*monitor.Spec]int // places in a part's Specs
	unserved []uint64
	noRoom   int // checks and names for which there is a connector, and none with room
}

// tellOfRoomLocked warns of work that connectors have no room for, when that is
// news.
func (w *work) tellOfRoomLocked(s *sharing) {
	if s.noRoom > 0 && w.noRoom == 0 {
		w.e.log.Warn("the connectors have no room for some checks and names, which stay unknown: add a replica, or let the edge check (run_by)",
			"left_out", s.noRoom, "checks_of_one", wire.MaxChecks, "names_of_one", wire.MaxNames)
	}
	w.noRoom = s.noRoom
}

// add gives a task to m, and tells whether there was room for it.
func (s *sharing) add(m *member, t monitor.Task) bool {
	a, places := s.parts[m.name], s.specs[m.name]
	if places == nil {
		places = make(map[*monitor.Spec]int)
		s.specs[m.name] = places
	}
	at, known := places[t.Spec]
	if !known {
		text, err := json.Marshal(t.Spec.Check)
		if err != nil || len(a.work.Specs) == wire.MaxSpecs || len(text) > wire.MaxSpec {
			return false
		}
		at = len(a.work.Specs)
		places[t.Spec] = at
		a.work.Specs = append(a.work.Specs, wire.WorkSpec{
			Check: text, Interval: t.Spec.Interval, Timeout: t.Spec.Timeout, Retries: t.Spec.Retries,
		})
	}
	m.checks++
	a.network = t.Network
	a.work.Checks = append(a.work.Checks, wire.Check{ID: t.ID, Spec: at, Addr: t.Addr})
	s.parts[m.name] = a
	return true
}

func (s *sharing) addName(m *member, n resolve.Name) {
	m.names++
	a := s.parts[m.name]
	a.network, a.work.Names = n.Network, append(a.work.Names, wire.Name{Host: n.Host})
	s.parts[m.name] = a
}

// replaceLocked puts next in force, and returns whose work is another now.
func (w *work) replaceLocked(next map[string]assignment) (changed []string) {
	for name, a := range next {
		old, had := w.assigned[name]
		if had && a.network == old.network && reflect.DeepEqual(a.work, old.work) {
			next[name] = old
			continue
		}
		w.revision++
		a.revision, a.since = w.revision, old.since
		if !had {
			a.since = time.Now()
		}
		next[name] = a
		changed = append(changed, name)
	}
	for name := range w.assigned {
		if _, stays := next[name]; !stays {
			changed = append(changed, name)
		}
	}
	w.assigned = next
	return changed
}

// members are the connectors that may get work, by network, sorted by name.
func (w *work) members() map[string][]*member {
	known := make(map[string]enroll.Connector)
	for _, c := range w.e.registry.Connectors() {
		known[c.Name] = c
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make(map[string][]*member)
	for _, p := range w.e.nets.connectors() {
		c := known[p.Name()]
		if was, idle := w.idle[p.Name()]; idle && !was.Equal(c.Report.Started) {
			delete(w.idle, p.Name()) // it has started anew
		} else if idle {
			continue
		}
		if s := p.State(); s.Alive && !s.Draining && !s.Held {
			out[p.NetworkName()] = append(out[p.NetworkName()], &member{
				name: p.Name(), routes: p.Routes(), speaks: !c.LastSync.IsZero(),
			})
		}
	}
	return out
}

// before tells whether m should rather have work than other, which had did so
// far: who speaks control comes first, then who had it, then less tells.
func (m *member) before(other *member, had string, less bool) bool {
	switch {
	case m.speaks != other.speaks:
		return m.speaks
	case m.name == had, other.name == had:
		return m.name == had
	}
	return less
}

// choose returns who checks addr: of those with the longest route to it, the
// one that had the task already, else the one with the least to do; nil: there
// is none.
func choose(members []*member, addr netip.Addr, had string) *member {
	var best *member
	bits := -1
	for _, m := range members {
		n := longest(m.routes, addr)
		if m.checks >= wire.MaxChecks || n < 0 || n < bits {
			continue
		}
		if best == nil || n > bits || m.before(best, had, m.checks < best.checks) {
			best, bits = m, n
		}
	}
	return best
}

// longest is the length of the longest of routes that addr is in; -1: none.
func longest(routes []netip.Prefix, addr netip.Addr) int {
	bits := -1
	for _, r := range routes {
		if r.Contains(addr) {
			bits = max(bits, r.Bits())
		}
	}
	return bits
}

// resolverOf says who resolves a name: of those that have not failed to, or did
// so the longest ago, the one that had it, else the first; nil: there is none.
func resolverOf(members []*member, had string, failed map[string]time.Time) *member {
	var best *member
	for _, m := range members {
		if m.names >= wire.MaxNames {
			continue
		}
		switch {
		case best == nil, failed[m.name].Before(failed[best.name]):
			best = m
		case failed[m.name].Equal(failed[best.name]) && m.before(best, had, false):
			best = m
		}
	}
	return best
}

// Assigned implements enroll.Work.
func (w *work) Assigned(connector string) (uint64, wire.Work) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.assigned[connector]
	return a.revision, a.work
}

// Report implements enroll.Work.
func (w *work) Report(connector string, report enroll.WorkReport) {
	w.mu.Lock()
	network := w.assigned[connector].network
	w.mu.Unlock()
	p := w.e.nets.peer(connector)
	if network == "" || p == nil {
		return
	}
	for _, r := range report.Results {
		w.e.monitor.Reported(connector, r.ID, check.Result{RTT: r.RTT, Err: r.Err, Expires: r.Expires})
	}
	routes := p.Routes()
	for _, f := range report.Names {
		name := resolve.Name{Network: network, Host: f.Host}
		addrs, err := ownAddrs(connector, routes, f)
		w.e.names.Report(name, addrs, f.TTL, err)
		w.noteName(name, connector, err)
	}
}

// ownAddrs are those of the addresses found that the connector has a route to:
// it must not lead flows to hosts that are another's.
func ownAddrs(connector string, routes []netip.Prefix, f enroll.Found) ([]netip.Addr, error) {
	if f.Err != nil {
		return nil, f.Err
	}
	own := slices.DeleteFunc(slices.Clone(f.Addrs), func(a netip.Addr) bool { return longest(routes, a.Unmap()) < 0 })
	if len(own) == 0 {
		return nil, fmt.Errorf("connector %q says %v, and has no route there", connector, f.Addrs[:min(len(f.Addrs), 4)])
	}
	return own, nil
}

// noteName remembers who could not resolve a name, so that another is asked.
func (w *work) noteName(name resolve.Name, connector string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.failed, name)
		return
	}
	if w.failed[name] == nil {
		w.failed[name] = make(map[string]time.Time)
	}
	w.failed[name][connector] = time.Now()
	if w.e.names.Addrs(name).Err != nil {
		w.stir()
	}
}
