package observe

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/warrenmesh/warren/edge/flow"
)

// series scrapes m over its handler and returns the warren_ series.
func series(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(m, nil, nil).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("scraping: %d %s", w.Code, w.Body)
	}
	got := make(map[string]float64)
	for scanner := bufio.NewScanner(w.Body); scanner.Scan(); {
		at := strings.LastIndexByte(scanner.Text(), ' ')
		if !strings.HasPrefix(scanner.Text(), "warren_") || at < 0 {
			continue
		}
		v, err := strconv.ParseFloat(scanner.Text()[at+1:], 64)
		if err != nil {
			t.Fatalf("series %q: %v", scanner.Text(), err)
		}
		got[scanner.Text()[:at]] = v
	}
	return got
}

// without returns got without the histogram, which only repeats.
func without(got map[string]float64, prefix string) map[string]float64 {
	for name := range got {
		if strings.HasPrefix(name, prefix) {
			delete(got, name)
		}
	}
	return got
}

func TestMetricsShowAppsAtOnce(t *testing.T) {
	m := NewMetrics(Build{Version: "v0.1.0", Revision: "abc", GoVersion: "go1.26"})
	m.SetApps([]string{"db"})
	want := map[string]float64{
		`warren_build_info{goversion="go1.26",revision="abc",version="v0.1.0"}`: 1,
		`warren_flow_bytes_total{app="db",direction="in"}`:                      0,
		`warren_flow_bytes_total{app="db",direction="out"}`:                     0,
		`warren_active_flows{app="db"}`:                                         0,
	}
	if diff := cmp.Diff(want, without(series(t, m), "warren_connect_seconds")); diff != "" {
		t.Errorf("series differ (-want +got):\n%s", diff)
	}
}

func TestMetricsForgetAppsThatAreGone(t *testing.T) {
	o := newObserver(t)
	m := o.Metrics
	of := func(app string) (n int) {
		for name := range series(t, m) {
			if strings.Contains(name, `app="`+app+`"`) {
				n++
			}
		}
		return n
	}
	m.SetApps([]string{"a", "b", "c"})
	a, c := o.Begin(newFlow(1, "a"), nil), o.Begin(newFlow(2, "c"), nil)
	m.SetApps([]string{"c"})
	if of("a") == 0 || of("b") != 0 || of("c") == 0 {
		t.Errorf("series: a %d (has a flow), b %d (has none), c %d (configured)", of("a"), of("b"), of("c"))
	}
	a.End()
	c.End()
	if of("a") != 0 || of("c") == 0 {
		t.Errorf("after the last flow: a %d, c %d series", of("a"), of("c"))
	}
	// An app that comes back before its last flow ends keeps its counts.
	c = o.Begin(newFlow(3, "c"), nil)
	m.SetApps(nil)
	m.SetApps([]string{"c"})
	c.End()
	if got := series(t, m)[`warren_flows_total{app="c",status="999"}`]; got != 2 {
		t.Errorf("c counts %v flows, want 2", got)
	}
}

