package netstack

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// heap is what is in use after a collection, heap and stacks.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// silentLink is a link without memory of its own.
type silentLink struct{ wireEnd }

func (s *silentLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	return pkts.Len(), nil
}
func (s *silentLink) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

func newSilentLink() *silentLink {
	s := new(silentLink)
	s.more.L = &s.mu
	s.mtu.Store(1400)
	return s
}

// One network with one connector must stay far below the 120 KB that the
// edge may spend on it: the tunnel's peer takes 24 KB of that.
func TestStackMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's memory would be measured")
	}
	const n = 200
	shared := NewShared()
	before := heap()
	for range n {
		s := newStack(t, Config{Shared: shared})
		addNIC(t, s, NICConfig{Link: newSilentLink(), Sources: []netip.Addr{source4, source6}})
	}
	per := (heap() - before) / n
	t.Logf("a stack with one NIC: %d bytes", per)
	if per > 34<<10 {
		t.Errorf("a stack with one NIC takes %d bytes", per)
	}
}

// An idle connection, seen from both ends at once: gVisor's endpoints, the
// conns and one goroutine each that waits to read.
func TestIdleConnMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's memory would be measured")
	}
	const n = 1000
	l := newLab(t)
	conns := l.acceptTCP(t)
	open := func() {
		a := l.dial(t, "tcp", service4)
		b := <-conns
		for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
			if _, err := way[0].Write(make([]byte, 4096)); err != nil {
				t.Fatal(err)
			}
			if _, err := readFull(way[1], 4096); err != nil {
				t.Fatal(err)
			}
		}
		go a.(*TCPConn).WaitReadable()
		go b.WaitReadable()
	}
	open()
	l.drain()
	before := heap()
	for range n {
		open()
	}
	l.drain()
	per := (heap() - before) / n / 2
	t.Logf("an idle connection: %d bytes at each end, with a goroutine", per)
	if per > 24<<10 {
		t.Errorf("an idle connection takes %d bytes at each end", per)
	}
}

func BenchmarkAddNIC(b *testing.B) {
	s := newStack(b, Config{})
	for b.Loop() {
		addNIC(b, s, NICConfig{Link: newSilentLink(), Sources: []netip.Addr{source4, source6}})
	}
}

func BenchmarkDial(b *testing.B) {
	l := newLab(b)
	conns := l.acceptTCP(b)
	for b.Loop() {
		c := l.dial(b, "tcp", service4)
		(<-conns).Close()
		c.Read(make([]byte, 1))
		c.Close()
	}
}

func BenchmarkStream(b *testing.B) {
	l := newLab(b)
	x, y := l.pair(b, service4)
	go io.Copy(io.Discard, y)
	block := make([]byte, 64<<10)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		if _, err := x.Write(block); err != nil {
			b.Fatal(err)
		}
	}
}
