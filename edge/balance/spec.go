package balance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// What bounds a configuration. Each larger value is a mistake in a generated
// file: an endpoint costs a health check, a connection memory.
const (
	MaxEndpoints   = 10_000         // of one pool
	MaxWeight      = 1000           // of one endpoint, or of one pool of an app
	MaxPools       = 64             // of one app
	MaxConnections = 1_000_000      // of one endpoint
	MaxQueue       = 100_000        // flows that wait for one pool
	MaxAffinity    = 1_000_000      // clients that one app remembers
	MaxPeriod      = 24 * time.Hour // of every duration but an affinity's
	MaxAffinityTTL = 30 * 24 * time.Hour

	// DefaultAffinity is how many clients an app remembers where
	// Affinity.Max is 0.
	DefaultAffinity = 65_536
)

// Endpoint is one place that an app's traffic can go to. Two networks may hold
// the same address, so neither half names an endpoint alone.
type Endpoint struct {
	Network string // virtual network, or "@public"
	Addr    netip.AddrPort
}

// String returns the form of the configuration, "berlin/10.0.0.10:5432".
func (e Endpoint) String() string { return e.Network + "/" + e.Addr.String() }

// Member is an endpoint as a pool has it.
type Member struct {
	Endpoint
	// Host is the name that Addr came from; empty where the configuration
	// gives the address. Until the name is resolved Addr is a port without an
	// address, and the endpoint is unknown.
	Host string
	// Weight is the endpoint's share of new flows, beside the others'. 0: no
	// new flows; clients with affinity to it stay.
	Weight int
	// Disabled keeps every flow from it.
	Disabled bool
	// MaxConnections bounds the flows that it has at one time. 0: no bound.
	MaxConnections int
}

// Shedding turns away a share of the new flows of a pool, which go on to the
// next one. Flows with affinity to an endpoint of the pool are never shed.
type Shedding struct {
	// Percent of the flows, 0 to 100.
	Percent int
	// By is "random", the default where it is empty, or "hash": always the
	// same clients.
	By string
}

// Queue is where flows wait while every usable endpoint of a pool has
// MaxConnections.
type Queue struct {
	Length  int           // flows that wait at most; 0: none does
	Timeout time.Duration // how long a flow waits at most
}

// Ejection takes an endpoint out of a pool whose flows fail to connect to it.
type Ejection struct {
	// Failures in a row that eject; 0: never.
	Failures int
	// Time is how long the first ejection lasts; the n-th in a row lasts n
	// times that, at most MaxTime.
	Time, MaxTime time.Duration
	// MaxPercent of the pool's enabled endpoints are ejected at one time.
	MaxPercent int
}

// Spec is one pool of the configuration.
type Spec struct {
	// Name is unique among the pools, and the label in logs and commands.
	Name string
	// Disabled passes the pool over.
	Disabled bool
	// Endpoints are the places the traffic goes to, at least one, each once.
	Endpoints []Member
	// Steering chooses between the endpoints: "round_robin", which is the
	// default where it is empty, "failover", "random", "hash",
	// "least_connections" or "latency".
	Steering string
	// Monitor names the health check of the endpoints. Empty: none, and
	// every endpoint counts as up.
	Monitor string
	// MinimumHealthy is how many endpoints must be usable; with fewer the
	// pool is critical, and passed over. 0 means 1.
	MinimumHealthy int
	// SlowStart is how long an endpoint that comes back up takes to get its
	// whole share. 0: it gets it at once.
	SlowStart time.Duration
	Shedding  Shedding
	Queue     Queue
	Ejection  Ejection
}

// Choice is a pool of an app.
type Choice struct {
	Pool string
	// Weight is the pool's share of new flows where the app's steering has
	// shares. 0: it gets flows only where no other pool can take them.
	Weight int
}

