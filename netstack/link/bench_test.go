package link

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const benchMSS = 1340 // what gVisor sends at an MTU of 1400

// BenchmarkRead takes what a flow has written out of the queue: as packets of
// one MSS with a checksum, the plain path, or as large ones that are cut.
func BenchmarkRead(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	const segments = 48
	one := segment{flags: header.TCPFlagAck, payload: make([]byte, benchMSS)}.packet(rng, benchMSS)
	one.GSOOptions = stack.GSO{}
	large := segment{flags: header.TCPFlagAck, payload: make([]byte, segments*benchMSS)}.packet(rng, benchMSS)
	for _, bc := range []struct {
		name  string
		pkt   *stack.PacketBuffer
		times int
		own   bool
	}{{"plain", one, segments, false}, {"split", large, 1, false}, {"split, no checksums", large, 1, true}} {
		b.Run(bc.name, func(b *testing.B) {
			e := New(Config{MTU: 1400, Deferrer: nil})
			defer e.Close()
			e.SetOpen(true)
			e.SetOwn(bc.own)
			bufs, sizes := buffers(128, 2048)
			var list stack.PacketBufferList
			for range bc.times {
				list.PushBack(bc.pkt)
			}
			b.SetBytes(benchMSS)
			b.ReportAllocs()
			for n := 0; n < b.N; {
				_, _ = e.WritePackets(list)
				n += e.Read(bufs, sizes, 56)
			}
		})
	}
}

// BenchmarkDeliver gives the stack batches of 128 segments: one flow's as they
// come out of large packets, flows mixed, and for the plain path segments with
// PSH, which are not merged.
func BenchmarkDeliver(b *testing.B) {
	const segments = 128
	for _, bc := range []struct {
		name    string
		flows   int
		flags   header.TCPFlags
		trusted bool
	}{
		{"plain", 1, header.TCPFlagAck | header.TCPFlagPsh, false},
		{"merge", 1, header.TCPFlagAck, false},
		{"merge, trusted", 1, header.TCPFlagAck, true},
		{"merge 8 mixed", 8, header.TCPFlagAck, false},
		{"128 mixed", 128, header.TCPFlagAck, false},
	} {
		b.Run(bc.name, func(b *testing.B) {
			e := New(Config{MTU: 1400})
			e.SetTrusted(bc.trusted)
			s := &sink{}
			e.Attach(s)
			var batch [][]byte
			for i := range segments {
				batch = append(batch, segment{ports: [2]uint16{uint16(i % bc.flows), 1}, seq: uint32(i / bc.flows * benchMSS),
					flags: bc.flags, payload: make([]byte, benchMSS)}.bytes())
			}
			b.SetBytes(benchMSS)
			b.ReportAllocs()
			for n := 0; n < b.N; n += segments {
				e.Deliver(batch)
			}
			b.ReportMetric(float64(s.packets)/float64(b.N), "delivered/packet")
		})
	}
}

// BenchmarkQueue puts packets of 1,400 bytes into the queue and takes them out,
// from a few flows and from many: processor time a packet.
func BenchmarkQueue(b *testing.B) {
	for _, flows := range []int{1, 8, 128, 1000} {
		b.Run(fmt.Sprintf("flows %d", flows), func(b *testing.B) {
			e := New(Config{MTU: 1400})
			defer e.Close()
			e.SetOpen(true)
			var list stack.PacketBufferList
			for i := range flows {
				list.PushBack(rawPacket(segment{ports: [2]uint16{uint16(i), 1}, payload: make([]byte, 1360)}.bytes()))
			}
			var taken [32]*stack.PacketBuffer
			b.ReportAllocs()
			before := processorTime()
			for n := 0; n < b.N; n += flows {
				_, _ = e.WritePackets(list)
				for {
					batch := e.take(taken[:], 64, 1400)
					for _, pkt := range batch {
						pkt.DecRef()
					}
					if len(batch) == 0 {
						break
					}
				}
			}
			b.ReportMetric(float64(processorTime()-before)/float64(b.N), "cpu-ns/packet")
		})
	}
}

func processorTime() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkPing has a ping go and come back through two stacks beside streams,
// and says how much of these went in its direction meanwhile: the queue that it
// waited in, whatever the machine does.
func BenchmarkPing(b *testing.B) {
	for _, streams := range []int{1, 8, 128} {
		b.Run(fmt.Sprintf("streams %d", streams), func(b *testing.B) { ping(b, streams) })
	}
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func ping(b *testing.B, streams int) {
	p := newPair(b, false)
	var moved atomic.Int64
	p.moved = &moved
	p.start()
	l, err := gonet.ListenTCP(p.stacks[1], tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}), Port: 9}, header.IPv4ProtocolNumber)
	if err != nil {
		b.Fatal(err)
	}
	conn := p.dial(b, false, echoAll)
	defer conn.Close()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		for range streams {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { _, _ = io.Copy(io.Discard, c); c.Close() })
		}
	})
	defer l.Close()
	for range streams {
		c, err := gonet.DialContextTCP(context.Background(), p.stacks[0], tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}), Port: 9}, header.IPv4ProtocolNumber)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		work.Go(func() {
			room := make(chan struct{}, 1)
			place := p.ends[0].Place(addrPort(c.LocalAddr()), addrPort(c.RemoteAddr()), func() { room <- struct{}{} })
			for block := make([]byte, 64<<10); ; {
				for !place.Ask(len(block)) {
					<-room
				}
				_, err := c.Write(block)
				place.Done()
				if err != nil {
					return
				}
			}
		})
	}
	for moved.Load() < 64<<20 {
		runtime.Gosched()
	}
	waited := make([]int64, 0, b.N)
	for b.Loop() {
		before := moved.Load()
		if _, err := conn.Write([]byte("ping")); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
			b.Fatal(err)
		}
		waited = append(waited, moved.Load()-before)
	}
	_ = conn.(*gonet.TCPConn).CloseWrite()
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF { // the echo is over
		b.Error(err)
	}
	slices.Sort(waited)
	b.ReportMetric(float64(waited[len(waited)/2])/1024, "p50-KiB/ping")
	b.ReportMetric(float64(waited[len(waited)*99/100])/1024, "p99-KiB/ping")
}
