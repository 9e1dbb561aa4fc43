package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/balance"
	"github.com/warrenmesh/warren/edge/ingress"
)

// appTable is an [[app]]: a named public service.
type appTable struct {
	// Name is the label in metrics, logs and commands.
	Name string `toml:"name" required:"true" hint:"give the app a name"`
	// Hostnames that DNS answers with the app's addresses: in full, or one
	// label where there is one zone. Default: none.
	Hostnames []string `toml:"hostnames"`
	// Listen are its public ports: "tcp/5432", "udp/53", "tcp/8000-8100".
	// "tcp/0" is any free port, for tests.
	Listen []Ports `toml:"listen" required:"true" hint:"list what it listens on, as in [\"tcp/5432\"]"`
	// On names the addresses that it listens on. Default: every [[address]].
	On []string `toml:"on"`
	// Pools where its traffic goes, in order of preference. Either this or
	// Origin.
	Pools []string `toml:"pools"`
	// Origin is the short form for one host: "berlin/10.0.0.10:80",
	// "berlin/db.internal:5432", or "@public/www.example.net:80" for one of the
	// Internet. For a range of ports it has a range of the same size.
	Origin Origin `toml:"origin"`
	// Steering chooses between the pools: failover, the first that has a usable
	// endpoint; random, by weight; latency, the one that connects fastest;
	// least_connections, by weight; hash, always the same one for a client's
	// address, by weight. Default: failover.
	Steering string `toml:"steering" default:"failover" oneof:"failover random latency least_connections hash" later:"least_outstanding off geo proximity"`
	// PoolWeights are the pools' shares of new flows beside each other's, by
	// name. With 0 a pool gets what no other can take, which is all that latency
	// heeds. Not with failover. Default: 1 each; 0 to 1000.
	PoolWeights map[string]int `toml:"pool_weights" range:"0..1000"`
	// Fallback is the pool that is used when no other has a usable endpoint,
	// whatever its own health. It is none of Pools. Default: none.
	Fallback string `toml:"fallback_pool"`
	// Affinity leads the flows of one client to one endpoint. Default: each
	// flow is steered by itself.
	Affinity *affinityTable `toml:"affinity"`
	// Retry says up to when another endpoint is tried for a TCP connection:
	// connect, until one has accepted; first_byte, until one has answered, which
	// is told again what the client has said (16 KiB at most), and so is for
	// requests that may arrive twice. Default: connect.
	Retry string `toml:"retry" default:"connect" oneof:"connect first_byte"`
	// Allow are the sources that may connect; where it is present, all others
	// are denied. Default: everyone.
	Allow []netip.Prefix `toml:"allow"`
	// Deny are the sources that may not. It wins over Allow. Default: nobody.
	Deny []netip.Prefix `toml:"deny"`
	// TCPIdle ends a connection that moves no byte for so long. Default: 8h;
	// 1s to 168h.
	TCPIdle time.Duration `toml:"tcp_idle" default:"8h" range:"1s..168h"`
	// UDPIdle ends a UDP session without a datagram for so long. Default: 210s;
	// 1s to 24h.
	UDPIdle time.Duration `toml:"udp_idle" default:"210s" range:"1s..24h"`
	// TCPFlows is how many TCP connections each of its ports may have at a
	// time; one source, an IPv4 address or an IPv6 /64, has a quarter of that
	// at most. Default: 65536; 1 to 1000000.
	TCPFlows int `toml:"tcp_flows" default:"65536" range:"1..1000000"`
	// UDPSessions is how many UDP sessions each of its ports may have at a
	// time; one source has a quarter of that at most. Default: 65536; 1 to
	// 1000000.
	UDPSessions int `toml:"udp_sessions" default:"65536" range:"1..1000000"`

	ProxyProtocol strict.Unsupported `toml:"proxy_protocol" hint:"the flow log names the client"`
	TLS           strict.Unsupported `toml:"tls" hint:"TLS passes through to the origin"`
	Certificate   strict.Unsupported `toml:"certificate" hint:"TLS passes through to the origin"`
	Policy        strict.Unsupported `toml:"policy" hint:"use allow and deny"`
	Limits        strict.Unsupported `toml:"limits"`
}

