package tunnel

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
)

// BenchmarkBulk moves bytes through both ends of a tunnel in one process, over
// the loopback: up (to a sink), or both ways at once (to an echo).
func BenchmarkBulk(b *testing.B) {
	for _, way := range []string{"up", "both"} {
		for _, streams := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/%d", way, streams), func(b *testing.B) { bulk(b, streams, way == "both") })
		}
	}
}

func bulk(b *testing.B, streams int, both bool) {
	e := newEdge(b, newKey(b), "127.0.0.1:0")
	n := e.network(b, "berlin")
	c, _ := join(b, e, n, "b1", handlers{tcp: func(r *netstack.TCPRequest) {
		conn, err := r.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if both {
			_, _ = io.Copy(conn, conn)
			return
		}
		_, _ = io.Copy(io.Discard, conn)
	}}, "10.0.0.0/8")
	conns := make([]net.Conn, streams)
	for i := range conns {
		conns[i], _ = dialTCP(b, n, "10.0.0.10:7")
	}
	const chunk = 64 << 10
	b.SetBytes(chunk)
	each := b.N/streams + 1
	b.ResetTimer()
	var work sync.WaitGroup
	for _, conn := range conns {
		work.Go(func() {
			p := make([]byte, chunk)
			for range each {
				if _, err := conn.Write(p); err != nil {
					b.Error(err)
					return
				}
			}
			_ = conn.(netx.HalfCloser).CloseWrite()
		})
		work.Go(func() {
			if _, err := io.Copy(io.Discard, conn); err != nil {
				b.Error(err)
			}
		})
	}
	work.Wait()
	b.StopTimer()
	for _, t := range []*Tunnel{e.Tunnel, c.Tunnel} {
		t.Drops(func(where, why string, n uint64) { b.Logf("%s/%s: %d", where, why, n) })
	}
}
