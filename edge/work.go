package edge

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/resolve"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/tunnel"
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
	assigned map[string]assignment // by connector
	revision uint64
}

// assignment is one connector's part.
type assignment struct {
	revision uint64
	network  string
	work     wire.Work
}

// workMember is a live connector that may get work.
type workMember struct {
	peer   *tunnel.Peer
	routes []netip.Prefix
	load   int // checks that it has
}

func newWork(e *Edge) *work {
	return &work{
		e: e, news: make(chan struct{}, 1), over: make(chan struct{}), checks: make(map[uint64]string),
		hosts: make(map[resolve.Name]string), assigned: make(map[string]assignment),
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
	w.mu.Unlock()
	w.stir()
}

// start shares work out whenever it is stirred, until stop.
func (w *work) start() {
	w.loop.Go(func() {
		for {
			select {
			case <-w.over:
				return
			case <-w.news:
				w.share()
			}
		}
	})
}

func (w *work) stop() {
	close(w.over)
	w.loop.Wait()
}

// share gives every task to a connector, and tells those whose work has
// changed, and the monitor what nobody can do.
func (w *work) share() {
	tasks := w.e.monitor.Tasks()
	members := w.members()
	w.mu.Lock()
	checks, hosts := make(map[uint64]string, len(tasks)), make(map[resolve.Name]string, len(w.names))
	next := make(map[string]assignment)
	var unserved []uint64
	specs := make(map[string]map[*monitor.Spec]int)
	for _, t := range tasks {
		m := choose(members[t.Network], t.Addr.Addr(), w.checks[t.ID])
		if m == nil {
			unserved = append(unserved, t.ID)
			continue
		}
		m.load++
		name := m.peer.Name()
		checks[t.ID] = name
		if specs[name] == nil {
			specs[name] = make(map[*monitor.Spec]int)
		}
		next[name] = withCheck(next[name], t, specs[name])
	}
	for _, n := range w.names {
		name := resolverOf(members[n.Network], w.hosts[n])
		if name == "" {
			continue
		}
		hosts[n] = name
		a := next[name]
		a.network, a.work.Names = n.Network, append(a.work.Names, wire.Name{Host: n.Host})
		next[name] = a
	}
	changed := w.replaceLocked(next)
	w.checks, w.hosts = checks, hosts
	w.mu.Unlock()
	for _, id := range unserved {
		w.e.monitor.Unserved(id)
	}
	if len(changed) > 0 {
		w.e.registry.WorkChanged(changed...)
	}
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
		a.revision = w.revision
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

// withCheck adds a task to a connector's part; specs has the places of the ways
// to check that are there.
func withCheck(a assignment, t monitor.Task, specs map[*monitor.Spec]int) assignment {
	at, known := specs[t.Spec]
	if !known {
		text, err := json.Marshal(t.Spec.Check)
		if err != nil {
			return a // strings, lists of strings, a map of strings: they have a JSON
		}
		at = len(a.work.Specs)
		specs[t.Spec] = at
		a.work.Specs = append(a.work.Specs, wire.WorkSpec{
			Check: text, Interval: t.Spec.Interval, Timeout: t.Spec.Timeout, Retries: t.Spec.Retries,
		})
	}
	a.network = t.Network
	a.work.Checks = append(a.work.Checks, wire.Check{ID: t.ID, Spec: at, Addr: t.Addr})
	return a
}

// members are the connectors that may get work, by network, sorted by name.
func (w *work) members() map[string][]*workMember {
	out := make(map[string][]*workMember)
	for _, p := range w.e.nets.connectors() {
		if s := p.State(); s.Alive && !s.Draining && !s.Held {
			out[p.NetworkName()] = append(out[p.NetworkName()], &workMember{peer: p, routes: p.Routes()})
		}
	}
	return out
}

// choose returns who checks addr: of those with the longest route to it, the
// one that had the task already, else the one with the least to do; nil: there
// is none.
func choose(members []*workMember, addr netip.Addr, had string) *workMember {
	var best *workMember
	bits := -1
	for _, m := range members {
		n := longest(m.routes, addr)
		if m.load >= wire.MaxChecks || n < 0 || n < bits {
			continue
		}
		mine := m.peer.Name() == had
		if best == nil || n > bits || mine || best.peer.Name() != had && m.load < best.load {
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

// resolverOf names who resolves a name: who did, else the first.
func resolverOf(members []*workMember, had string) string {
	for _, m := range members {
		if m.peer.Name() == had {
			return had
		}
	}
	if len(members) == 0 {
		return ""
	}
	return members[0].peer.Name()
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
	if network == "" {
		return
	}
	for _, r := range report.Results {
		w.e.monitor.Reported(connector, r.ID, check.Result{RTT: r.RTT, Err: r.Err, Expires: r.Expires})
	}
	for _, f := range report.Names {
		w.e.names.Report(resolve.Name{Network: network, Host: f.Host}, f.Addrs, f.TTL, f.Err)
	}
}
