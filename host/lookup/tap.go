package lookup

import (
	"context"
	"errors"
	"net"
	"sync"
)

// maxReply bounds a reply over TCP, bytes. It is room for 500 addresses with
// their signatures; the 4,000 that fit the largest reply would keep the
// standard library busy sorting them.
const maxReply = 16 << 10

var (
	errClosed   = errors.New("the lookup has ended")
	errTooLarge = errors.New("the resolver's reply is larger than 16 KiB")
)

// A tap opens the conns of one lookup and reads along. It owns them: close
// ends those that the standard library still waits on, which a ctx does not.
type tap struct {
	open func(ctx context.Context, network, address string) (net.Conn, error)

	mu     sync.Mutex
	seen   facts
	conns  map[net.Conn]struct{}
	closed bool
}

func newTap(open func(ctx context.Context, network, address string) (net.Conn, error)) *tap {
	return &tap{open: open, conns: make(map[net.Conn]struct{})}
}

// dial is the Dial of a net.Resolver.
func (t *tap) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := t.open(ctx, network, address)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.conns[c] = struct{}{}
	}
	t.mu.Unlock()
	if closed {
		_ = c.Close()
		return nil, errClosed
	}
	// The standard library takes a conn for a datagram one by this very
	// interface, so the wrapper must be what it wraps.
	if p, ok := c.(net.PacketConn); ok {
		return &packets{tapped: tapped{Conn: c, tap: t}, packet: p}, nil
	}
	return &stream{tapped: tapped{Conn: c, tap: t}}, nil
}

// close ends every conn and returns what was seen. Nothing is added to that
// any more.
func (t *tap) close() facts {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for c := range t.conns {
		_ = c.Close()
	}
	clear(t.conns)
	return t.seen
}

func (t *tap) asked(q question) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.seen.asked(q)
	}
}

func (t *tap) replied(q question, message []byte, whole bool) {
	r, ok := readReply(q, message, whole)
	if !ok {
		return // the standard library passes over it too
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.seen.replied(q, r)
	}
}

// tapped is a conn on which one question is asked.
type tapped struct {
	net.Conn
	tap *tap
	q   question
	ok  bool // q was read
}

// wrote reads the question off a message that was sent.
func (c *tapped) wrote(message []byte) {
	if q, ok := readQuestion(message); ok {
		c.q, c.ok = q, true
		c.tap.asked(q)
	}
}

// got reads a reply that came; whole tells that it is all there is, even where
// it says that it was truncated.
func (c *tapped) got(message []byte, whole bool) {
	if c.ok {
		c.tap.replied(c.q, message, whole)
	}
}

// Close closes the conn and forgets it.
func (c *tapped) Close() error {
	c.tap.mu.Lock()
	delete(c.tap.conns, c.Conn)
	c.tap.mu.Unlock()
	return c.Conn.Close()
}

// packets is a tapped datagram conn.
type packets struct {
	tapped
	packet net.PacketConn
}

func (c *packets) Write(b []byte) (int, error) {
	c.wrote(b)
	return c.Conn.Write(b)
}

func (c *packets) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil {
		c.got(b[:n], false)
	}
	return n, err
}

// ReadFrom and WriteTo make it a net.PacketConn. Nobody calls them.
func (c *packets) ReadFrom(b []byte) (int, net.Addr, error)   { return c.packet.ReadFrom(b) }
func (c *packets) WriteTo(b []byte, to net.Addr) (int, error) { return c.packet.WriteTo(b, to) }

// stream is a tapped stream conn: each message has two bytes of length before
// it (RFC 1035 section 4.2.2).
type stream struct {
	tapped
	in []byte // what came so far of the length and the reply
}

func (c *stream) Write(b []byte) (int, error) {
	if len(b) > 2 {
		c.wrote(b[2:])
	}
	return c.Conn.Write(b)
}

func (c *stream) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if len(c.in) <= 2+maxReply {
		c.in = append(c.in, b[:n]...)
	}
	if len(c.in) < 2 {
		return n, err
	}
	length := int(c.in[0])<<8 | int(c.in[1])
	if length > maxReply {
		return 0, errTooLarge
	}
	if n > 0 && len(c.in) >= 2+length && len(c.in)-n < 2+length {
		c.got(c.in[2:2+length], true)
	}
	return n, err
}
