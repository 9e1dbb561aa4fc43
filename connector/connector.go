// Package connector is the process inside a private network. It dials out to
// its edges over WireGuard, takes the flows that they ask for, and carries
// each to its origin: guard → origin → relay.
//
// Make a Connector from a Spec and Run it until its context ends; it then
// drains. It reconnects for ever, and says on the log what becomes of each
// edge.
//
// The package must never answer an edge with silence (a flow that cannot be is
// refused, unreachable or timed out, in the packet that says so), never dial
// what the guard denies, and never wait for an edge in a busy loop.
package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/host"
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
	// OriginNet dials origins. Default: the kernel.
	OriginNet origin.NetDialer
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
	fails  *failLog
	count  counters
	edges  []*edge

	mu     sync.Mutex
	tunnel Tunnel // nil before Run has opened it
	public wgtypes.Key
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
	}
	c.origin = origin.New(spec.Origin, origin.Deps{Guard: c.guard, Resolver: deps.Resolver, Net: deps.OriginNet})
	for _, e := range spec.Edges {
		c.edges = append(c.edges, newEdge(c, e))
	}
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
// was forced while flows lived, and another error where it could not start or
// cannot go on. Nothing of it runs any more when it returns.
func (c *Connector) Run(ctx context.Context) error {
	key, unlock, err := c.takeKey()
	if err != nil {
		return err
	}
	defer unlock()
	web, err := c.openWeb()
	if err != nil {
		return err
	}
	defer web.close()
	device, err := c.deps.Tunnel(TunnelConfig{PrivateKey: key, Listen: c.spec.Listen, Log: c.log})
	if err != nil {
		return fmt.Errorf("opening the tunnel: %w", err)
	}
	c.mu.Lock()
	c.tunnel, c.public = device, key.PublicKey()
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
	c.log.Info("stopped")
	return failure
}

// takeKey loads the private key, or makes it on the first run, and holds the
// state directory where the key is there.
func (c *Connector) takeKey() (key wgtypes.Key, unlock func(), err error) {
	unlock = func() {}
	if c.spec.PrivateKeyFile == "" {
		if unlock, err = host.LockDir(c.spec.StateDir, "connector"); err != nil {
			return wgtypes.Key{}, nil, err
		}
	}
	key, made, err := loadKey(c.spec)
	if err != nil {
		unlock()
		return wgtypes.Key{}, nil, err
	}
	if made {
		c.log.Info("made a private key", "file", c.spec.KeyFile())
	}
	return key, unlock, nil
}

// sayStart writes what this connector is and what it will do.
func (c *Connector) sayStart() {
	c.log.Info("connector starts", "name", c.spec.Name, "version", c.deps.Version, "public_key", c.public.String())
	routes := "those that the edge grants"
	if len(c.spec.Guard.Allow) > 0 {
		routes = "those that the edge grants and [guard] allows"
	}
	c.log.Info("routes", "serve", routes, "allow", c.spec.Guard.Allow, "deny", c.spec.Guard.Deny, "aliases", len(c.spec.Origin.Aliases))
}

// runEdges keeps the edges joined until ctx ends, or until one of them cannot
// be joined at all, which it returns.
func (c *Connector) runEdges(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	var once sync.Once
	var failure error
	for _, e := range c.edges {
		all.Go(func() {
			if err := e.run(ctx); err != nil {
				once.Do(func() { failure = err })
				cancel(err)
			}
		})
	}
	all.Wait()
	return failure
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
	for _, e := range c.edges {
		if s := e.state(); s.Alive && s.Flows > 0 {
			return true
		}
	}
	return false
}

// edgeChanged passes on that an edge came or went.
func (c *Connector) edgeChanged(e *edge, up bool) { c.deps.OnEdge(e.name(), up) }

// device returns the tunnel, nil before Run has opened it.
func (c *Connector) device() Tunnel {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tunnel
}

// Status is what a Connector is doing.
type Status struct {
	PublicKey          wgtypes.Key // zero before Run
	Draining           bool
	TCPFlows, UDPFlows int
	Edges              []EdgeStatus
}

// EdgeStatus is one edge in a Status.
type EdgeStatus struct {
	URL   string
	State State
}

// Status returns what the Connector is doing now.
func (c *Connector) Status() Status {
	c.mu.Lock()
	s := Status{PublicKey: c.public}
	c.mu.Unlock()
	s.Draining = c.flows.isDraining()
	s.TCPFlows, s.UDPFlows = c.flows.count("tcp"), c.flows.count("udp")
	for _, e := range c.edges {
		s.Edges = append(s.Edges, EdgeStatus{URL: e.name(), State: e.state()})
	}
	return s
}

// Ready tells whether an edge is joined and new flows are taken.
func (s Status) Ready() bool {
	if s.Draining {
		return false
	}
	for _, e := range s.Edges {
		if e.State.Alive {
			return true
		}
	}
	return false
}
