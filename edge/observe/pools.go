package observe

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// PoolState is a pool as the Director sees it.
type PoolState struct {
	Pool      string
	Usable    int // endpoints that may be picked
	Waiting   int // flows in its queue
	Shed      uint64
	Endpoints []PoolEndpoint
}

// PoolEndpoint is one endpoint's part in a pool.
type PoolEndpoint struct {
	Network  string
	Endpoint string // address and port
	Flows    int
	Picks    uint64
	Failures uint64        // connects
	Connect  time.Duration // moving average; 0 if not measured
	Ejected  bool
}

// WebhookState is what a webhook was told, in events.
type WebhookState struct {
	Webhook                               string
	Delivered, Dropped, Expired, Rejected uint64
	FailedAttempts                        uint64
	Waiting                               int
}

// SetPools sets the function that is asked for the pools at each scrape.
func (m *Metrics) SetPools(list func() []PoolState) { m.pools.list.Store(&list) }

// SetWebhooks sets the function that is asked for the webhooks at each scrape.
func (m *Metrics) SetWebhooks(list func() []WebhookState) { m.pools.webhooks.Store(&list) }

// pools is the collector of what the Director and the log of events know.
type pools struct {
	list     atomic.Pointer[func() []PoolState]
	webhooks atomic.Pointer[func() []WebhookState]

	usable, waiting, shed                           *prometheus.Desc
	flows, picks, failures, connect, ejected        *prometheus.Desc
	hookEvents, hookFailedAttempts, hookWaitingDesc *prometheus.Desc
}

func newPools() *pools {
	pool, endpoint := []string{"pool"}, []string{"pool", "network", "endpoint"}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &pools{
		usable:   desc("warren_pool_usable_endpoints", "Endpoints of the pool that may be picked now.", pool...),
		waiting:  desc("warren_pool_waiting_flows", "Flows in the pool's queue.", pool...),
		shed:     desc("warren_pool_shed_total", "Flows that load shedding sent past the pool.", pool...),
		flows:    desc("warren_pool_endpoint_flows", "Flows that the pool has at the endpoint now.", endpoint...),
		picks:    desc("warren_pool_endpoint_picks_total", "Flows that the pool sent to the endpoint.", endpoint...),
		failures: desc("warren_pool_endpoint_connect_failures_total", "Connects to the endpoint that failed.", endpoint...),
		connect:  desc("warren_pool_endpoint_connect_seconds", "Moving average of the time that the endpoint takes to accept.", endpoint...),
		ejected:  desc("warren_pool_endpoint_ejected", "1 while the endpoint is out for connects that failed in a row.", endpoint...),

		hookEvents:         desc("warren_webhook_events_total", "Events by what became of them: delivered, dropped for want of room, expired, rejected by it.", "webhook", "result"),
		hookFailedAttempts: desc("warren_webhook_failed_attempts_total", "Attempts to deliver that failed.", "webhook"),
		hookWaitingDesc:    desc("warren_webhook_waiting_events", "Events that wait to be delivered.", "webhook"),
	}
}

// Describe implements prometheus.Collector.
func (p *pools) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		p.usable, p.waiting, p.shed, p.flows, p.picks, p.failures, p.connect, p.ejected,
		p.hookEvents, p.hookFailedAttempts, p.hookWaitingDesc,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector. Names are the configuration's, each
// once.
func (p *pools) Collect(out chan<- prometheus.Metric) {
	emit := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		for i, l := range labels {
			labels[i] = strings.ToValidUTF8(l, "\uFFFD")
		}
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	if list := p.list.Load(); list != nil {
		for _, pool := range (*list)() {
			p.collect(pool, emit)
		}
	}
	if list := p.webhooks.Load(); list != nil {
		for _, h := range (*list)() {
			emit(p.hookEvents, prometheus.CounterValue, float64(h.Delivered), h.Webhook, "delivered")
			emit(p.hookEvents, prometheus.CounterValue, float64(h.Dropped), h.Webhook, "dropped")
			emit(p.hookEvents, prometheus.CounterValue, float64(h.Expired), h.Webhook, "expired")
			emit(p.hookEvents, prometheus.CounterValue, float64(h.Rejected), h.Webhook, "rejected")
			emit(p.hookFailedAttempts, prometheus.CounterValue, float64(h.FailedAttempts), h.Webhook)
			emit(p.hookWaitingDesc, prometheus.GaugeValue, float64(h.Waiting), h.Webhook)
		}
	}
}

func (p *pools) collect(pool PoolState, emit func(*prometheus.Desc, prometheus.ValueType, float64, ...string)) {
	emit(p.usable, prometheus.GaugeValue, float64(pool.Usable), pool.Pool)
	emit(p.waiting, prometheus.GaugeValue, float64(pool.Waiting), pool.Pool)
	emit(p.shed, prometheus.CounterValue, float64(pool.Shed), pool.Pool)
	for _, e := range pool.Endpoints {
		emit(p.flows, prometheus.GaugeValue, float64(e.Flows), pool.Pool, e.Network, e.Endpoint)
		emit(p.picks, prometheus.CounterValue, float64(e.Picks), pool.Pool, e.Network, e.Endpoint)
		emit(p.failures, prometheus.CounterValue, float64(e.Failures), pool.Pool, e.Network, e.Endpoint)
		emit(p.ejected, prometheus.GaugeValue, oneIf(e.Ejected), pool.Pool, e.Network, e.Endpoint)
		if e.Connect > 0 {
			emit(p.connect, prometheus.GaugeValue, e.Connect.Seconds(), pool.Pool, e.Network, e.Endpoint)
		}
	}
}
