package connector

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/netstack/memnet"
	"github.com/warrenmesh/warren/netstack/netx"
)

// fakeRequest is what both kinds of request have in common.
type fakeRequest struct {
	dst netip.AddrPort
	ctx context.Context // nil: one that never ends

	mu       sync.Mutex
	rejected []error
	accepted int
}

func (r *fakeRequest) Context() context.Context {
	if r.ctx == nil {
		return context.Background()
	}
	return r.ctx
}

func (r *fakeRequest) Source() netip.AddrPort      { return netip.MustParseAddrPort("100.127.0.1:40000") }
func (r *fakeRequest) Destination() netip.AddrPort { return r.dst }

func (r *fakeRequest) Reject(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rejected = append(r.rejected, err)
}

// answers returns how often the request was answered.
func (r *fakeRequest) answers() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.rejected) + r.accepted
}

// verdict returns the one answer that the request got.
func (r *fakeRequest) verdict(t *testing.T) error {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rejected)+r.accepted != 1 {
		t.Fatalf("%v was rejected %d and accepted %d times", r.dst, len(r.rejected), r.accepted)
	}
	if r.accepted == 1 {
		return nil
	}
	return r.rejected[0]
}

// tcpRequest is a TCPRequest whose edge is the far end of a pipe.
type tcpRequest struct {
	fakeRequest
	gone error // what Accept fails with; nil: it does not
	edge *memnet.Conn
	conn *memnet.Conn
}

func newTCPRequest(dst string) *tcpRequest {
	r := &tcpRequest{fakeRequest: fakeRequest{dst: netip.MustParseAddrPort(dst)}}
	r.edge, r.conn = memnet.Pipe()
	return r
}

func (r *tcpRequest) Accept() (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accepted++
	if r.gone != nil {
		return nil, r.gone
	}
	return r.conn, nil
}

// udpRequest is a UDPRequest whose edge is the far end of a pipe.
type udpRequest struct {
	fakeRequest
	edge *memnet.UDPConn
	conn *udpConn
}

type udpConn struct {
	*memnet.UDPConn
	mu   sync.Mutex
	told []error
}

func (c *udpConn) Unreachable(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, err)
}

func newUDPRequest(dst string) *udpRequest {
	r := &udpRequest{fakeRequest: fakeRequest{dst: netip.MustParseAddrPort(dst)}}
	edge, conn := memnet.DatagramPipe()
	r.edge, r.conn = edge, &udpConn{UDPConn: conn}
	return r
}

func (r *udpRequest) Accept() (UDPConn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accepted++
	return r.conn, nil
}

// tcp gives the connector a connection, on a goroutine as the tunnel does.
func (b *bench) tcp(r *tcpRequest) (ended <-chan struct{}) { return b.tcpAt(testEdge, r) }

func (b *bench) dials(proto, result string) int {
	return int(b.c.count.dialCount(proto, result))
}

