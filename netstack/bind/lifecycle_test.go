package bind

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

func TestOpenTwiceIsRefusedAndCloseTwiceIsNot(t *testing.T) {
	b := New(Config{})
	_, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if b.LocalPort() != port || port == 0 {
		t.Errorf("LocalPort %d, Open said %d", b.LocalPort(), port)
	}
	if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("second Open: %v", err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if b.LocalPort() != 0 {
		t.Errorf("LocalPort %d after Close", b.LocalPort())
	}
}

func TestReceiveFunctionsOfAClosedBindStayClosed(t *testing.T) {
	b := New(Config{})
	fns, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	again, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if len(again) != len(fns) {
		t.Errorf("%d functions, then %d", len(fns), len(again))
	}
	for _, fn := range fns {
		for range 3 {
			if n, err := fn([][]byte{make([]byte, 10)}, make([]int, 1), make([]conn.Endpoint, 1)); n != 0 || !errors.Is(err, net.ErrClosed) {
				t.Errorf("got %d, %v", n, err)
			}
		}
	}
}

func TestNamesOfReceiveFunctions(t *testing.T) {
	needIPv6(t)
	for listen, want := range map[string]string{"": "receiveBoth", "127.0.0.1:0": "v4", "[::1]:0": "v6"} {
		var c Config
		if listen != "" {
			c.Listen = netip.MustParseAddrPort(listen)
		}
		b := New(c)
		fns, _, err := b.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		var names []string
		for _, fn := range fns {
			names = append(names, fn.PrettyName())
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("listening on %q: wireguard-go logs them as %q, want %q", listen, got, want)
		}
	}
}

// freePort returns a port that was free in both families a moment ago.
func freePort(t *testing.T) uint16 {
	t.Helper()
	b := New(Config{})
	_, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	return port
}

func TestPortComesFromTheDeviceThenFromTheConfiguration(t *testing.T) {
	configured, asked := freePort(t), freePort(t)
	b := New(Config{Listen: netip.AddrPortFrom(netip.Addr{}, configured)})
	for _, tt := range []struct{ ask, want uint16 }{{0, configured}, {asked, asked}, {0, configured}} {
		if _, port, err := b.Open(tt.ask); err != nil || port != tt.want {
			t.Errorf("Open(%d) listens on %d, %v, want %d", tt.ask, port, err, tt.want)
		}
		b.Close()
	}
}

func TestNamedAddressIsTheOnlyOne(t *testing.T) {
	a, b := open(t, New(Config{})), open(t, New(Config{Listen: netip.MustParseAddrPort("127.0.0.9:0")}))
	send(t, a.Bind, b.at(t, "127.0.0.8"), "to another address")
	send(t, a.Bind, b.at(t, "127.0.0.9"), "to its own")
	d := b.next(t)
	if d.data != "to its own" {
		t.Errorf("got %q", d.data)
	}
	send(t, b.Bind, d.ep, "answer")
	if d := a.next(t); d.ep.DstIP() != netip.MustParseAddr("127.0.0.9") {
		t.Errorf("answer from %v", d.ep.DstIP())
	}
}

// listenWith wraps b's listen.
func (b *Bind) listenWith(f func(network string, at netip.AddrPort) error) {
	b.listen = func(network string, at netip.AddrPort, o options) (*kernelConn, error) {
		if err := f(network, at); err != nil {
			return nil, &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", err)}
		}
		return listenKernel(network, at, o)
	}
}

func TestMachineWithOneFamily(t *testing.T) {
	for _, tt := range []struct {
		lacks, has string
		err        syscall.Errno
	}{
		{"udp6", "127.0.0.1", syscall.EAFNOSUPPORT},
		{"udp6", "127.0.0.1", syscall.EADDRNOTAVAIL},
		{"udp4", "::1", syscall.EAFNOSUPPORT},
		{"neither", "127.0.0.1", 0},
		{"neither", "::1", 0},
	} {
		t.Run(fmt.Sprintf("%s %v", tt.lacks, tt.err), func(t *testing.T) {
			needIPv6(t)
			b := New(Config{})
			b.listenWith(func(network string, _ netip.AddrPort) error {
				if network == tt.lacks || network == "udp" && tt.err != 0 {
					return tt.err
				}
				return nil
			})
			o := open(t, b)
			send(t, b, o.at(t, tt.has), "to myself")
			if d := o.next(t); d.data != "to myself" {
				t.Errorf("got %q", d.data)
			}
		})
	}
}

// TestPortIsOneInBothFamilies: whoever holds it in one of them is named, and
// nothing is left of the attempt.
func TestPortIsOneInBothFamilies(t *testing.T) {
	needIPv6(t)
	for network, held := range map[string]netip.Addr{"udp4": netip.IPv4Unspecified(), "udp6": netip.IPv6Unspecified()} {
		t.Run(network, func(t *testing.T) {
			port := freePort(t)
			at := netip.AddrPortFrom(held, port)
			k, err := listenKernel(network, at, options{})
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			b := New(Config{})
			if _, _, err = b.Open(port); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprintf("listening on udp %v: ", at)) {
				t.Errorf("got %v, want %v in it", err, at)
			}
			other := map[string]string{"udp4": "udp6", "udp6": "udp4"}[network]
			addr := map[string]netip.Addr{"udp4": netip.IPv4Unspecified(), "udp6": netip.IPv6Unspecified()}[other]
			free, err := listenKernel(other, netip.AddrPortFrom(addr, port), options{})
			if err != nil {
				t.Fatalf("the other family's port is held: %v", err)
			}
			free.Close()
		})
	}
	b := New(Config{})
	_, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, at := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if _, _, err := New(Config{Listen: netip.AddrPortFrom(at, port)}).Open(0); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("port %d is free at %v: %v", port, at, err)
		}
	}
}

