package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/balance"
)

// poolTable is a [[pool]]: a named set of endpoints.
type poolTable struct {
	// Name is what apps refer to.
	Name string `toml:"name" required:"true" hint:"give the pool a name for apps to refer to"`
	// Network that its endpoints are in; "@public" are hosts of the Internet,
	// which the edge dials itself.
	Network string `toml:"network" required:"true" hint:"name the [[network]] that its endpoints are in, or \"@public\""`
	// Enabled is false for a pool that apps are to pass over; its endpoints are
	// not checked. Default: true.
	Enabled bool `toml:"enabled" default:"true"`
	// Steering chooses between the endpoints: round_robin, in turns by weight;
	// failover, the first in the file's order that is up; random, by weight;
	// hash, always the same one for a client's address as long as it is up;
	// least_connections, by weight; latency, the one that connects fastest.
	// Default: round_robin.
	Steering string `toml:"steering" default:"round_robin" oneof:"round_robin failover random hash least_connections latency" later:"least_outstanding"`
	// Monitor is the health check of the endpoints. Default: none, and each
	// endpoint counts as up.
	Monitor string `toml:"monitor"`
	// MinimumHealthy is how many endpoints have to be up: with fewer, apps pass
	// the pool over. Default: 1; 1 up to the number of endpoints.
	MinimumHealthy int `toml:"minimum_healthy" default:"1" range:"1..10000"`
	// SlowStart is how long an endpoint that comes back up takes to get its
	// whole share of new flows. Default: 0s, at once; up to 24h.
	SlowStart time.Duration `toml:"slow_start" default:"0s" range:"0s..24h"`
	// Shedding sends a share of new flows to the app's next pool. Default: none.
	Shedding *sheddingTable `toml:"shedding"`
	// Queue is where new flows wait while every endpoint that is up has its
	// max_connections. Default: none waits, and the app's next pool is used.
	Queue *queueTable `toml:"queue"`
	// Ejection takes out endpoints that connects fail to, monitored or not.
	// Default: none is taken out.
	Ejection *ejectionTable `toml:"ejection"`
	// Endpoints are where the traffic goes, each once; at most 10000.
	Endpoints []endpointTable `toml:"endpoints" required:"true" hint:"add a [[pool.endpoints]] with its address"`
}

// sheddingTable is [pool.shedding].
type sheddingTable struct {
	// Percent of the new flows that go to the app's next pool; where there is
	// none they are refused. Flows that affinity leads to an endpoint of the
	// pool stay. 0 to 100.
	Percent int `toml:"percent" required:"true" range:"0..100" hint:"write how many of 100 flows are to go elsewhere"`
	// By is how the flows are chosen: random, or hash, which are always those
	// of the same clients. Default: random.
	By string `toml:"by" default:"random" oneof:"random hash"`
}

// queueTable is [pool.queue].
type queueTable struct {
	// Length is how many flows wait at most. 1 to 100000.
	Length int `toml:"length" required:"true" range:"1..100000" hint:"write how many flows may wait"`
	// Timeout is how long a flow waits at most, of the 10s that it has for its
	// whole way to an endpoint. Default: 5s; 1ms to 10s.
	Timeout time.Duration `toml:"timeout" default:"5s" range:"1ms..10s"`
}

// ejectionTable is [pool.ejection].
type ejectionTable struct {
	// Failures is how many connects in a row have to fail. Default: 5; 1 to
	// 1000.
	Failures int `toml:"failures" default:"5" range:"1..1000"`
	// Time is how long the first ejection lasts; the second in a row lasts
	// twice that, and so on. Default: 10s; 1ms to 24h.
	Time time.Duration `toml:"time" default:"10s" range:"1ms..24h"`
	// MaxTime is how long one ejection lasts at most. Default: 5m, or time
	// where that is longer; time to 24h.
	MaxTime time.Duration `toml:"max_time" range:"1ms..24h"`
	// MaxPercent of the pool's enabled endpoints are out at one time at most,
	// rounded down: with 50, none of one and one of two or three. Default: 50; 1
	// to 100.
	MaxPercent int `toml:"max_percent" default:"50" range:"1..100"`
}

// maxEjection is the default of max_time.
const maxEjection = 5 * time.Minute

// endpointTable is a [[pool.endpoints]].
type endpointTable struct {
	// Address is the IP address and port, as the connector's network knows it;
	// in "@public" a public one. Either this or Host.
	Address endpointAddr `toml:"address"`
	// Host is a DNS name and port, as in "db.internal:5432". The connectors of
	// the network resolve it, with their own resolver; the edge, in "@public".
	// Each of its addresses is an endpoint, and they are asked for again as
	// their TTL says.
	Host Host `toml:"host"`
	// Weight is the endpoint's share of new flows beside the others', each
	// address of a host having the whole of it. 0: no new flows; clients with
	// affinity stay. Default: 1; 0 to 1000.
	Weight int `toml:"weight" default:"1" range:"0..1000"`
	// Enabled is false for an endpoint that gets no flow, and is not checked.
	// Default: true.
	Enabled bool `toml:"enabled" default:"true"`
	// MaxConnections is how many flows it has at one time at most, each address
	// of a host by itself; 0 is no bound. Default: 0; up to 1000000.
	MaxConnections int `toml:"max_connections" range:"0..1000000"`
}

// endpointAddr is an address and port whose hint knows of host.
type endpointAddr struct{ netip.AddrPort }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *endpointAddr) UnmarshalText(text []byte) error {
	ap, err := strict.ParseAddrPort(string(text))
	if err == nil {
		a.AddrPort = ap
		return nil
	}
	var h Host
	if h.UnmarshalText(text) == nil {
		return strict.Reject("a name, not an IP address", fmt.Sprintf("write host = %q", h))
	}
	return err
}

