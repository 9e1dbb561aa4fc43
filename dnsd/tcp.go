package dnsd

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// writeTimeout is how long a client may take to make room for one answer.
const writeTimeout = 5 * time.Second

// tcpBuffers are one connection's buffers while it has a query in hand. An
// idle connection holds none.
type tcpBuffers struct {
	query [maxQuery]byte
	reply [2 + maxQuery]byte
}

// serveTCP accepts until the endpoint is retired.
func (s *Server) serveTCP(e *endpoint) {
	failures := 0
	for !e.ending() {
		conn, err := e.tcp.AcceptTCP()
		if err != nil {
			if e.ending() {
				return
			}
			failures++
			s.drops.tcpAccept.Add(1)
			e.rest(failures)
			continue
		}
		failures = 0
		source := sourceKey(conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
		if why := s.conns.admit(conn, source, s.limits.Load()); why != "" {
			s.drops.count(why)
			conn.Close()
			continue
		}
		s.tasks.Go(func() {
			defer s.conns.remove(conn)
			defer conn.Close()
			s.serveConn(conn)
		})
	}
}

// serveConn answers the queries of one connection in their order, until the
// client closes it, is idle, or the server drains (RFC 7766).
func (s *Server) serveConn(conn *net.TCPConn) {
	var length [2]byte
	for {
		// One deadline for the whole query: a client cannot stretch it by
		// sending byte after byte.
		conn.SetReadDeadline(time.Now().Add(s.conns.idle(s.limits.Load())))
		if s.conns.draining() {
			return // drain's own deadline may have been overwritten just now
		}
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		if !s.serveQuery(conn, int(binary.BigEndian.Uint16(length[:]))) {
			return
		}
	}
}

// serveQuery reads one query of n bytes and answers it. It reports whether the
// connection can go on.
func (s *Server) serveQuery(conn *net.TCPConn, n int) bool {
	if n > maxQuery {
		s.drops.count(dropTooLong)
		return false
	}
	b := s.buffers.Get().(*tcpBuffers)
	defer s.buffers.Put(b)
	if _, err := io.ReadFull(conn, b.query[:n]); err != nil {
		return false
	}
	reply, why := s.answers.respond(b.query[:n], b.reply[2:], overTCP)
	if reply == nil {
		s.drops.count(why)
		return false
	}
	framed := b.reply[:]
	if 2+len(reply) > len(framed) {
		framed = make([]byte, 2+len(reply))
	}
	// Length and message go out in one write (RFC 7766 section 8).
	binary.BigEndian.PutUint16(framed, uint16(len(reply)))
	copy(framed[2:], reply)
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := conn.Write(framed[:2+len(reply)])
	return err == nil
}

// connTable holds the open TCP connections. The zero value is ready.
type connTable struct {
	mu      sync.Mutex
	ended   bool // by drain
	open    map[*net.TCPConn]netip.Addr
	sources map[netip.Addr]int
}

// admit takes a connection in, or says why not.
func (t *connTable) admit(conn *net.TCPConn, source netip.Addr, limits *Spec) drop {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.ended:
		return dropDraining
	case len(t.open) >= limits.MaxConns:
		return dropConns
	case t.sources[source] >= limits.MaxConnsPerSource:
		return dropConnsPerSource
	}
	if t.open == nil {
		t.open = make(map[*net.TCPConn]netip.Addr)
		t.sources = make(map[netip.Addr]int)
	}
	t.open[conn] = source
	t.sources[source]++
	return ""
}

func (t *connTable) remove(conn *net.TCPConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	source := t.open[conn]
	delete(t.open, conn)
	if t.sources[source]--; t.sources[source] == 0 {
		delete(t.sources, source)
	}
}

// idle is how long a connection may take for its next query: less while many
// are open, so that idle ones make room (RFC 7766 section 6.2.3).
func (t *connTable) idle(limits *Spec) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.open) > limits.MaxConns/2 {
		return limits.Idle / 5
	}
	return limits.Idle
}

func (t *connTable) draining() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}

// drain admits nothing more and wakes every connection that waits for a
// query; one that has a query in hand answers it first.
func (t *connTable) drain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	for conn := range t.open {
		conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// cut closes every connection and returns how many there were.
func (t *connTable) cut() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for conn := range t.open {
		conn.SetLinger(0)
		conn.Close()
	}
	return len(t.open)
}
