package bind

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// wait is how long a test waits for what must come; it fails then.
const wait = 10 * time.Second

// datagram is what a receive function handed over.
type datagram struct {
	data string
	ep   *Endpoint
}

// opened is an open Bind whose receive functions run until it is closed.
type opened struct {
	*Bind
	port uint16
	got  chan datagram
	done sync.WaitGroup
}

// open opens b and starts to receive. The test closes it at its end.
func open(t testing.TB, b *Bind) *opened {
	t.Helper()
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	o := &opened{Bind: b, port: port, got: make(chan datagram, 4096)}
	for _, fn := range fns {
		o.done.Go(func() { o.receive(t, fn) })
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		over := make(chan struct{})
		go func() { o.done.Wait(); close(over) }()
		for { // what nobody asked for any more
			select {
			case <-o.got:
			case <-over:
				return
			}
		}
	})
	return o
}

func (o *opened) receive(t testing.TB, fn conn.ReceiveFunc) {
	n := o.BatchSize()
	bufs, sizes, eps := make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16-1)
	}
	for {
		n, err := fn(bufs, sizes, eps)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("receive function ended with %v, want net.ErrClosed", err)
			}
			return
		}
		for i := range n {
			if eps[i] != nil { // else nothing came to this buffer
				o.got <- datagram{string(bufs[i][:sizes[i]]), eps[i].(*Endpoint)}
			}
		}
	}
}

func (o *opened) next(t testing.TB) datagram {
	t.Helper()
	select {
	case d := <-o.got:
		return d
	case <-time.After(wait):
		t.Fatal("no datagram came")
		return datagram{}
	}
}

// at returns the endpoint of o at an address of this machine.
func (o *opened) at(t testing.TB, addr string) *Endpoint {
	t.Helper()
	e, err := parseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(addr), o.port).String())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (o *opened) drops() map[string]uint64 {
	out := map[string]uint64{}
	o.Drops(func(where, why string, n uint64) {
		if where != "bind" {
			why = where + ": " + why
		}
		out[why] = n
	})
	return out
}

func drops(b *Bind) map[string]uint64 {
	out := map[string]uint64{}
	b.Drops(func(_, why string, n uint64) { out[why] = n })
	return out
}

func send(t testing.TB, b *Bind, e conn.Endpoint, data ...string) {
	t.Helper()
	var bufs [][]byte
	for _, d := range data {
		bufs = append(bufs, []byte(d))
	}
	if err := b.Send(bufs, e); err != nil {
		t.Fatal(err)
	}
}

// needIPv6 skips on a machine without it.
func needIPv6(t testing.TB) {
	t.Helper()
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		lacking(t, "IPv6: "+err.Error())
		return
	}
	c.Close()
}

// lacking skips the test, or fails it where everything is required.
func lacking(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("WARREN_REQUIRE_ALL") != "" {
		t.Fatal("this machine lacks " + what)
	}
	t.Skip("this machine lacks " + what)
}
