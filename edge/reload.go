package edge

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/warrenmesh/warren/dnsd"
	"github.com/warrenmesh/warren/dnsd/zone"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/edge/events"
	"github.com/warrenmesh/warren/edge/ingress"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/policy"
	"github.com/warrenmesh/warren/edge/public"
	"github.com/warrenmesh/warren/edge/route"
)

// snapshot is what a flow is judged by: one config, made ready. It is
// immutable; a flow keeps the one that it began with.
type snapshot struct {
	cfg      *config.Config
	revision uint64
	since    time.Time
	apps     map[string]*app
	routes   *route.Table[*app]
	monitors []monitor.Spec // with their files read
	pools    []balance.Spec // with the addresses that names have
	director *balance.Director
}

// app is an app of the config with its policy compiled.
type app struct {
	config.App
	rules *policy.Rules
	alone bool // a flow of it has one endpoint to go to, and no other
}

// idle is how long a flow of the app may be silent.
func (a *app) idle(proto string) time.Duration {
	if proto == "udp" {
		return a.UDPIdle
	}
	return a.TCPIdle
}

// build makes the snapshot that follows previous (nil: the first).
func (e *Edge) build(cfg *config.Config, previous *snapshot) (_ *snapshot, err error) {
	next := &snapshot{cfg: cfg, revision: 1, since: time.Now(), apps: make(map[string]*app), pools: cfg.PoolsWith(e.addressesOf)}
	if next.monitors, err = cfg.ReadMonitors(); err != nil {
		return nil, err
	}
	if previous != nil {
		next.revision = previous.revision + 1
		next.director = previous.director.With(next.pools, cfg.BalanceApps())
	} else {
		next.director = balance.New(next.pools, cfg.BalanceApps(), balance.Deps{Health: e.monitor, OnEvent: e.onSteering})
	}
	var listeners []route.Listener[*app]
	for _, c := range cfg.Apps {
		rules, err := policy.New(policy.Spec{Allow: c.Allow, Deny: c.Deny})
		if err != nil {
			return nil, fmt.Errorf("reading the policy of app %q: %w", c.Name, err)
		}
		a := &app{App: c, rules: rules, alone: next.alone(c)}
		next.apps[c.Name] = a
		for _, l := range c.Listeners {
			listeners = append(listeners, route.Listener[*app]{Name: c.Name, Network: l.Network, Addr: l.Addr, Offset: l.Offset, App: a})
		}
	}
	routes, err := route.New(listeners)
	if err != nil {
		return nil, err
	}
	next.routes = routes
	return next, nil
}

// alone tells whether each flow of the app has one endpoint to go to.
func (s *snapshot) alone(a config.App) bool {
	wanted := a.PoolsAt(0)
	if a.Fallback != "" {
		wanted = append(slices.Clone(wanted), a.Fallback)
	}
	endpoints := 0
	for _, pool := range s.pools {
		if slices.Contains(wanted, pool.Name) {
			endpoints += countEndpoints([]balance.Spec{pool})
		}
	}
	return endpoints == 1
}

// outcome is what a config that is in force brought, in words.
type outcome struct {
	changes  []string
	warnings []string // what is in force, and not as well as it should be
}

// reload reads the config again and brings it into force, or leaves everything
// as it is and says why.
func (e *Edge) reload() (outcome, error) {
	cfg, err := e.opts.Load()
	var done outcome
	if err == nil {
		done, err = e.enforce(cfg)
	}
	e.mu.Lock()
	e.lastReloadError = ""
	if err != nil {
		e.lastReloadError = err.Error()
	}
	e.mu.Unlock()
	if err != nil {
		e.log.Error("reload refused, the config before stays in force", "err", err)
		return outcome{}, err
	}
	e.log.Info("reloaded", "revision", e.current.Load().revision, "changes", done.changes)
	return done, nil
}

