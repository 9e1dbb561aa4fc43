package public

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = Spec{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}

func TestDialTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	conn, err := New(loopback).DialContext(t.Context(), "tcp", netip.AddrPortFrom(netip.AddrFrom16(addr.Addr().As16()), addr.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.(*net.TCPConn); !ok {
		t.Errorf("conn is a %T, which relay cannot splice", conn)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	netx.Abort(conn)
	if _, err := io.ReadAll(peer); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after an abort the origin read %v, want a reset", err)
	}
	_ = peer.Close()
}

func TestDialUDP(t *testing.T) {
	origin, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := New(loopback).DialContext(t.Context(), "udp", origin.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := relay.NewSocket(conn.(*net.UDPConn)); err != nil {
		t.Errorf("relay cannot use it: %v", err)
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16)
	n, from, err := origin.ReadFrom(b)
	if err != nil || string(b[:n]) != "ping" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	if _, err := origin.WriteTo([]byte("pong"), from); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "pong" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	_ = origin.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = conn.Write([]byte("anybody?"))
	if _, err := conn.Read(b); netx.Classify(err) != netx.ErrRefused {
		t.Errorf("a closed port reads as %v, want refused", err)
	}
}

// fake returns a Dialer whose sockets are f's.
func fake(spec Spec, f func(ctx context.Context, network, address string) (net.Conn, error)) *Dialer {
	d := New(spec)
	d.dial = f
	return d
}

func TestDialErrors(t *testing.T) {
	wrap := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for _, test := range []struct {
		name, network, addr string
		fails               error
		class, cause        error
		text                string
	}{
		{"refused", "tcp", "8.8.8.8:443", wrap(syscall.ECONNREFUSED), netx.ErrRefused, syscall.ECONNREFUSED, `dialling "tcp/8.8.8.8:443": connect: connection refused`},
		{"unreachable", "tcp", "8.8.8.8:443", wrap(syscall.EHOSTUNREACH), netx.ErrUnreachable, syscall.EHOSTUNREACH, ""},
		{"no network", "udp", "[2606:4700::1]:443", wrap(syscall.ENETUNREACH), netx.ErrUnreachable, syscall.ENETUNREACH, ""},
		{"silence", "tcp", "8.8.8.8:443", wrap(syscall.ETIMEDOUT), netx.ErrTimedOut, syscall.ETIMEDOUT, ""},
		{"descriptors", "tcp", "8.8.8.8:443", wrap(syscall.EMFILE), netx.ErrUnreachable, ErrDescriptors, "LimitNOFILE="},
		{"permission", "tcp", "8.8.8.8:443", wrap(syscall.EPERM), netx.ErrUnreachable, syscall.EPERM, ""},
		{"private", "tcp", "10.0.0.1:443", errors.New("dialled"), netx.ErrUnreachable, ErrNotPublic, `"10.0.0.1/32"`},
		{"mapped", "udp", "[::ffff:169.254.169.254]:80", errors.New("dialled"), netx.ErrUnreachable, ErrNotPublic, "metadata"},
		{"port", "tcp", "8.8.8.8:0", errors.New("dialled"), netx.ErrUnreachable, netx.ErrUnreachable, "1 to 65535"},
		{"network", "tcp4", "8.8.8.8:1", errors.New("dialled"), netx.ErrUnreachable, netx.ErrUnreachable, "want tcp or udp"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := fake(Spec{}, func(context.Context, string, string) (net.Conn, error) { return nil, test.fails })
			_, err := d.DialContext(t.Context(), test.network, netip.MustParseAddrPort(test.addr))
			if netx.Classify(err) != test.class || !errors.Is(err, test.cause) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "dialled") {
				t.Errorf("err = %v", err)
			}
		})
	}
	t.Run("refused by a real port", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().(*net.TCPAddr).AddrPort()
		_ = l.Close()
		if _, err := New(loopback).DialContext(t.Context(), "tcp", addr); !errors.Is(err, netx.ErrRefused) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestDialIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := fake(Spec{MaxDials: 8}, func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		addr := netip.MustParseAddrPort("8.8.8.8:443")
		began, results := time.Now(), make(chan error, 8)
		for range 2 {
			go func() {
				_, err := d.DialContext(t.Context(), "tcp", addr)
				results <- err
			}()
		}
		synctest.Wait()
		if _, err := d.DialContext(t.Context(), "tcp", addr); !errors.Is(err, ErrBusy) || !errors.Is(err, netx.ErrUnreachable) {
			t.Errorf("the third = %v, want busy", err)
		}
		for last := range byte(3) { // others have places still
			for range 2 {
				go func() {
					_, err := d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{8, 8, 4, last}), 443))
					results <- err
				}()
			}
		}
		synctest.Wait()
		if _, err := d.DialContext(t.Context(), "tcp", netip.MustParseAddrPort("9.9.9.9:443")); !errors.Is(err, ErrBusy) {
			t.Errorf("the ninth of all = %v, want busy", err)
		}
		for range 8 {
			if err := <-results; !errors.Is(err, netx.ErrTimedOut) {
				t.Errorf("err = %v, want timed out", err)
			}
		}
		if took := time.Since(began); took != DefaultTimeout {
			t.Errorf("took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.DialContext(ctx, "tcp", addr); !errors.Is(err, context.Canceled) || netx.Classify(err) != nil {
			t.Errorf("given up = %v, want no class", err)
		}
		if d.all != 0 || len(d.under) != 0 {
			t.Errorf("%d places are still taken, by %v", d.all, d.under)
		}
	})
}