func TestSocketThatDiesIsReplacedOnTheSamePort(t *testing.T) {
	var log lockedBuffer
	b := New(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	refuse := make(chan error, 3)
	b.listenWith(func(string, netip.AddrPort) error {
		select {
		case err := <-refuse:
			return err
		default:
			return nil
		}
	})
	a, o := open(t, New(Config{})), open(t, b)
	port := o.LocalPort()
	send(t, a.Bind, o.at(t, "127.0.0.1"), "before")
	o.next(t)
	for range 3 { // it takes three attempts to come back
		refuse <- syscall.EADDRINUSE
	}
	old := b.current.Load().v4.kernel.Load()
	old.Close() // as when something destroys it: ss -K, a sandbox, a fault
	for b.current.Load().v4.kernel.Load() == old {
		// Neither sending nor receiving waits for it or fails for good.
		if err := b.Send([][]byte{[]byte("x")}, a.at(t, "127.0.0.1")); err != nil {
			t.Fatalf("sending while it is away: %v", err)
		}
	}
	send(t, a.Bind, o.at(t, "127.0.0.1"), "after")
	if d := o.next(t); d.data != "after" {
		t.Errorf("got %q", d.data)
	}
	if o.LocalPort() != port || o.Stats().Reopened != 1 {
		t.Errorf("port %d, was %d; %+v", o.LocalPort(), port, o.Stats())
	}
	if got := log.String(); strings.Count(got, "\n") != 2 {
		t.Errorf("logged:\n%s", got)
	}
}

// lockedBuffer is a log that tests read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func TestCloseDuringReopenEndsIt(t *testing.T) {
	b := New(Config{})
	attempts, dead := make(chan struct{}, 100), false
	b.listenWith(func(string, netip.AddrPort) error { // under mu, which guards dead
		if !dead {
			return nil
		}
		attempts <- struct{}{}
		return syscall.EADDRINUSE
	})
	o := open(t, b)
	b.mu.Lock()
	dead = true
	b.mu.Unlock()
	b.current.Load().v4.kernel.Load().Close()
	<-attempts
	<-attempts
	b.Close()
	o.done.Wait()
	if b.Stats().Reopened != 0 {
		t.Error("counted as reopened")
	}
}

func TestOpenAndCloseUnderTraffic(t *testing.T) {
	a, b := open(t, New(Config{})), New(Config{})
	_, port, err := b.Open(0) // to have a port
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	to, _ := parseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	back := a.at(t, "127.0.0.1")
	stop := make(chan struct{})
	var senders sync.WaitGroup
	for _, f := range []func() error{
		func() error { return a.Send([][]byte{make([]byte, 100), make([]byte, 200)}, to) },
		func() error { return b.Send([][]byte{make([]byte, 100), make([]byte, 200)}, back) },
		func() error {
			b.Drops(func(string, string, uint64) {})
			b.Buffers()
			b.LocalPort()
			return b.SetMark(0)
		},
	} {
		senders.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if err := f(); err != nil && !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
				}
			}
		})
	}
	drained := make(chan struct{})
	go func() { // what a receives is of no interest
		defer close(drained)
		for {
			select {
			case <-a.got:
			case <-stop:
				return
			}
		}
	}()
	for range 30 {
		fns, again, err := b.Open(port)
		if err != nil || again != port {
			t.Fatal(again, err)
		}
		o := &opened{Bind: b, got: make(chan datagram, 1<<16)}
		for _, fn := range fns {
			o.done.Go(func() { o.receive(t, fn) })
		}
		o.next(t)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		o.done.Wait()
	}
	close(stop)
	senders.Wait()
	<-drained
}
