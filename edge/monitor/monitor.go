// Package monitor checks endpoints actively and keeps a verdict on each.
//
// New makes a Monitor with the dialer that its checks use, Prepare and Commit
// tell it what to watch, and Up answers from memory for the balancer. Each check
// of the edge's own runs on its own goroutine, begins as soon as it is prepared,
// and is shared by all the pools that ask the same of the same endpoint. Stop
// ends them all and waits.
//
// An endpoint is unknown until its first check ends, and unknown is not up:
// nobody may be sent to a place that nobody has seen. The first answer settles
// it, and from then on Rise and Fall answers in a row turn it over:
//
//	         first check passes              Fall checks fail
//	unknown ────────────────────▶    up    ──────────────────▶   down
//	   │ ▲                            ▲                           │ ▲
//	   │ │ no live connector          └─────── Rise checks pass ──┘ │
//	   │ └──── (from up and from down)          after the hold      │
//	   └──────────────── first check fails ─────────────────────────┘
//
// Where no connector serves the network nothing is learnt about the endpoint:
// it is unknown again, and one good check after the connector's return is
// enough. So it is after Fall checks that could not be made (check.ErrUnable),
// but for an endpoint that is flapping: one that goes down soon after it came
// up must stay well for a hold time, which doubles, before it is up again.
//
// Who runs a monitor's checks is the operator's choice: the edge, through the
// tunnel, or a connector of the endpoint's network. The latter are delegated:
// Tasks lists them for whoever talks with connectors, Reported brings their
// results, and they are judged as the edge's own are. An endpoint whose
// connector falls silent is unknown. No goroutine waits for a delegated check;
// one watches over all of them.
//
// What one check does is package check's business; none leaves a socket behind.
package monitor

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DialFunc opens a connection to addr in the virtual network, or to a public
// origin where that is "@public"; proto is "tcp" or "udp". It honours ctx,
// returns for TCP only once the endpoint has accepted, and its failures wrap
// the Err values of netx.
type DialFunc func(ctx context.Context, network, proto string, addr netip.AddrPort) (net.Conn, error)

// PingFunc pings addr in the virtual network, with DialFunc's contract.
type PingFunc func(ctx context.Context, network string, addr netip.Addr) error

// State is what is known of an endpoint.
type State string

const (
	StateUnknown State = "unknown" // no check has told anything yet; counts as down
	StateUp      State = "up"
	StateDown    State = "down"
)

// Change is an endpoint's move from one state to another.
type Change struct {
	Target // where several monitors share the check, the first of them by name
	From   State
	To     State
	Why    string // what the last check said
	At     time.Time
}

// Result is the verdict on one target.
type Result struct {
	Target
	State     State
	Why       string        // why it is not up; empty while it is up
	LastError string        // of the last check; empty if it passed
	RTT       time.Duration // connect time of the last check that passed; 0 if none has
	Since     time.Time     // when State was entered
	Checked   time.Time     // when the last check ended; zero before the first
	CheckedBy string        // "edge", or the connector that ran the last check; empty before the first
	Expires   time.Time     // when the endpoint's certificate ends; zero where no check has seen one
}

// Deps is what a Monitor works with.
type Deps struct {
	// Dial makes the connection of a check. Required.
	Dial DialFunc
	// Ping serves checks of type icmp, which fail without it.
	Ping PingFunc
	// OnChange, if set, hears of each change of state exactly once, changes
	// of one endpoint in their order. It is called from the check's own
	// goroutine, which it must not hold up for long, and must call none of
	// Prepare, Commit, Rollback and Stop.
	OnChange func(Change)
	// OnTasks, if set, is called after the set of Tasks has changed. It is
	// called from Prepare, Commit and Rollback, and must call none of them.
	OnTasks func()
	// Concurrency bounds how many checks of one network dial at one time, and
	// those of all to networksAtOnce times as many. Default 256: dead endpoints
	// hold a place for a whole timeout each, and must not keep others from
	// their turn, least of all those of other networks.
	Concurrency int
}

// defaultConcurrency: 1,000 dead endpoints with the default timeout of 2 s
// then take 8 s a round.
const (
	defaultConcurrency = 256
	networksAtOnce     = 4
)

