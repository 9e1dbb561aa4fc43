package link

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// segment describes one TCP packet, of the stack or of the wire.
type segment struct {
	v6      bool
	df      bool
	tos     uint8
	ttl     uint8
	id      uint16
	ports   [2]uint16
	seq     uint32
	ack     uint32
	flags   header.TCPFlags
	window  uint16
	urgent  uint16
	options []byte // a multiple of 4
	payload []byte
}

var (
	src4, dst4 = tcpip.AddrFrom4([4]byte{100, 127, 0, 1}), tcpip.AddrFrom4([4]byte{10, 0, 0, 10})
	src6, dst6 = tcpip.AddrFrom16([16]byte{0xfd, 1, 15: 1}), tcpip.AddrFrom16([16]byte{0xfd, 2, 15: 9})
)

// bytes returns the packet as it is on the wire, all checksums right.
func (s segment) bytes() []byte {
	hlen := header.IPv4MinimumSize
	if s.v6 {
		hlen = header.IPv6MinimumSize
	}
	b := make([]byte, hlen+header.TCPMinimumSize, hlen+header.TCPMinimumSize+len(s.options)+len(s.payload))
	b = append(append(b, s.options...), s.payload...)
	src, dst := src4, dst4
	if s.v6 {
		src, dst = src6, dst6
		header.IPv6(b).Encode(&header.IPv6Fields{TrafficClass: s.tos, FlowLabel: 7, PayloadLength: uint16(len(b) - hlen),
			TransportProtocol: header.TCPProtocolNumber, HopLimit: s.ttl, SrcAddr: src, DstAddr: dst})
	} else {
		fields := header.IPv4Fields{TOS: s.tos, TotalLength: uint16(len(b)), ID: s.id, TTL: s.ttl,
			Protocol: uint8(header.TCPProtocolNumber), SrcAddr: src, DstAddr: dst}
		if s.df {
			fields.Flags = header.IPv4FlagDontFragment
		}
		header.IPv4(b).Encode(&fields)
		header.IPv4(b).SetChecksum(^header.IPv4(b).CalculateChecksum())
	}
	t := header.TCP(b[hlen:])
	t.Encode(&header.TCPFields{SrcPort: s.ports[0], DstPort: s.ports[1], SeqNum: s.seq, AckNum: s.ack,
		DataOffset: uint8(header.TCPMinimumSize + len(s.options)), Flags: s.flags, WindowSize: s.window, UrgentPointer: s.urgent})
	xsum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(t)))
	t.SetChecksum(^checksum.Checksum(t, xsum))
	return b
}

// packet returns what gVisor would write: headers in a view of their own, the
// payload in several, the checksum left to the link.
func (s segment) packet(rng *rand.Rand, mss int) *stack.PacketBuffer {
	b := s.bytes()
	hlen, options := header.IPv4MinimumSize, stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: uint16(mss)}
	if s.v6 {
		hlen, options.Type = header.IPv6MinimumSize, stack.GSOTCPv6
	}
	headers := hlen + header.TCPMinimumSize + len(s.options)
	var payload buffer.Buffer
	for rest := b[headers:]; len(rest) > 0; {
		n := 1 + rng.IntN(len(rest))
		payload.Append(buffer.NewViewWithData(rest[:n]))
		rest = rest[n:]
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: headers + rng.IntN(20), Payload: payload})
	t := header.TCP(pkt.TransportHeader().Push(headers - hlen))
	copy(t, b[hlen:])
	t.SetChecksum(0xbeef) // whatever is there must not matter
	copy(pkt.NetworkHeader().Push(hlen), b)
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	pkt.GSOOptions = options
	return pkt
}

// naiveSplit is the oracle: it takes the next segment off s, at the MTU of now.
func naiveSplit(s *segment, mss, mtu int, last *uint16, first bool) (packet []byte, done bool) {
	headers := 40 + len(s.options)
	if s.v6 {
		headers += 20
	}
	n := max(1, mtu-headers)
	if mss > 0 {
		n = min(n, mss)
	}
	n = min(n, len(s.payload))
	part := *s
	part.payload = s.payload[:n]
	if part.flags&header.TCPFlagSyn == 0 && part.window > 0 {
		part.window-- // see narrow
	}
	s.payload = s.payload[n:]
	done = len(s.payload) == 0
	if !done {
		part.flags &^= header.TCPFlagFin | header.TCPFlagPsh
	}
	if !first {
		part.flags &^= flagCWR
	}
	switch {
	case part.flags&header.TCPFlagUrg == 0:
		part.urgent = 0
	case s.urgent == 0:
		part.flags &^= header.TCPFlagUrg
	default:
		s.urgent -= min(s.urgent, uint16(n))
	}
	if !s.df {
		if *last++; *last == 0 {
			*last = 1
		}
		part.id = *last
	}
	s.seq += uint32(n)
	return part.bytes(), done
}

