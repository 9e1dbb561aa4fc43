package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/netstack/memnet"
	"github.com/warrenmesh/warren/netstack/netx"
)

// udpPair returns two kernel sockets that are connected to each other.
func udpPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	a, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := net.DialUDP("udp4", nil, a.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	at := a.LocalAddr().(*net.UDPAddr)
	_ = a.Close()
	connected, err := net.DialUDP("udp4", at, b.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	return connected, b
}

var datagramPairs = []struct {
	name string
	make func(t testing.TB) (near, far net.Conn)
}{
	{"kernel", udpPair},
	{"memory", func(testing.TB) (net.Conn, net.Conn) { return memnet.DatagramPipe() }},
	{"bare", func(testing.TB) (net.Conn, net.Conn) {
		a, b := memnet.DatagramPipe()
		return struct{ net.Conn }{a}, b
	}},
}

func TestDatagramsArriveWhole(t *testing.T) {
	for _, kind := range datagramPairs {
		t.Run(kind.name, func(t *testing.T) {
			a, client := kind.make(t)
			b, origin := kind.make(t)
			defer client.Close()
			defer origin.Close()
			var in, out atomic.Uint64
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan Result, 1)
			go func() { done <- Datagrams(ctx, a, b, Options{AToB: &in, BToA: &out}) }()

			buf := make([]byte, 1<<16)
			total := 0
			for _, size := range []int{1, 0, 1472, 8192, 65507} {
				d := bytes.Repeat([]byte{byte(size)}, size)
				for _, way := range [][2]net.Conn{{client, origin}, {origin, client}} {
					if _, err := way[0].Write(d); err != nil {
						t.Fatalf("writing %d bytes: %v", size, err)
					}
					n, err := way[1].Read(buf)
					if err != nil || !bytes.Equal(buf[:n], d) {
						t.Fatalf("%d bytes arrived as %d, %v", size, n, err)
					}
				}
				total += size
			}
			cancel()
			res := <-done
			if res.End != EndCanceled || res.AToB != int64(total) || res.BToA != int64(total) {
				t.Errorf("result %+v, want %d bytes each way", res, total)
			}
			if in.Load() != uint64(total) || out.Load() != uint64(total) {
				t.Errorf("live counters %d and %d, want %d", in.Load(), out.Load(), total)
			}
		})
	}
}

// Nobody listens at the origin: the flow ends and says whose answer it was.
func TestDatagramsRefused(t *testing.T) {
	t.Run("kernel", func(t *testing.T) {
		a, client := udpPair(t)
		b, origin := udpPair(t)
		defer client.Close()
		_ = origin.Close()
		wantRefused(t, a, b, client)
	})
	t.Run("memory", func(t *testing.T) {
		a, client := memnet.DatagramPipe()
		b, err := memnet.New().DialContext(context.Background(), "udp", netip.MustParseAddrPort("10.0.0.1:53"))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		wantRefused(t, a, b, client)
	})
}

func wantRefused(t *testing.T, a, b, client net.Conn) {
	t.Helper()
	send(t, client, "question")
	res := Datagrams(context.Background(), a, b, Options{})
	if res.End != EndFailed || res.Side != SideB || !errors.Is(res.Err, netx.ErrRefused) {
		t.Errorf("ended %v, side %v, %v; want b refused", res.End, res.Side, res.Err)
	}
}

func TestDatagramsEndWithOneSide(t *testing.T) {
	a, client := memnet.DatagramPipe()
	b, origin := memnet.DatagramPipe()
	defer client.Close()
	defer origin.Close()
	done := make(chan Result, 1)
	go func() { done <- Datagrams(context.Background(), a, b, Options{}) }()
	send(t, client, "x")
	expect(t, origin, "x")
	_ = a.Close()
	if res := <-done; res.End != EndOrderly || res.Side != SideA || res.Err != nil {
		t.Errorf("result %+v", res)
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the other conn is not closed: %v", err)
	}
}

func TestDatagramsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, client := memnet.DatagramPipe()
		b, origin := memnet.DatagramPipe()
		start := time.Now()
		done := make(chan Result, 1)
		go func() { done <- Datagrams(t.Context(), a, b, Options{Idle: time.Minute}) }()
		for range 3 {
			time.Sleep(59 * time.Second)
			send(t, client, "x")
			expect(t, origin, "x")
		}
		res := <-done
		if lived := time.Since(start); res.End != EndIdle || lived != 237*time.Second {
			t.Errorf("ended %v after %v, want idle after 3m57s", res.End, lived)
		}
		client.Close()
		origin.Close()
	})
}

// picky is a datagram conn whose writes fail one after the other as told.
type picky struct {
	net.Conn
	fail []error
}

func (p *picky) Write(b []byte) (int, error) {
	if len(p.fail) == 0 {
		return p.Conn.Write(b)
	}
	err := p.fail[0]
	p.fail = p.fail[1:]
	return 0, &net.OpError{Op: "write", Err: err}
}

// A datagram that does not fit is lost, counted, and no reason to end the
// flow.
func TestDatagramsDropAndGoOn(t *testing.T) {
	a, client := memnet.DatagramPipe()
	b, origin := memnet.DatagramPipe()
	defer client.Close()
	defer origin.Close()
	var why []string // written by one direction alone, read after the end
	o := Options{OnDrop: func(w string) { why = append(why, w) }}
	narrow := &picky{Conn: b, fail: []error{syscall.EMSGSIZE, syscall.ENOBUFS, syscall.EAGAIN}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan Result, 1)
	go func() { done <- Datagrams(ctx, a, narrow, o) }()
	for _, s := range []string{"too big", "no room", "not now", "fits"} {
		send(t, client, s)
	}
	expect(t, origin, "fits")
	cancel()
	if res := <-done; res.AToB != 4 {
		t.Errorf("counted %d bytes, want those delivered", res.AToB)
	}
	want := []string{DropTooBig, DropNoBuffer, DropNoBuffer}
	if len(why) != 3 || why[0] != want[0] || why[1] != want[1] || why[2] != want[2] {
		t.Errorf("dropped for %q, want %q", why, want)
	}
}

func TestDatagramEndOfStream(t *testing.T) {
	a, client := memnet.DatagramPipe()
	defer client.Close()
	b, origin := memnet.Pipe() // a stand-in whose Read returns io.EOF
	_ = origin.Close()
	if res := Datagrams(context.Background(), a, b, Options{}); res.End != EndOrderly || res.Side != SideB {
		t.Errorf("result %+v", res)
	}
	if _, err := a.Read(nil); errors.Is(err, io.EOF) {
		t.Error("the other conn is not closed")
	}
}

func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var meter Meter
		time.Sleep(time.Second)
		if got := meter.Idle(); got != 0 {
			t.Errorf("idle for %v before the flow began", got)
		}
		client, a := memnet.DatagramPipe()
		b, origin := memnet.DatagramPipe()
		ended := make(chan Result)
		go func() { ended <- Datagrams(ctx, a, b, Options{Meter: &meter}) }()
		synctest.Wait()
		for _, from := range []io.Writer{client, origin} {
			time.Sleep(3 * time.Second)
			if got := meter.Idle(); got != 3*time.Second {
				t.Errorf("idle for %v, want 3 s", got)
			}
			if _, err := io.WriteString(from, "datagram"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := meter.Idle(); got != 0 {
				t.Errorf("idle for %v after a datagram", got)
			}
		}
		cancel()
		<-ended
		_ = client.Close()
		_ = origin.Close()
	})
}
