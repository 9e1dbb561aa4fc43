package ping

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/require"
)

const groupRange = "/proc/sys/net/ipv4/ping_group_range"

// inNamespace runs f on a thread that has a network namespace to itself, with
// nothing but its loopback. The thread ends with f. f returns what the machine
// lacks for it, since the test can be ended here alone.
func inNamespace(t *testing.T, f func() (missing string)) {
	t.Helper()
	missing := make(chan string)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is spoilt for others
		if err := newNamespace(); err != nil {
			missing <- fmt.Sprintf("the right to make a network namespace (root): %v", err)
			return
		}
		missing <- f()
	}()
	if what := <-missing; what != "" {
		require.Missing(t, "%s", what)
	}
}

// newNamespace takes this thread to a network namespace of its own.
func newNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
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
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// allowGroups sets who may ping without a privilege, in this thread's namespace.
func allowGroups(t *testing.T, groups string) {
	t.Helper()
	if err := os.WriteFile(groupRange, []byte(groups), 0); err != nil {
		t.Errorf("setting %s: %v", groupRange, err)
	}
}

// dropRaw takes CAP_NET_RAW from this thread.
func dropRaw(t *testing.T) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		t.Error(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_RAW
	if err := unix.Capset(&head, &data[0]); err != nil {
		t.Error(err)
	}
}

// TestKernelPings: both kinds of socket, and what is said where there is
// neither.
func TestKernelPings(t *testing.T) {
	inNamespace(t, func() string {
		within, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		hosts := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.9.9.9"), netip.MustParseAddr("::1")}
		for _, kind := range []struct {
			name string
			open func(netip.Addr) (socket, error)
			set  func()
		}{
			{"raw", openRaw, func() { allowGroups(t, "1 0") }},
			{"unprivileged", openUnprivileged, func() { allowGroups(t, "0 2147483647"); dropRaw(t) }},
		} {
			kind.set()
			for _, dst := range hosts {
				s, err := kind.open(dst)
				if err != nil {
					t.Errorf("%s: %s: %v", kind.name, dst, err)
					continue
				}
				_ = s.Close()
				if rtt, err := Send(within, dst); err != nil || rtt <= 0 {
					t.Errorf("%s: pinging %s: %v, %v", kind.name, dst, rtt, err)
				}
			}
			for _, dst := range []string{"10.0.0.10", "fd00::10"} { // no route but to lo
				if _, err := Send(within, netip.MustParseAddr(dst)); !errors.Is(err, syscall.ENETUNREACH) {
					t.Errorf("%s: pinging %s: %v", kind.name, dst, err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := Send(ctx, hosts[0]); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: canceled: %v", kind.name, err)
			}
		}
		allowGroups(t, "1 0")
		for _, dst := range hosts {
			if _, err := Send(within, dst); !errors.Is(err, ErrForbidden) {
				t.Errorf("without a right to ping: %v", err)
			}
		}
		return ""
	})
}

// TestKernelPingsHearRouters: what a router says ends a ping at once, through
// either kind of socket.
func TestKernelPingsHearRouters(t *testing.T) {
	nft := require.Tool(t, "nft", "nftables")
	inNamespace(t, func() string {
		allowGroups(t, "0 2147483647")
		reject := exec.Command(nft, "-f", "-") // a thread's namespace is its children's
		reject.Stdin = strings.NewReader(`
			table ip routers { chain input { type filter hook input priority 0
				ip daddr 127.9.9.8 icmp type echo-request reject with icmp type host-unreachable
			}
			}
			table ip6 routers { chain input { type filter hook input priority 0
				ip6 daddr ::1 icmpv6 type echo-request reject with icmpv6 type addr-unreachable
			}
			}`)
		if out, err := reject.CombinedOutput(); err != nil {
			return fmt.Sprintf("a kernel with nftables: %v: %s", err, out)
		}
		for name, open := range map[string]func(netip.Addr) (socket, error){"raw": openRaw, "unprivileged": openUnprivileged} {
			for _, dst := range []string{"127.9.9.8", "::1"} {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				_, err := sendThrough(ctx, netip.MustParseAddr(dst), open)
				cancel()
				if !errors.Is(err, syscall.EHOSTUNREACH) {
					t.Errorf("%s: pinging %s: %v", name, dst, err)
				}
			}
		}
		return ""
	})
}
