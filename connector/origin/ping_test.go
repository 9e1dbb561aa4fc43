package origin

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/netstack/netx"
)

// fakePinger answers by address: an error, or silence until ctx ends.
type fakePinger struct {
	errs   map[string]error
	silent map[string]bool
	mu     sync.Mutex
	asked  []netip.Addr
}

func (f *fakePinger) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	f.mu.Lock()
	f.asked = append(f.asked, dst)
	f.mu.Unlock()
	if f.silent[dst.String()] {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if err := f.errs[dst.String()]; err != nil {
		return 0, err
	}
	return time.Millisecond, nil
}

func TestPing(t *testing.T) {
	tests := []struct {
		name, dst string
		err       error
		is        []error // of the error; empty: it works
		message   string
	}{
		{name: "there", dst: "10.0.0.10"},
		{name: "there, IPv6", dst: "fd00::10"},
		{name: "mapped", dst: "::ffff:10.0.0.10"},
		{name: "unreachable", dst: "10.0.0.10", err: os.NewSyscallError("recvfrom", syscall.EHOSTUNREACH), is: []error{netx.ErrUnreachable, syscall.EHOSTUNREACH},
			message: `pinging "10.0.0.10": recvfrom: no route to host`},
		{name: "refused", dst: "10.0.0.10", err: syscall.ECONNREFUSED, is: []error{netx.ErrUnreachable, syscall.ECONNREFUSED}},
		{name: "forbidden", dst: "10.0.0.10", err: ErrPingForbidden, is: []error{netx.ErrUnreachable, ErrPingForbidden}, message: "ping_group_range"},
		{name: "a firewall", dst: "10.0.0.10", err: os.NewSyscallError("sendto", syscall.EPERM), is: []error{netx.ErrUnreachable, syscall.EPERM}},
		{name: "no descriptor", dst: "10.0.0.10", err: os.NewSyscallError("socket", syscall.EMFILE), is: []error{netx.ErrUnreachable, ErrDescriptors}, message: "LimitNOFILE="},
		{name: "a zone", dst: "fe80::1%eth0", is: []error{netx.ErrUnreachable}, message: "one host"},
		{name: "multicast", dst: "224.0.0.1", is: []error{netx.ErrUnreachable}, message: "one host"},
		{name: "unspecified", dst: "::", is: []error{netx.ErrUnreachable}, message: "one host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dst := netip.MustParseAddr(tt.dst)
			f := &fakePinger{errs: map[string]error{dst.Unmap().String(): tt.err}}
			rtt, err := New(Spec{}, Deps{Guard: guard.New(guard.Spec{}), Pinger: f}).Ping(t.Context(), dst)
			if len(tt.is) == 0 && (err != nil || rtt != time.Millisecond || f.asked[0] != dst.Unmap()) {
				t.Fatalf("%v, %v, asked of %v", rtt, err, f.asked)
			}
			for _, is := range tt.is {
				if !errors.Is(err, is) {
					t.Errorf("%v is no %v", err, is)
				}
			}
			if errors.Is(err, netx.ErrRefused) {
				t.Errorf("%v: a ping was refused", err)
			}
			if err != nil && !strings.Contains(err.Error(), tt.message) {
				t.Errorf("%q lacks %q", err, tt.message)
			}
		})
	}
}

func TestPingIsBoundedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePinger{silent: map[string]bool{"10.0.0.10": true}}
		d := New(Spec{Timeout: 3 * time.Second}, Deps{Pinger: f})
		begin := time.Now()
		if _, err := d.Ping(t.Context(), netip.MustParseAddr("10.0.0.10")); !errors.Is(err, netx.ErrTimedOut) || time.Since(begin) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.Ping(ctx, netip.MustParseAddr("10.0.0.10")); !errors.Is(err, context.Canceled) || netx.Classify(err) != nil {
			t.Errorf("canceled: %v", err)
		}
	})
}

func TestPingsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePinger{silent: map[string]bool{"10.0.0.10": true}}
		d := New(Spec{}, Deps{Pinger: f})
		ctx, cancel := context.WithCancel(t.Context())
		var pinging sync.WaitGroup
		for range MaxPings {
			pinging.Go(func() { _, _ = d.Ping(ctx, netip.MustParseAddr("10.0.0.10")) })
		}
		synctest.Wait()
		if _, err := d.Ping(ctx, netip.MustParseAddr("10.0.0.11")); !errors.Is(err, ErrTooManyPings) || !errors.Is(err, netx.ErrUnreachable) {
			t.Errorf("one too many: %v", err)
		}
		cancel()
		pinging.Wait()
		if _, err := d.Ping(t.Context(), netip.MustParseAddr("10.0.0.11")); err != nil {
			t.Errorf("after they ended: %v", err)
		}
	})
}

// fakeSocket says of itself what ident does.
type fakeSocket struct {
	pingSocket
	id      uint16
	checked bool
}

func (s fakeSocket) ident() (uint16, bool) { return s.id, s.checked }

func TestReplies(t *testing.T) {
	for _, dst := range []string{"10.0.0.10", "fd00::10"} {
		for _, checked := range []bool{false, true} {
			p := newPing(netip.MustParseAddr(dst), fakeSocket{id: 7, checked: checked})
			good := icmp.Message{Type: ipv6.ICMPTypeEchoReply, Body: &icmp.Echo{ID: 7, Seq: int(p.seq), Data: p.data[:]}}
			if p.dst.Is4() {
				good.Type = ipv4.ICMPTypeEchoReply
			}
			marshal := func(change func(m *icmp.Message, e *icmp.Echo)) []byte {
				m, e := good, *good.Body.(*icmp.Echo)
				e.Data = append([]byte(nil), e.Data...)
				m.Body = &e
				change(&m, &e)
				b, err := m.Marshal(nil)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			whole := marshal(func(*icmp.Message, *icmp.Echo) {})
			if !p.answeredBy(whole, p.dst) {
				t.Errorf("%s: its reply is none", dst)
			}
			for n := range whole {
				if p.answeredBy(whole[:n], p.dst) {
					t.Errorf("%s: %d of %d bytes are a reply", dst, n, len(whole))
				}
			}
			for name, b := range map[string][]byte{
				"sequence number": marshal(func(_ *icmp.Message, e *icmp.Echo) { e.Seq ^= 1 }),
				"data":            marshal(func(_ *icmp.Message, e *icmp.Echo) { e.Data[55]++ }),
				"length":          marshal(func(_ *icmp.Message, e *icmp.Echo) { e.Data = append(e.Data, 0) }),
				"code":            marshal(func(m *icmp.Message, _ *icmp.Echo) { m.Code = 1 }),
				"request":         request(t, p),
			} {
				if p.answeredBy(b, p.dst) {
					t.Errorf("%s: with another %s it is a reply", dst, name)
				}
			}
			if p.answeredBy(marshal(func(_ *icmp.Message, e *icmp.Echo) { e.ID++ }), p.dst) != checked {
				t.Errorf("%s: another identifier where the kernel checks it: %v", dst, checked)
			}
			if p.answeredBy(whole, p.dst.Next()) {
				t.Errorf("%s: its neighbour answers for it", dst)
			}
		}
	}
}

func request(t *testing.T, p *ping) []byte {
	t.Helper()
	b, err := p.request()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzReply(f *testing.F) {
	p4 := newPing(netip.MustParseAddr("10.0.0.10"), fakeSocket{id: 7})
	p6 := newPing(netip.MustParseAddr("fd00::10"), fakeSocket{id: 7})
	for _, p := range []*ping{p4, p6} {
		b, err := p.request()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		b[0]++ // ICMPv6's reply
		f.Add(b)
		b[0] = 0 // ICMP's
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range []*ping{p4, p6} {
			if p.answeredBy(b, p.dst) && (len(b) != 8+pingDataLen || string(b[8:]) != string(p.data[:])) {
				t.Errorf("%d bytes without its data are a reply", len(b))
			}
		}
	})
}

// Errors of opening are told apart from those of a socket that is there.
func TestForbidden(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{os.NewSyscallError("socket", syscall.EACCES), true},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EPERM)}, true},
		{os.NewSyscallError("socket", syscall.EPROTONOSUPPORT), true},
		{errUnsupported, true},
		{os.NewSyscallError("socket", syscall.EMFILE), false},
		{os.NewSyscallError("connect", syscall.EACCES), false},
		{syscall.EPERM, false},
	} {
		if got := forbidden(tc.err); got != tc.want {
			t.Errorf("forbidden(%v) = %v", tc.err, got)
		}
	}
}
