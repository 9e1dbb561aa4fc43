package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

func TestMain(m *testing.M) {
	os.Exit(Main(func() int {
		code := m.Run()
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString("netns: " + err.Error() + "\n")
			return 1
		}
		return code
	}))
}

// pair is two hosts and a router between them:
//
//	left 192.0.2.2 — 192.0.2.1 router 198.51.100.1 — 198.51.100.2 right
type pair struct {
	left, router, right *Host
	cable               *Link // right's
}

func newPair(t *testing.T) pair {
	lab := New(t)
	p := pair{left: lab.Host("left"), router: lab.Host("router"), right: lab.Host("right")}
	lab.Link(p.left, "eth0", p.router, "left")
	p.cable = lab.Link(p.right, "eth0", p.router, "right")
	p.router.Forward()
	p.router.IP("address add 192.0.2.1/24 dev left", "address add 198.51.100.1/24 dev right")
	p.left.IP("address add 192.0.2.2/24 dev eth0", "route add default via 192.0.2.1")
	p.right.IP("address add 198.51.100.2/24 dev eth0", "route add default via 198.51.100.1")
	return p
}

// serveEcho sends back what comes, until the test ends.
func serveEcho(t *testing.T, h *Host, address string) {
	t.Helper()
	ln, err := h.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
}

func roundTrip(ctx context.Context, h *Host, address, text string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := h.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	if _, err := conn.Write([]byte(text)); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err == nil && string(got) != text {
		return errors.New("echo is " + string(got))
	}
	return err
}

func TestHostsSpeakOverARouter(t *testing.T) {
	p := newPair(t)
	serveEcho(t, p.right, "198.51.100.2:7")
	if err := roundTrip(t.Context(), p.left, "198.51.100.2:7", "hello"); err != nil {
		t.Fatal(err)
	}
}

// The same address lives twice, and each side meets its own.
func TestHostsDoNotMix(t *testing.T) {
	lab := New(t)
	for _, site := range []string{"one", "two"} {
		host := lab.Host(site)
		host.IP("address add 10.0.0.10/24 dev lo")
		serveEcho(t, host, "10.0.0.10:80")
		if err := roundTrip(t.Context(), host, "10.0.0.10:80", site); err != nil {
			t.Errorf("on %q: %v", site, err)
		}
	}
	// And the test's own namespace has neither.
	if conn, err := net.Dial("tcp", "10.0.0.10:80"); err == nil {
		conn.Close()
		t.Error("the address of a host answers outside of it")
	}
}

// Nothing leads out: the test binary itself sees a loopback and nothing else.
func TestNothingLeadsOut(t *testing.T) {
	Require(t)
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			t.Errorf("interface %s is up", i.Name)
		}
	}
	conn, err := net.DialTimeout("udp", "192.0.2.99:9", time.Second)
	if err == nil {
		conn.Close()
		t.Error("there is a route out of the namespace")
	}
}

func TestCablePulledAndPutBack(t *testing.T) {
	p := newPair(t)
	serveEcho(t, p.right, "198.51.100.2:7")
	p.cable.Down()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := roundTrip(ctx, p.left, "198.51.100.2:7", "lost"); err == nil {
		t.Fatal("a cable that is down carries data")
	}
	p.cable.Up()
	if err := proc.Poll(t.Context(), func() error {
		return roundTrip(t.Context(), p.left, "198.51.100.2:7", "back")
	}); err != nil {
		t.Fatal(err)
	}
}

func TestFilterDropsAndCounts(t *testing.T) {
	p := newPair(t)
	serveEcho(t, p.right, "198.51.100.2:7")
	p.router.Filter("cut", `
		counter lost { }
		chain forward {
			type filter hook forward priority 0
			ip daddr 198.51.100.2 counter name lost drop
		}`)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := roundTrip(ctx, p.left, "198.51.100.2:7", "lost"); err == nil {
		t.Fatal("a dropped packet arrived")
	}
	if packets, bytes := p.router.Counter("cut", "lost"); packets == 0 || bytes == 0 {
		t.Errorf("the counter has seen %d packets, %d bytes", packets, bytes)
	}
	p.router.Filter("cut", "")
	if err := roundTrip(t.Context(), p.left, "198.51.100.2:7", "back"); err != nil {
		t.Fatal(err)
	}
}

