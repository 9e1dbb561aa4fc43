package check

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// canned is an endpoint that costs nothing: it accepts, and has answered.
type canned struct {
	net.Conn
	answer string
	conn   cannedConn
}

type cannedConn struct {
	net.Conn
	left string
}

func (c *canned) Dial(context.Context, string, netip.AddrPort) (net.Conn, error) {
	c.conn.left = c.answer
	return &c.conn, nil
}
func (c *canned) Ping(context.Context, netip.Addr) error { return nil }

func (c *cannedConn) Read(p []byte) (int, error) {
	if c.left == "" {
		return 0, io.EOF
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}
func (c *cannedConn) Write(p []byte) (int, error)     { return len(p), nil }
func (c *cannedConn) SetDeadline(time.Time) error     { return nil }
func (c *cannedConn) SetReadDeadline(time.Time) error { return nil }
func (c *cannedConn) Abort()                          {}

var costs = []struct {
	name   string
	spec   Spec
	answer string
	allocs float64 // at most
}{
	{"tcp", Spec{}, "", 0},
	{"expect", Spec{Send: "PING\r\n", Expect: "PONG"}, "+PONG\r\n", 8},
	{"postgres", Spec{Type: TypePostgres}, "N", 9},
	{"udp", Spec{Type: TypeUDP, Send: "a", Expect: "b"}, "b", 10},
	{"icmp", Spec{Type: TypeICMP}, "", 0},
	{"http", Spec{Type: TypeHTTP, Path: "/health", Host: "www.example.com"},
		"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 02 Mar 2026 12:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", 25},
	{"http body", Spec{Type: TypeHTTP, ExpectedBody: "ok"},
		"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok", 28},
}

func TestAllocations(t *testing.T) {
	addr := netip.MustParseAddrPort("10.0.0.10:80")
	for _, tt := range costs {
		c, err := New(tt.spec)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		d := &canned{answer: tt.answer}
		got := testing.AllocsPerRun(200, func() {
			if r := c.Run(ctx, d, addr); r.Err != nil {
				t.Fatal(r.Err)
			}
		})
		cancel()
		if got > tt.allocs {
			t.Errorf("a check of type %s makes %v allocations, want at most %v", tt.name, got, tt.allocs)
		}
	}
}

func BenchmarkRun(b *testing.B) {
	addr := netip.MustParseAddrPort("10.0.0.10:80")
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	for _, tt := range costs {
		b.Run(tt.name, func(b *testing.B) {
			c, err := New(tt.spec)
			if err != nil {
				b.Fatal(err)
			}
			d := &canned{answer: tt.answer}
			b.ReportAllocs()
			for b.Loop() {
				if r := c.Run(ctx, d, addr); r.Err != nil {
					b.Fatal(r.Err)
				}
			}
		})
	}
}

// BenchmarkKernel is a whole check over this machine's loopback.
func BenchmarkKernel(b *testing.B) {
	addr := serve(b, page("HTTP/1.1 200 OK\r\n\r\nok"))
	for _, kind := range []string{TypeTCP, TypeHTTP} {
		b.Run(kind, func(b *testing.B) {
			c, err := New(Spec{Type: kind})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				ctx, cancel := context.WithTimeout(b.Context(), time.Second)
				if r := c.Run(ctx, new(kernel), addr); r.Err != nil {
					b.Fatal(r.Err)
				}
				cancel()
			}
		})
	}
}
