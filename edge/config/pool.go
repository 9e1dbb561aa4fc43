package config

import (
	"fmt"
	"net/netip"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/balance"
)

// poolTable is a [[pool]]: a named set of endpoints.
type poolTable struct {
	// Name is what apps refer to.
	Name string `toml:"name" required:"true" hint:"give the pool a name for apps to refer to"`
	// Network that its endpoints are in.
	Network string `toml:"network" required:"true" hint:"name the [[network]] that its endpoints are in"`
	// Steering chooses between the endpoints. Default: round_robin.
	Steering string `toml:"steering" default:"round_robin" oneof:"round_robin" later:"random hash least_connections least_outstanding latency failover"`
	// Monitor is the health check of the endpoints. Default: none, and each
	// endpoint counts as up.
	Monitor string `toml:"monitor"`
	// Endpoints are where the traffic goes, each once.
	Endpoints []endpointTable `toml:"endpoints" required:"true" hint:"add a [[pool.endpoints]] with its address"`

	Minimum strict.Unsupported `toml:"minimum"`
	Enabled strict.Unsupported `toml:"enabled" hint:"leave the pool out of the app's pools"`
}

// endpointTable is a [[pool.endpoints]].
type endpointTable struct {
	// Address is the private address and port, as the connector's network
	// knows it.
	Address netip.AddrPort `toml:"address" required:"true" hint:"write the private address and port, as in \"10.0.0.10:5432\""`

	Weight  strict.Unsupported `toml:"weight" hint:"endpoints take equal turns"`
	Enabled strict.Unsupported `toml:"enabled" hint:"remove the endpoint"`
}

// Validate implements strict.Validator.
func (p *poolTable) Validate(doc *strict.Doc, path string) {
	checkName(doc, path+".name", p.Name)
	if p.Network == "@public" {
		doc.Add(path+".network", "not supported by this version", "name a [[network]]")
		p.Network = ""
	}
}

func (l *loader) buildPools() {
	for i, p := range l.file.Pool {
		spec := balance.Spec{Name: p.Name, Steering: p.Steering, Monitor: p.Monitor}
		for _, e := range p.Endpoints {
			spec.Endpoints = append(spec.Endpoints, balance.Member{Endpoint: balance.Endpoint{Network: p.Network, Addr: e.Address}, Weight: 1})
		}
		report := l.report(fmt.Sprintf("pool[%d]", i))
		spec.Validate(func(key, value, hint string) {
			if lastKey(key) != "network" { // of the pool, and reported there
				report(key, value, hint)
			}
		})
		l.cfg.Pools = append(l.cfg.Pools, spec)
	}
}

// lastKey returns what stands behind the last dot of a key path.
func lastKey(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '.' {
			return path[i+1:]
		}
	}
	return path
}

// AllPools returns the declared pools, and one for each port of each app that
// has an origin: see App.PoolsAt.
func (c *Config) AllPools() []balance.Spec {
	pools := append([]balance.Spec(nil), c.Pools...)
	for _, a := range c.Apps {
		if a.Origin == nil {
			continue
		}
		for offset := range a.Origin.Size() {
			pool := balance.Spec{Name: a.PoolsAt(uint16(offset))[0]}
			if a.Origin.Host == "" {
				pool.Endpoints = []balance.Member{{Endpoint: balance.Endpoint{Network: a.Origin.Network, Addr: a.Origin.At(uint16(offset))}, Weight: 1}}
			}
			pools = append(pools, pool)
		}
	}
	return pools
}