// A run of datagrams that its sender's kernel is to cut crosses a cable in one
// piece, unless the cable carries frames.
func TestFramesAreWhatARouterSees(t *testing.T) {
	p := newPair(t)
	sink, err := p.left.ListenPacket(t.Context(), "udp", "192.0.2.2:9") // or its host answers that nobody is there
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	conn, err := p.right.Dial(t.Context(), "udp", "192.0.2.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	for _, test := range []struct {
		name    string
		prepare func()
		packets uint64
	}{
		{"in one piece", func() {}, 1},
		{"in frames", p.cable.Frames, 8},
	} {
		test.prepare()
		p.router.Filter("seen", `
			counter seen { }
			chain forward {
				type filter hook forward priority 0
				ip daddr 192.0.2.2 counter name seen
			}`)
		if _, err := conn.Write(make([]byte, 8000)); err != nil {
			t.Fatal(err)
		}
		// veth hands over in the sender's own call, or a softirq later.
		for start := time.Now(); ; time.Sleep(time.Millisecond) {
			packets, _ := p.router.Counter("seen", "seen")
			if packets == test.packets {
				break
			}
			if packets > test.packets || time.Since(start) > 5*time.Second {
				t.Errorf("%s: the router has seen %d packets, want %d", test.name, packets, test.packets)
				break
			}
		}
	}
}

// A process on a host sees that host's addresses, as an ordinary person too.
func TestProcessesRunOnTheirHost(t *testing.T) {
	p := newPair(t)
	ip := require.Tool(t, "ip", "iproute2")
	for _, ordinary := range []bool{false, true} {
		spec := proc.Spec{Path: ip, Args: []string{"-o", "-4", "address"}}
		if ordinary {
			spec.Attr, _, _ = Ordinary()
		}
		out := proc.Must(t, p.left, spec)
		if !strings.Contains(out, "192.0.2.2/24") || strings.Contains(out, "198.51.100.2/24") {
			t.Errorf("ordinary=%v: the process sees %q", ordinary, out)
		}
	}
	id := require.Tool(t, "id", "coreutils")
	attr, _, _ := Ordinary()
	if out := proc.Must(t, p.left, proc.Spec{Path: id, Args: []string{"-u"}, Attr: attr}); strings.TrimSpace(out) == "0" {
		t.Error("an ordinary process is root")
	}
}

// A test binary that panics in the middle leaves neither files nor processes.
// This test is its own victim: a re-run of the binary that panics.
func TestNothingIsLeftAfterAPanic(t *testing.T) {
	const victim, place = "WARREN_NETNS_VICTIM", "TMPDIR"
	if os.Getenv(victim) != "" {
		lab := New(t)
		dir := Directory(t, "left")
		proc.Start(t, lab.Host("a"), proc.Spec{Path: require.Tool(t, "sleep", "coreutils"), Args: []string{os.Getenv(victim)}, Dir: dir})
		panic("on purpose")
	}
	Require(t)
	dir := t.TempDir()
	// A number of seconds that no other process sleeps marks the orphan.
	mark := fmt.Sprint(1_000_000 + os.Getpid())
	out, err := proc.Run(t.Context(), proc.Here{}, proc.Spec{Path: "/proc/self/exe", Args: []string{"-test.run=^" + t.Name() + "$"},
		Env: []string{envStage + "=", victim + "=" + mark, place + "=" + dir}})
	if err == nil || !strings.Contains(out, "on purpose") {
		t.Fatalf("the victim did not panic: %v\n%s", err, out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range commands {
		if line, _ := os.ReadFile(name); strings.Contains(string(line), mark) {
			t.Errorf("a process is left: %s", name)
		}
	}
}

func TestDialRefusesNames(t *testing.T) {
	lab := New(t)
	if _, err := lab.Host("a").Dial(t.Context(), "tcp", "localhost:80"); err == nil {
		t.Error("a name was dialled")
	}
}