func TestMetricsAskOtherRooms(t *testing.T) {
	m := NewMetrics(Build{})
	m.SetEndpoints(func() []EndpointState {
		return []EndpointState{
			{"berlin", "10.0.0.10:5432", "pg", true},
			{"tokyo", "10.0.0.10:5432", "pg", false},
			{"tokyo", "10.0.0.10:5432", "pg", true}, // twice: the first counts
		}
	})
	m.SetConnectors(func() []ConnectorState {
		return []ConnectorState{
			{Network: "berlin", Connector: "berlin-1", Up: true, RTT: 1500 * time.Microsecond, Reports: true, ClockOffset: -time.Hour},
			{Network: "tokyo", Connector: "not \xff utf8"},
		}
	})
	m.SetEnrollment(func() EnrollmentState {
		return EnrollmentState{Enrollments: map[string]uint64{"pending": 2, "spent": 1}, Tokens: map[string]int{"active": 3}, Syncs: 7, SyncsHeld: 1}
	})
	remove := m.AddDrops(func(yield func(string, string, uint64)) {
		yield("link", "queue_full", 3)
		yield("shim", "bad_length", 1)
	})
	m.AddDrops(func(yield func(string, string, uint64)) { yield("link", "queue_full", 4) })

	want := map[string]float64{
		`warren_endpoint_up{endpoint="10.0.0.10:5432",monitor="pg",network="berlin"}`:  1,
		`warren_endpoint_up{endpoint="10.0.0.10:5432",monitor="pg",network="tokyo"}`:   0,
		`warren_connector_up{connector="berlin-1",network="berlin"}`:                   1,
		"warren_connector_up{connector=\"not \uFFFD utf8\",network=\"tokyo\"}":         0,
		`warren_tunnel_rtt_seconds{connector="berlin-1",network="berlin"}`:             0.0015,
		`warren_connector_clock_offset_seconds{connector="berlin-1",network="berlin"}`: -3600,
		`warren_enrollments_total{result="pending"}`:                                   2,
		`warren_enrollments_total{result="spent"}`:                                     1,
		`warren_tokens{state="active"}`:                                                3,
		`warren_syncs_total`:                                                           7,
		`warren_syncs_held`:                                                            1,
		`warren_drops_total{where="link",why="queue_full"}`:                            7,
		`warren_drops_total{where="shim",why="bad_length"}`:                            1,
	}
	if diff := cmp.Diff(want, without(series(t, m), "warren_build_info")); diff != "" {
		t.Errorf("series differ (-want +got):\n%s", diff)
	}
	if _, err := m.registry.Gather(); err != nil {
		t.Errorf("gathering: %v", err)
	}
	remove()
	if got := series(t, m); got[`warren_drops_total{where="link",why="queue_full"}`] != 4 {
		t.Errorf("after one source is gone: %v", got)
	}
}

func TestMetricNamesFollowConventions(t *testing.T) {
	o := newObserver(t)
	o.Metrics.SetApps([]string{"db"})
	f := newFlow(1, "db")
	entry := o.Begin(f, nil)
	f.Done(epoch, flow.StatusClosed, "")
	entry.End()
	o.Metrics.SetEndpoints(func() []EndpointState { return []EndpointState{{"a", "b", "c", true}} })
	o.Metrics.SetConnectors(func() []ConnectorState { return []ConnectorState{{"a", "b", true, time.Second, true, time.Second}} })
	o.Metrics.SetEnrollment(func() EnrollmentState {
		return EnrollmentState{Enrollments: map[string]uint64{"spent": 1}, Tokens: map[string]int{"active": 1}}
	})
	o.Metrics.AddDrops(func(yield func(string, string, uint64)) { yield("a", "b", 1) })
	problems, err := testutil.GatherAndLint(o.Metrics.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestPages(t *testing.T) {
	m := NewMetrics(Build{})
	why := ""
	h := Handler(m, func() (bool, string) { return why == "", why }, nil)
	tests := []struct {
		name, method, path, why string
		code                    int
		body                    string
	}{
		{"healthy", "GET", "/healthz", "", 200, "ok\n"},
		{"healthy while not ready", "GET", "/healthz", "draining", 200, "ok\n"},
		{"ready", "GET", "/readyz", "", 200, "ready\n"},
		{"not ready", "GET", "/readyz", "draining since 12:00", 503, "draining since 12:00\n"},
		{"another method", "POST", "/readyz", "", 405, ""},
		{"another page", "GET", "/debug/pprof/", "", 404, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			why = test.why
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(test.method, test.path, nil))
			if w.Code != test.code || test.body != "" && w.Body.String() != test.body {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Body, test.code, test.body)
			}
		})
	}
}

func TestServe(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, ln, Handler(NewMetrics(Build{}), func() (bool, string) { return true, "" }, nil))
	}()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://" + ln.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "ready\n" {
		t.Errorf("body = %q", body)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
	if err := Serve(t.Context(), ln, http.NotFoundHandler()); err == nil {
		t.Error("serving on a closed listener succeeded")
	}
}
