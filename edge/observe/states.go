package observe

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// states is the collector of what other rooms know already. It asks them at
// each scrape instead of being told of each change.
type states struct {
	endpointUp  *prometheus.Desc
	connectorUp *prometheus.Desc
	rtt         *prometheus.Desc
	clockOffset *prometheus.Desc
	enrollments *prometheus.Desc
	tokens      *prometheus.Desc
	syncs       *prometheus.Desc
	syncsHeld   *prometheus.Desc
	dropped     *prometheus.Desc

	mu         sync.Mutex
	endpoints  func() []EndpointState
	connectors func() []ConnectorState
	enrollment func() EnrollmentState
	drops      map[*Drops]struct{} // by identity: functions do not compare
}

func newStates() *states {
	return &states{
		endpointUp: prometheus.NewDesc("warren_endpoint_up",
			"1 if the endpoint's monitor says it is up, 0 if it is down or not known yet.",
			[]string{"network", "endpoint", "monitor"}, nil),
		connectorUp: prometheus.NewDesc("warren_connector_up",
			"1 if the connector's tunnel is alive.", []string{"network", "connector"}, nil),
		rtt: prometheus.NewDesc("warren_tunnel_rtt_seconds",
			"Round trip time through the tunnel to the connector.", []string{"network", "connector"}, nil),
		clockOffset: prometheus.NewDesc("warren_connector_clock_offset_seconds",
			"The connector's clock less the edge's, as of its last report.", []string{"network", "connector"}, nil),
		enrollments: prometheus.NewDesc("warren_enrollments_total",
			"Requests of connectors to enrol, by what became of them.", []string{"result"}, nil),
		tokens: prometheus.NewDesc("warren_tokens",
			"Tokens that are known, by state; ended ones stay for 7 days.", []string{"state"}, nil),
		syncs: prometheus.NewDesc("warren_syncs_total",
			"Reports of connectors that were answered with their grant.", nil, nil),
		syncsHeld: prometheus.NewDesc("warren_syncs_held",
			"Connectors that wait for a change of their grant.", nil, nil),
		dropped: prometheus.NewDesc("warren_drops_total",
			"What was dropped instead of delivered, and why.", []string{"where", "why"}, nil),
		drops: make(map[*Drops]struct{}),
	}
}

func (s *states) addDrops(drops Drops) (remove func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := &drops
	s.drops[key] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.drops, key)
	}
}

// Describe implements prometheus.Collector.
func (s *states) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		s.endpointUp, s.connectorUp, s.rtt, s.clockOffset, s.enrollments, s.tokens, s.syncs, s.syncsHeld, s.dropped,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector. One series twice, or a label that
// is not UTF-8, would fail the whole scrape, so neither gets out.
func (s *states) Collect(out chan<- prometheus.Metric) {
	s.mu.Lock()
	endpoints, connectors, enrollment := s.endpoints, s.connectors, s.enrollment
	drops := slices.Collect(maps.Keys(s.drops))
	s.mu.Unlock()

	seen := make(map[string]bool)
	emit := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		for i, l := range labels {
			labels[i] = strings.ToValidUTF8(l, "\uFFFD")
		}
		key := d.String() + "\xff" + strings.Join(labels, "\xff")
		if seen[key] {
			return
		}
		seen[key] = true
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	if endpoints != nil {
		for _, e := range endpoints() {
			emit(s.endpointUp, prometheus.GaugeValue, oneIf(e.Up), e.Network, e.Endpoint, e.Monitor)
		}
	}
	if connectors != nil {
		for _, c := range connectors() {
			emit(s.connectorUp, prometheus.GaugeValue, oneIf(c.Up), c.Network, c.Connector)
			if c.RTT > 0 {
				emit(s.rtt, prometheus.GaugeValue, c.RTT.Seconds(), c.Network, c.Connector)
			}
			if c.Reports {
				emit(s.clockOffset, prometheus.GaugeValue, c.ClockOffset.Seconds(), c.Network, c.Connector)
			}
		}
	}
	if enrollment != nil {
		s.collectEnrollment(enrollment(), emit)
	}
	for at, n := range sumDrops(drops) {
		emit(s.dropped, prometheus.CounterValue, float64(n), at[0], at[1])
	}
}

// collectEnrollment shows what the registry has counted.
func (s *states) collectEnrollment(now EnrollmentState, emit func(*prometheus.Desc, prometheus.ValueType, float64, ...string)) {
	for result, n := range now.Enrollments {
		emit(s.enrollments, prometheus.CounterValue, float64(n), result)
	}
	for state, n := range now.Tokens {
		emit(s.tokens, prometheus.GaugeValue, float64(n), state)
	}
	emit(s.syncs, prometheus.CounterValue, float64(now.Syncs))
	emit(s.syncsHeld, prometheus.GaugeValue, float64(now.SyncsHeld))
}

// sumDrops adds up the reports by (where, why).
func sumDrops(drops []*Drops) map[[2]string]uint64 {
	sums := make(map[[2]string]uint64)
	for _, report := range drops {
		(*report)(func(where, why string, n uint64) { sums[[2]string{where, why}] += n })
	}
	return sums
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
