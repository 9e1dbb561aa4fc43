package connector

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/drops"
)

// counters are what the connector counts while it serves. The zero value
// works.
type counters struct {
	toOrigin, fromOrigin atomic.Uint64 // payload bytes
	drops                drops.Counter // datagrams that a side could not take

	checksPassed, checksFailed, checksUnable atomic.Uint64 // made for edges
	namesFound, namesAbsent, namesFailed     atomic.Uint64 // asked for on their behalf

	mu    sync.Mutex
	dials map[[2]string]uint64 // protocol and result
}

// dialed counts what became of one flow's dial.
func (c *counters) dialed(proto, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dials == nil {
		c.dials = make(map[[2]string]uint64)
	}
	c.dials[[2]string{proto, result}]++
}

// checked counts a check.
func (c *counters) checked(err error) {
	switch {
	case err == nil:
		c.checksPassed.Add(1)
	case classOf(err) == wire.ClassUnable:
		c.checksUnable.Add(1)
	default:
		c.checksFailed.Add(1)
	}
}

// named counts a name that was asked for.
func (c *counters) named(f wire.Found) {
	switch {
	case f.NotFound:
		c.namesAbsent.Add(1)
	case f.Error != "":
		c.namesFailed.Add(1)
	default:
		c.namesFound.Add(1)
	}
}

// dialCount returns how often proto's dials had that result.
func (c *counters) dialCount(proto, result string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dials[[2]string{proto, result}]
}

// failedDials returns how many flows their origins did not take.
func (c *counters) failedDials() (n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, count := range c.dials {
		if tellsOfOrigin(key[1]) && key[1] != resultDenied {
			n += count
		}
	}
	return n
}

// The metrics. No label has more values than the configuration has edges, or
// the code has constants.
var (
	descDials = prometheus.NewDesc("warren_connector_dials_total",
		"Flows and pings that an edge asked for, by protocol and by what became of the dial, or ping.", []string{"proto", "result"}, nil)
	descFlows = prometheus.NewDesc("warren_connector_active_flows",
		"Live flows.", []string{"proto"}, nil)
	descMaxFlows = prometheus.NewDesc("warren_connector_max_flows",
		"Live flows that there may be; beyond it an idle UDP flow makes room, and a new one that finds none is answered with host unreachable.", []string{"proto"}, nil)
	descBytes = prometheus.NewDesc("warren_connector_flow_bytes_total",
		"Payload bytes, to_origin or from_origin.", []string{"direction"}, nil)
	descUp = prometheus.NewDesc("warren_connector_edge_up",
		"1 while authenticated packets come from the edge.", []string{"edge"}, nil)
	descRTT = prometheus.NewDesc("warren_tunnel_rtt_seconds",
		"Round trip of the tunnel's echoes; absent while unknown.", []string{"edge"}, nil)
	descMTU = prometheus.NewDesc("warren_tunnel_path_mtu_bytes",
		"Largest inner packet that fits; absent while unknown.", []string{"edge"}, nil)
	descWire = prometheus.NewDesc("warren_tunnel_bytes_total",
		"Encrypted bytes, by direction (rx, tx).", []string{"edge", "direction"}, nil)
	descControl = prometheus.NewDesc("warren_connector_control_up",
		"1 while the edge answers this connector's reports.", []string{"edge"}, nil)
	descRevision = prometheus.NewDesc("warren_connector_grant_revision",
		"Revision of the edge's grant that holds; absent before the first.", []string{"edge"}, nil)
	descOffset = prometheus.NewDesc("warren_connector_clock_offset_seconds",
		"How far the edge's clock is ahead of this machine's; absent while unknown.", []string{"edge"}, nil)
	descDrops = prometheus.NewDesc("warren_drops_total",
		"What was thrown away, by place and reason.", []string{"where", "why"}, nil)
	descWork = prometheus.NewDesc("warren_connector_work",
		"Checks and names that the edge wants done.", []string{"edge", "kind"}, nil)
	descChecks = prometheus.NewDesc("warren_connector_checks_total",
		"Health checks that were made for edges, by what came of them; unable: they could not be made.", []string{"result"}, nil)
	descNames = prometheus.NewDesc("warren_connector_lookups_total",
		"Names that were asked for on behalf of edges, by what came of it.", []string{"result"}, nil)
	descBuild = prometheus.NewDesc("warren_build_info",
		"1; the label tells the version.", []string{"version"}, nil)
)

// Describe implements prometheus.Collector.
func (c *Connector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descDials, descFlows, descMaxFlows, descBytes, descUp, descRTT, descMTU, descWire, descControl, descRevision, descOffset, descDrops, descWork, descChecks, descNames, descBuild} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Connector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(descBuild, 1, c.deps.Version)
	for proto, limit := range map[string]int{"tcp": c.spec.MaxTCPFlows, "udp": c.spec.MaxUDPFlows} {
		gauge(descFlows, float64(c.flows.count(proto)), proto)
		gauge(descMaxFlows, float64(limit), proto)
		for _, result := range results {
			counter(descDials, c.count.dialCount(proto, result), proto, result)
		}
	}
	for _, result := range results {
		counter(descDials, c.count.dialCount("icmp", result), "icmp", result)
	}
	counter(descBytes, c.count.toOrigin.Load(), "to_origin")
	counter(descBytes, c.count.fromOrigin.Load(), "from_origin")
	for _, e := range c.list() {
		s := e.state()
		name := e.name()
		up := 0.0
		if s.Alive {
			up = 1
		}
		gauge(descUp, up, name)
		e.collectControl(gauge)
		counter(descWire, s.RxBytes, name, "rx")
		counter(descWire, s.TxBytes, name, "tx")
		if s.RTT > 0 {
			gauge(descRTT, s.RTT.Seconds(), name)
		}
		if s.PathMTU > 0 {
			gauge(descMTU, float64(s.PathMTU), name)
		}
	}
	counter(descChecks, c.count.checksPassed.Load(), "passed")
	counter(descChecks, c.count.checksFailed.Load(), "failed")
	counter(descChecks, c.count.checksUnable.Load(), "unable")
	counter(descNames, c.count.namesFound.Load(), "found")
	counter(descNames, c.count.namesAbsent.Load(), "not_found")
	counter(descNames, c.count.namesFailed.Load(), "failed")
	c.eachDrop(func(where, why string, n uint64) { counter(descDrops, n, where, why) })
}

// collectControl measures what there is to be measured of the edge's control.
func (e *edge) collectControl(gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	controlled, offset, timed := e.ctl.status()
	up := 0.0
	if controlled {
		up = 1
	}
	gauge(descControl, up, e.name())
	if timed {
		gauge(descOffset, offset.Seconds(), e.name())
	}
	checks, names := e.workload()
	gauge(descWork, float64(checks), e.name(), "checks")
	gauge(descWork, float64(names), e.name(), "names")
	if revision := e.granted().revision; revision != 0 {
		gauge(descRevision, float64(revision), e.name())
	}
}

// eachDrop calls yield once for each place and reason.
func (c *Connector) eachDrop(yield func(where, why string, n uint64)) {
	sums := make(map[[2]string]uint64)
	add := func(where, why string, n uint64) { sums[[2]string{where, why}] += n }
	c.count.drops.Each(func(why string, n uint64) { add("connector", why, n) })
	if t := c.device(); t != nil {
		t.Drops(add)
	}
	for key, n := range sums {
		yield(key[0], key[1], n)
	}
}
