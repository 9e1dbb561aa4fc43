//go:build linux

package relay

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/netstack/memnet"
)

// FuzzRuns: the runs of any datagrams obey the kernel's terms, and lose none.
func FuzzRuns(f *testing.F) {
	f.Add([]byte{100, 100, 100, 50, 100}, uint16(1400))
	f.Add([]byte{0, 0, 7, 7, 8}, uint16(1400))
	f.Add(bytes.Repeat([]byte{255}, 200), uint16(60000))
	f.Fuzz(func(t *testing.T, sizes []byte, segment uint16) {
		var datagrams [][]byte
		for _, n := range sizes {
			datagrams = append(datagrams, make([]byte, int(n)*11))
		}
		for len(datagrams) > 0 {
			n := runOf(datagrams, int(segment))
			if n < 1 || n > len(datagrams) || n > maxSegments {
				t.Fatalf("a run of %d of %d", n, len(datagrams))
			}
			size, total := len(datagrams[0]), 0
			for i, d := range datagrams[:n] {
				if n > 1 && (len(d) == 0 || len(d) > size || i < n-1 && len(d) != size || size > int(segment)) {
					t.Fatalf("datagram %d of %d bytes in a run of %d", i, len(d), size)
				}
				total += len(d)
			}
			if n > 1 && total > maxMessage {
				t.Fatalf("a message of %d bytes", total)
			}
			datagrams = datagrams[n:]
		}
	})
}

// Every datagram arrives as it was sent, whatever sizes follow each other.
func TestSocketKeepsBoundaries(t *testing.T) {
	a, b := udpPair(t)
	defer a.Close()
	defer b.Close()
	for _, c := range []net.Conn{a, b} {
		_ = c.(*net.UDPConn).SetReadBuffer(8 << 20)
	}
	out, in := socketOf(a), socketOf(b)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var sent [][]byte
		size, total := 0, 0
		for range 1 + rnd.IntN(40) {
			switch rnd.IntN(6) {
			case 0:
				size = rnd.IntN(3)
			case 1:
				size = rnd.IntN(3000)
			case 2:
				size = slotSize - 1 + rnd.IntN(3)
			case 3:
				size = 65507 - rnd.IntN(2)
			}
			if total += size + 512; total > 150_000 { // what the least of buffers holds
				break
			}
			d := make([]byte, size)
			for i := range d {
				d[i] = byte(rnd.Uint32())
			}
			sent = append(sent, d)
		}
		if n, err := out.WriteBatch(sent); n != len(sent) || err != nil {
			t.Fatalf("sent %d of %d, %v", n, len(sent), err)
		}
		for len(sent) > 0 {
			_ = b.SetReadDeadline(time.Now().Add(5 * time.Second))
			got, err := in.next()
			if err != nil {
				t.Fatalf("%d are missing: %v", len(sent), err)
			}
			for _, d := range got.Datagrams() {
				if !bytes.Equal(d, sent[0]) {
					t.Fatalf("%d bytes arrived where %d were sent", len(d), len(sent[0]))
				}
				sent = sent[1:]
			}
			got.Release()
			batches.Put(got)
		}
	}
}

// A run that the device cannot carry leaves as single datagrams, and one that
// is too large for a datagram is refused by itself.
func TestSocketRunsThatDoNotFit(t *testing.T) {
	a, b := udpPair(t)
	defer a.Close()
	defer b.Close()
	out := socketOf(a)
	mtu, err := mtuOf(a.(*net.UDPConn))
	if err != nil {
		t.Fatal(err)
	}
	if mtu > 65000 {
		t.Log("the loopback carries every run")
	}
	three := [][]byte{[]byte("one"), make([]byte, 65508), []byte("three")}
	if n, err := out.WriteBatch(three); n != 1 || !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("sent %d, %v", n, err)
	}
	out.segment.Store(100)
	many := [][]byte{make([]byte, 101), make([]byte, 101), make([]byte, 100), make([]byte, 100)}
	if n, err := out.WriteBatch(many); n != 4 || err != nil {
		t.Errorf("sent %d, %v", n, err)
	}
}

func mtuOf(c *net.UDPConn) (mtu int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { mtu, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_MTU) })
	return mtu, errors.Join(err, cerr)
}

