package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/events"
	"github.com/warrenmesh/warren/edge/flow"
	"github.com/warrenmesh/warren/edge/ingress"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/observe"
	"github.com/warrenmesh/warren/edge/public"
	"github.com/warrenmesh/warren/edge/resolve"
	"github.com/warrenmesh/warren/host/lookup"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// kindConnector is the kind of events that tell of connectors.
const kindConnector = "connector"

// errEndpointDown is the cause that ends the UDP sessions of an endpoint that
// its monitor has found down: without a connection nothing else tells their
// clients to go elsewhere.
var errEndpointDown = errors.New("the endpoint is down")

// onHealth hears of endpoints that change their state, each change once
// however many pools share the check.
func (e *Edge) onHealth(c monitor.Change) {
	level := slog.LevelInfo
	if c.To == monitor.StateDown {
		level = slog.LevelWarn
	}
	e.log.Log(context.Background(), level, "endpoint "+string(c.To), "network", c.Network, "endpoint", c.Addr.String(),
		"monitor", c.Monitor, "was", string(c.From), "why", c.Why)
	e.events.Add(events.Event{
		Time: c.At, Kind: balance.KindEndpoint, Network: c.Network, Endpoint: c.Addr.String(), Monitor: c.Monitor,
		From: string(c.From), To: string(c.To), Why: c.Why,
	})
	if now := e.current.Load(); now != nil {
		now.healthChanged(c.Network, c.Addr)
	}
	if c.To == monitor.StateDown && e.listensUDP() {
		e.endSessions(balance.Endpoint{Network: c.Network, Addr: c.Addr})
	}
}

// healthChanged tells the Director, under every name that a check may have.
func (s *snapshot) healthChanged(network string, addr netip.AddrPort) {
	for _, m := range s.cfg.Monitors {
		s.director.HealthChanged(network, addr, m.Name)
	}
}

// endSessions ends the UDP sessions at an endpoint of those pools whose monitor
// says that it is down: their next datagrams begin others, elsewhere.
func (e *Edge) endSessions(at balance.Endpoint) {
	now := e.current.Load()
	if now == nil {
		return
	}
	left := map[string]bool{}
	for _, p := range now.pools {
		if p.Monitor == "" || !slices.ContainsFunc(p.Endpoints, func(m balance.Member) bool { return m.Endpoint == at }) {
			continue
		}
		if up, _ := e.monitor.Up(at.Network, at.Addr, p.Monitor); !up {
			left[p.Name] = true
		}
	}
	e.observer.Table.Each(func(r flow.Record) bool {
		if r.Proto != "udp" || r.Network != at.Network || r.Endpoint != at.Addr || !left[r.Pool] {
			return true
		}
		if a := now.apps[r.App]; a == nil || a.Fallback != r.Pool { // there its health does not count
			e.observer.Table.Kill(r.ID, errEndpointDown)
		}
		return true
	})
}

// listensUDP tells whether there can be UDP sessions.
func (e *Edge) listensUDP() bool {
	now := e.current.Load()
	return now != nil && slices.ContainsFunc(now.cfg.IngressSpecs(), func(s ingress.Spec) bool { return s.Network == "udp" })
}

// onSteering hears of pools, and of endpoints in them. What a monitor says of
// an endpoint, onHealth has told already, also while it is ejected.
func (e *Edge) onSteering(c balance.Event) {
	if c.Kind == balance.KindEndpoint && ofMonitor(c.To) && c.To != balance.StateUp && c.From != balance.StateDraining && c.From != balance.StateDisabled {
		return
	}
	if c.Kind == balance.KindEndpoint && ofMonitor(c.From) && ofMonitor(c.To) {
		return
	}
	if c.To == balance.StateEjected && ofMonitor(c.From) {
		c.From = balance.StateUp // as its monitor says; the rest of an ejection is told when it begins to count again
	}
	event := events.Event{
		Time: c.Time, Kind: c.Kind, Pool: c.Pool, From: string(c.From), To: string(c.To), Why: c.Why,
	}
	attrs := []any{"pool", c.Pool}
	if c.Kind == balance.KindEndpoint {
		event.Network, event.Endpoint = c.Endpoint.Network, c.Endpoint.Addr.String()
		attrs = append(attrs, "network", event.Network, "endpoint", event.Endpoint)
	}
	level := slog.LevelInfo
	switch c.To {
	case balance.StateDown, balance.StateCritical, balance.StateEjected, balance.StateDegraded:
		level = slog.LevelWarn
	}
	e.log.Log(context.Background(), level, c.Kind+" "+string(c.To), append(attrs, "was", string(c.From), "why", c.Why)...)
	e.events.Add(event)
}

