package origin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/netstack/netx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNet answers dials by address: an error, or silence until ctx ends. An
// address that it does not know is connected.
type fakeNet struct {
	errs   map[string]error
	silent map[string]bool
	dialed []string
}

func (f *fakeNet) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	f.dialed = append(f.dialed, network+"/"+address)
	if f.silent[address] {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
	}
	if err := f.errs[address]; err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	near, far := net.Pipe()
	_ = far.Close()
	return near, nil
}

// fakeResolver answers names from a map; one that it lacks does not exist.
type fakeResolver map[string][]netip.Addr

func (f fakeResolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if addrs, ok := f[host]; ok {
		return addrs, nil
	}
	if host == "starved" { // as net.Resolver says it
		return nil, &net.DNSError{Err: "dial udp 192.0.2.53:53: socket: too many open files", Name: host, IsTemporary: true}
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestDial(t *testing.T) {
	const dst = "10.0.0.10:5432"
	tests := []struct {
		name     string
		alias    string // what tcp/10.0.0.10:5432 is an alias for
		dst      string // default: 10.0.0.10:5432
		deny     string
		errs     map[string]error
		wantDial []string
		is       []error
		message  string
	}{
		{name: "direct", wantDial: []string{"tcp/10.0.0.10:5432"}},
		{name: "direct, mapped", dst: "[::ffff:10.0.0.10]:5432", wantDial: []string{"tcp/10.0.0.10:5432"}},
		{name: "alias to an address", alias: "192.0.2.1:80", wantDial: []string{"tcp/192.0.2.1:80"}},
		{name: "alias of a mapped destination", alias: "192.0.2.1:80", dst: "[::ffff:10.0.0.10]:5432", wantDial: []string{"tcp/192.0.2.1:80"}},
		{name: "alias of another port", alias: "192.0.2.1:80", dst: "10.0.0.10:5433", wantDial: []string{"tcp/10.0.0.10:5433"}},
		{name: "alias to a name", alias: "one:80", wantDial: []string{"tcp/192.0.2.1:80"}},
		{name: "second address after a refusal", alias: "two:80", errs: map[string]error{"192.0.2.1:80": syscall.ECONNREFUSED},
			wantDial: []string{"tcp/192.0.2.1:80", "tcp/[2001:db8::1]:80"}},
		{name: "every address fails: the first one counts", alias: "two:80",
			errs:     map[string]error{"192.0.2.1:80": syscall.ECONNREFUSED, "[2001:db8::1]:80": syscall.ENETUNREACH},
			wantDial: []string{"tcp/192.0.2.1:80", "tcp/[2001:db8::1]:80"}, is: []error{netx.ErrRefused},
			message: `dialling "tcp/10.0.0.10:5432" as "two:80": connection refused`},
		{name: "refused", errs: map[string]error{dst: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
			wantDial: []string{"tcp/" + dst}, is: []error{netx.ErrRefused, syscall.ECONNREFUSED},
			message: `dialling "tcp/10.0.0.10:5432": connect: connection refused`},
		{name: "no route", errs: map[string]error{dst: syscall.EHOSTUNREACH}, wantDial: []string{"tcp/" + dst}, is: []error{netx.ErrUnreachable}},
		{name: "timed out by the kernel", errs: map[string]error{dst: syscall.ETIMEDOUT}, wantDial: []string{"tcp/" + dst}, is: []error{netx.ErrTimedOut}},
		{name: "no permission", errs: map[string]error{dst: syscall.EPERM}, wantDial: []string{"tcp/" + dst}, is: []error{netx.ErrUnreachable, syscall.EPERM}},
		{name: "no descriptor", errs: map[string]error{dst: syscall.EMFILE}, wantDial: []string{"tcp/" + dst}, is: []error{netx.ErrUnreachable, ErrDescriptors, syscall.EMFILE},
			message: "raise its limit (LimitNOFILE="},
		{name: "no descriptor in the machine", errs: map[string]error{dst: os.NewSyscallError("socket", syscall.ENFILE)}, wantDial: []string{"tcp/" + dst},
			is: []error{netx.ErrUnreachable, ErrDescriptors, syscall.ENFILE}},
		{name: "no descriptor to resolve with", alias: "starved:80", is: []error{netx.ErrUnreachable, ErrResolve, ErrDescriptors}, message: "LimitNOFILE="},
		{name: "no such name", alias: "none:80", is: []error{netx.ErrUnreachable, ErrResolve}, message: "no such host"},
		{name: "name without an address", alias: "empty:80", is: []error{netx.ErrUnreachable, ErrResolve}},
		{name: "name that means metadata", alias: "rebound:80", is: []error{netx.ErrUnreachable, ErrDenied}, message: "169.254.169.254 is a metadata address"},
		{name: "name that means loopback", alias: "loop:80", is: []error{netx.ErrUnreachable, ErrDenied}, message: "write the address itself"},
		{name: "localhost names loopback", alias: "localhost:80", wantDial: []string{"tcp/127.0.0.1:80"}},
		{name: "localhost that means metadata", alias: "LOCALHOST:80", is: []error{ErrDenied}},
		{name: "loopback named", alias: "127.0.0.1:80", wantDial: []string{"tcp/127.0.0.1:80"}},
		{name: "metadata named", alias: "169.254.169.254:80", wantDial: []string{"tcp/169.254.169.254:80"}},
		{name: "a denied address is passed over", alias: "two:80", deny: "tcp/192.0.2.1", wantDial: []string{"tcp/[2001:db8::1]:80"}},
		{name: "denied target", alias: "192.0.2.1:80", deny: "tcp/192.0.2.1", is: []error{netx.ErrUnreachable, ErrDenied}, message: "[guard] deny has tcp/192.0.2.1"},
	}
	resolver := fakeResolver{
		"one": addrs("::ffff:192.0.2.1"), "two": addrs("192.0.2.1", "2001:db8::1"), "empty": {},
		"rebound": addrs("169.254.169.254"), "loop": addrs("127.0.0.1"), "localhost": addrs("127.0.0.1"), "LOCALHOST": addrs("169.254.169.254"),
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var spec Spec
			if tt.alias != "" {
				spec.Aliases = []Alias{{service(t, "tcp/10.0.0.10:5432"), target(t, tt.alias)}}
			}
			var rules guard.Spec
			if tt.deny != "" {
				r, err := guard.ParseRule(tt.deny)
				if err != nil {
					t.Fatal(err)
				}
				rules.Deny = append(rules.Deny, r)
			}
			fake := &fakeNet{errs: tt.errs}
			d := New(spec, Deps{Guard: guard.New(rules), Resolver: resolver, Net: fake})
			to := dst
			if tt.dst != "" {
				to = tt.dst
			}
			conn, err := d.DialContext(t.Context(), "tcp", netip.MustParseAddrPort(to))
			if conn != nil {
				_ = conn.Close()
			}
			if (conn == nil) == (err == nil) || (err != nil) != (len(tt.is) > 0) {
				t.Fatalf("DialContext = %v, %v", conn, err)
			}
			for _, want := range tt.is {
				if !errors.Is(err, want) {
					t.Errorf("the error %q is not %q", err, want)
				}
			}
			if err != nil && !strings.Contains(err.Error(), tt.message) {
				t.Errorf("the error is %q, want %q in it", err, tt.message)
			}
			if !slices.Equal(fake.dialed, tt.wantDial) {
				t.Errorf("dialled %q, want %q", fake.dialed, tt.wantDial)
			}
		})
	}
}

func TestDialTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Spec{}, Deps{Guard: guard.New(guard.Spec{}), Net: &fakeNet{silent: map[string]bool{"10.0.0.1:80": true}}})
		start := time.Now()
		_, err := d.DialContext(t.Context(), "tcp", netip.MustParseAddrPort("10.0.0.1:80"))
		if !errors.Is(err, netx.ErrTimedOut) || time.Since(start) != DefaultTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestSilentAddressLeavesTimeForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := Spec{Aliases: []Alias{{service(t, "tcp/10.0.0.10:5432"), target(t, "two:80")}}}
		fake := &fakeNet{silent: map[string]bool{"192.0.2.1:80": true}}
		d := New(spec, Deps{Guard: guard.New(guard.Spec{}), Net: fake, Resolver: fakeResolver{"two": addrs("192.0.2.1", "192.0.2.2")}})
		start := time.Now()
		conn, err := d.DialContext(t.Context(), "tcp", netip.MustParseAddrPort("10.0.0.10:5432"))
		if err != nil || time.Since(start) != DefaultTimeout/2 {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		_ = conn.Close()
	})
}

