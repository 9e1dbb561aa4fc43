package observe

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMetricsOfPools(t *testing.T) {
	m := NewMetrics(Build{})
	m.SetPools(func() []PoolState {
		return []PoolState{{Pool: "db", Usable: 1, Waiting: 2, Shed: 3, Endpoints: []PoolEndpoint{
			{Network: "berlin", Endpoint: "10.0.0.10:5432", Flows: 4, Picks: 5, Failures: 1, Connect: 1500 * time.Microsecond},
			{Network: "tokyo", Endpoint: "10.0.0.10:5432", Ejected: true},
		}}}
	})
	m.SetWebhooks(func() []WebhookState {
		return []WebhookState{{Webhook: "ops", Delivered: 6, Dropped: 7, Expired: 8, Rejected: 11, FailedAttempts: 9, Waiting: 10}}
	})
	berlin, tokyo := `{endpoint="10.0.0.10:5432",network="berlin",pool="db"}`, `{endpoint="10.0.0.10:5432",network="tokyo",pool="db"}`
	want := map[string]float64{
		`warren_pool_usable_endpoints{pool="db"}`: 1,
		`warren_pool_waiting_flows{pool="db"}`:    2,
		`warren_pool_shed_total{pool="db"}`:       3,

		"warren_pool_endpoint_flows" + berlin:                  4,
		"warren_pool_endpoint_picks_total" + berlin:            5,
		"warren_pool_endpoint_connect_failures_total" + berlin: 1,
		"warren_pool_endpoint_connect_seconds" + berlin:        0.0015,
		"warren_pool_endpoint_ejected" + berlin:                0,
		"warren_pool_endpoint_flows" + tokyo:                   0,
		"warren_pool_endpoint_picks_total" + tokyo:             0,
		"warren_pool_endpoint_connect_failures_total" + tokyo:  0,
		"warren_pool_endpoint_ejected" + tokyo:                 1,

		`warren_webhook_events_total{result="delivered",webhook="ops"}`: 6,
		`warren_webhook_events_total{result="dropped",webhook="ops"}`:   7,
		`warren_webhook_events_total{result="expired",webhook="ops"}`:   8,
		`warren_webhook_events_total{result="rejected",webhook="ops"}`:  11,
		`warren_webhook_failed_attempts_total{webhook="ops"}`:           9,
		`warren_webhook_waiting_events{webhook="ops"}`:                  10,
	}
	if diff := cmp.Diff(want, without(series(t, m), "warren_build_info")); diff != "" {
		t.Errorf("series differ (-want +got):\n%s", diff)
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}
