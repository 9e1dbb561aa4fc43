package connector

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/warrenmesh/warren/host"
)

// webTimeout bounds reading a request and writing its answer.
const webTimeout = 10 * time.Second

// web is the HTTP server of /metrics, /healthz and /readyz.
type web struct {
	server *http.Server
	served sync.WaitGroup
}

// openWeb starts the server where the spec asks for one; without, the web is
// nil and its close does nothing.
func (c *Connector) openWeb() (*web, error) {
	if c.spec.MetricsListen == "" {
		return nil, nil
	}
	l, err := c.deps.Listen("tcp", c.spec.MetricsListen)
	if err != nil {
		return nil, fmt.Errorf("opening the metrics listener: %w: choose another [metrics] listen", err)
	}
	return c.serveWeb(l), nil
}

func (c *Connector) serveWeb(l net.Listener) *web {
	w := &web{server: &http.Server{
		Handler:           c.Handler(),
		ReadHeaderTimeout: webTimeout,
		ReadTimeout:       webTimeout,
		WriteTimeout:      webTimeout,
		IdleTimeout:       webTimeout,
	}}
	w.served.Go(func() {
		if err := w.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("metrics listener failed", "err", err)
		}
	})
	c.log.Info("metrics listen", "address", l.Addr())
	return w
}

// close ends the server and waits for it.
func (w *web) close() {
	if w == nil {
		return
	}
	_ = w.server.Close()
	w.served.Wait()
}

// Handler answers /metrics; /healthz, 200 while the process lives; and
// /readyz, 200 while an edge is joined and new flows are taken, else 503.
func (c *Connector) Handler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	if c.spec.Profiles {
		host.HandleProfiles(mux)
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch s := c.Status(); {
		case s.Ready():
			_, _ = io.WriteString(w, "ready\n")
		case s.Draining:
			http.Error(w, "draining", http.StatusServiceUnavailable)
		default:
			http.Error(w, "no edge is joined", http.StatusServiceUnavailable)
		}
	})
	return mux
}

var _ prometheus.Collector = (*Connector)(nil)
