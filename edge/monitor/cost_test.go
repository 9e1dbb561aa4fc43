package monitor

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/check"
)

// crowd is n targets of the monitor pg in the network berlin.
func crowd(n int) []Target {
	targets := make([]Target, n)
	for i := range targets {
		addr := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		targets[i] = Target{"berlin", netip.AddrPortFrom(addr, 5432), "pg"}
	}
	return targets
}

// goroutines counts those that run code of this package's own, but for tests.
func goroutines() int {
	buf := make([]byte, 16<<20)
	n := 0
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "edge/monitor.(*") && !strings.Contains(stack, "_test.go") {
			n++
		}
	}
	return n
}

// free dials at no cost.
func free(context.Context, string, string, netip.AddrPort) (net.Conn, error) { return nobody{}, nil }

type nobody struct{ net.Conn }

func (nobody) Abort() {}

// BenchmarkCheck is what the monitor adds to the cost of one dial.
func BenchmarkCheck(b *testing.B) {
	m := New(Deps{Dial: free})
	defer m.Stop()
	if err := m.Apply([]Spec{pg}, []Target{target}); err != nil {
		b.Fatal(err)
	}
	plan, err := newPlan(pg)
	if err != nil {
		b.Fatal(err)
	}
	c := newWatch(identity{network: "berlin", addr: addr10}, plan, target, first(epoch))
	c.deps, c.ctx = &m.deps, m.ctx
	b.ReportAllocs()
	for b.Loop() {
		c.record(time.Now(), RunByEdge, c.try(m.ctx))
	}
}

// BenchmarkReported is what a connector's result costs.
func BenchmarkReported(b *testing.B) {
	m := New(Deps{Dial: free})
	defer m.Stop()
	if err := m.Apply([]Spec{far()}, crowd(5000)); err != nil {
		b.Fatal(err)
	}
	tasks := m.Tasks()
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		m.Reported("c", tasks[i%len(tasks)].ID, check.Result{RTT: time.Millisecond})
		i++
	}
}

// BenchmarkCrowd is what 5,000 endpoints at 5 s cost, as a share of one
// processor: the monitor's part, with dials that cost nothing.
func BenchmarkCrowd(b *testing.B) {
	for _, runBy := range []string{RunByEdge, RunByConnector} {
		b.Run(runBy, func(b *testing.B) {
			if b.N > 1 {
				return // once is enough
			}
			spec := pg
			spec.RunBy = runBy
			m := New(Deps{Dial: free})
			defer m.Stop()
			if err := m.Apply([]Spec{spec}, crowd(5000)); err != nil {
				b.Fatal(err)
			}
			time.Sleep(time.Second)
			const span = 10 * time.Second
			before := spent(b)
			if tasks := m.Tasks(); len(tasks) > 0 { // batches, as connectors send them
				for range 20 {
					for _, task := range tasks[:len(tasks)/2] {
						m.Reported("c", task.ID, check.Result{RTT: time.Millisecond})
					}
					tasks = append(tasks[len(tasks)/2:], tasks[:len(tasks)/2]...)
					time.Sleep(span / 20)
				}
			} else {
				time.Sleep(span)
			}
			b.ReportMetric(100*float64(spent(b)-before)/float64(span), "%core")
		})
	}
}

// spent is this process's processor time.
func spent(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
