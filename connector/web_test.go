package connector

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

func TestHealth(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		h := b.c.Handler()
		check := func(when string, ready int, says string) {
			t.Helper()
			if code, _ := get(t, h, "/healthz"); code != 200 {
				t.Errorf("%s: /healthz gives %d", when, code)
			}
			if code, body := get(t, h, "/readyz"); code != ready || !strings.Contains(body, says) {
				t.Errorf("%s: /readyz gives %d %q", when, code, body)
			}
		}
		check("before an edge answers", 503, "no edge is joined")
		p := b.join()
		check("with an edge", 200, "ready")
		if code, _ := get(t, h, "/debug/pprof/"); code != 404 {
			t.Errorf("profiles that nobody asked for: %d", code)
		}
		p.set(State{})
		synctest.Wait()
		check("without its edge", 503, "no edge is joined")
		b.join()
		if err := b.finish(); err != nil {
			t.Error(err)
		}
		check("at the end", 503, "draining")
	})
}

func TestMetrics(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		b.join()
		<-b.tcp(newTCPRequest("10.0.0.1:80"))
		problems, err := testutil.CollectAndLint(b.c)
		if err != nil || len(problems) != 0 {
			t.Errorf("the metrics' names: %v, %v", problems, err)
		}
		_, body := get(t, b.c.Handler(), "/metrics")
		for _, want := range []string{
			`warren_build_info{version="v1"} 1`,
			`warren_connector_dials_total{proto="tcp",result="refused"} 1`,
			`warren_connector_dials_total{proto="udp",result="ok"} 0`,
			`warren_connector_active_flows{proto="tcp"} 0`,
			`warren_connector_max_flows{proto="udp"} 16384`,
			`warren_connector_flow_bytes_total{direction="to_origin"} 0`,
			`warren_connector_edge_up{edge="edge.example:51820"} 1`,
			`warren_tunnel_rtt_seconds{edge="edge.example:51820"} 0.001`,
			`warren_drops_total{where="link",why="queue_full"} 7`,
		} {
			if !strings.Contains(body, want+"\n") {
				t.Errorf("the metrics lack %s", want)
			}
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestMetricsListener(t *testing.T) {
	b := newBench(t)
	b.spec.MetricsListen = "127.0.0.1:0"
	addr := make(chan string, 1)
	b.deps.Listen = func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		if err == nil {
			addr <- l.Addr().String()
		}
		return l, err
	}
	c, err := New(b.spec, b.deps)
	if err != nil {
		t.Fatal(err)
	}
	web, err := c.openWeb()
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + <-addr + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if string(body) != "ok\n" {
		t.Errorf("/healthz gives %q", body)
	}
	web.close()
}

func TestMetricsPortInUse(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.spec.MetricsListen = "127.0.0.1:9192"
		b.deps.Listen = func(string, string) (net.Listener, error) { return nil, errors.New("address already in use") }
		if err := Run(t.Context(), b.spec, b.deps); err == nil || !strings.Contains(err.Error(), "opening the metrics listener: address already in use: choose another") {
			t.Errorf("Run returned %v", err)
		}
	})
}
