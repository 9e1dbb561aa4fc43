// Package connector is the process inside a private network. It dials out to
// its edges over WireGuard, takes the flows that they ask for, and carries
// each to its origin: guard → origin → relay. Endpoints that an edge wants
// checked from here it checks, with the same guard and origin. Private names
// that an edge wants resolved it asks this machine's resolver for, a few hundred
// at most, and tells those addresses that a flow of the edge could reach: so an
// edge can learn whether a name exists, and no address that the guard denies.
//
// Make a Connector from a Spec and Run it until its context ends; it then
// drains. It enrols where it has a token to, reconnects for ever, does as each
// edge's grant says, and says on the log what becomes of each edge.
//
// The package must never answer an edge with silence (a flow that cannot be is
// refused, unreachable or timed out, in the packet that says so), never dial
// what the guard denies or the edge's routes do not hold, never wait for an edge
// in a busy loop, and never let one edge feel what another does.
package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/host"
	"github.com/warrenmesh/warren/host/lookup"
	"github.com/warrenmesh/warren/netstack/relay"
)

// ErrForced is returned by Run when Deps.Force ended a drain that had flows
// left.
var ErrForced = errors.New("the drain was cut short")

// ErrRefused is wrapped by Run's error when every edge has refused this
// connector for good: running it again without a change is of no use.
var ErrRefused = errors.New("refused")

// Deps are what a Connector stands on. The zero value of each field is the
// machine's own.
type Deps struct {
	// Log gets a line for each thing that happens to an edge, and for each
	// flow that fails, limited by reason. Default: slog.Default().
	Log *slog.Logger
	// Force, when it is closed, ends a drain at once: the second signal.
	Force <-chan struct{}
	// OnEdge is told that an edge came (up) or went, by its url. It must not
	// block.
	OnEdge func(url string, up bool)
	// Version is the label of warren_build_info.
	Version string

	// Resolver finds edges and aliases. Default: net.DefaultResolver.
	Resolver Resolver
	// Lookup asks this machine's resolver for a name's addresses and how long
	// they are good for, on an edge's behalf. An error that wraps a
	// *net.DNSError with IsNotFound says that there is no such name. It must
	// return soon after ctx ends. Default: host/lookup.
	Lookup func(ctx context.Context, host string) (addrs []netip.Addr, ttl time.Duration, err error)
	// OriginNet dials origins. Default: the kernel.
	OriginNet origin.NetDialer
	// OriginPing pings origins. Default: the kernel.
	OriginPing origin.Pinger
	// Listen opens the metrics listener. Default: the kernel.
	Listen func(network, address string) (net.Listener, error)
	// Tunnel makes the WireGuard device. Default: netstack/tunnel.
	Tunnel func(TunnelConfig) (Tunnel, error)
	// Reach says why an edge does not answer. Default: the kernel's word.
	Reach Reach
	// Wall is the clock on the wall, which goes on in a suspended machine.
	// Default: time.Now without its monotonic reading.
	Wall func() time.Time
}

func (d Deps) withDefaults() Deps {
	if d.Log == nil {
		d.Log = slog.Default()
	}
	if d.OnEdge == nil {
		d.OnEdge = func(string, bool) {}
	}
	if d.Resolver == nil {
		d.Resolver = net.DefaultResolver
	}
	if d.Lookup == nil {
		d.Lookup = lookup.New(lookup.Deps{}).Lookup
	}
	if d.Listen == nil {
		d.Listen = net.Listen
	}
	if d.Tunnel == nil {
		d.Tunnel = openTunnel
	}
	if d.Reach == nil {
		d.Reach = kernelReach{}
	}
	if d.Wall == nil {
		d.Wall = func() time.Time { return time.Now().Round(0) }
	}
	return d
}

// Connector serves its edges. Make it with New; it runs once.
type Connector struct {
	spec   Spec
	deps   Deps
	log    *slog.Logger
	guard  *guard.Guard
	origin *origin.Dialer
	flows  *flows
	poller *relay.Poller // of the flows at rest
	fails  *failLog
	count  counters

	rotation *rotation
	// enrol registers a public key at an edge with the Spec's token: see
	// enrolAt.
	enrol func(ctx context.Context, e EdgeSpec, key wgtypes.Key) (wire.EnrollAnswer, error)

	// Made by Run before anything else runs.
	state   *state.Dir // nil: nothing is to be remembered
	started time.Time  // on the wall's clock
	waiting []string   // edges of an earlier token that have yet to let us in

	warned sync.Once // of a state directory that will not last

	mu      sync.Mutex
	serving int                // edges that are neither given up nor left
	alone   context.CancelFunc // called when there is none any more; made by Run

	edges  []*edge     // replaced by Run once
	tunnel Tunnel      // nil before Run has opened it
	key    wgtypes.Key // private; zero before Run
}

