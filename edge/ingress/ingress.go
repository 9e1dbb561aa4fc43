// Package ingress holds the public sockets: it accepts TCP connections and
// UDP sessions for the apps and hands each, on a goroutine of its own, to the
// handler that walks it through the rooms.
//
//	s := ingress.New(log, handler)
//	change, err := s.Prepare(specs) // opens what is new; nothing that serves is touched
//	change.Commit()                 // or Rollback
//	s.StopAccepting()
//	s.Close(ctx)
//
// A reload prepares and commits again: an address that stays keeps its
// socket, one that goes stops accepting while its flows go on.
//
// The package must never let one client, or a flood of them, take what the
// others need: everything that it holds for a flow before the handler sees it
// is bounded, and whatever it drops is counted with its reason.
package ingress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Accepted is one flow, as it came in.
type Accepted struct {
	// Conn is a *net.TCPConn, or a datagram conn that is a netx.ReadWaiter.
	Conn   net.Conn
	Client netip.AddrPort // never an IPv4-mapped IPv6 address
	Local  netip.AddrPort // the machine's own address that the client spoke to
	Spec   Spec           // of the listener, when the flow came in
	At     time.Time

	kept *bool
	done func()
}

// Handler serves one flow. It is called on a goroutine of its own and owns
// a.Conn; whatever it left open, and did not keep, is closed when it returns. ctx is cancelled
// when the server has no more time for its flows; the handler must return
// then, and a flow that was kept must end.
type Handler func(ctx context.Context, a Accepted)

// Keep lets a flow outlive its handler, so that one at rest needs no
// goroutine: it is over, for the server and its bounds, when done is called,
// once and after a.Conn was closed. Where it returns nil the flow ends with
// its handler.
func (a *Accepted) Keep() (done func()) {
	if a.kept != nil {
		*a.kept = true
	}
	return a.done
}

// Sockets opens listening sockets; a *net.ListenConfig does. A PacketConn must
// have the methods of *net.UDPConn that take a netip.AddrPort.
type Sockets interface {
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
}

// maxQueued bounds what all UDP sessions of a Server hold unread, in bytes.
const maxQueued = 64 << 20

// ErrStopped is what Prepare returns after StopAccepting.
var ErrStopped = errors.New("the server accepts no more flows")

// Server owns the public sockets. Make it with New; end it with Close.
type Server struct {
	// Sockets, where set before the first Prepare, replaces the kernel's.
	Sockets Sockets
	// Admit, where set before the first Prepare, says whether a client may
	// begin a UDP session at a listener. A datagram of one that may not is
	// counted as DropDenied and costs nothing else: its source can be forged,
	// so a flood of them must not fill the table, nor the log. Sessions that
	// run are not asked about again. It is called for each such datagram, with
	// locks held: it must be quick and not call the Server.
	//
	// Of a TCP connection, whose client is who it says, only the handler
	// decides.
	Admit func(spec *Spec, client netip.Addr) bool

	log     *slog.Logger
	handler Handler
	counts  counters
	queued  atomic.Int64 // bytes that UDP sessions hold unread

	ctx    context.Context // of the flows
	cancel context.CancelCauseFunc
	flows  sync.WaitGroup // one for each flow: until its handler returns, or done is called where it was kept
	loops  sync.WaitGroup // one for each socket's reader

	mu        sync.Mutex
	listeners map[key]listener // those that serve and those that retire
	changing  bool             // a Change is neither committed nor rolled back
	stopped   bool
}

// New returns a server that listens nowhere yet.
func New(log *slog.Logger, handler Handler) *Server {
	s := &Server{Sockets: kernelSockets(), log: log, handler: handler, listeners: map[key]listener{}}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// kernelSockets returns the sockets of this machine. SO_REUSEADDR is Go's
// default; keep-alives find a client that vanished within 90 s.
func kernelSockets() Sockets {
	lc := &net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4,
	}}
	lc.SetMultipathTCP(false) // its sockets are slower and have no use here
	return lc
}

// listener is one public socket.
type listener interface {
	// local is the address that the socket is bound to, with its real port.
	local() netip.AddrPort
	// serve begins to accept for spec, or goes on under a new one.
	serve(spec Spec)
	// current is the spec that it serves, or served last.
	current() Spec
	// hold keeps the socket open until release, also while it retires.
	hold()
	release()
	// retire accepts no more and closes the socket once no flow needs it.
	retire()
	// retired reports whether it accepts no more.
	retired() bool
	// cut closes the socket now, whoever needs it.
	cut()
}

// Listening is one address that accepts flows.
type Listening struct {
	Spec Spec
	Addr netip.AddrPort // Spec.Addr with the port that was picked for port 0
}

// Listening returns the addresses that accept flows now, in no order.
func (s *Server) Listening() []Listening {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Listening, 0, len(s.listeners))
	for _, l := range s.listeners {
		if !l.retired() {
			all = append(all, Listening{Spec: l.current(), Addr: l.local()})
		}
	}
	return all
}

// StopAccepting is the first beat of the end: no new flow is taken, those that
// run go on. It returns once the accept loops have ended.
func (s *Server) StopAccepting() {
	s.mu.Lock()
	s.stopped = true
	retiring := make([]listener, 0, len(s.listeners))
	for _, l := range s.listeners {
		retiring = append(retiring, l)
	}
	s.mu.Unlock()
	for _, l := range retiring {
		l.retire()
	}
}

// Close ends the server: it stops accepting, lets the flows run until ctx is
// done, then cancels the handlers' context with the cause of ctx and waits
// for them. It returns that cause where it had to cut flows.
func (s *Server) Close(ctx context.Context) error {
	s.StopAccepting()
	idle := make(chan struct{})
	go func() {
		s.flows.Wait()
		close(idle)
	}()
	var err error
	select {
	case <-idle:
	case <-ctx.Done():
		err = context.Cause(ctx)
		s.cancel(err)
		<-idle
	}
	s.cancel(net.ErrClosed)

	s.mu.Lock()
	left := make([]listener, 0, len(s.listeners))
	for _, l := range s.listeners {
		left = append(left, l)
	}
	s.mu.Unlock()
	for _, l := range left {
		l.cut() // one that a Change was never done with
	}
	s.loops.Wait()
	return err
}

// forget takes a listener whose socket is closed out of the table.
func (s *Server) forget(k key, l listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners[k] == l {
		delete(s.listeners, k)
	}
}

// run calls the handler and sees to the end of its conn. The caller has the
// flow in s.flows.
func (s *Server) run(a Accepted) {
	defer a.Conn.Close()
	s.handler(s.ctx, a)
}