func randomSegment(rng *rand.Rand, size int) segment {
	s := segment{
		v6: rng.IntN(2) == 0, df: rng.IntN(2) == 0, tos: uint8(rng.Uint32()), ttl: uint8(rng.Uint32()), id: uint16(rng.Uint32()),
		ports: [2]uint16{uint16(rng.Uint32()), uint16(rng.Uint32())},
		seq:   rng.Uint32(), ack: rng.Uint32(), window: uint16(rng.Uint32()),
		flags:   header.TCPFlagAck | header.TCPFlags(rng.Uint32())&^header.TCPFlagRst,
		options: make([]byte, 4*rng.IntN(11)), payload: make([]byte, size),
	}
	if rng.IntN(2) == 0 {
		s.seq = -uint32(rng.IntN(size + 2)) // wraps within the packet
	}
	if s.flags&header.TCPFlagUrg != 0 {
		s.urgent = uint16(rng.IntN(size + 2))
	}
	for i := range s.options {
		s.options[i] = byte(rng.Uint32())
	}
	for i := range s.payload {
		s.payload[i] = byte(rng.Uint32())
	}
	return s
}

// FuzzSplit reads packets of any shape through buffers of any number, with
// the MTU changing between the reads, and whether the peer is ours, and
// compares each byte with the oracle.
func FuzzSplit(f *testing.F) {
	f.Add(uint64(1), uint32(65374), uint16(1340), uint16(1400), uint16(1280), uint8(7))
	f.Add(uint64(2), uint32(1340), uint16(1340), uint16(1400), uint16(9000), uint8(128))
	f.Add(uint64(3), uint32(0), uint16(0), uint16(1400), uint16(1400), uint8(1))
	f.Add(uint64(4), uint32(9999), uint16(9000), uint16(1280), uint16(1400), uint8(3))
	f.Add(uint64(5), uint32(300), uint16(1), uint16(100), uint16(64), uint8(2))
	deferrer := NewDeferrer(1)
	f.Cleanup(deferrer.Close)
	f.Fuzz(func(t *testing.T, seed uint64, size uint32, mss, mtu, other uint16, room uint8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		e := New(Config{MTU: int(mtu), Deferrer: deferrer})
		defer e.Close()
		e.SetOpen(true)
		e.tcpID = uint16(seed)
		mtus := [2]int{int(mtu), int(other)}
		bufs, sizes := buffers(max(1, int(room)), 1<<16)
		for range 3 {
			s := randomSegment(rng, rng.IntN(int(size)%65375+1))
			write(t, e, s.packet(rng, int(mss)))
			id, want, most := e.tcpID, s, int(mss)
			for done, reads := false, 0; !done; reads++ {
				now := mtus[reads%2]
				e.SetMTU(uint32(now))
				own := rng.IntN(3) == 0
				e.SetOwn(own)
				if own && reads == 0 { // for the whole packet
					most = 0
				}
				n := e.Read(bufs, sizes, 16)
				if n == 0 {
					t.Fatal("the packet ended early")
				}
				for i := range n {
					var b []byte
					b, done = naiveSplit(&want, most, now, &id, reads == 0 && i == 0)
					if own {
						b = withoutSum(b)
					}
					if got := bufs[i][16 : 16+sizes[i]]; !bytes.Equal(got, b) {
						t.Fatalf("read %d, segment %d of %+v:\n got %x\nwant %x", reads, i, s, got, b)
					}
					if done != (i == n-1 && len(want.payload) == 0) {
						t.Fatalf("segment %d of %d is the last", i, n)
					}
				}
				if waits := e.Len() == 1; waits == done {
					t.Fatalf("done: %v; waits: %v", done, waits)
				}
			}
			if n := e.Read(bufs, sizes, 16); n != 0 {
				t.Fatalf("%d segments too many", n)
			}
		}
		e.Drops(func(why string, n uint64) { t.Errorf("%d dropped: %s", n, why) })
	})
}

