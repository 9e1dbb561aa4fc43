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
					benchmarkBind(b, from, to, func(f func()) { f() }, "127.0.0.1", batch, size)
				})
			}
		}
	}
}

// benchmarkBind sends to a Bind that across opens.
func benchmarkBind(b *testing.B, from, to conn.Bind, across func(func()), addr string, batch, size int) {
	if _, _, err := from.Open(0); err != nil {
		b.Error(err)
		return
	}
	var fns []conn.ReceiveFunc
	var port uint16
	across(func() {
		var err error
		if fns, port, err = to.Open(0); err != nil {
			b.Error(err)
		}
	})
	n := to.BatchSize()
	in, sizes, eps := make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
	for i := range in {
		in[i] = make([]byte, 1<<16-1)
	}
	e, err := from.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(addr), port).String())
	if err != nil {
		b.Error(err)
		return
	}
	out := make([][]byte, batch)
	for i := range out {
		out[i] = make([]byte, size, 1<<16-1) // upstream's Bind coalesces where there is room
	}
	if err := from.Send(out[:1], e); err != nil { // makes the neighbour known
		b.Error(err)
		return
	}
	if n, err := fns[0](in, sizes, eps); n == 0 || err != nil {
		b.Error(n, err)
		return
	}
	b.ReportAllocs()
	b.ResetTimer()
	before, sent, calls := cpuTime(b), 0, 0
	for ; sent < b.N; sent += batch {
		if err := from.Send(out, e); err != nil {
			b.Error(err)
			return
		}
		for got := 0; got < batch; calls++ { // loopback delivers before Send returns
			n, err := fns[0](in, sizes, eps)
			if err != nil {
				b.Error(err)
				return
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