// ofMonitor tells whether a state is a monitor's verdict.
func ofMonitor(s balance.State) bool {
	return s == balance.StateUp || s == balance.StateDown || s == balance.StateUnknown
}

// connectorEvent tells of a connector whose state is another one now.
func (e *Edge) connectorEvent(p *tunnel.Peer, s tunnel.PeerState) {
	state, why := stateOf(s)
	e.mu.Lock()
	was, known := e.connectorWas[p.Name()]
	if e.connectorWas == nil {
		e.connectorWas = make(map[string]string)
	}
	e.connectorWas[p.Name()] = state
	e.mu.Unlock()
	if !known {
		was = client.ConnectorDown
	}
	if was == state {
		return
	}
	e.events.Add(events.Event{
		Kind: kindConnector, Network: p.NetworkName(), Connector: p.Name(), From: was, To: state, Why: why,
	})
}

// onMoved hears of a connector that an operator has moved: it is gone, or serves
// other routes, or drains.
func (e *Edge) onMoved(connector string, gone bool) {
	e.work.stir()
	if gone {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.connectorWas, connector)
	}
}

// Events implements admin.Source.
func (e *Edge) Events(after uint64, limit int) client.EventList {
	if last := e.events.Last(); after == 0 && last > uint64(limit) {
		after = last - uint64(limit)
	}
	found, missed := e.events.Since(after, limit)
	list := client.EventList{Since: e.started, Missed: missed, Events: make([]client.Event, 0, len(found))}
	for _, v := range found {
		list.Events = append(list.Events, client.Event(v))
	}
	return list
}

// DrainEndpoint implements admin.Control.
func (e *Edge) DrainEndpoint(pool string, addr netip.AddrPort, keep time.Duration, off bool) (client.Pool, error) {
	e.reloading.Lock() // a drain of a snapshot that is being replaced would be lost
	defer e.reloading.Unlock()
	director := e.current.Load().director
	at, err := findEndpoint(director, pool, addr)
	if err != nil {
		return client.Pool{}, err
	}
	if off {
		err = director.Undrain(pool, at)
	} else {
		err = director.Drain(pool, at, keep)
	}
	if err != nil {
		return client.Pool{}, &client.Error{Code: client.CodeRefused, Message: err.Error()}
	}
	for _, shown := range e.Pools() {
		if shown.Name == pool {
			return shown, nil
		}
	}
	return client.Pool{Name: pool}, nil
}

// findEndpoint names the endpoint of a pool that has the address.
func findEndpoint(director *balance.Director, pool string, addr netip.AddrPort) (balance.Endpoint, error) {
	for _, s := range director.Pools() {
		if s.Spec.Name != pool {
			continue
		}
		for _, m := range s.Spec.Endpoints {
			if m.Addr == addr {
				return m.Endpoint, nil
			}
		}
		return balance.Endpoint{}, &client.Error{Code: client.CodeNotFound,
			Message: fmt.Sprintf("draining %s: pool %q has no such endpoint: see `warren pool show %s`", addr, pool, pool)}
	}
	return balance.Endpoint{}, &client.Error{Code: client.CodeNotFound,
		Message: fmt.Sprintf("draining %s: there is no pool %q: see `warren pool list`", addr, pool)}
}

// openDirector makes what balances: monitors, names, events, and the work that
// connectors do for them.
func (e *Edge) openDirector() {
	e.events = events.New(events.Deps{Node: e.first.Edge.Name, Ring: e.first.Events.Ring, Secret: config.ReadSecret, Log: e.log})
	e.public.Store(public.New(public.Spec{}))
	e.names = resolve.New(resolve.Deps{Lookup: lookup.New(lookup.Deps{}).Lookup, OnChange: e.onNames})
	e.monitor = monitor.New(monitor.Deps{Dial: e.dialCheck, Ping: e.pingCheck, OnChange: e.onHealth, OnTasks: e.work.stir})
	e.work.start()
}

// stopDirector ends it.
func (e *Edge) stopDirector() {
	e.work.stop()
	e.names.Stop()
	e.monitor.Stop()
	e.events.Stop()
}

// webhookStates are what the metrics show.
func (e *Edge) webhookStates() []observe.WebhookState {
	var out []observe.WebhookState
	for _, h := range e.events.Hooks() {
		out = append(out, observe.WebhookState{
			Webhook: h.Name, Delivered: h.Delivered, Dropped: h.Dropped, Expired: h.Expired, Rejected: h.Rejected,
			FailedAttempts: h.Failures, Waiting: h.Waiting,
		})
	}
	return out
}
