package load

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// The origin's ports, one for each service.
const (
	PortBulk    = 7101 // TCP: bulk
	PortEcho    = 7102 // TCP: rr and ping
	PortConnect = 7103 // TCP: connect, the client closes first
	PortGreet   = 7104 // TCP: connect, the origin speaks and closes first
	PortIdle    = 7105 // TCP: idle
	PortUDP     = 7106 // UDP: udp
)

// shortLived is how long a connection of PortConnect and PortGreet may live.
const shortLived = time.Minute

// Origin is every service at one address. Listen makes it.
type Origin struct {
	listeners []*net.TCPListener
	serve     []func(*net.TCPConn)
	echo      *net.UDPConn

	mu     sync.Mutex
	conns  map[*net.TCPConn]struct{} // nil once the origin has ended
	served sync.WaitGroup
}

// Serve is Listen and Origin.Serve in one.
func Serve(ctx context.Context, host netip.Addr) error {
	o, err := Listen(host)
	if err != nil {
		return err
	}
	return o.Serve(ctx)
}

// Listen opens all ports of host; connections wait until Serve is called.
func Listen(host netip.Addr) (*Origin, error) {
	o := &Origin{conns: map[*net.TCPConn]struct{}{}}
	for _, service := range []struct {
		port  uint16
		serve func(*net.TCPConn)
	}{
		{PortBulk, serveBulk}, {PortEcho, serveEcho}, {PortIdle, serveIdle},
		{PortConnect, serveConnect}, {PortGreet, serveGreet},
	} {
		// No keep-alive: four system calls for each connection.
		config := net.ListenConfig{KeepAlive: -1}
		l, err := config.Listen(context.Background(), "tcp", netip.AddrPortFrom(host, service.port).String())
		if err != nil {
			o.closeListeners()
			return nil, fmt.Errorf("opening the origin's ports: %w", err)
		}
		o.listeners = append(o.listeners, l.(*net.TCPListener))
		o.serve = append(o.serve, service.serve)
	}
	echo, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, PortUDP)))
	if err != nil {
		o.closeListeners()
		return nil, fmt.Errorf("opening the origin's ports: %w", err)
	}
	o.echo = echo
	return o, nil
}

// Serve answers until ctx ends, then cuts what is open, and returns nil; or
// until a listener fails.
func (o *Origin) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, len(o.listeners)+1)
	service := func(serve func() error) {
		o.served.Go(func() {
			if err := serve(); err != nil && ctx.Err() == nil {
				failed <- err
			}
			cancel()
		})
	}
	for i, l := range o.listeners {
		service(func() error { return o.accept(ctx, l, o.serve[i]) })
	}
	service(func() error { return echoDatagrams(ctx, o.echo) })
	<-ctx.Done()
	o.closeListeners()
	o.closeConns()
	o.served.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("serving the origin: %w", err)
	default:
		return nil
	}
}

func (o *Origin) closeListeners() {
	for _, l := range o.listeners {
		l.Close()
	}
	if o.echo != nil {
		o.echo.Close()
	}
}

func (o *Origin) closeConns() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for conn := range o.conns {
		cut(conn)
	}
	o.conns = nil
}

// accept serves each connection of a listener in a goroutine of its own, which
// closes it.
func (o *Origin) accept(ctx context.Context, l *net.TCPListener, serve func(*net.TCPConn)) error {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if te, ok := err.(interface{ Temporary() bool }); ok && te.Temporary() {
				time.Sleep(time.Millisecond) // out of file descriptors, or the client is gone
				continue
			}
			return err
		}
		if !o.adopt(conn) {
			cut(conn)
			return nil
		}
		o.served.Go(func() {
			defer o.release(conn)
			serve(conn)
		})
	}
}

// adopt takes a connection into those that end with the origin.
func (o *Origin) adopt(conn *net.TCPConn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conns == nil {
		return false
	}
	o.conns[conn] = struct{}{}
	return true
}

func (o *Origin) release(conn *net.TCPConn) {
	conn.Close()
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, conn)
}

// serveBulk is the origin's end of a bulk stream.
func serveBulk(conn *net.TCPConn) {
	defer cut(conn)
	conn.SetDeadline(time.Now().Add(handshaking))
	line, err := readLine(conn)
	if err != nil {
		return
	}
	order, err := parseOrder(line)
	if err != nil {
		return
	}
	if _, err := conn.Write([]byte{readyByte}); err != nil {
		return
	}
	if expect(conn, goByte) != nil {
		return
	}
	w := windowAfter(order.Warmup, order.Duration)
	conn.SetDeadline(w.to.Add(grace))
	buf := make([]byte, order.Buffer)
	if !order.Up {
		pump(conn, order.Seed, buf) // until the client cuts it
		return
	}
	in, _ := receive(conn, order.Seed, buf, w)
	if writeLine(conn, in) != nil {
		return
	}
	conn.SetReadDeadline(time.Now().Add(grace))
	discard(conn, buf) // until the client cuts it
}

// serveEcho answers everything with itself.
func serveEcho(conn *net.TCPConn) { echo(conn, make([]byte, 64<<10)) }

// serveIdle does the same and holds next to nothing meanwhile.
func serveIdle(conn *net.TCPConn) { echo(conn, make([]byte, 1)) }

func echo(conn *net.TCPConn, buf []byte) {
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// greeting is what PortGreet says; answerTo is what PortConnect says to a byte.
const greeting = 'W'

func answerTo(b byte) byte { return ^b }

// serveConnect answers one byte and closes once the client has closed.
func serveConnect(conn *net.TCPConn) {
	conn.SetDeadline(time.Now().Add(shortLived))
	var b [1]byte
	if _, err := conn.Read(b[:]); err != nil {
		return
	}
	b[0] = answerTo(b[0])
	if _, err := conn.Write(b[:]); err != nil {
		return
	}
	conn.Read(b[:]) // the end of the stream
}

// serveGreet speaks first, reads one byte and closes.
func serveGreet(conn *net.TCPConn) {
	conn.SetDeadline(time.Now().Add(shortLived))
	b := [1]byte{greeting}
	if _, err := conn.Write(b[:]); err != nil {
		return
	}
	conn.Read(b[:])
}
