package bind

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// BenchmarkBind moves datagrams from one Bind to another over loopback,
// without WireGuard, in Sends of several sizes: processor time a datagram of
// both ends together, beside that of upstream's Bind.
func BenchmarkBind(b *testing.B) {
	for _, batch := range []int{1, 8, 41, 128} {
		for _, size := range []int{112, 1452} {
			for _, name := range []string{"std", "warren"} {
				b.Run(fmt.Sprintf("%dx%d/%s", batch, size, name), func(b *testing.B) {
					from, to := conn.NewStdNetBind(), conn.NewStdNetBind()
					if name == "warren" {
						from, to = New(Config{}), New(Config{})
					}
					benchmarkBind(b, from, to, "127.0.0.1", batch, size)
				})
			}
		}
	}
}

func benchmarkBind(b *testing.B, from, to conn.Bind, addr string, batch, size int) {
	if _, _, err := from.Open(0); err != nil {
		b.Fatal(err)
	}
	fns, port, err := to.Open(0)
	if err != nil {
		b.Fatal(err)
	}
	var received, calls atomic.Int64
	ended := make(chan struct{})
	for _, fn := range fns {
		n := to.BatchSize()
		bufs, sizes, eps := make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
		for i := range bufs {
			bufs[i] = make([]byte, 1<<16-1)
		}
		go func() {
			defer func() { ended <- struct{}{} }()
			for {
				n, err := fn(bufs, sizes, eps)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				got := 0
				for _, size := range sizes[:n] {
					if size > 0 {
						got++
					}
				}
				received.Add(int64(got))
				calls.Add(1)
			}
		}()
	}
	e, err := from.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(addr), port).String())
	if err != nil {
		b.Fatal(err)
	}
	bufs := sized(repeat(size, batch)...)
	b.ReportAllocs()
	b.ResetTimer()
	before, sent := cpuTime(b), int64(0)
	for sent < int64(b.N) {
		if err := from.Send(bufs, e); err != nil {
			b.Fatal(err)
		}
		sent += int64(batch)
		for stop := time.Now().Add(10 * time.Millisecond); sent-received.Load() > 512; {
			if time.Now().After(stop) { // some were lost
				sent = received.Load()
			}
		}
	}
	for stop := time.Now().Add(10 * time.Millisecond); sent > received.Load() && time.Now().Before(stop); {
	}
	cpu := cpuTime(b) - before
	b.StopTimer()
	b.ReportMetric(float64(cpu)/float64(sent), "cpu-ns/datagram")
	b.ReportMetric(float64(received.Load())/float64(calls.Load()), "datagrams/receive")
	from.Close()
	to.Close()
	for range fns {
		<-ended
	}
}
