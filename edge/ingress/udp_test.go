package ingress_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/ingress"
	"github.com/warrenmesh/warren/netstack/netx"
)

func udpSpec() ingress.Spec { return ingress.Spec{App: "dns", Network: "udp", Addr: loopback} }

func TestUDPDatagramsArriveWhole(t *testing.T) {
	s := newServer(t, echo)
	c := dial(t, "udp", listen(t, s, udpSpec())["dns"])
	buf := make([]byte, 1<<16)
	for _, size := range []int{1, 0, 1472, 2048, 2049, 65507} {
		d := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := c.Write(d); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], d) {
			t.Fatalf("%d bytes came back as %d, %v", size, n, err)
		}
	}
}

func TestUDPSessionPerClient(t *testing.T) {
	sessions := make(chan ingress.Accepted, 10)
	s := newServer(t, func(ctx context.Context, a ingress.Accepted) {
		sessions <- a
		echo(ctx, a)
	})
	at := listen(t, s, udpSpec())["dns"]
	a, b := dial(t, "udp", at), dial(t, "udp", at)
	for i := range 3 {
		ask(t, a, fmt.Sprint("a", i))
		ask(t, b, fmt.Sprint("b", i))
	}
	if got := len(sessions); got != 2 {
		t.Errorf("%d sessions for two clients", got)
	}
}

// A session that its handler has left is gone: the client's next datagram
// begins another.
func TestUDPSessionEndsWithItsHandler(t *testing.T) {
	conns := make(chan net.Conn, 2)
	s := newServer(t, func(_ context.Context, a ingress.Accepted) {
		buf := make([]byte, 16)
		n, _ := a.Conn.Read(buf)
		_, _ = a.Conn.Write(buf[:n])
		conns <- a.Conn
	})
	spec := udpSpec()
	spec.MaxFlows = 1
	c := dial(t, "udp", listen(t, s, spec)["dns"])
	ask(t, c, "one")
	first := <-conns
	waitClosed(t, first)
	ask(t, c, "two")
	second := <-conns
	waitClosed(t, second)
	if first == second {
		t.Error("one session served both")
	}
	if _, err := first.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing after the end: %v, want net.ErrClosed", err)
	}
	if err := first.SetReadDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("setting a deadline after the end: %v, want net.ErrClosed", err)
	}
}

func waitClosed(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(netx.ReadWaiter).WaitReadable(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("waiting for the end: %v", err)
	}
}

func TestUDPDeadlines(t *testing.T) {
	results := make(chan error, 3)
	s := newServer(t, func(_ context.Context, a ingress.Accepted) {
		buf := make([]byte, 16)
		_, _ = a.Conn.Read(buf)
		_ = a.Conn.SetDeadline(time.Unix(1, 0))
		_, err := a.Conn.Read(buf)
		results <- err
		_ = a.Conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		results <- a.Conn.(netx.ReadWaiter).WaitReadable()
		_ = a.Conn.SetReadDeadline(time.Time{})
		_, _ = a.Conn.Write([]byte("more"))
		_, err = a.Conn.Read(buf)
		results <- err
	})
	c := dial(t, "udp", listen(t, s, udpSpec())["dns"])
	_, _ = c.Write([]byte("x"))
	for range 2 {
		if err := <-results; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v, want a time-out", err)
		}
	}
	_, _ = c.Read(make([]byte, 16))
	_, _ = c.Write([]byte("y"))
	if err := <-results; err != nil {
		t.Errorf("after the deadline was lifted: %v", err)
	}
}

// A full table turns new clients away and leaves those it has alone.
func TestUDPTableIsBounded(t *testing.T) {
	cases := []struct {
		name string
		spec ingress.Spec
		why  string
	}{
		{"table", ingress.Spec{MaxFlows: 2, MaxFlowsPerSource: 10}, "ingress/table_full"},
		{"source", ingress.Spec{MaxFlows: 10, MaxFlowsPerSource: 2}, "ingress/source_full"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, echo)
			spec := c.spec
			spec.App, spec.Network, spec.Addr = "dns", "udp", loopback
			at := listen(t, s, spec)["dns"]
			a, b := dial(t, "udp", at), dial(t, "udp", at)
			ask(t, a, "one")
			ask(t, b, "one")
			for range 5 {
				if _, err := dial(t, "udp", at).Write([]byte("me too")); err != nil {
					t.Fatal(err)
				}
			}
			ask(t, a, "two") // after the five in the socket's queue
			ask(t, b, "two")
			if got := drops(s); got[c.why] != 5 || len(got) != 1 {
				t.Errorf("drops %v, want 5 of %s", got, c.why)
			}
		})
	}
}

// A listener that a reload removed serves its sessions from the same socket,
// takes no new ones, and frees the address with the last of them.
func TestUDPRetiredListener(t *testing.T) {
	s := newServer(t, func(ctx context.Context, a ingress.Accepted) {
		stop := context.AfterFunc(ctx, func() { a.Conn.Close() })
		defer stop()
		buf := make([]byte, 16)
		for {
			n, err := a.Conn.Read(buf)
			if err != nil || string(buf[:n]) == "bye" {
				return
			}
			_, _ = a.Conn.Write(buf[:n])
		}
	})
	at := freePort(t, "udp")
	spec := ingress.Spec{App: "dns", Network: "udp", Addr: at}
	listen(t, s, spec)
	c := dial(t, "udp", at)
	ask(t, c, "one")

	listen(t, s) // the listener is removed
	if _, err := dial(t, "udp", at).Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	ask(t, c, "two")
	if got := drops(s); got["ingress/retired"] != 1 {
		t.Errorf("drops %v, want one of a listener that retires", got)
	}

	listen(t, s, spec) // and comes back while its socket still lives
	ask(t, c, "three")
	other := dial(t, "udp", at)
	ask(t, other, "new")

	listen(t, s)
	if change, err := s.Prepare([]ingress.Spec{spec}); err != nil {
		t.Fatal(err)
	} else {
		change.Rollback() // the socket must not outlive that
	}
	for _, client := range []net.Conn{c, other} {
		if _, err := client.Write([]byte("bye")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(context.Background()); err != nil { // waits for both
		t.Fatal(err)
	}
	again, err := net.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatalf("the address is not free after the last session: %v", err)
	}
	again.Close()
}

// Replies leave from the address that the client spoke to, also where the
// socket has them all.
func TestUDPReplySource(t *testing.T) {
	s := newServer(t, echo)
	at := listen(t, s, ingress.Spec{App: "dns", Network: "udp", Addr: netip.MustParseAddrPort("0.0.0.0:0")})["dns"]
	for i := range 4 {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(10 + i)}), at.Port())
		c := dial(t, "udp", to) // connected: an answer from elsewhere does not arrive
		ask(t, c, "who are you")
	}
}
