package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

// Bounds of the servers: what an authenticated peer that means harm can cost.
const (
	headerWithin  = 5 * time.Second
	bodyWithin    = 10 * time.Second
	answerWithin  = 10 * time.Second
	maxHeader     = 16 << 10 // bytes
	maxEnrollBody = 16 << 10 // bytes
	stopWithin    = 2 * time.Second
)

// port is one of the two servers.
type port struct {
	name    string
	idle    time.Duration // that a connection may be without a request
	ofPeer  int           // connections at a time
	ofAll   func() int    // of all peers
	maxBody int64
	methods map[string]method // by path
	left    func(peer netip.Addr)
}

// Serve answers on both listeners until ctx ends, closes them, and returns nil
// then. It fails if one of them does.
func (r *Registry) Serve(ctx context.Context, enroll, control net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	go func() { failed <- r.serve(ctx, r.enrollPort(), enroll) }()
	go func() { failed <- r.serve(ctx, r.controlPort(), control) }()
	first := <-failed
	cancel() // one without the other is of no use
	return errors.Join(first, <-failed)
}

func (r *Registry) enrollPort() port {
	return port{
		name: "enrolment", idle: 5 * time.Second, ofPeer: 64, maxBody: maxEnrollBody,
		ofAll:   func() int { return 512 },
		methods: map[string]method{wire.PathEnroll: r.serveEnroll},
		left:    r.joinerLeft,
	}
}

func (r *Registry) controlPort() port {
	methods := map[string]method{wire.PathSync: r.serveSync, wire.PathKey: r.serveKey}
	if r.work != nil {
		methods[wire.PathWork] = r.serveWork
	}
	return port{
		name: "control", idle: 30 * time.Second, ofPeer: 8, maxBody: wire.MaxBody,
		ofAll:   r.maxControlConns,
		methods: methods,
		left:    func(netip.Addr) {},
	}
}

// maxControlConns leaves each connector room for the sync that it holds and for
// its work, and for another of each while that one ends.
func (r *Registry) maxControlConns() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(2048, 4*len(r.connectors))
}

// joinerLeft renews a guest whose last connection has ended, once an enrolment
// was answered: the next joiner may have an older clock.
func (r *Registry) joinerLeft(peer netip.Addr) {
	if key, ok := r.peers.KeyAt(peer); ok {
		r.peers.RenewGuest(key)
	}
}

// serve answers on ln until ctx ends, and returns once every connection has.
func (r *Registry) serve(ctx context.Context, p port, ln net.Listener) error {
	var open sync.WaitGroup // connections that the server has a goroutine for
	g := &gate{Listener: ln, port: p, metrics: &r.metrics, peers: make(map[netip.Addr]*caller)}
	// Requests end with ctx, but not at once with it: they say why.
	requests, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	lot := newLot(r, p)
	server := &http.Server{
		Handler:           &handler{registry: r, port: p, lot: lot, stopping: ctx},
		ReadHeaderTimeout: headerWithin,
		IdleTimeout:       p.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(r.log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed, http.StateHijacked:
				open.Done()
			}
		},
	}
	served, again := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Serve(g) }()
	go func() { again <- server.Serve(lot) }()
	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("serving %s: %w", p.name, err)
	case <-ctx.Done():
	}
	goodbye := wire.Refuse(wire.CodeUnavailable, "this edge is stopping: call again")
	stop(goodbye)
	lot.stop(goodbye)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	if server.Shutdown(grace) != nil {
		_ = server.Close()
	}
	if err == nil {
		<-served
	}
	<-again
	open.Wait()
	stopCut := context.AfterFunc(grace, lot.cut)
	lot.all.Wait()
	stopCut()
	return err
}

// connKey is where a request's context has its *conn.
type connKey struct{}

// addrOf is the overlay address in a conn's remote address; the zero Addr,
// which is nobody's, if there is none.
func addrOf(remote string) netip.Addr {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}
