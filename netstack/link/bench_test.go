package link

import (
	"math/rand/v2"
	"testing"

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
		name      string
		pkt       *stack.PacketBuffer
		times     int
		checksums bool
	}{{"plain", one, segments, true}, {"split", large, 1, true}, {"split, no checksums", large, 1, false}} {
		b.Run(bc.name, func(b *testing.B) {
			e := New(Config{MTU: 1400, Deferrer: nil})
			defer e.Close()
			e.SetOpen(true)
			e.SetChecksums(bc.checksums)
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
