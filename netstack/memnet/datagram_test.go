package memnet_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/netstack/memnet"
	"github.com/warrenmesh/warren/netstack/netx"
)

func TestDatagramsKeepTheirBoundaries(t *testing.T) {
	a, b := memnet.DatagramPipe()
	defer a.Close()
	defer b.Close()
	big := bytes.Repeat([]byte{7}, 65507)
	for _, d := range [][]byte{[]byte("one"), {}, big} {
		if _, err := a.Write(d); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 1<<16)
	for _, want := range [][]byte{[]byte("one"), {}, big} {
		n, err := b.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], want) {
			t.Fatalf("read %d bytes, %v; want %d", n, err, len(want))
		}
	}
	if _, err := a.Write(make([]byte, 65508)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("a datagram too big for IP: %v, want EMSGSIZE", err)
	}
	write(t, b, "cut here")
	if n, err := a.Read(buf[:3]); n != 3 || err != nil {
		t.Errorf("a short buffer: %d, %v", n, err)
	}
	write(t, b, "next")
	if n, err := a.Read(buf); err != nil || string(buf[:n]) != "next" {
		t.Errorf("after a short buffer: %q, %v; the rest must be lost", buf[:n], err)
	}
}

func TestDatagramFailures(t *testing.T) {
	cases := []struct {
		name string
		fail error
		want error
	}{
		{"nobody listens", nil, netx.ErrRefused},
		{"unreachable", netx.ErrUnreachable, netx.ErrUnreachable},
		{"silence", memnet.ErrSilence, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := memnet.New()
				n.FailDial(nobody, c.fail)
				u, err := n.DialContext(context.Background(), "udp", nobody)
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				write(t, u, "hello?")
				_ = u.SetReadDeadline(time.Now().Add(time.Minute))
				_, err = u.Read(make([]byte, 1))
				var timeout net.Error
				silent := errors.As(err, &timeout) && timeout.Timeout()
				if c.want == nil && !silent || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			})
		})
	}
}

func TestStrangersAreNotHeard(t *testing.T) {
	n := memnet.New()
	server, err := n.ListenPacket(origin)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	stranger, err := n.ListenPacket(netip.MustParseAddrPort("10.0.0.99:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	client, err := n.DialContext(context.Background(), "udp", origin)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	write(t, client, "question")
	buf := make([]byte, 64)
	_, from, err := server.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.WriteTo([]byte("forged"), from); err != nil {
		t.Fatal(err)
	}
	if _, err := server.WriteTo([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if got, err := client.Read(buf); err != nil || string(buf[:got]) != "answer" {
		t.Errorf("read %q, %v", buf[:got], err)
	}
}

func TestDatagramCloseWakesTheReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := memnet.DatagramPipe()
		done := make(chan error, 1)
		go func() {
			_, err := a.Read(make([]byte, 1))
			done <- err
		}()
		synctest.Wait()
		a.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("writing after Close: %v, want net.ErrClosed", err)
		}
		b.Close()
	})
}