// New makes a Connector. The error holds every problem of the spec; nothing is
// opened yet.
func New(spec Spec, deps Deps) (*Connector, error) {
	var problems []error
	spec.Validate(func(path, value, hint string) {
		problems = append(problems, fmt.Errorf("%s = %q: %s", path, value, hint))
	})
	if len(problems) > 0 {
		return nil, fmt.Errorf("checking the connector's settings: %w", errors.Join(problems...))
	}
	spec, deps = spec.withDefaults(), deps.withDefaults()
	c := &Connector{
		spec:  spec,
		deps:  deps,
		log:   deps.Log,
		guard: guard.New(spec.Guard),
		flows: newFlows(context.Background(), spec.MaxTCPFlows, spec.MaxUDPFlows),
		fails: newFailLog(deps.Log),

		poller: relay.NewPoller(),
	}
	c.origin = origin.New(spec.Origin, origin.Deps{Guard: c.guard, Resolver: deps.Resolver, Net: deps.OriginNet, Pinger: deps.OriginPing})
	c.rotation = newRotation(c)
	c.enrol = c.enrolAt
	c.edges = c.gather(nil)
	return c, nil
}

// Run makes a Connector and runs it: see New and Connector.Run.
func Run(ctx context.Context, spec Spec, deps Deps) error {
	c, err := New(spec, deps)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}

// Run serves until ctx ends, then drains: it tells the edges, refuses new
// flows, waits for the live ones up to the Spec's Grace or until Deps.Force,
// and cuts the rest. It returns nil after a drain, ErrForced after one that
// was forced while flows lived, and another error where it could not start.
//
// An edge that refuses this connector for good is left alone, and one that
// drains it is left in order, and served again once the drain there has ended;
// the others do not notice. When no edge is left, Run returns nil where the operator of one drained it, and else an
// error, which wraps ErrRefused. Nothing of it runs any more when it returns.
func (c *Connector) Run(ctx context.Context) error {
	release, err := c.open()
	if err != nil {
		return err
	}
	defer release()
	web, err := c.openWeb()
	if err != nil {
		return err
	}
	defer web.close()
	key := c.ownKey()
	device, err := c.deps.Tunnel(TunnelConfig{PrivateKey: key, Listen: c.spec.Listen, Log: c.log})
	if err != nil {
		return fmt.Errorf("opening the tunnel: %w", err)
	}
	c.mu.Lock()
	c.tunnel = device
	c.mu.Unlock()
	c.sayStart()

	failure := c.runEdges(ctx)
	if failure == nil {
		device.SetDraining(true)
		failure = c.drain()
	}
	// The flows' context ends before the tunnel, so that no handler dials on;
	// the tunnel ends before the wait, so that no handshake holds a flow up.
	empty := c.flows.cut(errCut)
	device.Close()
	<-empty
	c.poller.Close()
	c.log.Info("stopped")
	return failure
}

// open takes the state directory, reads the private key, or makes it on the
// first run, and finds out which edges there are.
func (c *Connector) open() (release func(), err error) {
	release = func() {}
	var saved []state.Edge
	if c.remembers() {
		dir, err := state.Open(c.spec.StateDir)
		if err != nil {
			return nil, err
		}
		c.state, saved, release = dir, dir.Edges(), dir.Close
	}
	key, err := c.readKey()
	if err == nil {
		edges := c.gather(saved)
		if c.state != nil {
			c.sayToken(edges)
		}
		if len(edges) == 0 {
			err = fmt.Errorf("finding an edge: none is declared, and none is known in %q: run with a token (`warren token create` at the edge makes one)", c.spec.StateDir)
		}
		c.mu.Lock()
		c.edges = edges
		c.mu.Unlock()
	}
	if err != nil {
		release()
		return nil, err
	}
	c.setKey(key)
	c.started = c.deps.Wall()
	lasting := func(e state.Edge) bool { return !e.Ephemeral }
	if c.spec.PrivateKeyFile == "" && len(c.spec.Edges) > 0 || slices.ContainsFunc(saved, lasting) {
		c.warnVolatile()
	}
	return release, nil
}

// remembers tells whether there is something to keep in the state directory.
// Without, several connectors with keys of their own may name the same one.
func (c *Connector) remembers() bool {
	if c.spec.PrivateKeyFile == "" || c.spec.hasToken() || len(c.spec.Edges) == 0 {
		return true
	}
	if c.spec.StateDir == "" {
		return false
	}
	saved, err := state.Look(c.spec.StateDir)
	return err != nil || len(saved) > 0
}

