package netstack

import (
	"net/netip"
	"runtime"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/netx"
)

// mirror is a link that turns each datagram around and delivers it back, on the
// writer's goroutine: what is measured is the stack alone.
type mirror struct{ wireEnd }

func (m *mirror) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range pkts.AsSlice() {
		b := pkt.ToView()
		p := b.AsSlice()
		for i := range 4 {
			p[12+i], p[16+i] = p[16+i], p[12+i]
		}
		p[20], p[21], p[22], p[23] = p[22], p[23], p[20], p[21]
		if taken, wake := m.dispatcher.(*inbound).DeliverDatagram(p); !taken {
			m.deliver(p)
		} else if wake != nil {
			wake.Wake()
		}
		b.Release()
	}
	return pkts.Len(), nil
}

func newMirror(t testing.TB) *UDPConn {
	t.Helper()
	m := &mirror{}
	m.more.L = &m.mu
	m.mtu.Store(1400)
	n := addNIC(t, newStack(t, Config{}), NICConfig{Link: m, Sources: []netip.Addr{source4}})
	c, err := n.DialContext(t.Context(), "udp", service4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*UDPConn)
}

// A datagram that is sent and one that is read cost no allocation.
func TestUDPAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	c := newMirror(t)
	payload, buf := make([]byte, 1200), make([]byte, 2048)
	var batch netx.Batch
	many := [][]byte{payload, payload, payload, payload}
	for name, f := range map[string]func(){
		"one by one": func() {
			_, _ = c.Write(payload)
			_, _ = c.Read(buf)
		},
		"many": func() {
			_, _ = c.WriteBatch(many)
			_ = c.ReadBatch(&batch)
			if n := len(batch.Datagrams()); n != len(many) {
				t.Fatalf("%d datagrams of %d", n, len(many))
			}
			batch.Release()
		},
	} {
		if n := testing.AllocsPerRun(1000, f); n >= 1 {
			t.Errorf("%s: %.1f allocations", name, n)
		}
	}
}

// BenchmarkUDP sends datagrams of 1,200 bytes and reads them back, on one
// goroutine. cpu-ns/datagram is the processor's time.
func BenchmarkUDP(b *testing.B) {
	for _, size := range []int{64, 1200} {
		payload, buf := make([]byte, size), make([]byte, 2048)
		b.Run(sizeName(size)+"/single", func(b *testing.B) {
			c := newMirror(b)
			cpu := cpuTime()
			for b.Loop() {
				_, _ = c.Write(payload)
				_, _ = c.Read(buf)
			}
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/datagram")
		})
		b.Run(sizeName(size)+"/batch", func(b *testing.B) {
			c := newMirror(b)
			many := make([][]byte, 32)
			for i := range many {
				many[i] = payload
			}
			var batch netx.Batch
			cpu := cpuTime()
			for b.Loop() {
				_, _ = c.WriteBatch(many)
				_ = c.ReadBatch(&batch)
				batch.Release()
			}
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N)/float64(len(many)), "cpu-ns/datagram")
		})
	}
}

func sizeName(n int) string {
	if n < 100 {
		return "64"
	}
	return "1200"
}

// An idle UDP flow, both ends and no goroutine.
func TestIdleUDPMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's memory would be measured")
	}
	const n = 2000
	l := newLab(t)
	conns := l.acceptUDP(t)
	keep := make([]*UDPConn, 0, 2*n)
	open := func() {
		a := l.dial(t, "udp", service4)
		if _, err := a.Write(make([]byte, 1200)); err != nil {
			t.Fatal(err)
		}
		b := <-conns
		if _, err := b.Read(make([]byte, 2048)); err != nil {
			t.Fatal(err)
		}
		keep = append(keep, a.(*UDPConn), b)
	}
	open()
	l.drain()
	before := heap()
	for range n {
		open()
	}
	l.drain()
	per := (heap() - before) / n / 2
	t.Logf("an idle UDP flow: %d bytes at each end", per)
	if per > 2<<10 {
		t.Errorf("an idle UDP flow takes %d bytes at each end", per)
	}
	runtime.KeepAlive(keep)
}