// echo serves an origin that sends everything back, until it is closed.
func (b *bench) echo(addr string) net.Listener {
	b.t.Helper()
	l, err := b.origins.Listen("tcp", netip.MustParseAddrPort(addr))
	if err != nil {
		b.t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l
}

func TestTCPCarriesBytes(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		l := b.echo("10.0.0.10:80")
		defer func() { _ = l.Close() }()
		b.start()
		b.join()
		r := newTCPRequest("10.0.0.10:80")
		ended := b.tcp(r)
		if err := r.verdict(t); err != nil {
			t.Fatal(err)
		}
		if b.c.Status().TCPFlows != 1 {
			t.Errorf("%d flows are live", b.c.Status().TCPFlows)
		}
		go func() {
			_, _ = io.WriteString(r.edge, "hello")
			_ = r.edge.CloseWrite()
		}()
		if got, err := io.ReadAll(r.edge); err != nil || string(got) != "hello" {
			t.Errorf("read %q, %v", got, err)
		}
		<-ended
		if b.c.Status().TCPFlows != 0 || b.dials("tcp", resultOK) != 1 {
			t.Errorf("%d flows are live, %d were dialled", b.c.Status().TCPFlows, b.dials("tcp", resultOK))
		}
		if to, from := b.c.count.toOrigin.Load(), b.c.count.fromOrigin.Load(); to != 5 || from != 5 {
			t.Errorf("counted %d bytes there and %d back", to, from)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestTCPFailures(t *testing.T) {
	const dst = "10.0.0.10:80"
	tests := []struct {
		name   string
		dst    string
		set    func(b *bench)
		want   error
		result string
		log    string
	}{
		{name: "refused", want: netx.ErrRefused, result: resultRefused, log: `dialling "tcp/10.0.0.10:80"`},
		{name: "unreachable", set: func(b *bench) { b.origins.FailDial(netip.MustParseAddrPort(dst), netx.ErrUnreachable) }, want: netx.ErrUnreachable, result: resultUnreachable},
		{name: "denied", set: func(b *bench) { b.spec.Guard.Deny = []guard.Rule{rule("tcp/10.0.0.10")} }, want: netx.ErrUnreachable, result: resultDenied, log: "[guard] deny has tcp/10.0.0.10"},
		{name: "not allowed", set: func(b *bench) { b.spec.Guard.Allow = []guard.Rule{rule("udp/10.0.0.10")} }, want: netx.ErrUnreachable, result: resultDenied},
		{name: "metadata", dst: "169.254.169.254:80", want: netx.ErrUnreachable, result: resultDenied, log: "metadata"},
		{name: "alias to nowhere", set: func(b *bench) { b.alias("tcp/"+dst, "none.example:80") }, want: netx.ErrUnreachable, result: resultResolve},
		{name: "alias to a name that means loopback", set: func(b *bench) {
			b.resolver.set("loop.example", "127.0.0.1")
			b.alias("tcp/"+dst, "loop.example:80")
		}, want: netx.ErrUnreachable, result: resultDenied},
		{name: "no descriptor", set: func(b *bench) { b.origins.FailDial(netip.MustParseAddrPort(dst), syscall.EMFILE) }, want: netx.ErrUnreachable, result: resultLimit, log: "LimitNOFILE="},
		{name: "no place", set: func(b *bench) { b.spec.MaxTCPFlows = 1 }, want: netx.ErrUnreachable, result: resultLimit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				if tt.set != nil {
					tt.set(b)
				}
				if tt.name == "no place" {
					l := b.echo("10.0.0.11:80")
					defer func() { _ = l.Close() }()
				}
				b.start()
				b.join()
				if tt.name == "no place" {
					other := newTCPRequest("10.0.0.11:80")
					ended := b.tcp(other)
					defer func() { <-ended }()
					defer other.edge.Abort()
				}
				if tt.dst == "" {
					tt.dst = dst
				}
				r := newTCPRequest(tt.dst)
				<-b.tcp(r)
				if err := r.verdict(t); netx.Classify(err) != tt.want {
					t.Errorf("answered %v, want %v", err, tt.want)
				}
				if b.dials("tcp", tt.result) != 1 {
					t.Errorf("%q was counted %d times", tt.result, b.dials("tcp", tt.result))
				}
				if got := b.log.with("flow failed"); len(got) != 1 || !strings.Contains(got[0], "reason="+tt.result) || !strings.Contains(got[0], tt.log) ||
					!strings.Contains(got[0], "destination="+tt.dst) {
					t.Errorf("the log says %q", got)
				}
				close(b.force)
				if err := b.finish(); (err != nil) != (tt.name == "no place") {
					t.Error(err)
				}
			})
		})
	}
}

// silence makes an origin drop what it is sent.
func (b *bench) silence(addr string) {
	b.origins.FailDial(netip.MustParseAddrPort(addr), memnet.ErrSilence)
}