// affinityTable is [app.affinity].
type affinityTable struct {
	// By tells clients apart: client_ip, or client_net, the IPv4 /24 or the IPv6
	// /56 of the address.
	By string `toml:"by" required:"true" oneof:"client_ip client_net" hint:"use client_ip, client_net"`
	// TTL is how long a client is remembered after its last new flow. Default:
	// 1h; 1s to 720h.
	TTL time.Duration `toml:"ttl" default:"1h" range:"1s..720h"`
	// Failover says what becomes of a client whose endpoint is down: temporary
	// leads it back once that is up again, sticky lets it stay where it went.
	// Default: temporary.
	Failover string `toml:"failover" default:"temporary" oneof:"temporary sticky"`
	// Max is how many clients are remembered; of more, those that were seen
	// longest ago are forgotten. Default: 65536; 1 to 1000000.
	Max int `toml:"max" default:"65536" range:"1..1000000"`
}

// Validate implements strict.Validator.
func (a *appTable) Validate(doc *strict.Doc, path string) {
	checkName(doc, path+".name", a.Name)
	a.checkListen(doc, path)
	if a.Retry == "first_byte" && len(a.Listen) > 0 && !slices.ContainsFunc(a.Listen, func(p Ports) bool { return p.Network != "udp" }) {
		doc.Add(path+".retry", "it is for TCP, and the app listens on UDP alone", "remove it")
	}
	if doc.Has(path+".allow") && len(a.Allow) == 0 && !doc.Bad(path+".allow") {
		doc.Add(path+".allow", "an empty list denies everyone", "remove it, or list who may connect")
	}
	hasPools, hasOrigin := doc.Has(path+".pools"), a.Origin != Origin{} || doc.Bad(path+".origin")
	switch {
	case hasPools && hasOrigin:
		doc.Add(path+".origin", "both pools and origin are set", "keep one of them")
	case !hasPools && !hasOrigin:
		doc.Add(path+".origin", "missing, and so is pools", `write origin = "network/ip:port", or name pools`)
	case hasPools && len(a.Pools) == 0 && !doc.Bad(path+".pools"):
		doc.Add(path+".pools", "empty list", "name a [[pool]]")
	}
	a.checkSteering(doc, path)
}

// checkListen wants each port once, and sizes that match the origin's.
func (a *appTable) checkListen(doc *strict.Doc, path string) {
	for i, p := range a.Listen {
		at := fmt.Sprintf("%s.listen[%d]", path, i)
		if p.Network == "" {
			continue // reported already
		}
		for j, q := range a.Listen[:i] {
			if p.Network == q.Network && p.First <= q.Last && q.First <= p.Last && p.First != 0 {
				doc.Add(at, fmt.Sprintf("overlaps listen[%d], %q", j, q), "list each port once")
				break
			}
		}
		switch {
		case a.Origin != Origin{} && p.Size() != a.Origin.Size():
			doc.Add(at, fmt.Sprintf("%d ports, but origin has %d", p.Size(), a.Origin.Size()), "give both ranges the same size")
		case len(a.Pools) > 0 && p.Size() > 1:
			doc.Add(at, "a range of ports needs an origin with a range", `write origin = "network/ip:first-last", or list the ports one by one`)
		}
	}
}

// maxFlows is the bound of each of its listeners.
func (a *appTable) maxFlows(network string) int {
	if network == "udp" {
		return a.UDPSessions
	}
	return a.TCPFlows
}

// App is a public service, ready for its rooms.
type App struct {
	Name      string
	Hostnames []string // in full, without the final dot, as they are written
	// Listeners is one entry for each socket.
	Listeners []Listener
	// Pools in order of preference; empty where Origin is set.
	Pools []string
	// Origin is the short form, or nil.
	Origin *Origin
	// Steering between pools, PoolWeights of those that have one, the Fallback
	// ("" is none) and Affinity: BalanceApps says the same to the Director.
	Steering    string
	PoolWeights map[string]int
	Fallback    string
	Affinity    balance.Affinity
	// RetryFirstByte lets another endpoint be tried until one has answered.
	RetryFirstByte bool
	// Allow and Deny are the policy; Allow nil allows everyone.
	Allow, Deny []netip.Prefix
	TCPIdle     time.Duration
	UDPIdle     time.Duration
}