// TestSplit is the fuzz test's run over what matters most, without a fuzzer.
func TestSplit(t *testing.T) {
	for _, tc := range []struct {
		name string
		s    segment
		mss  int
		want []string // flags and payload's length of each segment
	}{
		{"three and a bit", segment{seq: 0xfffffc00, flags: header.TCPFlagAck | header.TCPFlagPsh, payload: make([]byte, 3100)}, 1000,
			[]string{"A 1000", "A 1000", "A 1000", "AP 100"}},
		{"FIN only on the last", segment{v6: true, flags: header.TCPFlagAck | header.TCPFlagFin, payload: make([]byte, 2000)}, 1000,
			[]string{"A 1000", "AF 1000"}},
		{"CWR only on the first", segment{flags: header.TCPFlagAck | flagCWR, payload: make([]byte, 1001)}, 1000,
			[]string{"AC 1000", "A 1"}},
		{"URG while urgent", segment{flags: header.TCPFlagAck | header.TCPFlagUrg, urgent: 1500, payload: make([]byte, 3000)}, 1000,
			[]string{"AU 1000", "AU 1000", "A 1000"}},
		{"a pure ACK", segment{flags: header.TCPFlagAck}, 1000, []string{"A 0"}},
		{"a SYN, before there is an MSS", segment{flags: header.TCPFlagSyn, options: []byte{2, 4, 5, 100}}, 0, []string{" 0"}},
		{"the MTU is the smaller", segment{payload: make([]byte, 1361), flags: header.TCPFlagAck}, 9000, []string{"A 1360", "A 1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := openEndpoint(t, Config{})
			write(t, e, tc.s.packet(rand.New(rand.NewPCG(1, 1)), tc.mss))
			bufs, sizes := buffers(8, 2048)
			var got []string
			for i := range e.Read(bufs, sizes, 0) {
				b := bufs[i][:sizes[i]]
				hlen := header.IPv4MinimumSize
				if tc.s.v6 {
					hlen = header.IPv6MinimumSize
				}
				p := header.TCP(b[hlen:])
				flags := ""
				for _, f := range []struct {
					bit  uint8
					name string
				}{{flagACK, "A"}, {flagPSH, "P"}, {flagFIN, "F"}, {flagCWR, "C"}, {flagURG, "U"}} {
					if uint8(p.Flags())&f.bit != 0 {
						flags += f.name
					}
				}
				got = append(got, fmt.Sprintf("%s %d", flags, len(p)-int(p.DataOffset())))
			}
			if fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Errorf("segments %q, want %q", got, tc.want)
			}
		})
	}
}

// TestSegmentIDs: they go on where those of the packet before ended, are never
// 0, and do not begin at the same one with each endpoint.
func TestSegmentIDs(t *testing.T) {
	e := openEndpoint(t, Config{})
	e.tcpID = 0xfffc
	bufs, sizes := buffers(4, 2048)
	var got []uint16
	for range 2 {
		write(t, e, segment{flags: header.TCPFlagAck, payload: make([]byte, 3000)}.packet(rand.New(rand.NewPCG(1, 1)), 1000))
		for i := range e.Read(bufs, sizes, 0) {
			b := bufs[i][:sizes[i]]
			if !sound(b) {
				t.Errorf("segment %d has a wrong checksum", i)
			}
			got = append(got, header.IPv4(b).ID())
		}
	}
	if want := []uint16{0xfffd, 0xfffe, 0xffff, 1, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("ids %#x, want %#x", got, want)
	}
	begin := map[uint16]bool{}
	for range 8 {
		begin[openEndpoint(t, Config{}).tcpID] = true
	}
	if len(begin) == 1 {
		t.Error("eight endpoints begin at one id")
	}
}

// TestChecksumsSwitchedOff: segments have zero instead of TCP's checksum, and
// all else that is right, until they are switched on again, be it in the middle
// of a packet.
func TestChecksumsSwitchedOff(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		e := openEndpoint(t, Config{})
		rng := rand.New(rand.NewPCG(1, 1))
		s := segment{v6: v6, ttl: 64, flags: header.TCPFlagAck, payload: make([]byte, 6*1300)}
		for i := range s.payload {
			s.payload[i] = byte(rng.Uint32())
		}
		bufs, sizes := buffers(2, 2048)
		read := func(summed bool) {
			t.Helper()
			n := e.Read(bufs, sizes, 0)
			if n != 2 {
				t.Fatalf("%d segments, want 2", n)
			}
			for i := range n {
				b := bufs[i][:sizes[i]]
				ip, _, _ := parseTCP(b)
				if !v6 && !header.IPv4(b).IsChecksumValid() {
					t.Error("the IP header's checksum is wrong")
				}
				sum := header.TCP(b[ip:]).Checksum()
				if summed != sound(b) || !summed && sum != 0 {
					t.Errorf("IPv6 %v: a segment with the checksum %#x, want one: %v", v6, sum, summed)
				}
			}
		}
		write(t, e, s.packet(rng, 1300))
		read(true) // the default
		e.SetOwn(true)
		read(false) // of the same packet
		e.SetOwn(false)
		read(true)

		e.SetOwn(true)
		write(t, e, s.packet(rng, 1300))
		read(false)
		e.SetOwn(false)
		read(true)
		e.SetOwn(true)
		read(false)
	}
}