func TestCancelIsNoVerdict(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := New(Spec{}, Deps{Guard: guard.New(guard.Spec{}), Net: &fakeNet{silent: map[string]bool{"10.0.0.1:80": true}}})
	_, err := d.DialContext(ctx, "tcp", netip.MustParseAddrPort("10.0.0.1:80"))
	if err == nil || netx.Classify(err) != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled dial gives %v, class %v", err, netx.Classify(err))
	}
}

func TestDenied(t *testing.T) {
	d := New(Spec{}, Deps{Guard: guard.New(guard.Spec{}), Resolver: fakeResolver{"db": addrs("192.0.2.1"), "bad": addrs("192.0.2.1", "127.0.0.1")}})
	if got, err := d.Denied(t.Context(), "tcp", target(t, "db:80")); err != nil || got != nil {
		t.Errorf("Denied of a good name = %q, %v", got, err)
	}
	if got, err := d.Denied(t.Context(), "tcp", target(t, "bad:80")); err != nil || len(got) != 1 || !strings.Contains(got[0], "127.0.0.1 is a loopback") {
		t.Errorf("Denied of a bad name = %q, %v", got, err)
	}
	if _, err := d.Denied(t.Context(), "tcp", target(t, "none:80")); !errors.Is(err, ErrResolve) {
		t.Errorf("Denied of no name: %v", err)
	}
}