// Affinity leads the flows of one client to one endpoint.
type Affinity struct {
	// By tells clients apart: "" (there is no affinity), "client_ip", or
	// "client_net", the IPv4 /24 or the IPv6 /56.
	By string
	// TTL is how long a client without a new flow is remembered.
	TTL time.Duration
	// Failover says what happens while the endpoint is down: "temporary", the
	// default where it is empty, leads the client back when it is up again;
	// "sticky" lets it stay with the endpoint that stood in.
	Failover string
	// Max is how many clients are remembered; the least recently seen ones
	// are forgotten. 0 means DefaultAffinity.
	Max int
}

// App is how one app steers between its pools.
type App struct {
	// Name is the key of Request.App.
	Name string
	// Pools, in order of preference where Steering is "failover".
	Pools []Choice
	// Steering chooses between the pools: "failover", which is the default
	// where it is empty, "random", "latency", "least_connections" or "hash".
	Steering string
	// Fallback names the pool that is used when no other has a usable
	// endpoint. Its health is ignored. Empty: there is none.
	Fallback string
	Affinity Affinity
}

// report is how Validate tells of a problem. path is the key that is wrong,
// relative to the table ("endpoints[2].address"); value is what it holds; hint
// says what to do.
type report func(path, value, hint string)

// span reports a number outside least..most.
func (r report) span(path string, value, least, most int) {
	if value < least || value > most {
		r(path, fmt.Sprint(value), fmt.Sprintf("use %d to %d", least, most))
	}
}

// period reports a duration outside least..most.
func (r report) period(path string, value, least, most time.Duration) {
	if value < least || value > most {
		r(path, value.String(), fmt.Sprintf("use %s to %s", least, most))
	}
}

// oneOf reports a name that is none of known. Empty is the default.
func (r report) oneOf(path, value string, known ...string) {
	if value != "" && !slices.Contains(known, value) {
		r(path, value, "use one of: "+strings.Join(known, ", "))
	}
}

// Validate calls report for every problem of the pool. path is the key that
// is wrong, relative to the pool ("endpoints[2].address"); value is what it
// holds; hint says what to do.
func (s Spec) Validate(problem func(path, value, hint string)) {
	r := report(problem)
	if s.Name == "" {
		r("name", "", "give the pool a name")
	}
	r.oneOf("steering", s.Steering, endpointPolicies()...)
	most := max(len(s.Endpoints), 1)
	if slices.ContainsFunc(s.Endpoints, func(m Member) bool { return m.Host != "" }) {
		most = MaxEndpoints // a name may have many addresses
	}
	r.span("minimum_healthy", s.MinimumHealthy, 0, most)
	r.period("slow_start", s.SlowStart, 0, MaxPeriod)
	r.span("shedding.percent", s.Shedding.Percent, 0, 100)
	r.oneOf("shedding.by", s.Shedding.By, shedRandom, shedHash)
	r.span("queue.length", s.Queue.Length, 0, MaxQueue)
	if s.Queue.Length > 0 {
		r.period("queue.timeout", s.Queue.Timeout, time.Millisecond, MaxPeriod)
	}
	s.Ejection.validate(r)
	s.validateEndpoints(r)
}

func (e Ejection) validate(r report) {
	r.span("ejection.failures", e.Failures, 0, 1000)
	if e.Failures <= 0 {
		return
	}
	r.period("ejection.time", e.Time, time.Millisecond, MaxPeriod)
	r.period("ejection.max_time", e.MaxTime, time.Millisecond, MaxPeriod)
	if e.MaxTime > 0 && e.MaxTime < e.Time {
		r("ejection.max_time", e.MaxTime.String(), fmt.Sprintf("use at least ejection.time, %s", e.Time))
	}
	r.span("ejection.max_percent", e.MaxPercent, 1, 100)
}