// TestChecksumsOfOthersStay: what the stack has summed itself, datagrams among
// it, leaves as it came, with checksums switched off.
func TestChecksumsOfOthersStay(t *testing.T) {
	e := openEndpoint(t, Config{})
	e.SetOwn(true)
	rng := rand.New(rand.NewPCG(1, 1))
	whole := segment{ttl: 64, flags: header.TCPFlagAck, payload: []byte("summed by the stack")}.packet(rng, 1000)
	whole.GSOOptions = stack.GSO{}
	datagram := packet(header.UDPProtocolNumber, 0, []byte("x"))
	header.UDP(datagram.TransportHeader().Slice()).SetChecksum(0xcafe)
	for _, pkt := range []*stack.PacketBuffer{whole, datagram} {
		v := pkt.ToView()
		write(t, e, pkt)
		bufs, sizes := buffers(1, 2048)
		if n := e.Read(bufs, sizes, 0); n != 1 || !bytes.Equal(bufs[0][:sizes[0]], v.AsSlice()) {
			t.Errorf("%d packets, %x, want %x", n, bufs[0][:sizes[0]], v.AsSlice())
		}
		v.Release()
	}
}

// TestPacketReadInPart: the rest of a packet goes with the session or the NIC,
// and is counted once; a buffer that is too small ends it.
func TestPacketReadInPart(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(e *Endpoint)
		why  string
		n    uint64
	}{
		{"session lost", func(e *Endpoint) { e.SetOpen(false) }, WhyNoSession, 2},
		{"closed", (*Endpoint).Close, WhyClosed, 2},
		{"small buffers", func(e *Endpoint) { b, s := buffers(4, 100); e.Read(b, s, 0) }, WhyOversize, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := openEndpoint(t, Config{})
			released := 0
			for range 2 {
				pkt := segment{payload: make([]byte, 5000)}.packet(rand.New(rand.NewPCG(1, 1)), 1000)
				clone := stack.NewPacketBuffer(stack.PacketBufferOptions{OnRelease: func() { released++ },
					ReserveHeaderBytes: 40, Payload: pkt.Data().ToBuffer()})
				copy(clone.TransportHeader().Push(20), pkt.TransportHeader().Slice())
				copy(clone.NetworkHeader().Push(20), pkt.NetworkHeader().Slice())
				clone.TransportProtocolNumber, clone.GSOOptions = pkt.TransportProtocolNumber, pkt.GSOOptions
				pkt.DecRef()
				write(t, e, clone)
			}
			bufs, sizes := buffers(3, 2048)
			if n := e.Read(bufs, sizes, 0); n != 3 || e.Len() != 2 {
				t.Fatalf("read %d segments and %d packets wait; want 3 and 2", n, e.Len())
			}
			tc.end(e)
			if e.Len() != 0 || released != 2 || e.drops.Count(tc.why) != tc.n {
				t.Errorf("%d wait, %d released, %d counted; want 0, 2, %d", e.Len(), released, e.drops.Count(tc.why), tc.n)
			}
			if n := e.Read(bufs, sizes, 0); n != 0 {
				t.Errorf("%d segments after the end", n)
			}
		})
	}
}

// TestReadAllocatesNothing, whatever it reads and however it is cut.
func TestReadAllocatesNothing(t *testing.T) {
	e := openEndpoint(t, Config{MaxBytes: 16 << 20})
	rng := rand.New(rand.NewPCG(1, 1))
	const runs = 50
	for range runs + 1 {
		for _, pkt := range []*stack.PacketBuffer{
			segment{flags: header.TCPFlagAck, payload: make([]byte, 60000)}.packet(rng, 1340),
			packet(header.UDPProtocolNumber, 0, make([]byte, 1200)),
		} {
			defer pkt.IncRef().DecRef() // or gVisor's pools grow as they take so many back
			write(t, e, pkt)
		}
	}
	bufs, sizes := buffers(23, 2048) // half of what one run's two packets make
	segments := 0
	allocs := testing.AllocsPerRun(runs, func() {
		for range 2 {
			segments += e.Read(bufs, sizes, 16)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations a read", allocs)
	}
	if segments != (runs+1)*46 {
		t.Errorf("%d segments read", segments)
	}
}
