// Package edge is the public machine: it puts the rooms together and lets
// flows walk through them. It is composition only; whatever can be decided,
// counted or parsed is decided, counted and parsed in a room.
//
//	path.go        the journey of one flow, on one screen; way.go its search for
//	               an endpoint, outcome.go its ends
//	reload.go      from one config to the next, all or nothing
//	networks.go    the virtual networks and their connectors in the tunnel
//	peers.go       the tunnel as the registry of enrolments sees it
//	enrollment.go  tokens, enrolment and control, and the operator's side of them
//	director.go    what the Director and its monitors tell, and are told
//	drain.go       the ends: drain, stop, force
//	show.go        what the admin socket shows; connectors.go the connectors in it;
//	               control.go what it does
//
// A daemon is one call: Run(ctx, Options). It returns when ctx ends and the
// flows have ended, or the grace period, or Options.Force.
//
// The package must never hold a flow up for a reload, an operator or a log.
package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/dnsd"
	"github.com/warrenmesh/warren/edge/admin"
	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/events"
	"github.com/warrenmesh/warren/edge/ingress"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/observe"
	"github.com/warrenmesh/warren/edge/public"
	"github.com/warrenmesh/warren/edge/resolve"
	"github.com/warrenmesh/warren/edge/store"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/host"
	"github.com/warrenmesh/warren/netstack/drops"
	"github.com/warrenmesh/warren/netstack/relay"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// DefaultGrace is how long flows may go on after ctx ends.
const DefaultGrace = 30 * time.Second

// Options of Run.
type Options struct {
	// Load reads the config, at the start and at each reload. Required.
	Load func() (*config.Config, error)
	// Log gets the edge's own lines. Required.
	Log *slog.Logger
	// Version of the program, for status and metrics.
	Version string
	// ConfigFiles are what Load reads, for status.
	ConfigFiles []string
	// Grace is how long flows may go on after ctx ends; default DefaultGrace.
	Grace time.Duration
	// Force, when closed, cuts a drain short. Optional.
	Force <-chan struct{}
	// Reload asks for a reload with each value; the outcome is logged.
	// Optional.
	Reload <-chan struct{}
	// Ready, when set, is called once the edge serves.
	Ready func(*Edge)
}

// Edge is a running edge. Run makes it.
type Edge struct {
	opts    Options
	log     *slog.Logger
	first   *config.Config // what the machine-bound settings were at the start
	started time.Time

	store    *store.Store
	tunnel   *tunnel.Tunnel
	registry *enroll.Registry
	ingress  *ingress.Server
	monitor  *monitor.Monitor
	events   *events.Log
	names    *resolve.Resolver
	public   atomic.Pointer[public.Dialer]
	work     *work
	renamed  chan struct{} // capacity 1: the addresses of a name have changed
	dns      *dnsd.Server
	zones    dnsd.Current
	observer *observe.Observer
	poller   *relay.Poller // of the flows at rest
	nets     networks

	stopRegistry func()   // ends its servers and waits for them; nil before serve
	metricsAt    net.Addr // where /metrics is served; nil: nowhere
	relayed      relayDrops
	dropped      drops.Counter // flows, by the walk itself
	flowID       atomic.Uint64
	current      atomic.Pointer[snapshot]

	reloading sync.Mutex // one change of config or of draining at a time
	draining  atomic.Bool
	stopping  atomic.Bool

	mu              sync.Mutex
	lastReloadError string
	connectorWas    map[string]string // the state that the last event told of
}

// Run runs an edge until ctx ends and its flows have, or the grace period. Its
// error says what kept it from starting, or is ErrForced.
func Run(ctx context.Context, opts Options) error {
	if opts.Grace == 0 {
		opts.Grace = DefaultGrace
	}
	cfg, err := opts.Load()
	if err != nil {
		return err
	}
	release, err := host.LockDir(cfg.Edge.StateDir, "edge")
	if err != nil {
		return err
	}
	defer release()
	e := &Edge{opts: opts, log: opts.Log, first: cfg, started: time.Now(), renamed: make(chan struct{}, 1)}
	if err := e.open(cfg); err != nil {
		return err
	}
	return e.serve(ctx)
}

