package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/monitor"
	"github.com/warrenmesh/warren/edge/resolve"
)

// checkSteering wants what steers between pools to have a choice to make.
func (a *appTable) checkSteering(doc *strict.Doc, path string) {
	if n := len(a.Pools); n > balance.MaxPools && !doc.Bad(path+".pools") {
		doc.Add(path+".pools", fmt.Sprintf("%d pools", n), fmt.Sprintf("an app has %d at most", balance.MaxPools))
	}
	at := path + ".pool_weights"
	switch origin := a.Origin != (Origin{}); {
	case doc.Bad(path+".steering") || doc.Bad(at) || doc.Bad(path+".pools") || doc.Bad(path+".origin"):
	case origin && a.Steering != SteerFailover:
		doc.Add(path+".steering", "an origin is one pool, so that there is nothing to choose", "remove it")
	case len(a.PoolWeights) == 0:
	case origin:
		doc.Add(at, "an origin is one pool, so that there is nothing to choose", "remove them")
	case a.Steering == SteerFailover:
		doc.Add(at, "failover goes by the order of pools, not by weights", `remove them, or write steering = "random"`)
	default:
		a.checkPoolWeights(doc, at)
	}
}

// checkPoolWeights wants a weight for pools of the app alone, and one that new
// flows may go to.
func (a *appTable) checkPoolWeights(doc *strict.Doc, at string) {
	for _, name := range slices.Sorted(maps.Keys(a.PoolWeights)) {
		if !slices.Contains(a.Pools, name) {
			doc.Add(strict.KeyPath(at, name), "not one of the app's pools", strict.Suggest(name, a.Pools))
		}
	}
	for _, name := range a.Pools {
		if weight, set := a.PoolWeights[name]; weight > 0 || !set {
			return
		}
	}
	doc.Add(at, "no pool has a weight above 0", "give one of them a weight")
}

// declared returns the declared pools, and one for each port of each app that
// has an origin: see App.PoolsAt. An endpoint with a Host has no more than the
// port in Addr.
func (c *Config) declared() []balance.Spec {
	pools := append([]balance.Spec(nil), c.Pools...)
	for _, a := range c.Apps {
		if a.Origin == nil {
			continue
		}
		for offset := range a.Origin.Size() {
			pools = append(pools, balance.Spec{
				Name: a.PoolsAt(uint16(offset))[0],
				Endpoints: []balance.Member{{
					Endpoint: balance.Endpoint{Network: a.Origin.Network, Addr: a.Origin.At(uint16(offset))},
					Host:     a.Origin.Host,
					Weight:   1,
				}},
			})
		}
	}
	return pools
}

// Names returns the DNS names that endpoints and origins have, each once, in
// the order of the file. Those of disabled ones are among them: they are known
// once they are enabled.
func (c *Config) Names() []resolve.Name {
	var names []resolve.Name
	seen := make(map[resolve.Name]bool)
	for _, pool := range c.declared() {
		for _, m := range pool.Endpoints {
			name := resolve.Name{Network: m.Network, Host: m.Host}
			if m.Host != "" && !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names
}

// PoolsWith returns the pools with the addresses that addrs knows now: those
// that are declared, and one for each port of each app with an origin, which
// App.PoolsAt names. Each address of a host is an endpoint with the host's
// settings, but for those that the pool has by address as well, which keep
// their own; one that several hosts have is kept where it is first. One of
// "@public" that must not be dialled is left out. A host without an address
// stays as it is declared, with no more than a port: nobody is sent there, and
// whoever asks why reads so.
func (c *Config) PoolsWith(addrs func(network, host string, port uint16) []netip.Addr) []balance.Spec {
	allowed := judge(c.Public)
	pools := c.declared()
	for i := range pools {
		pools[i].Endpoints = expand(pools[i].Endpoints, func(m balance.Member) []netip.Addr {
			var out []netip.Addr
			for _, a := range addrs(m.Network, m.Host, m.Addr.Port()) {
				if a = a.Unmap(); a.IsValid() && (m.Network != Public || allowed.Check(a) == nil) {
					out = append(out, a)
				}
			}
			return out
		})
	}
	return pools
}

// expand puts the addresses of members with a host into their place.
func expand(members []balance.Member, addrs func(balance.Member) []netip.Addr) []balance.Member {
	out := make([]balance.Member, 0, len(members))
	taken := make(map[netip.AddrPort]bool, len(members)) // of one network
	for _, m := range members {
		if m.Host == "" {
			taken[m.Addr] = true
		}
	}
	for _, m := range members {
		if m.Host == "" {
			out = append(out, m)
			continue
		}
		port, found := m.Addr.Port(), addrs(m)
		if len(found) == 0 && len(out) < balance.MaxEndpoints {
			out = append(out, m)
		}
		for _, a := range found {
			m.Addr = netip.AddrPortFrom(a, port)
			if !taken[m.Addr] && len(out) < balance.MaxEndpoints {
				taken[m.Addr] = true
				out = append(out, m)
			}
		}
	}
	return out
}

// AllPools is PoolsWith while no address of any host is known.
func (c *Config) AllPools() []balance.Spec {
	return c.PoolsWith(func(string, string, uint16) []netip.Addr { return nil })
}

// Targets are the endpoints of pools that are to be checked, each once for a
// monitor. What is disabled is not, nor what has no address yet.
func Targets(pools []balance.Spec) []monitor.Target {
	var all []monitor.Target
	seen := make(map[monitor.Target]bool)
	for _, pool := range pools {
		if pool.Monitor == "" || pool.Disabled {
			continue
		}
		for _, m := range pool.Endpoints {
			t := monitor.Target{Network: m.Network, Addr: m.Addr, Monitor: pool.Monitor}
			if !m.Disabled && m.Addr.IsValid() && !seen[t] {
				seen[t] = true
				all = append(all, t)
			}
		}
	}
	return all
}

// BalanceApps returns how each app steers between its pools, the fallback
// included. An app with an origin is one for each of its ports, with the pool
// of the same name: see App.SteeredAt.
func (c *Config) BalanceApps() []balance.App {
	var apps []balance.App
	for _, a := range c.Apps {
		offsets := 1
		if a.Origin != nil {
			offsets = a.Origin.Size()
		}
		for offset := range offsets {
			app := balance.App{
				Name: a.SteeredAt(uint16(offset)), Steering: a.Steering,
				Fallback: a.Fallback, Affinity: a.Affinity,
			}
			for _, pool := range a.PoolsAt(uint16(offset)) {
				weight, set := a.PoolWeights[pool]
				if !set {
					weight = 1
				}
				app.Pools = append(app.Pools, balance.Choice{Pool: pool, Weight: weight})
			}
			apps = append(apps, app)
		}
	}
	return apps
}

// SteeredAt is the name of the balance.App for a listener with that offset.
func (a App) SteeredAt(offset uint16) string {
	if a.Origin == nil {
		return a.Name
	}
	return a.PoolsAt(offset)[0]
}
