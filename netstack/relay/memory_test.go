package relay

import (
	"context"
	"io"
	"net"
	"runtime"
	"testing"
)

// roundTrip sends one byte there and one back.
func roundTrip(t testing.TB, client, origin net.Conn, buf []byte) {
	for _, way := range [][2]net.Conn{{client, origin}, {origin, client}} {
		if _, err := way[0].Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way[1], buf); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	if raceOn {
		t.Skip("the race detector's sync.Pool forgets at random")
	}
	cases := []struct {
		name string
		copy func(context.Context, net.Conn, net.Conn, Options) Result
		make func(testing.TB) (net.Conn, net.Conn)
	}{
		{"stream", Copy, func(t testing.TB) (net.Conn, net.Conn) { return tcpPair(t) }},
		{"datagrams", Datagrams, udpPair},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a, client := c.make(t)
			b, origin := c.make(t)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan Result, 1)
			go func() { done <- c.copy(ctx, a, b, Options{Idle: 1 << 40}) }()
			buf := make([]byte, 1)
			roundTrip(t, client, origin, buf)
			if n := testing.AllocsPerRun(200, func() { roundTrip(t, client, origin, buf) }); n > 0 {
				t.Errorf("%v allocations a round trip, want none", n)
			}
			cancel()
			<-done
			client.Close()
			origin.Close()
		})
	}
}

// An idle flow holds no buffer: what it costs is two stacks and the records.
func TestIdleFlowHoldsNoBuffer(t *testing.T) {
	if raceOn {
		t.Skip("the race detector's own memory is in the count")
	}
	const flows, most = 300, 12 << 10
	if got := idleFlows(t, flows); got > most {
		t.Errorf("%d bytes an idle flow between kernel sockets, want at most %d", got, most)
	}
}

// idleFlows returns what one of n flows costs in heap and stack after 64 KB
// went through it, the four sockets included.
func idleFlows(t testing.TB, n int) int64 {
	before := inUse()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan Result, n)
	far := make([]net.Conn, 0, 2*n)
	buf := make([]byte, 64<<10)
	for range n {
		a, client := tcpPair(t)
		b, origin := tcpPair(t)
		go func() { done <- Copy(ctx, a, b, Options{Idle: 1 << 40}) }()
		far = append(far, client, origin)
		roundTrip(t, client, origin, buf)
	}
	each := (inUse() - before) / int64(n)
	cancel()
	for range n {
		<-done
	}
	for _, c := range far {
		c.Close()
	}
	return each
}

func inUse() int64 {
	runtime.GC()
	runtime.GC() // the second empties the pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// BenchmarkIdleFlow reports what an idle flow between kernel sockets costs.
func BenchmarkIdleFlow(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(float64(idleFlows(b, 1000)), "B/flow")
	}
}

// BenchmarkStream is bulk one way through one flow over loopback.
func BenchmarkStream(b *testing.B) {
	a, client := tcpPair(b)
	c, origin := tcpPair(b)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan Result, 1)
	go func() { done <- Copy(ctx, a, c, Options{Idle: 1 << 40}) }()
	buf := make([]byte, 128<<10)
	b.SetBytes(int64(len(buf)))
	go func() {
		for {
			if _, err := client.Write(buf); err != nil {
				return
			}
		}
	}()
	got := make([]byte, len(buf))
	for b.Loop() {
		if _, err := io.ReadFull(origin, got); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	<-done
	client.Close()
	origin.Close()
}