// enforce brings cfg into force, all of it or nothing. What can fail is
// prepared in each room first, beside what serves; then the rooms commit.
func (e *Edge) enforce(cfg *config.Config) (outcome, error) {
	e.reloading.Lock()
	defer e.reloading.Unlock()
	if e.stopping.Load() {
		return outcome{}, errors.New("the edge is stopping")
	}
	previous := e.current.Load()
	if err := unchangeable(e.first, cfg); err != nil {
		return outcome{}, err
	}
	e.awaitNames(previous, cfg)
	next, err := e.build(cfg, previous)
	if err != nil {
		e.forgetNames(previous)
		return outcome{}, err
	}
	zones, problems := zone.Build(cfg.DNS.Source(uint64(next.since.Unix())))
	if len(problems) > 0 {
		e.forgetNames(previous)
		return outcome{}, problems[0]
	}
	p, err := e.prepare(next)
	if err != nil {
		e.forgetNames(previous)
		return outcome{}, err
	}
	p.settle()
	e.current.Store(next)
	e.zones.Publish(zones)
	p.commit()
	next.director.Activate()
	p.done.changes = append(p.done.changes, difference(previous, next)...)
	return p.done, nil
}

// settleTime is how long a reload waits for the first answers of new checks,
// so that a new endpoint that is well does not begin as down.
const settleTime = 3 * time.Second

// prepared is what each room has ready for the next config.
type prepared struct {
	e         *Edge
	cfg       *config.Config
	first     bool
	members   enroll.Spec
	nets      *netChange
	listeners *ingress.Change
	dns       *dnsd.Change
	checks    *monitor.Pending
	webhooks  *events.Pending
	public    *public.Dialer // the one before; nil where it was not replaced
	done      outcome
}

// prepare lets every room prepare cfg. On failure each has rolled back.
func (e *Edge) prepare(next *snapshot) (*prepared, error) {
	p := &prepared{e: e, cfg: next.cfg, first: e.current.Load() == nil}
	if err := p.all(next); err != nil {
		p.rollback()
		return nil, err
	}
	return p, nil
}

func (p *prepared) all(next *snapshot) (err error) {
	cfg := next.cfg
	p.members = enrollSpec(cfg)
	if err = p.e.registry.Check(p.members); err != nil {
		return err
	}
	if p.nets, err = p.e.nets.prepare(cfg); err != nil {
		return err
	}
	if p.listeners, err = p.e.ingress.Prepare(p.e.listenersOf(cfg)); err != nil {
		return err
	}
	if p.dns, err = p.e.dns.Prepare(cfg.DNS.Server); err != nil {
		return err
	}
	if p.webhooks, err = p.e.events.Prepare(cfg.Webhooks); err != nil {
		return err
	}
	for _, text := range cfg.Warnings() {
		p.warn(text)
	}
	p.public = p.e.public.Swap(public.New(publicSpec(cfg))) // before the checks that need it
	p.checks, err = p.e.monitor.Prepare(next.monitors, config.Targets(next.pools))
	return err
}

// listenersOf are the sockets that cfg wants: none while the edge drains.
func (e *Edge) listenersOf(cfg *config.Config) []ingress.Spec {
	if e.draining.Load() {
		return nil
	}
	return cfg.IngressSpecs()
}

// rollback gives up what has been prepared.
func (p *prepared) rollback() {
	if p.checks != nil {
		p.checks.Rollback()
	}
	if p.public != nil {
		p.e.public.Store(p.public)
	}
	if p.webhooks != nil {
		p.webhooks.Rollback()
	}
	if p.dns != nil {
		p.dns.Rollback()
	}
	if p.listeners != nil {
		p.listeners.Rollback()
	}
	if p.nets != nil {
		p.nets.rollback()
	}
	p.e.registry.Release()
}

// settle waits for the first answers of new checks. At the start there is
// nobody to ask yet: no connector has called.
func (p *prepared) settle() {
	if p.first {
		return
	}
	if n := settleChecks(p.checks, settleTime); n > 0 {
		p.warn(fmt.Sprintf("new endpoints of which no check has told anything yet, so that they count as down: %d", n))
	}
}

// warn tells the log, and whoever asked for the reload.
func (p *prepared) warn(text string) {
	p.e.log.Warn(text)
	p.done.warnings = append(p.done.warnings, text)
}

