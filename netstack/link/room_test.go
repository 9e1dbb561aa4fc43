package link

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// flowPacket makes a TCP packet of a flow that is known by its port; its sequence
// number says which of the flow's it is.
func flowPacket(rng *rand.Rand, port uint16, seq uint32, payload int) *stack.PacketBuffer {
	s := segment{ports: [2]uint16{port, 1}, seq: seq, flags: header.TCPFlagAck, payload: make([]byte, payload)}
	if payload == 0 {
		return rawPacket(s.bytes())
	}
	return s.packet(rng, 1340)
}

func rawPacket(b []byte) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	return pkt
}

// ports reads up to n packets and returns the port of each.
func ports(e *Endpoint, n int) (list []uint16) {
	bufs, sizes := buffers(n, 2048)
	for i := range e.Read(bufs, sizes, 0) {
		list = append(list, binary.BigEndian.Uint16(bufs[i][20:]))
	}
	return list
}

// TestSmallFlowBesideBulk: 128 writers push as hard as they can, and nearly all
// of them wait. A ping does not, and goes behind no more than the packet that
// is being cut; so does the next, though the round is not over.
func TestSmallFlowBesideBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := openEndpoint(t, Config{MaxBytes: 1 << 20})
		var stop atomic.Bool
		var work sync.WaitGroup
		for i := range 128 {
			work.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(i)))
				for seq := uint32(0); !stop.Load(); seq++ {
					write(t, e, flowPacket(rng, uint16(1000+i), seq, 60000))
				}
			})
		}
		defer work.Wait()
		defer e.SetOpen(false)
		defer stop.Store(true)
		synctest.Wait()
		for round := range 100 {
			ports(e, 64)
			synctest.Wait()
			if n := e.Len(); n < 128 || n > 128+17+1 {
				t.Fatalf("round %d: %d packets wait, want the writers', the 17 of 1 MiB, and one that is being cut", round, n)
			}
			write(t, e, flowPacket(nil, 7, uint32(round), 0))
			found := -1
			for i, port := range ports(e, 64) {
				if port == 7 {
					found = i
				}
			}
			if found < 0 || found > (60000+1339)/1340 {
				t.Fatalf("round %d: the ping was packet %d of 64", round, found)
			}
		}
	})
}

// TestRoomWakesWhoHasIt: as many writers go on as there is room for, the oldest
// first, and one whose packet was read.
func TestRoomWakesWhoHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := openEndpoint(t, Config{MaxPackets: 4})
		rng := rand.New(rand.NewPCG(1, 1))
		const payload = 2 * 1340 // two segments, and no credit for it
		payloadOf := func(i int) int { return payload + 2*1340 + i }
		for range 4 {
			write(t, e, flowPacket(rng, 1, 0, payloadOf(0)))
		}
		var done [5]atomic.Bool
		var work sync.WaitGroup
		for i := range done {
			work.Go(func() {
				write(t, e, flowPacket(rand.New(rand.NewPCG(1, uint64(i))), uint16(10+i), 0, payloadOf(i)))
				done[i].Store(true)
			})
			synctest.Wait()
		}
		count := func() (n int) {
			synctest.Wait()
			for i := range done {
				if done[i].Load() {
					n++
				}
			}
			return n
		}
		if n := count(); n != 0 || e.Len() != 9 {
			t.Fatalf("%d writers did not wait; %d packets do", n, e.Len())
		}
		for want := 1; want <= 5; want++ {
			for before := e.Len(); e.Len() == before; {
				ports(e, 1)
			}
			if n := count(); n != want {
				t.Fatalf("%d writers went on after %d packets were read", n, want)
			}
		}
		work.Wait()
		e.Close()
	})
}

// TestSparseRoomIsBounded: the room of small flows ends somewhere, and is not
// for large packets, nor for a flow's second.
func TestSparseRoomIsBounded(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	e := openEndpoint(t, Config{MaxPackets: 2, Lossy: true})
	for range 2 {
		write(t, e, flowPacket(rng, 1, 0, 60000))
	}
	for _, refused := range []*stack.PacketBuffer{
		flowPacket(rng, 1, 0, 0), flowPacket(rng, 2, 0, credit), packet(header.ICMPv4ProtocolNumber, 0, nil),
	} {
		write(t, e, refused)
	}
	if e.Len() != 2 || e.drops.Count(WhyQueueFull) != 3 {
		t.Errorf("%d wait and %d dropped, want 2 and 3", e.Len(), e.drops.Count(WhyQueueFull))
	}
	for i := range sparseRoom + 5 {
		write(t, e, flowPacket(rng, uint16(10+i), 0, 1000))
		write(t, e, flowPacket(rng, 10, 0, 1000)) // has one
	}
	if want := uint64(3 + 5 + sparseRoom + 5); e.Len() != 2+sparseRoom || e.drops.Count(WhyQueueFull) != want {
		t.Errorf("%d wait and %d dropped, want %d and %d", e.Len(), e.drops.Count(WhyQueueFull), 2+sparseRoom, want)
	}
}