// open makes every room and brings the first config into force. On failure
// nothing stays open.
func (e *Edge) open(cfg *config.Config) (err error) {
	if e.store, err = store.Open(filepath.Join(cfg.Edge.StateDir, storeName)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = e.store.Close()
		}
	}()
	key, err := e.loadKey(cfg)
	if err != nil {
		return err
	}
	flows, err := observe.OpenFlowLog(cfg.Log.Spec(), e.log)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = flows.Close(context.Background())
		}
	}()
	e.tunnel, err = tunnel.New(tunnel.Config{
		PrivateKey: key, Listen: cfg.WireGuard.Listen.AddrPort,
		InnerSources: cfg.WireGuard.InnerSources, ControlPort: wire.ControlPort, OnPeer: e.onPeer, Log: e.log,
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			e.tunnel.Close()
		}
	}()
	e.work = newWork(e)
	if err = e.openRegistry(); err != nil {
		return err
	}
	e.observer = &observe.Observer{
		Table: new(observe.Table), Log: flows,
		Metrics: observe.NewMetrics(observe.Build{Version: e.opts.Version, GoVersion: runtime.Version()}),
	}
	e.poller = relay.NewPoller()
	e.ingress = ingress.New(e.log, e.walk)
	e.ingress.Admit = e.admit
	e.openDirector()
	e.dns = dnsd.New(dnsd.Spec{}, &e.zones, e.log)
	e.registerMetrics()
	if _, err = e.enforce(cfg); err != nil {
		e.stopDirector()
		e.ingress.StopAccepting()
		e.dns.StopAccepting()
		_ = errors.Join(e.ingress.Close(context.Background()), e.dns.Close(context.Background()))
		e.poller.Close()
		return err
	}
	return nil
}

// serve opens the operator's sockets and waits for the end.
func (e *Edge) serve(ctx context.Context) error {
	pages, stopPages := context.WithCancel(context.Background())
	var servers sync.WaitGroup
	defer servers.Wait()
	defer stopPages()
	err := e.serveRegistry()
	if err == nil {
		err = e.openPages(pages, &servers)
	}
	if err != nil {
		over, cut := context.WithCancelCause(context.Background())
		cut(fmt.Errorf("the edge did not start: %w", err)) // no flow that has come in already holds it up
		_ = e.end(over)
		return err
	}
	e.logReady()
	if e.opts.Ready != nil {
		e.opts.Ready(e)
	}
	follow, following := e.renamed, time.NewTimer(0)
	defer following.Stop()
	for {
		select {
		case <-e.opts.Reload:
			_, _ = e.reload() // logs its outcome itself
		case <-follow:
			e.follow()
			follow = nil
			following.Reset(followEvery)
		case <-following.C:
			follow = e.renamed
		case <-ctx.Done():
			return e.drainAndEnd()
		}
	}
}

// openPages serves the admin socket and the metrics until ctx ends.
func (e *Edge) openPages(ctx context.Context, servers *sync.WaitGroup) error {
	socket, err := admin.Listen(e.first.Admin.Socket)
	if err != nil {
		return err
	}
	api := admin.New(e.log, e, e)
	servers.Go(func() {
		if err := api.Serve(ctx, socket); err != nil {
			e.log.Error("the admin socket is gone", "err", err)
		}
	})
	if !e.first.Metrics.On {
		return nil
	}
	ln, err := listenMetrics(e.first.Metrics.Listen)
	if err != nil {
		return err
	}
	e.metricsAt = ln.Addr()
	var profiles func(*http.ServeMux)
	if e.first.Metrics.Profiles {
		profiles = host.HandleProfiles
	}
	servers.Go(func() {
		if err := observe.Serve(ctx, ln, observe.Handler(e.observer.Metrics, e.ready, profiles)); err != nil {
			e.log.Error("the metrics listener is gone", "err", err)
		}
	})
	return nil
}