// commit brings the change into force. Networks come first, so that no new
// listener finds its network missing.
func (p *prepared) commit() {
	changes, failed := p.nets.commit()
	p.done.changes = changes
	p.e.registry.Apply(p.members)
	p.checks.Commit()
	p.webhooks.Commit()
	p.e.wantNames(p.cfg.Names())
	p.listeners.Commit()
	for _, err := range append(failed, p.dns.Commit()) {
		if err != nil {
			p.warn(fmt.Sprintf("a part of the config could not be brought into force: %v", err))
		}
	}
	p.e.observer.Metrics.SetApps(p.e.current.Load().appNames())
}

// unchangeable refuses a config that changes what is bound to the process: the
// state directory, the tunnel's own socket and key, the operator's sockets.
func unchangeable(running, next *config.Config) error {
	var problems []error
	for _, s := range []struct {
		key       string
		old, new_ any
	}{
		{"edge.state_dir", running.Edge.StateDir, next.Edge.StateDir},
		{"wireguard.listen", running.WireGuard.Listen, next.WireGuard.Listen},
		{"wireguard.private_key_file", running.WireGuard.PrivateKeyFile, next.WireGuard.PrivateKeyFile},
		{"wireguard.inner_sources", running.WireGuard.InnerSources, next.WireGuard.InnerSources},
		{"admin.socket", running.Admin.Socket, next.Admin.Socket},
		{"metrics.listen", running.Metrics, next.Metrics},
		{"events.ring", running.Events.Ring, next.Events.Ring},
		{"log", running.Log, next.Log},
	} {
		if s.old != s.new_ {
			problems = append(problems, fmt.Errorf("changing %s from %v to %v needs a restart: restart the edge, or change it back", s.key, s.old, s.new_))
		}
	}
	return errors.Join(problems...)
}

func (s *snapshot) appNames() []string {
	names := make([]string, 0, len(s.apps))
	for name := range s.apps {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// difference says in words what a reload brought, changed and took away,
// besides networks and connectors.
func difference(previous, next *snapshot) []string {
	if previous == nil {
		return nil
	}
	var out []string
	was, is := previous.cfg, next.cfg
	out = append(out, changed("app", was.Apps, is.Apps, func(a config.App) string { return a.Name })...)
	out = append(out, changed("pool", was.Pools, is.Pools, func(p balance.Spec) string { return p.Name })...)
	out = append(out, changed("webhook", was.Webhooks, is.Webhooks, func(w events.Spec) string { return w.Name })...)
	out = append(out, changed("monitor", was.Monitors, is.Monitors, func(m monitor.Spec) string { return m.Name })...)
	for _, n := range is.Networks { // that one came or went, networks.go tells
		i := slices.IndexFunc(was.Networks, func(o config.Network) bool { return o.Name == n.Name })
		if i >= 0 && !was.Networks[i].Equal(n) {
			out = append(out, fmt.Sprintf("network %q changed", n.Name))
		}
	}
	if was.Enrollment != is.Enrollment {
		out = append(out, "enrollment changed")
	}
	if !reflect.DeepEqual(was.Public, is.Public) {
		out = append(out, "public changed")
	}
	if !slices.Equal(was.WireGuard.Advertise, is.WireGuard.Advertise) {
		out = append(out, "wireguard.advertise changed")
	}
	out = append(out, changed("zone", was.DNS.Zones, is.DNS.Zones, func(z zone.Zone) string { return z.Name })...)
	if !reflect.DeepEqual(was.DNS.Server, is.DNS.Server) {
		out = append(out, "dns listeners changed")
	}
	return out
}

// changed compares two lists of named things.
func changed[T any](kind string, was, is []T, name func(T) string) []string {
	var out []string
	before := make(map[string]T, len(was))
	for _, v := range was {
		before[name(v)] = v
	}
	for _, v := range is {
		old, known := before[name(v)]
		delete(before, name(v))
		switch {
		case !known:
			out = append(out, fmt.Sprintf("%s %q added", kind, name(v)))
		case !reflect.DeepEqual(old, v):
			out = append(out, fmt.Sprintf("%s %q changed", kind, name(v)))
		}
	}
	for _, gone := range slices.Sorted(maps.Keys(before)) {
		out = append(out, fmt.Sprintf("%s %q removed", kind, gone))
	}
	return out
}
