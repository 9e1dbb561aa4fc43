// Package admin serves the edge's admin API: HTTP/1.1 and JSON over a unix
// socket, for the operator's commands.
//
// Listen makes the socket, New makes a Server over what the edge shows
// (Source) and does (Control), Serve answers until its context ends. Whoever
// can open the socket may do everything that the API offers: the socket's
// mode, 0660, is the access control.
//
// The API is versioned in its path. Every answer is JSON, a failure too. The
// package decides nothing and keeps no state; it never writes a secret.
package admin

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

	"github.com/warrenmesh/warren/edge/admin/client"
)

// Source is what the edge shows. Its methods answer from memory, from any
// goroutine. Lists are sorted as the client's types say.
type Source interface {
	Status() client.Status
	Apps() []client.App
	Pools() []client.Pool
	Networks() []client.Network
	Connectors() []client.Connector
	// Flows returns the open flows that q selects. q.Limit is within bounds.
	Flows(q client.FlowQuery) client.FlowList
	// Events returns up to limit of the events after the one with that id,
	// oldest first; after 0, the latest.
	Events(after uint64, limit int) client.EventList
}

// Control is what the edge does when asked. An error that is, or wraps, a
// *client.Error decides the code of the answer; another one is answered as
// internal. The context ends when the caller goes away, the time is up, or
// the server closes.
type Control interface {
	// KillFlow ends one flow and reports whether it was open.
	KillFlow(id uint64) bool
	// Probe dials addr, "tcp" or "udp", in the network. That the tunnel or
	// the origin is at fault is a result and not an error.
	Probe(ctx context.Context, r client.ProbeRequest) (client.ProbeResult, error)
	// Reload reads the configuration again. If it is refused the old one
	// stays in force, and the error is of client.CodeRefused.
	Reload(ctx context.Context) (client.ReloadResult, error)
	// Drain begins or ends a drain, and returns at once.
	Drain(ctx context.Context, r client.DrainRequest) (client.DrainResult, error)
	// DrainEndpoint begins or ends the drain of one endpoint of a pool, and
	// returns the pool as it is then. Clients with affinity to it may come
	// back for keep.
	DrainEndpoint(pool string, addr netip.AddrPort, keep time.Duration, off bool) (client.Pool, error)
	Enrollment
}

// Enrollment is what the edge does about tokens, and about connectors one at a
// time. Its errors are as Control's, and it logs what it does itself. What these
// calls return has no secret but the text of a token that was just created.
type Enrollment interface {
	// Tokens lists those that are active, or ended within 7 days, the latest
	// first.
	Tokens() []client.Token
	// CreateToken takes what TokenRequest.Check has returned.
	CreateToken(r client.TokenRequest, routes []netip.Prefix) (client.CreatedToken, error)
	// ImportToken takes the record of a token that another edge made.
	ImportToken(record string) (client.Token, error)
	RevokeToken(idOrName string) (client.Token, error)

	// RevokeConnector returns once the connector's flows are aborted, its key
	// is refused, and that is stored.
	RevokeConnector(name string) (client.ConnectorResult, error)
	// GrantConnector gives it these routes instead of those it has.
	GrantConnector(name string, routes []netip.Prefix) (client.ConnectorResult, error)
	RotateConnector(name string) (client.ConnectorResult, error)
	// DrainConnector begins or ends a drain, and returns at once.
	DrainConnector(name string, off bool) (client.ConnectorResult, error)
}

// Bounds of what one request may cost.
const (
	maxBody       = 256 << 10 // the record of a token with MaxTokenRoutes fits
	maxHeader     = 16 << 10
	readTimeout   = 10 * time.Second
	actionTimeout = 45 * time.Second // of a Control call; the client waits for 60 s
	idleTimeout   = time.Minute
	closeGrace    = time.Second
)

// Server answers the API. Make it with New.
type Server struct {
	log     *slog.Logger
	source  Source
	control Control
}

// New returns a Server. log hears one line for each action that the control
// does not log itself; asking is not logged.
func New(log *slog.Logger, source Source, control Control) *Server {
	return &Server{log: log, source: source, control: control}
}

// Serve answers on ln until ctx ends, and closes ln. Requests that run then
// have a second to end. It returns nil when ctx ended it.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var conns sync.WaitGroup // one for each connection's goroutine
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      actionTimeout + readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				conns.Add(1)
			case http.StateClosed:
				conns.Done()
			}
		},
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving the admin socket: %w", err)
	case <-ctx.Done():
	}
	grace, done := context.WithTimeout(requests, closeGrace)
	defer done()
	if err := server.Shutdown(grace); err != nil {
		cancel() // the handlers that are left give up
		_ = server.Close()
	}
	err := <-served
	conns.Wait()
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the admin socket: %w", err)
	}
	return nil
}