// listenMetrics opens the operator's TCP listener. Without an address it is
// every address of the machine.
func listenMetrics(at netip.AddrPort) (net.Listener, error) {
	address, anywhere := at.String(), at
	if !at.Addr().IsValid() {
		address = fmt.Sprintf(":%d", at.Port())
		anywhere = netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())
	}
	ln, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("listening on %q for metrics: %w by %s; stop that, or change [metrics] listen", address, unix.EADDRINUSE, host.Holder("tcp", anywhere))
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listening on %q for metrics: this machine does not have the address; change [metrics] listen", address)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("listening on %q for metrics: permission denied: ports below 1024 need root or CAP_NET_BIND_SERVICE; change [metrics] listen", address)
	}
	return nil, fmt.Errorf("listening on %q for metrics: %w", address, err)
}

// ready reports whether new flows are accepted.
func (e *Edge) ready() (ok bool, why string) {
	switch {
	case e.stopping.Load():
		return false, "stopping"
	case e.draining.Load():
		return false, "draining"
	case e.current.Load() == nil:
		return false, "no config yet"
	}
	return true, ""
}

func (e *Edge) registerMetrics() {
	m := e.observer.Metrics
	m.AddDrops(e.tunnel.Drops)
	m.AddDrops(e.ingress.Drops)
	m.AddDrops(e.dns.Drops)
	m.AddDrops(e.relayed.report)
	m.AddDrops(e.reportDrops)
	m.AddDrops(e.registry.Drops)
	if e.observer.Log != nil {
		m.AddDrops(e.observer.Log.Drops)
	}
	m.Registerer().MustRegister(e.dns)
	m.SetConnectors(e.connectorStates)
	m.SetEnrollment(e.enrollmentState)
	m.SetEndpoints(e.endpointStates)
	m.SetPools(e.poolStates)
	m.SetWebhooks(e.webhookStates)
}

func (e *Edge) logReady() {
	cfg := e.current.Load().cfg
	e.log.Info("edge ready", "name", cfg.Edge.Name, "public_key", e.tunnel.PublicKey().String(),
		"wireguard", e.wireguardAddr(), "networks", len(cfg.Networks), "connectors", len(e.registry.Connectors()),
		"apps", len(cfg.Apps), "listeners", len(e.ingress.Listening()), "admin", cfg.Admin.Socket, "metrics", e.metricsText())
}

func (e *Edge) metricsText() string {
	if e.metricsAt == nil {
		return "off"
	}
	return e.metricsAt.String()
}

// onPeer hears of connectors that come and go.
func (e *Edge) onPeer(p *tunnel.Peer, s tunnel.PeerState) {
	attrs := []any{"connector", p.Name(), "network", p.NetworkName()}
	e.connectorEvent(p, s)
	e.work.stir()
	switch {
	case s.Held && s.Alive && !s.KeyShared: // one that serves another edge asks each minute whether the drain is over
		e.log.Debug("drained connector looks in", attrs...)
	case s.Alive && s.KeyShared:
		e.log.Warn("two machines run with the key of one connector, and take the tunnel from each other: give each a key of its own",
			append(attrs, "from", s.Endpoint.String())...)
	case s.Alive && s.Draining:
		e.log.Info("connector drains", attrs...)
	case s.Alive:
		e.log.Info("connector up", append(attrs, "from", s.Endpoint.String())...)
		e.monitor.Recheck(p.NetworkName())
	case s.Left:
		e.log.Info("connector left", append(attrs, "last_heard", s.Heard.Format(time.RFC3339))...)
	default:
		e.log.Warn("connector down", append(attrs, "last_heard", s.Heard.Format(time.RFC3339))...)
	}
}
