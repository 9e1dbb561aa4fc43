package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/warrenmesh/warren/connector"
	connectorconfig "github.com/warrenmesh/warren/connector/config"
	"github.com/warrenmesh/warren/edge"
	"github.com/warrenmesh/warren/edge/admin/client"
	edgeconfig "github.com/warrenmesh/warren/edge/config"
)

const logName = "warren.log"

// defaultPatience is how long a stage waits for what must come about. On an
// idle machine each takes less than a second.
const defaultPatience = 15 * time.Second

// world is all that runs. It belongs to the goroutine of Run, which closes it.
type world struct {
	opts     Options
	say      story
	dir      string
	log      *slog.Logger
	logFile  *os.File
	patience time.Duration
	ports    func(*plan) error // chooses them

	plan       *plan
	served     map[string]*served // by network
	berlin     *web               // 10.0.0.10 in berlin
	tokyo      *web               // 10.0.0.10 in tokyo
	shop       [2]*web            // 10.0.0.20 and .21 in berlin
	echo       *echo
	edge       *daemon
	connectors []*member
	admin      *client.Client
	visitor    *visitor
}

// member is a connector that runs.
type member struct {
	*daemon
	*connector.Connector
	site *site
}

// newWorld makes the directory and starts the origins. The daemons start in
// their stages.
func newWorld(opts Options) (w *world, err error) {
	w = &world{
		opts: opts, say: story{opts.Out}, patience: defaultPatience, ports: (*plan).choosePorts,
		served: map[string]*served{"berlin": {}, "tokyo": {}},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.dir, err = makeDir(opts.dir); err != nil {
		return w, err
	}
	if w.logFile, err = os.OpenFile(w.path(logName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return w, err
	}
	var to io.Writer = w.logFile
	if opts.Log != nil {
		to = io.MultiWriter(w.logFile, opts.Log)
	}
	w.log = slog.New(slog.NewTextHandler(to, nil))
	if w.plan, err = newPlan(); err != nil {
		return w, err
	}
	return w, w.openOrigins()
}

// makeDir makes the demo's directory, in dir or where temporary files belong.
// The path of a Unix socket has 107 bytes at most, so that a directory deep
// down will not do.
func makeDir(dir string) (string, error) {
	const name, most = "warren-demo-", 80
	if dir == "" && len(os.TempDir()) > most {
		dir = "/tmp"
	}
	return os.MkdirTemp(dir, name)
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// openOrigins starts the private services, and gives each an alias.
func (w *world) openOrigins() (err error) {
	for _, o := range []struct {
		web              **web
		address, network string
	}{
		{&w.berlin, "10.0.0.10", "berlin"},
		{&w.shop[0], "10.0.0.20", "berlin"},
		{&w.shop[1], "10.0.0.21", "berlin"},
		{&w.tokyo, "10.0.0.10", "tokyo"},
	} {
		if *o.web, err = newWeb(o.address, o.network, w.served[o.network]); err != nil {
			return err
		}
		s := w.plan.site(o.network)
		s.Aliases = append(s.Aliases, alias{"tcp/" + (*o.web).inside, (*o.web).at})
	}
	if w.echo, err = newEcho("10.0.0.10", "tokyo", w.served["tokyo"]); err != nil {
		return err
	}
	tokyo := w.plan.site("tokyo")
	tokyo.Aliases = append(tokyo.Aliases, alias{"udp/10.0.0.10:7", w.echo.at})
	w.plan.Pool = []string{w.shop[0].inside, w.shop[1].inside}
	return nil
}

// close ends everything, the edge first: its flows end with it, and nobody
// waits for them.
func (w *world) close() error {
	if w.edge != nil {
		w.edge.end()
	}
	for _, m := range w.connectors {
		m.end()
	}
	for _, o := range []*web{w.berlin, w.tokyo, w.shop[0], w.shop[1]} {
		if o != nil {
			o.stop()
		}
	}
	if w.echo != nil {
		w.echo.stop()
	}
	if w.admin != nil {
		w.admin.Close()
	}
	if w.logFile != nil {
		_ = w.logFile.Close() // it goes anyway
	}
	if w.dir == "" {
		return nil
	}
	if err := os.RemoveAll(w.dir); err != nil {
		return fmt.Errorf("removing the demo's directory: %w", err)
	}
	return nil
}

// cleanEnv keeps the environment of whoever starts the demo out of its config.
func cleanEnv(string) string { return "" }

// startEdge chooses ports, writes the config and waits until the edge serves.
func (w *world) startEdge(ctx context.Context) error {
	const tries = 5 // somebody may have been quicker to take a port
	var err error
	for range tries {
		if err = w.ports(w.plan); err != nil {
			return err
		}
		if err = w.plan.write(w.dir); err != nil {
			return err
		}
		if err = w.tryEdge(ctx); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("starting the edge: %w", err)
	}
	w.admin = client.New(w.path("edge.sock"))
	w.visitor = newVisitor(netip.AddrPortFrom(loopback, uint16(w.plan.DNS)).String())
	return nil
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func (w *world) tryEdge(ctx context.Context) error {
	file := w.path("edge.toml")
	ready := make(chan struct{})
	d := startDaemon(func(ctx context.Context) error {
		return edge.Run(ctx, edge.Options{
			Load:        func() (*edgeconfig.Config, error) { return edgeconfig.Load(cleanEnv, file) },
			Log:         w.log.With("daemon", "edge"),
			Version:     w.opts.Version,
			ConfigFiles: []string{file},
			Force:       forced(), // flows of a demo are not worth a wait
			Ready:       func(*edge.Edge) { close(ready) },
		})
	})
	select {
	case <-ready:
		w.edge = d
		return nil
	case <-d.done:
		return d.err
	case <-ctx.Done():
		d.end()
		return ctx.Err()
	}
}

// startConnector reads a connector's config and starts it.
func (w *world) startConnector(s *site) error {
	cfg, err := connectorconfig.Load(cleanEnv, w.path(s.Connector+".toml"))
	if err != nil {
		return fmt.Errorf("starting connector %q: %w", s.Connector, err)
	}
	c, err := connector.New(cfg.Spec, connector.Deps{
		Log: w.log.With("daemon", s.Connector), Force: forced(), Version: w.opts.Version,
	})
	if err != nil {
		return fmt.Errorf("starting connector %q: %w", s.Connector, err)
	}
	w.connectors = append(w.connectors, &member{startDaemon(c.Run), c, s})
	return nil
}

// forced is a Force that has been given already: who ends does not wait.
func forced() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// stay waits until ctx ends, or a daemon does, which it should not.
func (w *world) stay(ctx context.Context) error {
	select {
	case <-ctx.Done():
		w.say.line("Stopping.")
		return nil
	case <-w.edge.done:
		return w.edge.died("the edge")
	case <-w.connectors[0].done:
		return w.connectors[0].died(fmt.Sprintf("connector %q", w.connectors[0].site.Connector))
	case <-w.connectors[1].done:
		return w.connectors[1].died(fmt.Sprintf("connector %q", w.connectors[1].site.Connector))
	}
}

// until asks again and again until ask finds nothing wrong, and returns what
// it found last when patience or ctx ends. An ask that this cut short has found
// nothing.
func (w *world) until(ctx context.Context, ask func(context.Context) error) error {
	const pause = 20 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, w.patience)
	defer cancel()
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	var found error
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if found == nil || ctx.Err() == nil {
			found = err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting %s: %w", w.patience, found)
		}
	}
}

// daemon is a daemon that runs on a goroutine of its own.
type daemon struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // what it returned, once done is closed
}

func startDaemon(run func(context.Context) error) *daemon {
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		d.err = run(ctx)
	}()
	return d
}

// end stops the daemon and waits. What it says of flows that were cut is of no
// interest to a demo.
func (d *daemon) end() {
	d.cancel()
	<-d.done
}

// died is the error of a daemon that ended unasked.
func (d *daemon) died(name string) error {
	if d.err == nil {
		return fmt.Errorf("%s ended by itself and does not say why", name)
	}
	return fmt.Errorf("%s ended by itself: %w", name, d.err)
}
