package memnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"github.com/warrenmesh/warren/netstack/memnet"
	"github.com/warrenmesh/warren/netstack/netx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	origin = netip.MustParseAddrPort("10.0.0.10:5432")
	nobody = netip.MustParseAddrPort("10.0.0.11:5432")
)

var (
	_ netx.Dialer          = (*memnet.Net)(nil)
	_ netx.HalfCloser      = (*memnet.Conn)(nil)
	_ netx.Aborter         = (*memnet.Conn)(nil)
	_ netx.ReadWaiter      = (*memnet.Conn)(nil)
	_ netx.FailureReporter = (*memnet.Conn)(nil)
	_ netx.ReadWaiter      = (*memnet.UDPConn)(nil)
	_ net.PacketConn       = (*memnet.PacketConn)(nil)
)

// The fake passes the suite of the real thing.
func TestStreamIsANetConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		n := memnet.New()
		ln, err := n.Listen("tcp", origin)
		if err != nil {
			return nil, nil, nil, err
		}
		near, err := n.DialContext(context.Background(), "tcp", origin)
		if err != nil {
			return nil, nil, nil, err
		}
		far, err := ln.Accept()
		if err != nil {
			return nil, nil, nil, err
		}
		return near, far, func() { _ = near.Close(); _ = far.Close(); _ = ln.Close() }, nil
	})
}

func TestHalfClose(t *testing.T) {
	a, b := memnet.Pipe()
	defer a.Close()
	defer b.Close()
	write(t, a, "question")
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); err != nil || string(got) != "question" {
		t.Fatalf("read %q, %v", got, err)
	}
	if _, err := a.Write([]byte("more")); err == nil {
		t.Error("a write after CloseWrite succeeded")
	}
	write(t, b, "answer")
	_ = b.Close()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Errorf("the other direction: %q, %v", got, err)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading after Close: %v, want net.ErrClosed", err)
	}
}

func TestAbortIsNoEnd(t *testing.T) {
	a, b := memnet.Pipe()
	write(t, a, "lost")
	a.Abort()
	if err := b.Failure(); err == nil {
		t.Error("the other end knows of no failure")
	}
	if err := b.WaitReadable(); err != nil {
		t.Errorf("waiting for input: %v, want nil as the Read will report it", err)
	}
	if n, err := b.Read(make([]byte, 8)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("read %d bytes, %v; want a reset", n, err)
	}
	if _, err := b.Write([]byte("x")); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("write: %v; want a reset", err)
	}
	if a.Failure() != nil {
		t.Error("the end that aborted reports a failure of its own")
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading after Abort: %v, want net.ErrClosed", err)
	}
	b.Close()
}

func TestAbortAfterCloseDoesNothing(t *testing.T) {
	a, b := memnet.Pipe()
	write(t, a, "last words")
	_ = a.Close()
	a.Abort()
	if got, err := io.ReadAll(b); err != nil || string(got) != "last words" {
		t.Errorf("read %q, %v", got, err)
	}
	b.Close()
}

func TestWaitReadableHonoursTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		_ = a.SetReadDeadline(time.Now().Add(time.Hour))
		var timeout net.Error
		if err := a.WaitReadable(); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %v, want a time-out", err)
		}
		_ = a.SetReadDeadline(time.Time{})
		write(t, b, "x")
		if err := a.WaitReadable(); err != nil {
			t.Errorf("with input: %v", err)
		}
		a.Close()
		b.Close()
	})
}

func TestDialFailures(t *testing.T) {
	down := errors.New("cable cut")
	cases := []struct {
		name string
		fail error
		want error
	}{
		{"nobody listens", nil, netx.ErrRefused},
		{"refused", netx.ErrRefused, netx.ErrRefused},
		{"unreachable", netx.ErrUnreachable, netx.ErrUnreachable},
		{"no route", netx.ErrNoRoute, netx.ErrNoRoute},
		{"of another kind", down, down},
		{"silence", memnet.ErrSilence, netx.ErrTimedOut},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := memnet.New()
				n.FailDial(nobody, c.fail)
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				if _, err := n.DialContext(ctx, "tcp", nobody); !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			})
		})
	}
}

func TestFailDialIsMended(t *testing.T) {
	n := memnet.New()
	ln, err := n.Listen("tcp", origin)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	n.FailDial(origin, netx.ErrUnreachable)
	if _, err := n.DialContext(context.Background(), "tcp", origin); !errors.Is(err, netx.ErrUnreachable) {
		t.Fatalf("got %v", err)
	}
	n.FailDial(origin, nil)
	c, err := n.DialContext(context.Background(), "tcp", origin)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestListener(t *testing.T) {
	n := memnet.New()
	ln, err := n.Listen("tcp", netip.MustParseAddrPort("10.0.0.10:0"))
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	if at.Port() == 0 {
		t.Fatal("no port was picked")
	}
	if _, err := n.Listen("tcp", at); err == nil {
		t.Error("two listeners have one address")
	}
	waiting, err := n.DialContext(context.Background(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
	}
	if _, err := waiting.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a conn that nobody accepted: %v, want a reset", err)
	}
	if _, err := n.DialContext(context.Background(), "tcp", at); !errors.Is(err, netx.ErrRefused) {
		t.Errorf("dialling a closed listener: %v, want refused", err)
	}
	again, err := n.Listen("tcp", at)
	if err != nil {
		t.Errorf("the address is not free after Close: %v", err)
	} else {
		again.Close()
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatalf("writing %q: %v", s, err)
	}
}