// Validate implements strict.Validator.
func (p *poolTable) Validate(doc *strict.Doc, path string) {
	checkName(doc, path+".name", p.Name)
	if p.Enabled {
		p.checkWeights(doc, path)
	}
	p.checkHosts(doc, path)
	hosts := slices.ContainsFunc(p.Endpoints, func(e endpointTable) bool { return e.Host != Host{} })
	if n := len(p.Endpoints); n > 0 && p.MinimumHealthy > n && !hosts && !doc.Bad(path+".endpoints") {
		doc.Add(path+".minimum_healthy", fmt.Sprintf("more than the endpoints of the pool, %d", n), fmt.Sprintf("use 1 to %d", n))
	}
	bounded := slices.ContainsFunc(p.Endpoints, func(e endpointTable) bool { return e.MaxConnections > 0 })
	if p.Queue != nil && !bounded && len(p.Endpoints) > 0 && !doc.Bad(path+".endpoints") {
		doc.Add(path+".endpoints[0].max_connections", "no endpoint of the pool has a bound, so that no flow would ever wait in its queue",
			"give an endpoint max_connections, or remove the queue")
	}
	if e := p.Ejection; e != nil && e.MaxTime != 0 && e.MaxTime < e.Time && !doc.Bad(path+".ejection") {
		doc.Add(path+".ejection.max_time", fmt.Sprintf("shorter than time, %s", e.Time), "use time or more")
	}
}

// checkWeights wants an endpoint that new flows may go to.
func (p *poolTable) checkWeights(doc *strict.Doc, path string) {
	if len(p.Endpoints) == 0 || doc.Bad(path+".endpoints") {
		return
	}
	for i, e := range p.Endpoints {
		if e.Weight > 0 || !doc.Has(fmt.Sprintf("%s.endpoints[%d].weight", path, i)) {
			return
		}
	}
	doc.Add(path+".endpoints[0].weight", "no endpoint of the pool has a weight above 0, so that no new flow can go there",
		"give one of them a weight, or set enabled = false for the pool")
}

// checkHosts wants each name and port once. Addresses are checked with those of
// other tables.
func (p *poolTable) checkHosts(doc *strict.Doc, path string) {
	seen := make(map[Host]int)
	for i, e := range p.Endpoints {
		at := fmt.Sprintf("%s.endpoints[%d].host", path, i)
		if e.Host == (Host{}) || doc.Bad(at) {
			continue
		}
		if first, twice := seen[e.Host]; twice {
			doc.Add(at, fmt.Sprintf("it is endpoints[%d] already", first), "remove one")
			continue
		}
		seen[e.Host] = i
	}
}

// Validate implements strict.Validator.
func (e *endpointTable) Validate(doc *strict.Doc, path string) {
	hasAddress := e.Address.IsValid() || doc.Bad(path+".address")
	hasHost := e.Host != Host{} || doc.Bad(path+".host")
	switch {
	case hasAddress && hasHost:
		doc.Add(path+".host", "both address and host are set", "keep one of them, and write the other as an endpoint of its own")
	case !hasAddress && !hasHost:
		doc.Add(path+".address", "missing, and so is host", `write the IP address and port, as in "10.0.0.10:5432", or host = "db.internal:5432"`)
	}
}

// member is the endpoint in a pool of network.
func (e *endpointTable) member(network string) balance.Member {
	m := balance.Member{
		Endpoint: balance.Endpoint{Network: network, Addr: e.Address.AddrPort},
		Weight:   e.Weight, Disabled: !e.Enabled, MaxConnections: e.MaxConnections,
	}
	if e.Host != (Host{}) {
		m.Host, m.Addr = e.Host.Name, netip.AddrPortFrom(netip.Addr{}, e.Host.Port)
	}
	return m
}

// spec is the pool as it is declared: an endpoint with a Host has no more than
// the port in Addr.
func (p *poolTable) spec() balance.Spec {
	spec := balance.Spec{
		Name: p.Name, Disabled: !p.Enabled, Steering: p.Steering, Monitor: p.Monitor,
		MinimumHealthy: p.MinimumHealthy, SlowStart: p.SlowStart,
	}
	if s := p.Shedding; s != nil {
		spec.Shedding = balance.Shedding{Percent: s.Percent, By: s.By}
	}
	if q := p.Queue; q != nil {
		spec.Queue = balance.Queue{Length: q.Length, Timeout: q.Timeout}
	}
	if e := p.Ejection; e != nil {
		spec.Ejection = balance.Ejection{Failures: e.Failures, Time: e.Time, MaxTime: e.MaxTime, MaxPercent: e.MaxPercent}
		if e.MaxTime == 0 {
			spec.Ejection.MaxTime = max(maxEjection, e.Time)
		}
	}
	for i := range p.Endpoints {
		spec.Endpoints = append(spec.Endpoints, p.Endpoints[i].member(p.Network))
	}
	return spec
}

func (l *loader) buildPools() {
	for i := range l.file.Pool {
		spec := l.file.Pool[i].spec()
		report := l.report(fmt.Sprintf("pool[%d]", i))
		spec.Validate(func(key, value, hint string) {
			if lastKey(key) == "network" { // of the pool, and reported there
				return
			}
			if at, ok := strings.CutSuffix(key, ".address"); ok && l.doc.Has(fmt.Sprintf("pool[%d].%s.host", i, at)) {
				return // to be resolved
			}
			if key == "minimum_healthy" { // checked with the file, which knows hosts
				return
			}
			report(key, value, hint)
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