func rule(s string) guard.Rule {
	r, err := guard.ParseRule(s)
	if err != nil {
		panic(err)
	}
	return r
}

// alias serves from by to.
func (b *bench) alias(from, to string) {
	b.t.Helper()
	var a origin.Alias
	if err := errors.Join(a.From.UnmarshalText([]byte(from)), a.To.UnmarshalText([]byte(to))); err != nil {
		b.t.Fatal(err)
	}
	b.spec.Origin.Aliases = append(b.spec.Origin.Aliases, a)
}

func TestSYNWaitsForTheOrigin(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.silence("10.0.0.10:80")
		b.start()
		b.join()
		r := newTCPRequest("10.0.0.10:80")
		start := time.Now()
		ended := b.tcp(r)
		time.Sleep(origin.DefaultTimeout - time.Millisecond)
		synctest.Wait()
		if r.answers() != 0 {
			t.Fatal("the SYN was answered before the origin was")
		}
		<-ended
		if err := r.verdict(t); netx.Classify(err) != netx.ErrTimedOut || time.Since(start) != origin.DefaultTimeout {
			t.Errorf("after %v answered %v", time.Since(start), err)
		}
		if b.dials("tcp", resultTimeout) != 1 {
			t.Error("the silence was not counted")
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestDialEndsWithItsEdge(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.silence("10.0.0.10:80")
		b.start()
		b.join()
		r := newTCPRequest("10.0.0.10:80")
		ctx, cancel := context.WithCancel(t.Context())
		r.ctx = ctx
		ended := b.tcp(r)
		start := time.Now()
		cancel()
		<-ended
		if time.Since(start) != 0 {
			t.Errorf("the dial went on for %v without its edge", time.Since(start))
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

func TestEdgeGoneBeforeAcceptEndsTheOrigin(t *testing.T) {
	for result, gone := range map[string]error{
		resultGone: fmt.Errorf("accepting: %w", syscall.ECONNREFUSED),
		resultOK:   fmt.Errorf("accepting: %w", syscall.ECONNRESET), // as a check does
	} {
		inBubble(t, func(t *testing.T, b *bench) {
			l, err := b.origins.Listen("tcp", netip.MustParseAddrPort("10.0.0.10:80"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			b.start()
			b.join()
			r := newTCPRequest("10.0.0.10:80")
			r.gone = gone
			<-b.tcp(r)
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("the origin reads %v, want a reset", err)
			}
			_ = c.Close()
			if b.dials("tcp", result) != 1 || b.c.Status().TCPFlows != 0 {
				t.Errorf("%v: counted %d, live %d", gone, b.dials("tcp", result), b.c.Status().TCPFlows)
			}
			if err := b.finish(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestScanDoesNotFillTheLog(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.start()
		b.join()
		for i := range 5000 {
			<-b.tcp(newTCPRequest(fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1)))
		}
		if n := len(b.log.with("flow failed")); n != failBurst {
			t.Errorf("%d lines for 5000 refused flows", n)
		}
		if n := b.dials("tcp", resultRefused); n != 5000 {
			t.Errorf("counted %d of 5000", n)
		}
		<-b.tcp(newTCPRequest("127.0.0.1:80")) // another reason has its own lines
		if n := len(b.log.with("reason=" + resultDenied)); n != 1 {
			t.Errorf("%d lines for another reason", n)
		}
		time.Sleep(time.Second)
		<-b.tcp(newTCPRequest("10.0.0.1:80"))
		if got := b.log.with("suppressed=4990"); len(got) != 1 {
			t.Errorf("the next line does not tell how many were left out: %q", b.log.with("suppressed"))
		}
		time.Sleep(time.Second)
		<-b.tcp(newTCPRequest("10.0.0.1:80"))
		if got := b.log.with("suppressed"); len(got) != 1 {
			t.Errorf("they are told twice: %q", got)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}
