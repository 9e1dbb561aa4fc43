package public

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/require"
	"github.com/warrenmesh/warren/netstack/netx"
)

// inNamespace runs f on a thread with a network of its own, whose loopback is
// up and whose groups may send pings as groups says. The thread dies with it.
func inNamespace(t *testing.T, groups string, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		err := enter(groups)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		require.Missing(t, "a network namespace with ping sockets: %v", err)
	}
}

func enter(groups string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(groups), 0o644)
}

func TestPing(t *testing.T) {
	spec := Spec{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("10.0.0.0/8")}}
	d := New(spec)
	inNamespace(t, "0 2147483647", func() {
		for _, a := range []string{"127.0.0.1", "::ffff:127.0.0.2", "::1"} {
			if err := d.Ping(t.Context(), netip.MustParseAddr(a)); err != nil {
				t.Error(err)
			}
		}
		if err := d.Ping(t.Context(), netip.MustParseAddr("10.0.0.1")); !errors.Is(err, netx.ErrUnreachable) {
			t.Errorf("without a route: %v", err)
		}
		if err := d.Ping(t.Context(), netip.MustParseAddr("192.168.0.1")); !errors.Is(err, ErrNotPublic) {
			t.Errorf("err = %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.Ping(ctx, netip.MustParseAddr("127.0.0.1")); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
		silent(t)
	})
}

// silent pings when nobody answers.
func silent(t *testing.T) {
	if err := os.WriteFile("/proc/sys/net/ipv4/icmp_echo_ignore_all", []byte("1"), 0o644); err != nil {
		t.Error(err)
		return
	}
	d := New(Spec{Allow: loopback.Allow, Timeout: 50 * time.Millisecond})
	if err := d.Ping(t.Context(), netip.MustParseAddr("127.0.0.1")); !errors.Is(err, netx.ErrTimedOut) {
		t.Errorf("silence: %v", err)
	}
}

func TestPingUnsupported(t *testing.T) {
	d := New(loopback)
	inNamespace(t, "1 0", func() {
		if err := d.Ping(t.Context(), netip.MustParseAddr("127.0.0.1")); !errors.Is(err, ErrPingUnsupported) || !errors.Is(err, netx.ErrUnreachable) {
			t.Errorf("err = %v", err)
		}
	})
}