func (s Spec) validateEndpoints(r report) {
	if len(s.Endpoints) == 0 {
		r("endpoints", "", "give the pool at least one endpoint")
	}
	if n := len(s.Endpoints); n > MaxEndpoints {
		r("endpoints", fmt.Sprint(n), fmt.Sprintf("a pool holds at most %d endpoints", MaxEndpoints))
	}
	type identity struct {
		Endpoint
		host string
	}
	seen := make(map[identity]int, len(s.Endpoints))
	for i, m := range s.Endpoints {
		at := fmt.Sprintf("endpoints[%d].", i)
		m.validate(r, at)
		id := identity{Endpoint: m.Endpoint}
		if !m.Addr.IsValid() {
			id.host = m.Host
		}
		if first, again := seen[id]; again && (m.Addr.IsValid() || m.Host != "") {
			r(at+"address", m.place(), fmt.Sprintf("it is endpoints[%d] already; remove one", first))
			continue
		}
		seen[id] = i
	}
}

// place is the address of m, or its name while it has no address.
func (m Member) place() string {
	if m.Host != "" && !m.Addr.IsValid() {
		return fmt.Sprintf("%s:%d", m.Host, m.Addr.Port())
	}
	return m.Addr.String()
}

func (m Member) validate(r report, at string) {
	if m.Network == "" {
		r(at+"network", "", "name the virtual network that holds the endpoint")
	}
	switch {
	case m.Host != "" && !m.Addr.IsValid() && m.Addr.Port() != 0: // not resolved yet
	case !m.Addr.IsValid():
		r(at+"address", "", `write an IP address and a port, as in "10.0.0.10:5432"`)
	case m.Addr.Port() == 0:
		r(at+"address", m.Addr.String(), "port 0 cannot be dialled; write the port that the service listens on")
	case m.Addr.Addr().IsUnspecified(), m.Addr.Addr().IsMulticast():
		r(at+"address", m.Addr.String(), "write the address of one host")
	}
	r.span(at+"weight", m.Weight, 0, MaxWeight)
	r.span(at+"max_connections", m.MaxConnections, 0, MaxConnections)
}

// Validate calls report for every problem of the app's steering, as
// Spec.Validate does. Whether the pools exist is not its to say.
func (a App) Validate(problem func(path, value, hint string)) {
	r := report(problem)
	if a.Name == "" {
		r("name", "", "give the app a name")
	}
	r.oneOf("steering", a.Steering, poolPolicies()...)
	if len(a.Pools) == 0 {
		r("pools", "", "name a pool")
	}
	if n := len(a.Pools); n > MaxPools {
		r("pools", fmt.Sprint(n), fmt.Sprintf("an app has at most %d pools", MaxPools))
	}
	seen := make(map[string]int, len(a.Pools))
	for i, c := range a.Pools {
		at := fmt.Sprintf("pools[%d]", i)
		r.span(at+".weight", c.Weight, 0, MaxWeight)
		if first, again := seen[c.Pool]; again {
			r(at, c.Pool, fmt.Sprintf("it is pools[%d] already; remove one", first))
			continue
		}
		seen[c.Pool] = i
	}
	if at, again := seen[a.Fallback]; again && a.Fallback != "" {
		r("fallback", a.Fallback, fmt.Sprintf("it is pools[%d] already; name another pool, or none", at))
	}
	a.Affinity.validate(r)
}

func (a Affinity) validate(r report) {
	r.oneOf("affinity.by", a.By, affinityIP, affinityNet)
	r.oneOf("affinity.failover", a.Failover, failoverTemporary, failoverSticky)
	r.span("affinity.max", a.Max, 0, MaxAffinity)
	if a.By != "" {
		r.period("affinity.ttl", a.TTL, time.Second, MaxAffinityTTL)
	}
}

func (s Spec) equal(o Spec) bool {
	same := slices.Equal(s.Endpoints, o.Endpoints)
	s.Endpoints, o.Endpoints = nil, nil
	return same && s.flat() == o.flat()
}

// flat is a Spec without its endpoints, comparable.
func (s Spec) flat() any {
	type settings struct {
		name, steering, monitor string
		disabled                bool
		minimum                 int
		slow                    time.Duration
		shed                    Shedding
		queue                   Queue
		eject                   Ejection
	}
	return settings{s.Name, s.Steering, s.Monitor, s.Disabled, s.MinimumHealthy, s.SlowStart, s.Shedding, s.Queue, s.Ejection}
}
