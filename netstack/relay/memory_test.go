package relay

import (
	"context"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
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

// A flow at rest holds neither buffer nor goroutine: what it costs are the
// records, those of the four sockets included.
func TestIdleFlowHoldsRecordsAlone(t *testing.T) {
	if raceOn {
		t.Skip("the race detector's own memory is in the count")
	}
	const flows, most = 1000, 6 << 10
	got, goroutines := idleFlows(t, flows)
	if got > most {
		t.Errorf("%d bytes an idle flow between kernel sockets, want at most %d", got, most)
	}
	if goroutines > 2 { // the poller's, and one that a timer may have started
		t.Errorf("%d goroutines for %d idle flows, want the poller's alone", goroutines, flows)
	}
}

// idleFlows returns what one of n flows costs in heap and stack after 64 KB
// went through it and it came to rest, and how many goroutines they all have.
func idleFlows(t testing.TB, n int) (each int64, goroutines int) {
	poller := NewPoller()
	defer poller.Close()
	before, running := inUse(), runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan Result, n)
	far := make([]net.Conn, 0, 2*n)
	buf := make([]byte, 64<<10)
	flows := make([]*Stream, 0, n)
	for range n {
		a, client := tcpPair(t)
		b, origin := tcpPair(t)
		flows = append(flows, Start(ctx, a, b, Options{Idle: 1 << 40, Poller: poller, tick: 10 * time.Millisecond}, func(r Result) { over <- r }))
		far = append(far, client, origin)
		roundTrip(t, client, origin, buf)
	}
	for _, f := range flows {
		f.awaitRest()
	}
	each, goroutines = (inUse()-before)/int64(n), runtime.NumGoroutine()-running
	cancel()
	for range n {
		<-over
	}
	for _, c := range far {
		c.Close()
	}
	return each, goroutines
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
		each, _ := idleFlows(b, 1000)
		b.ReportMetric(float64(each), "B/flow")
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
