package check

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/netstack/netx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernel dials this machine's sockets, and knows those that are still open and
// those that were closed in order.
type kernel struct {
	mu     sync.Mutex
	open   int
	closed int
	dials  int
	ping   func(ctx context.Context, addr netip.Addr) error
}

func (k *kernel) Dial(ctx context.Context, proto string, addr netip.AddrPort) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, proto, addr.String())
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dials++
	if err != nil {
		if known := netx.Classify(err); known != nil {
			return nil, fmt.Errorf("dialling %q: %w", addr, known)
		}
		return nil, err
	}
	k.open++
	return &counted{Conn: conn, k: k, proto: proto}, nil
}

func (k *kernel) Ping(ctx context.Context, addr netip.Addr) error { return k.ping(ctx, addr) }

// counted is a conn that tells how it ended.
type counted struct {
	net.Conn
	k     *kernel
	proto string
	once  sync.Once
}

func (c *counted) Abort() { c.end(false) }

func (c *counted) Close() error {
	c.end(c.proto == "tcp")
	return nil
}

func (c *counted) end(inOrder bool) {
	c.once.Do(func() {
		c.k.mu.Lock()
		c.k.open--
		if inOrder {
			c.k.closed++
		}
		c.k.mu.Unlock()
		netx.Abort(c.Conn)
	})
}

// serve listens on the loopback and runs f, which ends when the conn does, for
// each conn.
func serve(t testing.TB, f func(conn net.Conn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				f(conn)
			})
		}
	})
	t.Cleanup(func() {
		stop()
		ln.Close()
		all.Wait()
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// serveUDP answers each datagram with what f returns, but for nil.
func serveUDP(t testing.TB, f func(question []byte) [][]byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, answer := range f(buf[:n]) {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// says sends text, once something has come if ask, and waits for the end.
func says(ask bool, text string) func(net.Conn) {
	return func(conn net.Conn) {
		if ask {
			_, _ = conn.Read(make([]byte, 4096))
		}
		_, _ = io.WriteString(conn, text)
		_, _ = io.Copy(io.Discard, conn)
	}
}

// closes sends text once something has come, and ends.
func closes(text string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = io.WriteString(conn, text)
	}
}

// endless sends text again and again, once something has come.
func endless(head, text string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 4096))
		_, err := io.WriteString(conn, head)
		for err == nil {
			_, err = io.WriteString(conn, text)
		}
	}
}

// closedPort is an address where nobody listens.
func closedPort(t testing.TB) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// tries runs a check and proves that it left nothing behind.
func tries(t testing.TB, k *kernel, spec Spec, addr netip.AddrPort, timeout time.Duration) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	r := Run(ctx, k, addr, &spec)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open != 0 || k.closed != 0 {
		t.Errorf("%d conns left open, %d closed in order; want every one aborted", k.open, k.closed)
	}
	if (r.Err != nil) && r.RTT != 0 {
		t.Errorf("a failure with RTT %v", r.RTT)
	}
	return r
}
