package edge

import (
	"cmp"
	"net"
	"slices"
	"strconv"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/observe"
	"github.com/warrenmesh/warren/edge/resolve"
)

// Pools implements admin.Source: the declared pools, not those of origins.
func (e *Edge) Pools() []client.Pool {
	now := e.current.Load()
	checks := map[monitor.Target]monitor.Result{}
	for _, r := range e.monitor.Snapshot() {
		checks[r.Target] = r
	}
	users := now.poolUsers()
	var out []client.Pool
	for _, s := range now.director.Pools() {
		at := slices.IndexFunc(now.cfg.Pools, func(p balance.Spec) bool { return p.Name == s.Spec.Name })
		if at < 0 {
			continue
		}
		declared := now.cfg.Pools[at].Endpoints
		pool := client.Pool{
			Name: s.Spec.Name, Network: declared[0].Network, Steering: s.Spec.Steering, Monitor: s.Spec.Monitor,
			State: string(s.State), Why: s.Why, Apps: users[s.Spec.Name], MinimumHealthy: max(s.Spec.MinimumHealthy, 1),
			Connections: s.Connections, Waiting: s.Queued, Shed: s.Shed, Endpoints: []client.Endpoint{},
			Names: e.showNames(declared),
		}
		for _, ep := range s.Endpoints {
			pool.Endpoints = append(pool.Endpoints, showEndpoint(ep, s.Spec.Monitor, checks))
		}
		out = append(out, pool)
	}
	return out
}

// poolUsers are the apps of each pool, sorted.
func (s *snapshot) poolUsers() map[string][]string {
	users := map[string][]string{}
	for _, name := range s.appNames() {
		a := s.apps[name]
		for _, pool := range a.Pools {
			users[pool] = append(users[pool], name)
		}
		if f := a.Fallback; f != "" && !slices.Contains(a.Pools, f) {
			users[f] = append(users[f], name)
		}
	}
	return users
}

// showNames are the names among the endpoints that a pool declares.
func (e *Edge) showNames(declared []balance.Member) []client.Name {
	var out []client.Name
	for _, m := range declared {
		if m.Host == "" {
			continue
		}
		answer := e.names.Addrs(resolve.Name{Network: m.Network, Host: m.Host})
		shown := client.Name{
			Host: net.JoinHostPort(m.Host, strconv.Itoa(int(m.Addr.Port()))), Addresses: []string{},
			Resolved: answer.At, Expires: answer.Expires,
		}
		for _, a := range answer.Addrs {
			shown.Addresses = append(shown.Addresses, a.String())
			if m.Network == config.Public && answer.Err == nil {
				answer.Err = e.public.Load().Check(a)
			}
		}
		if answer.Err != nil {
			shown.Error = answer.Err.Error()
		}
		out = append(out, shown)
	}
	return out
}

func showEndpoint(ep balance.EndpointStatus, check string, checks map[monitor.Target]monitor.Result) client.Endpoint {
	out := client.Endpoint{
		Network: ep.Endpoint.Network, Address: ep.Endpoint.Addr.String(), Host: ep.Host,
		State: string(ep.State), Why: ep.Why, Since: ep.Since, LastError: ep.LastError,
		Weight: ep.Weight, EffectiveWeight: ep.EffectiveWeight, MaxConnections: ep.MaxConnections,
		Flows: ep.Connections, Picks: ep.Picks, Failures: ep.Failures, ConnectMillis: millis(ep.RTT),
		EjectedUntil: ep.EjectedUntil, DrainingUntil: ep.DrainingUntil,
	}
	if !ep.Endpoint.Addr.IsValid() { // the name has none yet
		out.Address = net.JoinHostPort(ep.Host, strconv.Itoa(int(ep.Endpoint.Addr.Port())))
	}
	r, ok := checks[monitor.Target{Network: ep.Endpoint.Network, Addr: ep.Endpoint.Addr, Monitor: check}]
	if !ok {
		if ep.State == balance.StateUp {
			out.State = client.EndpointUnmonitored
		}
		return out
	}
	if ofMonitor(ep.State) {
		out.State, out.Why, out.Since = string(r.State), r.Why, r.Since
	}
	out.LastError = cmp.Or(r.LastError, ep.LastError)
	out.RTTMillis, out.Checked, out.CheckedBy = millis(r.RTT), r.Checked, r.CheckedBy
	return out
}

// poolStates and webhookStates are what the metrics show.
func (e *Edge) poolStates() []observe.PoolState {
	var out []observe.PoolState
	for _, s := range e.current.Load().director.Pools() {
		pool := observe.PoolState{Pool: s.Spec.Name, Usable: s.Usable, Waiting: s.Queued, Shed: s.Shed}
		for _, ep := range s.Endpoints {
			if !ep.Endpoint.Addr.IsValid() {
				continue
			}
			pool.Endpoints = append(pool.Endpoints, observe.PoolEndpoint{
				Network: ep.Endpoint.Network, Endpoint: ep.Endpoint.Addr.String(), Flows: ep.Connections,
				Picks: ep.Picks, Failures: ep.Failures, Connect: ep.RTT, Ejected: ep.State == balance.StateEjected,
			})
		}
		out = append(out, pool)
	}
	return out
}