// A socket that is not connected says who sent, and answers whom it is told to.
func TestSocketAddresses(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(at, func(t *testing.T) {
			server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
			if err != nil {
				t.Skip(err) // a machine without IPv6
			}
			defer server.Close()
			s := socketOf(server)
			clients := map[netip.AddrPort]net.Conn{}
			for range 3 {
				c, err := net.Dial("udp", server.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				clients[c.LocalAddr().(*net.UDPAddr).AddrPort()] = c
				send(t, c, "hello")
			}
			var r Received
			for n := 0; n < len(clients); {
				if err := s.Receive(&r); err != nil {
					t.Fatal(err)
				}
				for i, d := range r.Datagrams() {
					if clients[r.From(i)] == nil || string(d) != "hello" {
						t.Fatalf("%q from %v", d, r.From(i))
					}
					if n, err := s.SendTo([][]byte{[]byte("you"), []byte("too"), []byte("!")}, r.From(i), nil); n != 3 || err != nil {
						t.Fatalf("answered %d, %v", n, err)
					}
					n++
				}
				r.Release()
			}
			for _, c := range clients {
				for _, want := range []string{"you", "too", "!"} {
					expect(t, c, want)
				}
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for _, s := range []string{"192.0.2.1:53", "[2001:db8::1]:65535", "[fe80::1%7]:1", "[::ffff:192.0.2.1]:2"} {
		var b [28]byte
		a := netip.MustParseAddrPort(s)
		n := putAddr(&b, a)
		if got := addrOf(b[:n]); got != a {
			t.Errorf("%v became %v", a, got)
		}
	}
	if got := addrOf(nil); got.IsValid() {
		t.Errorf("nothing became %v", got)
	}
}

// Close ends those who wait.
func TestSocketClose(t *testing.T) {
	a, b := udpPair(t)
	defer a.Close()
	ended := make(chan error)
	s := socketOf(b)
	go func() { _, err := s.next(); ended <- err }()
	b.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading ended with %v", err)
	}
	if _, err := s.WriteBatch([][]byte{{1}, {1}}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing ended with %v", err)
	}
}

// A step of many datagrams costs no allocation.
func TestSocketAllocations(t *testing.T) {
	if raceOn {
		t.Skip("the race detector allocates")
	}
	a, b := udpPair(t)
	defer a.Close()
	defer b.Close()
	out, in := socketOf(a), socketOf(b)
	many := make([][]byte, 20)
	for i := range many {
		many[i] = make([]byte, 1200)
	}
	allocs := testing.AllocsPerRun(500, func() {
		if _, err := out.WriteBatch(many); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(many); {
			got, err := in.next()
			if err != nil {
				t.Fatal(err)
			}
			n += len(got.Datagrams())
			got.Release()
			batches.Put(got)
		}
	})
	if allocs >= 1 {
		t.Errorf("%.1f allocations", allocs)
	}
}

// BenchmarkDatagrams relays bursts of 16 datagrams between two kernel sockets
// of each side. cpu-ns/datagram is the processor's time of all of it, client
// and origin with it.
func BenchmarkDatagrams(b *testing.B) {
	for _, size := range []int{64, 1200} {
		b.Run(map[int]string{64: "64", 1200: "1200"}[size], func(b *testing.B) {
			near, client := udpPair(b)
			far, origin := udpPair(b)
			for _, c := range []net.Conn{near, client, far, origin} {
				_ = c.(*net.UDPConn).SetReadBuffer(4 << 20)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var done sync.WaitGroup
			done.Go(func() { Datagrams(ctx, near, far, Options{}) })
			burst := make([][]byte, 16)
			for i := range burst {
				burst[i] = make([]byte, size)
			}
			in, out := socketOf(origin), socketOf(client)
			cpu := cpuTime()
			for b.Loop() {
				if _, err := out.WriteBatch(burst); err != nil {
					b.Fatal(err)
				}
				for n := 0; n < len(burst); {
					got, err := in.next()
					if err != nil {
						b.Fatal(err)
					}
					n += len(got.Datagrams())
					got.Release()
					batches.Put(got)
				}
			}
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N)/float64(len(burst)), "cpu-ns/datagram")
			cancel()
			done.Wait()
			client.Close()
			origin.Close()
		})
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Conns that hand over one datagram a time still work beside those that batch.
func TestDatagramsMixed(t *testing.T) {
	a, client := memnet.DatagramPipe()
	b, origin := udpPair(t)
	defer client.Close()
	defer origin.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan Result, 1)
	go func() { done <- Datagrams(ctx, a, b, Options{}) }()
	for _, size := range []int{1, 1200, 65507} {
		d := bytes.Repeat([]byte{7}, size)
		for _, way := range [][2]net.Conn{{client, origin}, {origin, client}} {
			if _, err := way[0].Write(d); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1<<16)
			if n, err := way[1].Read(buf); err != nil || !bytes.Equal(buf[:n], d) {
				t.Fatalf("%d bytes arrived as %d, %v", size, n, err)
			}
		}
	}
	cancel()
	<-done
}