// Listener is one socket of an app.
type Listener struct {
	ingress.Spec
	// Address is the name of the [[address]].
	Address string
	// Entry is the index of its entry in the app's listen.
	Entry int
	// Offset is the place of its port in the range of its listen entry: 0
	// where that is one port. It chooses the port of the origin.
	Offset uint16
}

// PoolsAt returns the pools for a listener with that offset: the app's own, or
// the one that AllPools makes of its origin.
func (a App) PoolsAt(offset uint16) []string {
	if a.Origin == nil {
		return a.Pools
	}
	name := a.Name + "/origin" // no declared name has a "/"
	if a.Origin.Size() > 1 {
		name += ":" + strconv.Itoa(int(a.Origin.At(offset).Port()))
	}
	return []string{name}
}

// IngressSpecs returns the sockets of all apps.
func (c *Config) IngressSpecs() []ingress.Spec {
	var specs []ingress.Spec
	for _, a := range c.Apps {
		for _, ls := range a.Listeners {
			specs = append(specs, ls.Spec)
		}
	}
	return specs
}

// maxListeners is the most sockets of one app: each is a descriptor, and a
// range over every port is a mistake.
const maxListeners = 10_000

func (l *loader) buildApps() {
	for i, t := range l.file.App {
		a := App{
			Name: t.Name, Pools: t.Pools, Steering: t.Steering, PoolWeights: t.PoolWeights, Fallback: t.Fallback,
			RetryFirstByte: t.Retry == "first_byte", Allow: t.Allow, Deny: t.Deny, TCPIdle: t.TCPIdle, UDPIdle: t.UDPIdle,
		}
		if t.Origin != (Origin{}) {
			a.Origin = &t.Origin
		}
		if f := t.Affinity; f != nil {
			a.Affinity = balance.Affinity{By: f.By, TTL: f.TTL, Failover: f.Failover, Max: f.Max}
		}
		a.Listeners = l.listeners(i, t)
		l.cfg.Apps = append(l.cfg.Apps, a)
	}
}

// listeners spells out the sockets of the i-th app.
func (l *loader) listeners(i int, t appTable) []Listener {
	addresses := l.addressesOf(t)
	sockets := 0
	for _, p := range t.Listen {
		for _, a := range addresses {
			sockets += p.Size() * min(len(a.Bind), len(a.Advertise))
		}
	}
	if sockets > maxListeners {
		l.doc.Add(fmt.Sprintf("app[%d].listen", i), fmt.Sprintf("%d sockets", sockets), fmt.Sprintf("an app has %d at most", maxListeners))
		return nil
	}
	var out []Listener
	type socket struct {
		network string
		addr    netip.AddrPort
	}
	seen := make(map[socket]bool, sockets)
	for entry, p := range t.Listen {
		for offset := range p.Size() {
			for _, a := range addresses {
				for _, ls := range a.listeners(p, uint16(offset)) {
					// Two public addresses may lead to one of the machine.
					if key := (socket{p.Network, ls.Addr}); p.Network == "" || seen[key] {
						continue
					} else {
						seen[key] = true
					}
					ls.App, ls.Entry, ls.UDPIdle, ls.MaxFlows = t.Name, entry, t.UDPIdle, t.maxFlows(p.Network)
					out = append(out, ls)
				}
			}
		}
	}
	return out
}

// listeners returns the sockets of one port on the address.
func (a Address) listeners(p Ports, offset uint16) []Listener {
	var out []Listener
	port := p.First + offset
	for n := range min(len(a.Bind), len(a.Advertise)) {
		out = append(out, Listener{
			Spec: ingress.Spec{
				Network:   p.Network,
				Addr:      netip.AddrPortFrom(a.Bind[n], port),
				Advertise: netip.AddrPortFrom(a.Advertise[n], port),
			},
			Address: a.Name, Offset: offset,
		})
	}
	return out
}

// addressesOf returns the addresses that an app is on: those it names, or all.
func (l *loader) addressesOf(t appTable) []Address {
	if len(t.On) == 0 {
		return l.cfg.Addresses
	}
	var out []Address
	for _, name := range t.On {
		for _, a := range l.cfg.Addresses {
			if a.Name == name && name != "" {
				out = append(out, a)
				break
			}
		}
	}
	return out
}
