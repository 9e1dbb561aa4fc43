package observe

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/warrenmesh/warren/edge/flow"
)

// Build says which program this is, for warren_build_info.
type Build struct {
	Version   string
	Revision  string // of the source; may be empty
	GoVersion string
}

// Metrics is the registry and what is counted in it. Make it with NewMetrics.
type Metrics struct {
	registry *prometheus.Registry
	flows    *prometheus.CounterVec   // app, status
	bytes    *prometheus.CounterVec   // app, direction
	active   *prometheus.GaugeVec     // app
	connect  *prometheus.HistogramVec // app
	states   *states
	pools    *pools

	mu   sync.Mutex
	apps map[string]*appCounters
	open map[*Entry]struct{} // the flows under way
}

// appCounters are the counters of one app.
type appCounters struct {
	name    string
	in, out prometheus.Counter
	active  prometheus.Gauge
	connect prometheus.Observer

	open    int  // flows under way; guarded by Metrics.mu
	retired bool // gone from the configuration; guarded by Metrics.mu
}

// connectBuckets are in seconds: a LAN origin behind a near connector answers
// in one or two milliseconds, an origin across an ocean in 300, and a dial
// gives up after five to ten seconds.
var connectBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// NewMetrics returns a registry of its own, with the metrics of the Go runtime
// and of the process beside Warren's.
func NewMetrics(build Build) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		flows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "warren_flows_total",
			Help: "Flows that have ended, by the status they ended with.",
		}, []string{"app", "status"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "warren_flow_bytes_total",
			Help: "Payload moved, open flows included: in is client to origin, out is origin to client.",
		}, []string{"app", "direction"}),
		active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "warren_active_flows",
			Help: "Flows that are open now.",
		}, []string{"app"}),
		connect: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "warren_connect_seconds",
			Help:    "Time from the decision to dial until the endpoint accepted.",
			Buckets: connectBuckets,
		}, []string{"app"}),
		states: newStates(),
		pools:  newPools(),
		apps:   make(map[string]*appCounters),
		open:   make(map[*Entry]struct{}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "warren_build_info",
		Help: "Always 1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{
			"version": build.Version, "revision": build.Revision, "goversion": build.GoVersion,
		},
	})
	info.Set(1)
	m.registry.MustRegister(info, m.flows, liveBytes{m}, m.active, m.connect, m.states, m.pools,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Registerer takes the metrics of rooms that count on their own.
func (m *Metrics) Registerer() prometheus.Registerer { return m.registry }

// begin counts e as an open flow of the app, which comes from the
// configuration.
func (m *Metrics) begin(e *Entry, app string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.app = m.appLocked(app)
	e.app.open++
	e.app.active.Inc()
	m.open[e] = struct{}{}
}

// end counts e as ended. Statuses are a fixed list, so the label is bounded.
func (m *Metrics) end(e *Entry, status flow.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.open, e)
	e.accountLocked()
	m.flows.WithLabelValues(e.app.name, strconv.Itoa(int(status))).Inc()
	e.app.active.Dec()
	e.app.open--
	m.forgetLocked(e.app)
}

// liveBytes is warren_flow_bytes_total, brought up to date by each scrape: the
// relay counts in the flow alone.
type liveBytes struct{ *Metrics }

// Describe implements prometheus.Collector.
func (b liveBytes) Describe(ch chan<- *prometheus.Desc) { b.bytes.Describe(ch) }

// Collect implements prometheus.Collector.
func (b liveBytes) Collect(ch chan<- prometheus.Metric) {
	b.mu.Lock()
	for e := range b.open {
		e.accountLocked()
	}
	b.mu.Unlock()
	b.bytes.Collect(ch)
}

func (m *Metrics) appLocked(name string) *appCounters {
	a := m.apps[name]
	if a == nil {
		a = &appCounters{
			name:    name,
			in:      m.bytes.WithLabelValues(name, "in"),
			out:     m.bytes.WithLabelValues(name, "out"),
			active:  m.active.WithLabelValues(name),
			connect: m.connect.WithLabelValues(name),
		}
		m.apps[name] = a
	}
	return a
}

// SetApps makes names all the apps that are shown: each appears at once, with
// zeroes. The series of an app that is no longer among them are forgotten when
// its last flow has ended.
func (m *Metrics) SetApps(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.apps {
		a.retired = true
	}
	for _, name := range names {
		m.appLocked(name).retired = false
	}
	for _, a := range m.apps {
		m.forgetLocked(a)
	}
}

// forgetLocked deletes the series of a retired app that has no flow.
func (m *Metrics) forgetLocked(a *appCounters) {
	if !a.retired || a.open > 0 {
		return
	}
	delete(m.apps, a.name)
	of := prometheus.Labels{"app": a.name}
	m.flows.DeletePartialMatch(of)
	m.bytes.DeletePartialMatch(of)
	m.active.DeletePartialMatch(of)
	m.connect.DeletePartialMatch(of)
}

// EndpointState is an endpoint's health as its monitor sees it.
type EndpointState struct {
	Network  string
	Endpoint string // address and port
	Monitor  string
	Up       bool
}

// ConnectorState is a connector's tunnel, and what it says of itself.
type ConnectorState struct {
	Network   string
	Connector string
	Up        bool
	RTT       time.Duration // 0 if not measured

	Reports     bool          // it has reported since the edge started
	ClockOffset time.Duration // its clock less the edge's
}

// EnrollmentState is what the registry of connectors has counted. The keys of
// its maps are constants of the code.
type EnrollmentState struct {
	Enrollments map[string]uint64 // requests by result
	Tokens      map[string]int    // that are there, by state
	Syncs       uint64            // answered
	SyncsHeld   int               // waiting
}

// Drops reports everything that a room has dropped so far: where and why are
// constants of its code. It may be called at any time from any goroutine.
type Drops func(yield func(where, why string, n uint64))

// AddDrops shows what drops reports, until remove is called. Reports of the
// same (where, why) are summed.
func (m *Metrics) AddDrops(drops Drops) (remove func()) { return m.states.addDrops(drops) }

// SetEndpoints sets the function that is asked for the endpoints' health at
// each scrape.
func (m *Metrics) SetEndpoints(list func() []EndpointState) {
	m.states.mu.Lock()
	defer m.states.mu.Unlock()
	m.states.endpoints = list
}

// SetConnectors sets the function that is asked for the connectors at each
// scrape.
func (m *Metrics) SetConnectors(list func() []ConnectorState) {
	m.states.mu.Lock()
	defer m.states.mu.Unlock()
	m.states.connectors = list
}

// SetEnrollment sets the function that is asked for the registry's counts at
// each scrape.
func (m *Metrics) SetEnrollment(counts func() EnrollmentState) {
	m.states.mu.Lock()
	defer m.states.mu.Unlock()
	m.states.enrollment = counts
}