// An origin of the kernel's that does not answer, because nobody accepts what
// its backlog is full of, is given up: by the timeout, or by the caller.
func TestKernelSilence(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*syscall.SockaddrInet4).Port))
	for range 3 { // the backlog's, and one more
		if c, err := net.DialTimeout("tcp", dst.String(), 50*time.Millisecond); err == nil {
			defer func() { _ = c.Close() }()
		}
	}

	d := New(Spec{Timeout: 50 * time.Millisecond}, Deps{Guard: guard.New(guard.Spec{})})
	if _, err := d.DialContext(t.Context(), "tcp", dst); netx.Classify(err) != netx.ErrTimedOut {
		t.Errorf("a silent origin gives %v", err)
	}
	d = New(Spec{Timeout: time.Hour}, Deps{Guard: guard.New(guard.Spec{})})
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.DialContext(short, "tcp", dst); netx.Classify(err) != netx.ErrTimedOut {
		t.Errorf("a caller without time gets %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, stop)
	if _, err := d.DialContext(ctx, "tcp", dst); netx.Classify(err) != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who gives up gets %v", err)
	}
}

// The kernel's own sockets, over loopback behind aliases.
func TestKernel(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := gone.Addr().String()
	_ = gone.Close()

	spec := Spec{Aliases: []Alias{
		{service(t, "tcp/10.0.0.1:80"), target(t, l.Addr().String())},
		{service(t, "tcp/10.0.0.2:80"), target(t, closed)},
		{service(t, "udp/10.0.0.2:80"), target(t, closed)},
	}}
	d := New(spec, Deps{Guard: guard.New(guard.Spec{})})
	conn, err := d.DialContext(t.Context(), "tcp", netip.MustParseAddrPort("10.0.0.1:80"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := conn.(*net.TCPConn); !ok {
		t.Errorf("a TCP dial gives a %T", conn)
	}
	_ = conn.Close()

	if _, err := d.DialContext(t.Context(), "tcp", netip.MustParseAddrPort("10.0.0.2:80")); !errors.Is(err, netx.ErrRefused) {
		t.Errorf("dialling a closed port gives %v", err)
	}

	// A connected UDP socket hears that the port is closed.
	udp, err := d.DialContext(t.Context(), "udp", netip.MustParseAddrPort("10.0.0.2:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = udp.Close() }()
	if got, usual := readBuffer(t, udp), readBuffer(t, plainUDP(t)); got <= usual {
		t.Errorf("the socket takes %d bytes, as any other does (%d)", got, usual)
	}
	if _, err := io.WriteString(udp, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := udp.Read(make([]byte, 1)); netx.Classify(err) != netx.ErrRefused {
		t.Errorf("reading from a closed UDP port gives %v", err)
	}
}

// plainUDP is a UDP socket as the kernel makes it.
func plainUDP(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// readBuffer is how many bytes the kernel holds for c.
func readBuffer(t *testing.T, c net.Conn) (n int) {
	t.Helper()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { n, failed = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return n
}