// TestFlowsKeepTheirOrder, and lose nothing, while writers wait and are woken;
// what has room is within the bounds at any time.
func TestFlowsKeepTheirOrder(t *testing.T) {
	const flows, each, maxPackets, maxBytes = 24, 400, 16, 100_000
	var ready = make(chan struct{}, 1)
	e := openEndpoint(t, Config{MaxPackets: maxPackets, MaxBytes: maxBytes, Ready: func() {
		select {
		case ready <- struct{}{}:
		default:
		}
	}})
	var work sync.WaitGroup
	for i := range flows {
		work.Go(func() {
			rng := rand.New(rand.NewPCG(9, uint64(i)))
			for seq := range uint32(each) {
				size := rng.IntN(1000)
				if i%2 == 0 {
					size = rng.IntN(20000)
				}
				write(t, e, flowPacket(rng, uint16(i), seq<<16, size))
			}
		})
	}
	var next [flows]uint32
	bufs, sizes := buffers(40, 2048)
	for left := flows * each; left > 0; {
		e.mu.Lock()
		n, bytes := e.queue.count-e.queue.waiting.count, e.queue.bytes-e.queue.waiting.bytes
		if n > maxPackets+sparseRoom || bytes > maxBytes+flows*credit || e.queue.waiting.count > flows {
			t.Errorf("%d packets and %d bytes have room, %d wait", n, bytes, e.queue.waiting.count)
		}
		e.mu.Unlock()
		n = e.Read(bufs, sizes, 0)
		if n == 0 {
			<-ready
		}
		for _, b := range bufs[:n] {
			flow, seq := binary.BigEndian.Uint16(b[20:]), binary.BigEndian.Uint32(b[24:])
			if seq&0xffff != 0 { // a further segment of a packet
				if seq>>16 != next[flow]-1 {
					t.Fatalf("flow %d: a segment of packet %d after packet %d", flow, seq>>16, next[flow]-1)
				}
				continue
			}
			if seq>>16 != next[flow] {
				t.Fatalf("flow %d: packet %d, want %d", flow, seq>>16, next[flow])
			}
			next[flow]++
			left--
		}
	}
	work.Wait()
}

// TestTurnKey: what belongs to one flow.
func TestTurnKey(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	base := segment{ports: [2]uint16{5000, 443}, seq: 1, flags: header.TCPFlagAck, payload: make([]byte, 3000)}
	change := func(v6 bool, f func(b []byte)) *stack.PacketBuffer {
		s := base
		s.v6 = v6
		b := s.bytes()
		if f != nil {
			f(b)
		}
		return rawPacket(b)
	}
	fragment := func(ports byte) *stack.PacketBuffer {
		return change(false, func(b []byte) { b[6], b[20] = 0x20, ports })
	}
	options, v6 := base, base
	options.options, v6.v6 = []byte{1, 1, 1, 1}, true
	for _, tc := range []struct {
		name string
		a, b *stack.PacketBuffer
		same bool
	}{
		{"headers pushed, and as bytes", base.packet(rng, 1340), change(false, nil), true},
		{"the same in IPv6", v6.packet(rng, 1340), change(true, nil), true},
		{"other sizes and options", options.packet(rng, 1340), change(false, nil), true},
		{"source port", change(false, func(b []byte) { b[21]++ }), change(false, nil), false},
		{"destination port", change(false, func(b []byte) { b[23]++ }), change(false, nil), false},
		{"source", change(false, func(b []byte) { b[15]++ }), change(false, nil), false},
		{"destination", change(true, func(b []byte) { b[39]++ }), change(true, nil), false},
		{"protocol", change(false, func(b []byte) { b[9] = 17 }), change(false, nil), false},
		{"IP options before the ports", change(false, func(b []byte) { b[0], b[24] = 0x46, 1 }),
			change(false, func(b []byte) { b[0], b[24] = 0x46, 2 }), false},
		{"fragments", fragment(1), fragment(2), true},
		{"a fragment and a whole packet", fragment(1), change(false, nil), false},
		{"IPv6 fragments", change(true, func(b []byte) { b[6], b[40] = 44, 1 }), change(true, func(b []byte) { b[6], b[40] = 44, 2 }), true},
		{"ICMP", change(false, func(b []byte) { b[9], b[24] = 1, 1 }), change(false, func(b []byte) { b[9], b[24] = 1, 2 }), true},
		{"neither version", rawPacket([]byte{0x10, 1}), rawPacket(nil), true},
	} {
		if same := turnKey(tc.a) == turnKey(tc.b); same != tc.same {
			t.Errorf("%s: one flow is %v, want %v", tc.name, same, tc.same)
		}
	}
}
