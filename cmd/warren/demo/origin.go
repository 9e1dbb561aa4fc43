package demo

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// maxBody is the most that /mirror takes.
const maxBody = 8 << 20

// served counts what the origins of one network read and wrote.
type served struct{ in, out atomic.Uint64 }

// web is an HTTP origin: it says who it is, and mirrors what is posted to
// /mirror. The zero value does not work: use newWeb.
type web struct {
	who    string // "10.0.0.10 in berlin"
	inside string // its address in the network, with the port
	at     string // its socket of this machine; the same after a restart
	count  *served

	server *http.Server   // nil while it is stopped
	alive  sync.WaitGroup // Serve, and each connection
}

// newWeb starts an origin that stands for address:80 in the network.
func newWeb(address, network string, count *served) (*web, error) {
	w := &web{
		who:    address + " in " + network,
		inside: net.JoinHostPort(address, "80"),
		at:     "127.0.0.1:0",
		count:  count,
	}
	return w, w.start()
}

// start opens the socket that the origin had before, or its first one.
func (w *web) start() error {
	ln, err := net.Listen("tcp", w.at)
	if err != nil {
		return fmt.Errorf("starting the origin %s: %w", w.who, err)
	}
	w.at = ln.Addr().String()
	w.server = &http.Server{
		Handler:           http.HandlerFunc(w.answer),
		ErrorLog:          log.New(io.Discard, "", 0), // checks hang up at once, as they should
		ReadHeaderTimeout: 10 * time.Second,
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				w.alive.Add(1)
			case http.StateClosed:
				w.alive.Done()
			}
		},
	}
	w.alive.Add(1)
	go func(s *http.Server) {
		defer w.alive.Done()
		_ = s.Serve(countingListener{ln, w.count}) // returns when stop closes it
	}(w.server)
	return nil
}

// stop closes the socket and every connection, and waits for them. From then
// on the machine refuses connections to it.
func (w *web) stop() {
	if w.server == nil {
		return
	}
	_ = w.server.Close()
	w.alive.Wait()
	w.server = nil
}

func (w *web) answer(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/mirror" {
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(rw, "hello from %s\n", w.who)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxBody))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = rw.Write(body) // a client that has gone needs no answer
}

// countingListener counts the bytes of its connections.
type countingListener struct {
	net.Listener
	count *served
}

func (l countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{conn, l.count}, nil
}

type countingConn struct {
	net.Conn
	count *served
}

func (c countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.count.in.Add(uint64(n))
	return n, err
}

func (c countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.count.out.Add(uint64(n))
	return n, err
}

// echo is a UDP origin: it sends back what it hears, with its name before it.
type echo struct {
	who  string
	at   string // its socket of this machine
	conn net.PacketConn
	done chan struct{}
}

func newEcho(address, network string, count *served) (*echo, error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the origin %s in %s: %w", address, network, err)
	}
	e := &echo{who: address + " in " + network, at: conn.LocalAddr().String(), conn: conn, done: make(chan struct{})}
	go e.serve(count)
	return e, nil
}

func (e *echo) serve(count *served) {
	defer close(e.done)
	b := make([]byte, 1<<16)
	for {
		n, from, err := e.conn.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue // of one datagram
		}
		count.in.Add(uint64(n))
		n, _ = e.conn.WriteTo(fmt.Appendf(nil, "%s heard: %s", e.who, b[:n]), from)
		count.out.Add(uint64(n))
	}
}

func (e *echo) stop() {
	_ = e.conn.Close()
	<-e.done
}
