package edge

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/flow"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/observe"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// Status implements admin.Source.
func (e *Edge) Status() client.Status {
	now := e.current.Load()
	ready, why := e.ready()
	s := client.Status{
		Name: now.cfg.Edge.Name, Version: e.opts.Version, PID: os.Getpid(), Since: e.started,
		Ready: ready, Why: why, Draining: e.draining.Load() || e.stopping.Load(),
		PublicKey: e.tunnel.PublicKey().String(), Overlay: e.tunnel.Overlay().String(), Listen: e.wireguardAddr(),
		ConfigFiles: e.opts.ConfigFiles, ConfigRevision: now.revision, ConfigSince: now.since,
		Networks: len(now.cfg.Networks), Connectors: len(e.registry.Connectors()),
		Apps: len(now.cfg.Apps), Pools: len(now.cfg.Pools), ActiveFlows: e.observer.Table.Len(),
	}
	for _, d := range now.cfg.WireGuard.Advertise {
		s.Advertise = append(s.Advertise, string(d))
	}
	for _, p := range e.nets.connectors() {
		if p.Alive() {
			s.ConnectorsUp++
		}
	}
	for _, pool := range now.director.Pools() {
		for _, ep := range pool.Endpoints {
			s.Endpoints++
			if ep.Up && e.served(ep.Endpoint) {
				s.EndpointsUp++
			}
		}
	}
	e.observer.Log.Drops(func(_, _ string, n uint64) { s.FlowLogDropped += n })
	e.mu.Lock()
	s.LastReloadError = e.lastReloadError
	e.mu.Unlock()
	return s
}

// wireguardAddr is the UDP address in use, its port resolved.
func (e *Edge) wireguardAddr() string {
	host := ""
	if a := e.first.WireGuard.Listen.Addr(); a.IsValid() {
		host = a.String()
	}
	return net.JoinHostPort(host, fmt.Sprint(e.tunnel.ListenPort()))
}

// Networks implements admin.Source.
func (e *Edge) Networks() []client.Network {
	byName := map[string]*client.Network{}
	var out []client.Network
	for _, n := range e.current.Load().cfg.Networks {
		out = append(out, client.Network{Name: n.Name, Connectors: []string{}, Routes: []string{}})
	}
	slices.SortFunc(out, func(a, b client.Network) int { return strings.Compare(a.Name, b.Name) })
	for i := range out {
		byName[out[i].Name] = &out[i]
	}
	peers := map[string][]*tunnel.Peer{}
	for _, p := range e.nets.connectors() {
		n := byName[p.NetworkName()]
		if n == nil {
			continue // a reload is under way
		}
		peers[n.Name] = append(peers[n.Name], p)
		n.Connectors = append(n.Connectors, p.Name())
		n.Flows += p.Flows()
		if p.Alive() {
			n.ConnectorsUp++
		}
	}
	for name, n := range byName {
		if routes := routesOf(peers[name]); len(routes) > 0 {
			n.Routes = texts(routes)
		}
	}
	return out
}

// Apps implements admin.Source.
func (e *Edge) Apps() []client.App {
	now := e.current.Load()
	active := map[string]int{}
	e.observer.Table.Each(func(r flow.Record) bool {
		active[r.App]++
		return true
	})
	pools := map[string]balance.Status{}
	for _, s := range now.director.Pools() {
		pools[s.Spec.Name] = s
	}
	var out []client.App
	for _, name := range now.appNames() {
		a := now.apps[name]
		shown := client.App{
			Name: a.Name, Hostnames: a.Hostnames, Listen: []string{}, Pools: a.Pools,
			Allow: texts(a.Allow), Deny: texts(a.Deny), ActiveFlows: active[name],
		}
		if a.Origin != nil {
			shown.Origin = a.Origin.String()
		}
		for _, l := range a.Listeners {
			shown.Listen = append(shown.Listen, l.Network+"/"+l.Advertise.String())
		}
		e.countEndpoints(&shown, a, pools)
		out = append(out, shown)
	}
	return out
}

// countEndpoints fills in how many endpoints an app has and can use, and why
// none if it is none.
func (e *Edge) countEndpoints(shown *client.App, a *app, pools map[string]balance.Status) {
	for _, name := range a.PoolsAt(0) {
		for _, ep := range pools[name].Endpoints {
			shown.Endpoints++
			if ep.Up && e.served(ep.Endpoint) {
				shown.EndpointsUp++
			} else if shown.Why == "" {
				shown.Why = ep.Why
				if n := e.network(ep.Endpoint.Network); shown.Why == "" && n != nil {
					shown.Why = whyNoConnector(n, ep.Endpoint.Addr.Addr())
				}
			}
		}
	}
	if shown.EndpointsUp > 0 {
		shown.Why = ""
	}
}

// served reports whether a live connector serves the endpoint, or the edge
// itself does.
func (e *Edge) served(ep balance.Endpoint) bool {
	if ep.Network == config.Public {
		return true
	}
	n := e.network(ep.Network)
	return n != nil && n.Pick(ep.Addr.Addr()) != nil
}

// Flows implements admin.Source.
func (e *Edge) Flows(q client.FlowQuery) client.FlowList {
	records, total := e.observer.Table.List(func(r flow.Record) bool {
		return (q.App == "" || r.App == q.App) && (q.Network == "" || r.Network == q.Network) &&
			(q.Connector == "" || r.Connector == q.Connector)
	}, q.Limit)
	list := client.FlowList{Total: total, Flows: []client.Flow{}}
	for _, r := range records {
		f := client.Flow{
			ID: r.ID, App: r.App, Proto: r.Proto, Client: r.Client.String(), Listener: r.Listener.String(),
			Network: r.Network, Pool: r.Pool, Connector: r.Connector, Start: r.Start,
			ConnectMillis: millis(r.ConnectTime), BytesIn: r.BytesIn, BytesOut: r.BytesOut, Why: r.Why,
		}
		if r.Endpoint.IsValid() {
			f.Endpoint = r.Endpoint.String()
		}
		list.Flows = append(list.Flows, f)
	}
	return list
}

// connectorStates, enrollmentState and endpointStates are what the metrics
// show.
func (e *Edge) connectorStates() []observe.ConnectorState {
	var out []observe.ConnectorState
	for _, c := range e.registry.Connectors() {
		state := observe.ConnectorState{Network: c.Network, Connector: c.Name, Reports: !c.LastSync.IsZero(), ClockOffset: c.ClockOffset}
		if p := e.nets.peer(c.Name); p != nil {
			state.Up, state.RTT = p.Alive(), p.RTT()
		}
		out = append(out, state)
	}
	return out
}

func (e *Edge) enrollmentState() observe.EnrollmentState {
	c := e.registry.Counts()
	tokens := make(map[string]int, len(c.Tokens))
	for state, n := range c.Tokens {
		tokens[string(state)] = n
	}
	return observe.EnrollmentState{Enrollments: c.Enrollments, Tokens: tokens, Syncs: c.Syncs, SyncsHeld: c.SyncsHeld}
}

func (e *Edge) endpointStates() []observe.EndpointState {
	var out []observe.EndpointState
	for _, r := range e.monitor.Snapshot() {
		out = append(out, observe.EndpointState{
			Network: r.Network, Endpoint: r.Addr.String(), Monitor: r.Monitor, Up: r.State == monitor.StateUp,
		})
	}
	return out
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// texts writes prefixes as people do.
func texts(prefixes []netip.Prefix) []string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return out
}