// readKey returns the private key.
func (c *Connector) readKey() (wgtypes.Key, error) {
	if c.spec.PrivateKeyFile != "" {
		return host.ReadKey(c.spec.PrivateKeyFile)
	}
	key, made, err := c.state.Key()
	if made {
		c.log.Info("made a private key", "file", c.spec.keyFile())
	}
	return key, err
}

// warnVolatile says once where the state directory will not last.
func (c *Connector) warnVolatile() {
	if c.state == nil {
		return
	}
	if why, yes := c.state.Volatile(); yes {
		c.warned.Do(func() { c.log.Warn("state will be lost", "reason", why) })
	}
}

// ownKey returns the private key of the moment.
func (c *Connector) ownKey() wgtypes.Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.key
}

func (c *Connector) setKey(key wgtypes.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key = key
}

// list returns the edges.
func (c *Connector) list() []*edge {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.edges
}

// sayStart writes what this connector is and what it will do.
func (c *Connector) sayStart() {
	c.log.Info("connector starts", "name", c.spec.Name, "version", c.deps.Version, "public_key", c.ownKey().PublicKey().String())
	routes := "those that the edge grants"
	if len(c.spec.Guard.Allow) > 0 {
		routes = "those that the edge grants and [guard] allows"
	}
	c.log.Info("routes", "serve", routes, "allow", c.spec.Guard.Allow, "deny", c.spec.Guard.Deny, "aliases", len(c.spec.Origin.Aliases))
}

// runEdges keeps the edges joined until ctx ends, or until none is left: it
// returns why where no edge was left in order.
func (c *Connector) runEdges(ctx context.Context) error {
	watched, stop := context.WithCancel(ctx)
	var others sync.WaitGroup
	others.Go(func() { c.watchClock(watched) })
	others.Go(func() { c.rotation.run(watched) })
	edges := c.list()
	ctx, alone := context.WithCancel(ctx)
	c.mu.Lock()
	c.serving, c.alone = len(edges), alone
	c.mu.Unlock()
	ends := make([]error, len(edges))
	var all sync.WaitGroup
	for i, e := range edges {
		all.Go(func() { ends[i] = e.run(ctx) })
	}
	all.Wait()
	alone()
	stop()
	others.Wait()

	var reasons []string
	refused := true
	for i, err := range ends {
		if err == nil || errors.Is(err, errDrained) {
			return nil
		}
		refused = refused && errors.Is(err, ErrRefused)
		reasons = append(reasons, fmt.Sprintf("edge %q: %s", edges[i].name(), strings.TrimPrefix(err.Error(), ErrRefused.Error()+": ")))
	}
	if why := strings.Join(reasons, "; "); refused {
		return fmt.Errorf("serving: %w by %s", ErrRefused, why)
	} else {
		return fmt.Errorf("serving: no edge is left: %s", why)
	}
}

// drain refuses new flows and waits for the live ones, and then for what they
// still had to send: the edge drops what comes after the tunnel's farewell.
func (c *Connector) drain() error {
	empty := c.flows.drain()
	c.log.Info("draining", "tcp_flows", c.flows.count("tcp"), "udp_flows", c.flows.count("udp"), "at_most", max(c.spec.Grace, 0))
	grace := time.NewTimer(c.spec.Grace)
	defer grace.Stop()
	poll := time.NewTicker(flushPoll)
	defer poll.Stop()
	for {
		select {
		case <-empty:
			if !c.sending() {
				return nil
			}
		default:
		}
		select {
		case <-poll.C:
		case <-grace.C:
			c.log.Warn("drain is over", "cut_tcp_flows", c.flows.count("tcp"), "cut_udp_flows", c.flows.count("udp"))
			return nil
		case <-c.deps.Force:
			c.log.Warn("drain was forced", "cut_tcp_flows", c.flows.count("tcp"), "cut_udp_flows", c.flows.count("udp"))
			return ErrForced
		}
	}
}

// flushPoll is how often a drain looks whether the last bytes have left.
const flushPoll = 20 * time.Millisecond

// sending tells whether flows that are over have bytes on the way to an edge
// that lives.
func (c *Connector) sending() bool {
	for _, e := range c.list() {
		if s := e.state(); s.Alive && s.Flows > 0 {
			return true
		}
	}
	return false
}

// edgeChanged passes on that an edge came or went.
func (c *Connector) edgeChanged(e *edge, up bool) {
	c.rotation.poke()
	c.deps.OnEdge(e.name(), up)
}

// device returns the tunnel, nil before Run has opened it.
func (c *Connector) device() Tunnel {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tunnel
}
