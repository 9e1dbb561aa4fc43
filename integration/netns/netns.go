// Package netns makes hosts in network namespaces for tests, with cables
// between them, out of nothing but the test binary and iproute2.
//
// TestMain hands m.Run to Main, which runs the test binary again in a network
// of its own. There a test calls New, adds Hosts, joins them with Links and
// gives them addresses; processes start on a Host, and the test's own sockets
// can be opened there (Dial, Listen). Everything ends with the test; what a
// crash leaves, the kernel removes with the namespaces.
//
// Nothing that runs here can reach the machine's network: no link leads out.
// The package must never touch the namespace that the machine itself uses,
// and without Main it refuses to make a host.
package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/require"
)

// Lab is a set of hosts that live and die together.
type Lab struct {
	tb    require.TB
	hosts map[string]*Host
}

// New makes an empty lab that ends with the test, and ends the test where the
// machine does not allow namespaces.
func New(tb require.TB) *Lab {
	tb.Helper()
	Require(tb)
	lab := &Lab{tb: tb, hosts: map[string]*Host{}}
	tb.Cleanup(lab.close)
	return lab
}

func (l *Lab) close() {
	for _, h := range l.hosts {
		h.ns.Close()
		h.home.Close()
	}
}

// Host is a network namespace. It satisfies proc.Place.
type Host struct {
	lab  *Lab
	name string
	ns   *os.File // the namespace; open for as long as the host lives
	home *os.File // the namespace that this process came from
}

// Host makes a host with nothing but a loopback.
func (l *Lab) Host(name string) *Host {
	l.tb.Helper()
	h, err := l.newHost(name)
	if err != nil {
		l.tb.Fatalf("making host %q: %v", name, err)
	}
	return h
}

func (l *Lab) newHost(name string) (*Host, error) {
	if l.hosts[name] != nil {
		return nil, fmt.Errorf("there is a host %q already", name)
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	h := &Host{lab: l, name: name, home: home}
	err = h.away(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		if h.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return settleNetwork()
	})
	if err != nil {
		home.Close()
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	l.hosts[name] = h
	return h, nil
}

// Name is the host's name.
func (h *Host) Name() string { return h.name }

// Do calls f on a thread that is on this host: sockets that f makes belong to
// it for good, processes that f starts run there. f must not hand work to
// other goroutines and expect it to be on the host too.
func (h *Host) Do(f func() error) error {
	return h.away(func() error { return unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET) }, f)
}

// away moves this thread to another namespace with enter, calls f there, and
// moves back. A thread that cannot be moved back dies with its goroutine.
func (h *Host) away(enter, f func() error) (err error) {
	runtime.LockOSThread()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering host %q: %w", h.name, err)
	}
	defer func() {
		if back := unix.Setns(int(h.home.Fd()), unix.CLONE_NEWNET); back != nil {
			panic(fmt.Sprintf("netns: a thread cannot leave host %q: %v", h.name, back))
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// Start starts a command on the host.
func (h *Host) Start(cmd *exec.Cmd) error { return h.Do(cmd.Start) }

// Dial opens a connection from the host, as net.Dialer does. address must be
// literal: no resolver is asked.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dialling %q from host %q: %w", address, h.name, err)
	}
	err = h.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on the host for streams.
func (h *Host) Listen(ctx context.Context, network, address string) (ln net.Listener, err error) {
	err = h.Do(func() error {
		ln, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return ln, err
}

// ListenPacket listens on the host for datagrams.
func (h *Host) ListenPacket(ctx context.Context, network, address string) (pc net.PacketConn, err error) {
	err = h.Do(func() error {
		pc, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	return pc, err
}

// IP runs lines of ip(8) on the host, each without the leading "ip", and fails
// the test where one is refused.
func (h *Host) IP(lines ...string) {
	h.lab.tb.Helper()
	if err := h.Do(func() error { return ip(lines...) }); err != nil {
		h.lab.tb.Fatalf("on host %q: %v", h.name, err)
	}
}

// Sysctl sets a kernel parameter of the host's network, "net/ipv4/ip_forward".
func (h *Host) Sysctl(name, value string) {
	h.lab.tb.Helper()
	if err := h.Do(func() error { return sysctl(name, value) }); err != nil {
		h.lab.tb.Fatalf("on host %q: %v", h.name, err)
	}
}

// Forward makes the host a router.
func (h *Host) Forward() {
	h.lab.tb.Helper()
	h.Sysctl("net/ipv4/ip_forward", "1")
	h.Sysctl("net/ipv6/conf/all/forwarding", "1")
}

// ip runs ip(8) on the calling thread's namespace.
func ip(lines ...string) error {
	path, ok := require.Find("ip")
	if !ok {
		return fmt.Errorf(`no program "ip" (Debian package iproute2)`)
	}
	cmd := exec.Command(path, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %q: %w: %s", lines, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// sysctl writes a parameter of the calling thread's namespace: /proc/sys/net
// shows the namespace of whoever opens it.
func sysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("setting %s: %w", name, err)
	}
	return nil
}
