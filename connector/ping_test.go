package connector

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/netstack/netx"
)

// fakePinger answers by address: with an error, or with silence. An address
// that it does not know is there.
type fakePinger struct {
	errs map[string]error

	mu    sync.Mutex
	asked []string
}

var errSilent = errors.New("silent")

func (f *fakePinger) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	f.mu.Lock()
	f.asked = append(f.asked, dst.String())
	f.mu.Unlock()
	err := f.errs[dst.String()]
	if err == errSilent {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return time.Millisecond, err
}

func TestServePing(t *testing.T) {
	tests := []struct {
		name, dst string
		deny      string
		routes    []netip.Prefix // nil: no grant yet
		err       error          // of the host
		want      error          // nil: it is answered
		result    string
		unasked   bool // the host must not be pinged
		silent    bool // nothing is told of it to the edge
	}{
		{name: "there", dst: "10.0.0.10", result: resultOK},
		{name: "there, IPv6", dst: "fd00::10", result: resultOK},
		{name: "within the grant", dst: "10.0.0.10", routes: prefixes("10.0.0.0/8"), result: resultOK},
		{name: "outside the grant", dst: "10.0.0.10", routes: prefixes("10.1.0.0/16"), want: netx.ErrUnreachable, result: resultDenied, unasked: true},
		{name: "denied", dst: "10.0.0.10", deny: "tcp/10.0.0.0/24", want: netx.ErrUnreachable, result: resultDenied, unasked: true},
		{name: "a port of it denied", dst: "10.0.0.10", deny: "tcp/10.0.0.10:22", result: resultOK},
		{name: "loopback", dst: "127.0.0.1", want: netx.ErrUnreachable, result: resultDenied, unasked: true},
		{name: "metadata", dst: "169.254.169.254", want: netx.ErrUnreachable, result: resultDenied, unasked: true},
		{name: "unreachable", dst: "10.0.0.10", err: syscall.EHOSTUNREACH, want: netx.ErrUnreachable, result: resultUnreachable},
		{name: "silent", dst: "10.0.0.10", err: errSilent, want: netx.ErrTimedOut, result: resultTimeout},
		{name: "forbidden", dst: "10.0.0.10", err: origin.ErrPingForbidden, want: netx.ErrUnreachable, result: resultUnreachable},
		{name: "too many", dst: "10.0.0.10", err: origin.ErrTooManyPings, want: netx.ErrUnreachable, result: resultLimit, silent: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				f := &fakePinger{errs: map[string]error{tt.dst: tt.err}}
				b.deps.OriginPing = f
				if tt.deny != "" {
					r, err := guard.ParseRule(tt.deny)
					if err != nil {
						t.Fatal(err)
					}
					b.spec.Guard.Deny = append(b.spec.Guard.Deny, r)
				}
				b.start()
				p := b.join()
				e := b.c.edges[0]
				if tt.routes != nil {
					e.flows.restrict(newRoutes(tt.routes))
				}
				err := p.cfg.Ping(t.Context(), netip.MustParseAddr("100.127.0.1"), netip.MustParseAddr(tt.dst))
				if (err == nil) != (tt.want == nil) || netx.Classify(err) != tt.want {
					t.Errorf("%v, want %v", err, tt.want)
				}
				if asked := len(f.asked) > 0; asked == tt.unasked {
					t.Errorf("pinged %v", f.asked)
				}
				if n := b.c.count.dialCount("icmp", tt.result); n != 1 {
					t.Errorf("counted %d times as %s", n, tt.result)
				}
				told := e.failures.list()
				if tt.want == nil || tt.silent {
					if len(told) > 0 {
						t.Errorf("the edge is told %v", told)
					}
				} else if len(told) != 1 || told[0].Destination != "icmp/"+tt.dst || told[0].Result != tt.result {
					t.Errorf("the edge is told %v", told)
				}
				if lines := b.log.with("destination=" + tt.dst); (len(lines) == 1) != (tt.want != nil) {
					t.Errorf("logged %q", lines)
				}
				if err := b.finish(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A ping ends with the edge's flows, and none begins in a drain.
func TestPingsEndWithTheFlows(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.deps.OriginPing = &fakePinger{errs: map[string]error{"10.0.0.10": errSilent}}
		b.start()
		p := b.join()
		result := make(chan error, 1)
		ping := func() {
			result <- p.cfg.Ping(context.Background(), netip.MustParseAddr("100.127.0.1"), netip.MustParseAddr("10.0.0.10"))
		}
		go ping()
		synctest.Wait()
		begin := time.Now()
		b.c.edges[0].flows.cut(errLeft)
		if err := <-result; err == nil || time.Since(begin) > 0 {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		ping()
		if err := <-result; !errors.Is(err, errDraining) {
			t.Errorf("in a drain: %v", err)
		}
		b.c.edges[0].flows.resume()
		b.c.flows.drain()
		ping()
		if err := <-result; !errors.Is(err, errDraining) {
			t.Errorf("in the drain of all: %v", err)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}

// TestPingThroughTheTunnel: what an edge learns of hosts behind a connector.
func TestPingThroughTheTunnel(t *testing.T) {
	b := newRealBench(t)
	b.spec.Origin.Timeout = 100 * time.Millisecond
	f := &fakePinger{errs: map[string]error{
		"10.0.0.11": syscall.EHOSTUNREACH, "10.0.0.12": errSilent, "fd00::11": origin.ErrPingForbidden, "fd00::12": errSilent,
	}}
	b.deps.OriginPing = f
	rule, err := guard.ParseRule("udp/10.0.1.0/24")
	if err != nil {
		t.Fatal(err)
	}
	b.spec.Guard.Deny = append(b.spec.Guard.Deny, rule)
	e := startOne(t, b)
	for _, tc := range []struct {
		dst  string
		want error
	}{
		{"10.0.0.10", nil}, {"fd00::10", nil},
		{"10.0.0.11", netx.ErrUnreachable}, {"fd00::11", netx.ErrUnreachable},
		{"10.0.0.12", netx.ErrTimedOut}, {"fd00::12", netx.ErrTimedOut},
		{"10.0.1.1", netx.ErrUnreachable},
		{"192.0.2.1", netx.ErrNoRoute},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		rtt, p, err := e.net.Ping(ctx, netip.MustParseAddr(tc.dst))
		cancel()
		if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) || (err == nil) != (rtt > 0) || (p == nil) != (tc.want == netx.ErrNoRoute) {
			t.Errorf("pinging %s: %v, %v, want %v", tc.dst, rtt, err, tc.want)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, dst := range f.asked {
		if dst == "10.0.1.1" {
			t.Error("a host that the guard denies was pinged")
		}
	}
}
