package bind

import (
	"fmt"
	"net/netip"
	"testing"

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
	n := to.BatchSize()
	in, sizes, eps := make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
	for i := range in {
		in[i] = make([]byte, 1<<16-1)
	}
	e, err := from.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(addr), port).String())
	if err != nil {
		b.Fatal(err)
	}
	out := make([][]byte, batch)
	for i := range out {
		out[i] = make([]byte, size, 1<<16-1) // upstream's Bind coalesces where there is room
	}
	b.ReportAllocs()
	b.ResetTimer()
	before, sent, calls := cpuTime(b), 0, 0
	for ; sent < b.N; sent += batch {
		if err := from.Send(out, e); err != nil {
			b.Fatal(err)
		}
		for got := 0; got < batch; calls++ { // loopback delivers before Send returns
			n, err := fns[0](in, sizes, eps)
			if err != nil {
				b.Fatal(err)
			}
			for _, size := range sizes[:n] {
				if size > 0 {
					got++
				}
			}
		}
	}
	cpu := cpuTime(b) - before
	b.StopTimer()
	b.ReportMetric(float64(cpu)/float64(sent), "cpu-ns/datagram")
	b.ReportMetric(float64(sent)/float64(calls), "datagrams/receive")
	from.Close()
	to.Close()
}
