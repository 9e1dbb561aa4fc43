package netstack

import (
	queue "container/heap"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// impairment makes a path of a wire: packets take delay, some are lost, some
// take a few milliseconds more and are overtaken.
type impairment struct {
	delay         time.Duration // one way
	loss, reorder float64       // shares of all packets

	mu     sync.Mutex
	rng    *rand.Rand
	flying flights
	more   chan struct{}
}

type flight struct {
	at   time.Time
	n    int // keeps the order of what arrives at once
	data []byte
}

type flights []flight

func (f flights) Len() int { return len(f) }
func (f flights) Less(i, j int) bool {
	return f[i].at.Before(f[j].at) || f[i].at.Equal(f[j].at) && f[i].n < f[j].n
}
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)   { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	last := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return last
}

// impair puts what end sends onto a worse path until the test ends.
func impair(t testing.TB, end *wireEnd, delay time.Duration, loss, reorder float64, seed uint64) {
	p := &impairment{delay: delay, loss: loss, reorder: reorder, rng: rand.New(rand.NewPCG(seed, 1)), more: make(chan struct{}, 1)}
	n := 0
	end.setFilter(func(b []byte) int {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.rng.Float64() < p.loss {
			return 0
		}
		at := time.Now().Add(p.delay)
		if p.rng.Float64() < p.reorder {
			at = at.Add(time.Millisecond + time.Duration(p.rng.Int64N(int64(4*time.Millisecond))))
		}
		n++
		queue.Push(&p.flying, flight{at, n, append([]byte(nil), b...)})
		select {
		case p.more <- struct{}{}:
		default:
		}
		return 0
	})
	done, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); p.fly(end.peer, done) }()
	t.Cleanup(func() { close(done); <-ended })
}

// fly delivers to the end at the other side.
func (p *impairment) fly(to *wireEnd, done <-chan struct{}) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p.mu.Lock()
		var due [][]byte
		now := time.Now()
		for len(p.flying) > 0 && !p.flying[0].at.After(now) {
			due = append(due, queue.Pop(&p.flying).(flight).data)
		}
		wait := time.Hour
		if len(p.flying) > 0 {
			wait = p.flying[0].at.Sub(now)
		}
		p.mu.Unlock()
		for _, b := range due {
			to.deliver(b)
		}
		if len(due) > 0 {
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-p.more:
		case <-done:
			return
		}
	}
}

// BenchmarkImpaired compares loss recovery and congestion control on a path of
// 20 ms: the figures are beside the choice, in tune.go.
func BenchmarkImpaired(b *testing.B) {
	for _, path := range []struct {
		name          string
		loss, reorder float64
	}{{"loss 0.1 %", 0.001, 0}, {"loss 0.1 %, reorder 1 %", 0.001, 0.01}} {
		for _, streams := range []int{1, 8} {
			for _, recovery := range []tcpip.TCPRecovery{tcpip.TCPRACKLossDetection, 0} {
				for _, cc := range []tcpip.CongestionControlOption{"reno", "cubic"} {
					b.Run(fmt.Sprintf("%s/%d/rack=%v/%s", path.name, streams, recovery != 0, cc), func(b *testing.B) {
						l := newLab(b)
						for _, s := range []*Stack{l.edge, l.connector} {
							for _, option := range []tcpip.SettableTransportProtocolOption{&recovery, &cc} {
								if err := s.gv.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
									b.Fatal(err)
								}
							}
						}
						impair(b, l.edgeEnd, 10*time.Millisecond, path.loss, path.reorder, 1)
						impair(b, l.connectorEnd, 10*time.Millisecond, path.loss, path.reorder, 2)
						l.bulk(b, streams)
						stats := l.edge.gv.Stats().TCP
						b.ReportMetric(float64(stats.Timeouts.Value()), "timeouts")
						b.ReportMetric(float64(stats.Retransmits.Value()), "retransmits")
						b.ReportMetric(float64(stats.SACKRecovery.Value()+stats.FastRecovery.Value()), "recoveries")
						b.ReportMetric(float64(stats.SegmentsSent.Value())/1000, "kseg")
					})
				}
			}
		}
	}
}

// bulk sends b.N blocks of 64 KiB over streams, as fast as they go.
func (l *lab) bulk(b *testing.B, streams int) {
	conns := l.acceptTCP(b)
	const block = 64 << 10
	var wg sync.WaitGroup
	blocks := make(chan struct{}, b.N)
	for range b.N {
		blocks <- struct{}{}
	}
	close(blocks)
	var out, in []*TCPConn
	for range streams {
		out = append(out, l.dial(b, "tcp", service4).(*TCPConn))
		in = append(in, <-conns)
	}
	b.SetBytes(block)
	b.ResetTimer()
	for i := range streams {
		wg.Go(func() {
			for range blocks {
				if _, err := out[i].Write(make([]byte, block)); err != nil {
					b.Error(err)
					return
				}
			}
			_ = out[i].CloseWrite()
		})
		wg.Go(func() {
			p := make([]byte, block)
			for {
				if _, err := in[i].Read(p); err != nil {
					_ = in[i].Close()
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}