// Monitor runs the checks. The zero value is not usable; call New.
type Monitor struct {
	deps   Deps
	places chan struct{} // one token for each check that dials, of all networks
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // one for each check's goroutine

	view   atomic.Pointer[map[Target]*watch] // what Up and Snapshot read; never written to
	coming atomic.Pointer[map[Target]*watch] // what Up reads besides: the view of the open Pending, or nil

	tasks  atomic.Pointer[map[uint64]*watch] // the delegated checks; never written to
	sweeps chan struct{}                     // capacity 1: what tasks holds has changed

	mu       sync.Mutex // serialises Prepare, Commit, Rollback and Stop
	checks   map[identity]*watch
	plans    map[settings]*plan       // of checks
	shares   map[string]chan struct{} // the places of each network
	pending  *Pending                 // that is open, or nil
	lastID   uint64                   // of a Task
	sweeping bool                     // the sweeper runs
	stopped  bool
}

// identity is what makes two checks the same: the place, and every setting
// but the monitor's name.
type identity struct {
	network  string
	addr     netip.AddrPort
	settings settings
}

// New returns a Monitor that watches nothing yet.
func New(deps Deps) *Monitor {
	if deps.Concurrency <= 0 {
		deps.Concurrency = defaultConcurrency
	}
	m := &Monitor{
		deps:   deps,
		places: make(chan struct{}, networksAtOnce*deps.Concurrency),
		shares: make(map[string]chan struct{}),
		sweeps: make(chan struct{}, 1),
		checks: make(map[identity]*watch),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.view.Store(&map[Target]*watch{})
	m.tasks.Store(&map[uint64]*watch{})
	return m
}

// Up reports whether the target is up, and why it is not. It answers for what
// a Pending brings too, so that whoever makes the change public before Commit
// leaves no gap. It reads memory only, and allocates nothing.
func (m *Monitor) Up(network string, addr netip.AddrPort, monitor string) (up bool, why string) {
	c := m.watchOf(Target{Network: network, Addr: addr, Monitor: monitor})
	if c == nil {
		return false, "not monitored yet"
	}
	v := c.verdict.Load()
	return v.state == StateUp, v.why
}

func (m *Monitor) watchOf(target Target) *watch {
	coming := m.coming.Load() // before view: Commit changes them the other way round
	c := (*m.view.Load())[target]
	if c == nil && coming != nil {
		c = (*coming)[target]
	}
	return c
}

// Known reports whether a check has told something of the target, so that it
// is up or down; it is unknown otherwise. It costs as little as Up.
func (m *Monitor) Known(network string, addr netip.AddrPort, monitor string) bool {
	c := m.watchOf(Target{Network: network, Addr: addr, Monitor: monitor})
	return c != nil && c.verdict.Load().state != StateUnknown
}

// Snapshot returns the verdict on every target, sorted by network, address
// and monitor.
func (m *Monitor) Snapshot() []Result {
	view := *m.view.Load()
	list := make([]Result, 0, len(view))
	for target, c := range view {
		v := c.verdict.Load()
		list = append(list, Result{
			Target: target, State: v.state, Why: v.why, LastError: v.lastErr,
			RTT: v.rtt, Since: v.since, Checked: v.checked, CheckedBy: v.by, Expires: v.expires,
		})
	}
	slices.SortFunc(list, func(a, b Result) int { return compareTargets(a.Target, b.Target) })
	return list
}

func compareTargets(a, b Target) int {
	if order := strings.Compare(a.Network, b.Network); order != 0 {
		return order
	}
	if order := a.Addr.Compare(b.Addr); order != 0 {
		return order
	}
	return strings.Compare(a.Monitor, b.Monitor)
}

// Recheck lets every target of the network be checked at once instead of at
// its time, as is wise when a connector of the network comes up. Delegated
// checks keep their time.
func (m *Monitor) Recheck(network string) {
	for target, c := range *m.view.Load() {
		if target.Network == network {
			c.hurry()
		}
	}
}

// Stop ends every check and waits for them. OnChange is not called after it
// returns. Verdicts stay readable; Prepare fails.
func (m *Monitor) Stop() {
	m.mu.Lock()
	m.stopped = true
	m.mu.Unlock()
	m.cancel()
	for _, c := range *m.tasks.Load() {
		c.end()
	}
	m.wg.Wait()
}

// startDelay spreads the first checks of a load, so that they do not leave in
// one burst, and stays small enough that nobody waits for the first verdict.
func startDelay(interval time.Duration) time.Duration {
	return rand.N(min(interval/10, 250*time.Millisecond) + 1)
}

// pause is the time to the next check: the interval, give or take a tenth, so
// that checks that began together drift apart.
func pause(interval time.Duration) time.Duration {
	return interval - interval/10 + rand.N(interval/5+1)
}
