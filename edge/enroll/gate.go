package enroll

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/warrenmesh/warren/netstack/netx"
)

// gate is a listener that bounds the connections of each peer, and of all.
// Who comes is let in, and an older connection is aborted for it: of the same
// peer, whose newest is the one that lives, since a WireGuard key has one
// place; or of the peer that has the most, so that nobody can keep the others
// out.
type gate struct {
	net.Listener
	port    port
	metrics *metrics

	mu    sync.Mutex
	all   int
	peers map[netip.Addr]*caller
}

// caller is a peer that has connections.
type caller struct {
	conns    []*conn // oldest first
	answered bool    // on one that has ended
}

// conn is a connection that the gate has let in. It belongs to the server,
// which closes it.
type conn struct {
	net.Conn
	gate     *gate
	peer     netip.Addr
	answered atomic.Bool // with a success
	early    []byte      // what was read of the next request already; of the conn's reader
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	in := &conn{Conn: c, gate: g, peer: addrOf(c.RemoteAddr().String())}
	if out := g.enter(in); out != nil {
		netx.Abort(out.Conn) // the server hears of it and closes it
	}
	return in, nil
}

// enter returns the connection that has to go for c.
func (g *gate) enter(c *conn) (out *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	most := g.peers[c.peer]
	switch {
	case most != nil && len(most.conns) >= g.port.ofPeer:
		g.metrics.tooManyOfPeer.Add(1)
		out = most.conns[0]
	case g.all >= g.port.ofAll():
		g.metrics.tooMany.Add(1)
		for _, p := range g.peers {
			if most == nil || len(p.conns) > len(most.conns) {
				most = p
			}
		}
		out = most.conns[0]
	}
	if out != nil {
		g.leaveLocked(out)
	}
	p := g.peers[c.peer]
	if p == nil {
		p = &caller{}
		g.peers[c.peer] = p
	}
	p.conns = append(p.conns, c)
	g.all++
	return out
}

// leaveLocked takes c out, which may be out already. It reports whether that
// was the last connection of a peer that was answered.
func (g *gate) leaveLocked(c *conn) bool {
	p := g.peers[c.peer]
	if p == nil {
		return false
	}
	i := slices.Index(p.conns, c)
	if i < 0 {
		return false
	}
	p.conns = slices.Delete(p.conns, i, i+1)
	p.answered = p.answered || c.answered.Load()
	g.all--
	if len(p.conns) > 0 {
		return false
	}
	delete(g.peers, c.peer)
	return p.answered
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.gate.mu.Lock()
	last := c.gate.leaveLocked(c)
	c.gate.mu.Unlock()
	if last {
		c.gate.port.left(c.peer)
	}
	return err
}

// CloseWrite lets the server end its side first, so that a refusal reaches a
// peer that still sends.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(netx.HalfCloser); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
