package ingress

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// While accepting fails, the loop waits: first this long, then twice as long
// each time, up to the most. What waits in the backlog is not lost.
const (
	firstBackoff = 5 * time.Millisecond
	mostBackoff  = time.Second
)

// tcpListener is one TCP socket and the goroutine that accepts from it.
type tcpListener struct {
	s    *Server
	key  key
	ln   net.Listener
	spec atomic.Pointer[Spec]

	mu      sync.Mutex
	started bool
	ended   bool
	stop    chan struct{} // closed by retire: ends a back-off
	done    chan struct{} // closed when the accept loop has ended
	census  census        // of connections
}

func (l *tcpListener) local() netip.AddrPort { return addrPort(l.ln.Addr()) }
func (l *tcpListener) current() Spec         { return *l.spec.Load() }

// hold and release do nothing: a TCP listener that retires is gone at once,
// its flows have sockets of their own.
func (l *tcpListener) hold()    {}
func (l *tcpListener) release() {}

func (l *tcpListener) serve(spec Spec) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spec.Store(&spec)
	if l.started || l.ended {
		return
	}
	l.started = true
	l.s.loops.Go(l.accept)
}

func (l *tcpListener) retired() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

func (l *tcpListener) retire() {
	l.mu.Lock()
	first, started := !l.ended, l.started
	l.ended = true
	l.mu.Unlock()
	if first {
		close(l.stop)
		_ = l.ln.Close()
		l.s.forget(l.key, l)
	}
	if started {
		<-l.done
	}
}

func (l *tcpListener) cut() { l.retire() }

// accept hands out connections until the socket is closed.
func (l *tcpListener) accept() {
	defer close(l.done)
	wait := time.Duration(0)
	for {
		conn, err := l.ln.Accept()
		if err == nil {
			wait = 0
			l.take(conn)
			continue
		}
		if isClosed(err) {
			return
		}
		if errors.Is(err, syscall.ECONNABORTED) {
			l.s.counts.drop(DropAcceptFailed) // the client's doing: no reason to wait
			continue
		}
		why := acceptFailure(err)
		l.s.counts.drop(why)
		if wait == 0 {
			// Once for each spell of trouble, not once for each try.
			l.s.log.Warn("accepting fails, trying on", "app", l.current().App, "address", l.local().String(), "why", why, "err", err)
		}
		wait = min(max(wait*2, firstBackoff), mostBackoff)
		select {
		case <-time.After(wait):
		case <-l.stop:
		}
	}
}

func acceptFailure(err error) string {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return DropNoDescriptor
	case errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		return DropNoMemory
	}
	return DropAcceptFailed
}

// take hands one connection out, or resets it where that is one too many.
func (l *tcpListener) take(conn net.Conn) {
	a := Accepted{
		Conn:   conn,
		Client: addrPort(conn.RemoteAddr()),
		Local:  addrPort(conn.LocalAddr()),
		Spec:   l.current(),
		At:     time.Now(),
	}
	l.mu.Lock()
	why := l.census.enter(a.Client.Addr(), &a.Spec)
	l.mu.Unlock()
	if why != "" {
		l.s.counts.drop(why)
		netx.Abort(conn)
		return
	}
	client := a.Client.Addr()
	a.kept, a.done = new(bool), func() { l.leave(client) }
	l.s.flows.Add(1)
	go func() {
		deepen()
		l.s.handler(l.s.ctx, a)
		if !*a.kept {
			_ = a.Conn.Close()
			a.done()
		}
	}()
}

// leave ends the count of a connection whose descriptor is free again.
func (l *tcpListener) leave(client netip.Addr) {
	l.mu.Lock()
	l.census.leave(client)
	l.mu.Unlock()
	l.s.flows.Done()
}

// addrPort returns the address of a TCP or UDP socket, unmapped.
func addrPort(a net.Addr) netip.AddrPort {
	if has, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return unmapped(has.AddrPort())
	}
	return netip.AddrPort{}
}
