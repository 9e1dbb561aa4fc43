package origin

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

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
