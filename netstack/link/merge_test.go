package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// delivered is one packet as the stack got it.
type delivered struct {
	b         []byte
	validated bool
}

// recorder is a fake of the stack's side that keeps what is delivered.
type recorder struct {
	stack.NetworkDispatcher
	mu  sync.Mutex // ICMP errors come from the Deferrer's goroutine
	got []delivered
}

func (r *recorder) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	v := pkt.ToView()
	defer v.Release()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, delivered{slices.Clone(v.AsSlice()), pkt.RXChecksumValidated})
}

func recording(t testing.TB) (*Endpoint, *recorder) {
	d := NewDeferrer(256)
	t.Cleanup(d.Close)
	e, r := New(Config{MTU: 1400, Deferrer: d}), &recorder{}
	t.Cleanup(e.Close)
	e.Attach(r)
	return e, r
}

// sound reports whether b is a whole TCP packet whose checksums are right, as
// gVisor's own code sees it.
func sound(b []byte) bool {
	ip, headers, ok := parseTCP(b)
	if !ok {
		return false
	}
	src, dst := tcpip.Address{}, tcpip.Address{}
	if ip == header.IPv4MinimumSize {
		src, dst = header.IPv4(b).SourceAddress(), header.IPv4(b).DestinationAddress()
		if !header.IPv4(b).IsChecksumValid() {
			return false
		}
	} else {
		src, dst = header.IPv6(b).SourceAddress(), header.IPv6(b).DestinationAddress()
	}
	return header.TCP(b[ip:]).IsChecksumValid(src, dst, checksum.Checksum(b[headers:], 0), uint16(len(b)-headers))
}

// said is the oracle: what a list of packets says to each flow, in a form in
// which it does not matter how the bytes were cut into packets. Packets that
// are not plain TCP, or neither sound nor validated, say themselves.
func said(packets []delivered) map[string][]string {
	flows := map[string][]string{}
	for _, d := range packets {
		b := d.b
		ip, headers, ok := parseTCP(b)
		if !ok {
			kind := "other"
			if protocol, ok := networkProtocol(b); ok && isICMPError(protocol, b) {
				kind = "deferred"
			}
			flows[kind] = append(flows[kind], string(b))
			continue
		}
		both, _ := addresses(b, ip)
		flow := string(both) + string(b[ip:ip+4])
		if !d.validated && !sound(b) {
			flows[flow] = append(flows[flow], "unsound "+string(b))
			continue
		}
		t := b[ip:headers]
		about := fmt.Sprintf("ack %x window %x options %x reserved %x", t[tcpAck:tcpOffset], t[tcpWindow:tcpChecksum], t[20:], t[tcpOffset]&15)
		if ip == header.IPv4MinimumSize {
			about += fmt.Sprintf(" tos %x df %x ttl %x", b[1], b[6], b[8])
		} else {
			about += fmt.Sprintf(" class and label %x hops %x", b[:4], b[7])
		}
		seq, flags := binary.BigEndian.Uint32(t[tcpSeq:]), t[tcpFlags]
		for _, c := range b[headers:] {
			flows[flow] = append(flows[flow], fmt.Sprintf("%x: %x, %s", seq, c, about))
			seq++
		}
		if flags != flagACK || len(b) == headers {
			var urgent []byte // which means nothing without URG (RFC 9293 section 3.1)
			if flags&flagURG != 0 {
				urgent = t[tcpUrgent:20]
			}
			flows[flow] = append(flows[flow], fmt.Sprintf("flags %x urgent %x at %x, %s", flags, urgent, seq, about))
		}
	}
	return flows
}

// checkMerged compares what was delivered with what came: the same to each
// flow, of a trusted peer whatever its checksums say, and each packet either
// validated or as it came. What is validated is TCP; of a trusted peer all of it.
func checkMerged(t *testing.T, in [][]byte, got []delivered, trusted bool) {
	t.Helper()
	came := map[string]bool{}
	var all []delivered
	for _, b := range in {
		came[string(b)] = true
		all = append(all, delivered{b, trusted})
	}
	for _, d := range got {
		_, _, tcp := parseTCP(d.b)
		switch {
		case d.validated && !tcp:
			t.Errorf("validated, and is not TCP: %x", d.b)
		case trusted && tcp && !d.validated:
			t.Errorf("a trusted peer's, and is not validated: %x", d.b)
		case !d.validated && !came[string(d.b)]:
			t.Errorf("merged, and is not validated: %x", d.b)
		}
	}
	want, have := said(all), said(got)
	if len(want) != len(have) {
		t.Errorf("%d flows came out, want %d", len(have), len(want))
	}
	for flow := range want {
		if !slices.Equal(have[flow], want[flow]) {
			t.Errorf("flow %x differs:\n got %.600q\nwant %.600q", flow, have[flow], want[flow])
		}
	}
}

// traffic makes packets of several flows with all that goes wrong on a path.
func traffic(rng *rand.Rand, flows, packets int) [][]byte {
	next := make([]segment, flows)
	for i := range next {
		next[i] = segment{v6: rng.IntN(2) == 0, df: true, ttl: 64, ports: [2]uint16{uint16(1 + i/2), 2}, seq: -uint32(rng.IntN(3000)),
			ack: 1, window: 500, flags: header.TCPFlagAck, options: make([]byte, 12*rng.IntN(2))}
	}
	var out [][]byte
	flow := 0
	for len(out) < packets {
		if rng.IntN(4) == 0 {
			flow = rng.IntN(flows)
		}
		s := &next[flow]
		s.payload = make([]byte, rng.IntN(40))
		for i := range s.payload {
			s.payload[i] = byte(rng.Uint32())
		}
		one := *s
		one.options = slices.Clone(s.options)
		s.seq += uint32(len(s.payload))
		if rng.IntN(3) > 0 {
			out = append(out, one.bytes())
			continue
		}
		out = append(out, oddity(rng, s, one, out)...)
	}
	return out
}

// oddity returns one packet, or none or two, with something about them.
func oddity(rng *rand.Rand, s *segment, one segment, before [][]byte) [][]byte {
	switch rng.IntN(17) {
	case 0:
		return nil // lost
	case 1:
		return [][]byte{one.bytes(), one.bytes()}
	case 2: // late
		following := *s
		following.payload = []byte{1, 2, 3}
		s.seq += 3
		return [][]byte{following.bytes(), one.bytes()}
	case 3:
		one.flags |= header.TCPFlagPsh
	case 4:
		one.flags |= 1 << rng.IntN(8)
	case 5:
		s.ack += uint32(rng.IntN(2))
	case 6:
		s.window++
	case 7:
		if len(s.options) > 0 {
			s.options = slices.Clone(s.options)
			s.options[rng.IntN(12)]++
		} else {
			one.options = make([]byte, 4)
		}
	case 8:
		one.tos++
	case 9:
		one.ttl--
	case 10:
		one.df = false
	case 11, 12: // a bit fell over
		b := one.bytes()
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		return [][]byte{b}
	case 13:
		b := slices.Clone(one.bytes())
		return [][]byte{append(b, 0)} // padded
	case 14:
		if len(before) > 0 {
			return [][]byte{before[rng.IntN(len(before))]}
		}
	case 15:
		b := make([]byte, 28+rng.IntN(9))
		b[0], b[9] = 0x45, byte(6+11*rng.IntN(2)) // TCP cut short, or UDP
		return [][]byte{b}
	case 16:
		return [][]byte{withoutSum(one.bytes())}
	}
	return [][]byte{one.bytes()}
}

func FuzzMerge(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, uint8(1+3*seed), uint16(40+seed*30), seed%3 == 2)
	}
	f.Fuzz(func(t *testing.T, seed uint64, flows uint8, packets uint16, trusted bool) {
		rng := rand.New(rand.NewPCG(seed, 2))
		e, r := recording(t)
		e.SetTrusted(trusted)
		in := traffic(rng, int(flows)%40+1, int(packets)%300)
		came := make([][]byte, len(in))
		for i, b := range in {
			came[i] = slices.Clone(b)
		}
		e.Deliver(in)
		for i, b := range in {
			if !bytes.Equal(b, came[i]) {
				t.Fatal("Deliver changed a packet of the caller's")
			}
		}
		e.cfg.Deferrer.Close()
		n := uint64(len(r.got))
		in = slices.DeleteFunc(in, func(b []byte) bool { v := b[0] >> 4; return v != 4 && v != 6 })
		if dropped := uint64(len(came) - len(in)); e.drops.Count(WhyVersion) != dropped || n > uint64(len(in)) {
			t.Errorf("%d packets came, %d of them neither IPv4 nor IPv6; %d went on, %d dropped", len(came), dropped, n, e.drops.Count(WhyVersion))
		}
		checkMerged(t, in, r.got, trusted)
	})
}

// FuzzDeliver gives it any bytes at all.
func FuzzDeliver(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 40}, uint8(4), false)
	f.Add(bytes.Repeat(segment{flags: header.TCPFlagAck, payload: []byte{1}}.bytes(), 3), uint8(41), true)
	f.Add(bytes.Repeat(segment{v6: true, flags: header.TCPFlagAck, payload: []byte{1, 2}}.bytes(), 3), uint8(62), false)
	f.Fuzz(func(t *testing.T, data []byte, each uint8, trusted bool) {
		e, r := recording(t)
		e.SetTrusted(trusted)
		var in [][]byte
		for b := range slices.Chunk(data, int(each)+1) {
			in = append(in, b)
		}
		e.Deliver(in)
		e.cfg.Deferrer.Close()
		in = slices.DeleteFunc(in, func(b []byte) bool { v := b[0] >> 4; return v != 4 && v != 6 })
		checkMerged(t, in, r.got, trusted)
	})
}

func TestMerge(t *testing.T) {
	const ack, psh = header.TCPFlagAck, header.TCPFlagPsh
	at := func(seq uint32, size int, change ...func(*segment)) segment {
		s := segment{ttl: 64, df: true, seq: seq, flags: ack, payload: make([]byte, size)}
		for _, f := range change {
			f(&s)
		}
		return s
	}
	push := func(s *segment) { s.flags |= psh }
	flow := func(n uint16) func(*segment) { return func(s *segment) { s.ports[0] = n } }
	full := []segment{}
	for i := range 60 {
		full = append(full, at(uint32(i*1300), 1300))
	}
	for _, tc := range []struct {
		name string
		in   []segment
		want []int // payload's lengths
	}{
		{"a run", []segment{at(10, 100), at(110, 100), at(210, 3), at(213, 200)}, []int{403}},
		{"a run of IPv6 that wraps", []segment{at(0xffffffc0, 100, func(s *segment) { s.v6 = true }), at(36, 1, func(s *segment) { s.v6 = true })}, []int{101}},
		{"PSH ends it", []segment{at(0, 5), at(5, 5, push), at(10, 5), at(15, 5)}, []int{10, 10}},
		{"a gap", []segment{at(0, 5), at(6, 5), at(11, 5)}, []int{5, 10}},
		{"twice", []segment{at(0, 5), at(0, 5), at(5, 5)}, []int{5, 10}},
		{"late", []segment{at(5, 5), at(0, 5), at(10, 5)}, []int{5, 5, 5}},
		{"two flows mixed", []segment{at(0, 5, flow(1)), at(0, 7, flow(2)), at(5, 5, flow(1)), at(7, 7, flow(2))}, []int{10, 14}},
		{"a pure ACK goes on behind the run", []segment{at(0, 5), at(5, 5), at(10, 0), at(10, 5)}, []int{10, 0, 5}},
		{"FIN is not merged", []segment{at(0, 5), at(5, 5, func(s *segment) { s.flags |= header.TCPFlagFin })}, []int{5, 5}},
		{"another ack", []segment{at(0, 5), at(5, 5, func(s *segment) { s.ack++ })}, []int{5, 5}},
		{"another window", []segment{at(0, 5), at(5, 5, func(s *segment) { s.window++ })}, []int{5, 5}},
		{"other options", []segment{at(0, 5, func(s *segment) { s.options = []byte{1, 1, 1, 0} }), at(5, 5)}, []int{5, 5}},
		{"other timestamps", []segment{at(0, 5, func(s *segment) { s.options = []byte{1, 1, 1, 0} }),
			at(5, 5, func(s *segment) { s.options = []byte{1, 1, 0, 0} })}, []int{5, 5}},
		{"another TOS", []segment{at(0, 5), at(5, 5, func(s *segment) { s.tos++ })}, []int{5, 5}},
		{"another TTL", []segment{at(0, 5), at(5, 5, func(s *segment) { s.ttl++ })}, []int{5, 5}},
		{"another DF", []segment{at(0, 5), at(5, 5, func(s *segment) { s.df = false })}, []int{5, 5}},
		{"ECE", []segment{at(0, 5), at(5, 5, func(s *segment) { s.flags |= 0x40 })}, []int{5, 5}},
		{"the largest packet", full, []int{65000, 60*1300 - 65000}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, r := recording(t)
			var in [][]byte
			for _, s := range tc.in {
				in = append(in, s.bytes())
			}
			e.Deliver(in)
			var got []int
			for _, d := range r.got {
				_, headers, _ := parseTCP(d.b)
				got = append(got, len(d.b)-headers)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("payloads of %v, want %v", got, tc.want)
			}
			checkMerged(t, in, r.got, false)
		})
	}
}

// TestCorruptedSegments: whichever bit of whichever segment fell over, what is
// validated is sound, and the others of the run arrive.
func TestCorruptedSegments(t *testing.T) {
	e, r := recording(t)
	s := segment{ttl: 64, flags: header.TCPFlagAck, payload: []byte("nine here")}
	for which := range 3 {
		for bit := range 8 * 49 {
			r.got = nil
			var in [][]byte
			for i := range 3 {
				one := s
				one.seq = uint32(9 * i)
				b := one.bytes()
				if i == which {
					b[bit/8] ^= 1 << (bit % 8)
				}
				in = append(in, b)
			}
			before := e.drops.Count(WhyVersion)
			e.Deliver(in)
			if e.drops.Count(WhyVersion) > before {
				in = slices.Delete(in, which, which+1)
			}
			checkMerged(t, in, r.got, false)
		}
	}
	e.cfg.Deferrer.Close()
}

// TestTrust: what is validated is what was merged, and all TCP of a trusted
// peer. A segment without a checksum is neither merged nor validated elsewhere.
func TestTrust(t *testing.T) {
	at := func(seq uint32, payload string) []byte {
		return segment{ttl: 64, seq: seq, flags: header.TCPFlagAck, payload: []byte(payload)}.bytes()
	}
	unsummed := func(seq uint32, payload string) []byte { return withoutSum(at(seq, payload)) }
	with := func(at int, to byte, b []byte) []byte { b[at] = to; return b }
	datagram := make([]byte, 40)
	datagram[0], datagram[3], datagram[9] = 0x45, 40, byte(header.UDPProtocolNumber)
	for _, tc := range []struct {
		name              string
		in                [][]byte
		trusted, distrust []bool // what is validated of what is delivered
	}{
		{"one", [][]byte{at(0, "a")}, []bool{true}, []bool{false}},
		{"one that is pushed", [][]byte{with(20+tcpFlags, flagACK|flagPSH, at(0, "a"))}, []bool{true}, []bool{false}},
		{"two", [][]byte{at(0, "ab"), at(2, "c")}, []bool{true}, []bool{true}},
		{"two without a checksum", [][]byte{unsummed(0, "a"), unsummed(1, "b")}, []bool{true}, []bool{false, false}},
		{"the first without", [][]byte{unsummed(0, "a"), at(1, "b"), at(2, "c")}, []bool{true}, []bool{false, true}},
		{"the last without", [][]byte{at(0, "a"), at(1, "b"), unsummed(2, "c")}, []bool{true}, []bool{true, false}},
		{"a wrong IP header", [][]byte{with(10, 0, with(11, 0, at(0, "a"))), at(1, "b")}, []bool{true}, []bool{false, false}},
		{"a pure ACK", [][]byte{unsummed(0, "")}, []bool{true}, []bool{false}},
		{"a fragment", [][]byte{with(ip4Fragment, 0x20, at(0, "a"))}, []bool{false}, []bool{false}},
		{"padded", [][]byte{append(at(0, "a"), 0)}, []bool{false}, []bool{false}},
		{"a datagram", [][]byte{datagram}, []bool{false}, []bool{false}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, r := recording(t)
			for _, trusted := range []bool{true, false, true} { // it may change
				want := tc.distrust
				if trusted {
					want = tc.trusted
				}
				e.SetTrusted(trusted)
				r.got = nil
				e.Deliver(tc.in)
				var got []bool
				for _, d := range r.got {
					got = append(got, d.validated)
				}
				if !slices.Equal(got, want) {
					t.Errorf("trusted %v: validated %v, want %v", trusted, got, want)
				}
				checkMerged(t, tc.in, r.got, trusted)
			}
		})
	}
}

// withoutSum returns b, a segment of s.bytes, with no checksum of TCP's.
func withoutSum(b []byte) []byte {
	ip, _, _ := parseTCP(b)
	b = slices.Clone(b)
	clear(b[ip+tcpChecksum : ip+tcpUrgent])
	return b
}

// withoutSums is withoutSum, and clears the IP header's too: what is merged
// keeps those of its first segment.
func withoutSums(b []byte) []byte {
	b = withoutSum(b)
	if b[0]>>4 == header.IPv4Version {
		clear(b[ip4Checksum : ip4Checksum+2])
	}
	return b
}

// TestSplitThenMerge: what is cut and merged again is what it was, but for its
// checksums, which nobody looks at any more.
func TestSplitThenMerge(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	out, r := recording(t)
	in := openEndpoint(t, Config{MaxBytes: 8 << 20})
	bufs, sizes := buffers(128, 2048)
	for range 200 {
		s := randomSegment(rng, 1+rng.IntN(65000))
		s.flags, s.urgent = header.TCPFlagAck|s.flags&header.TCPFlagPsh, 0
		if s.v6 {
			s.payload = s.payload[:min(len(s.payload), 65000)]
		}
		write(t, in, s.packet(rng, 536+rng.IntN(900)))
		n := in.Read(bufs, sizes, 16)
		packets := make([][]byte, n)
		for i := range n {
			packets[i] = bufs[i][16 : 16+sizes[i]]
		}
		r.got = nil
		out.Deliver(packets)
		if n < 128 && len(r.got) != 1 {
			t.Fatalf("%d segments became %d packets", n, len(r.got))
		}
		id := binary.BigEndian.Uint16(r.got[0].b[ip4ID:])
		for in.Len() > 0 { // more than 128: let it go
			in.Read(bufs, sizes, 16)
		}
		if s.window > 0 {
			s.window-- // see narrow
		}
		if s.id = id; n < 128 && !bytes.Equal(withoutSums(r.got[0].b), withoutSums(s.bytes())) {
			t.Fatalf("%d bytes became %d others", len(s.bytes()), len(r.got[0].b))
		}
	}
}

// TestDeliverAllocates: nothing but what gVisor itself takes for a packet.
func TestDeliverAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector pools forget on purpose")
	}
	e, _ := recording(t)
	e.Attach(&sink{})
	one := [][]byte{segment{flags: header.TCPFlagAck, payload: make([]byte, 1340)}.bytes()}
	var run [][]byte
	for i := range 48 {
		run = append(run, segment{flags: header.TCPFlagAck, seq: uint32(i * 1340), payload: make([]byte, 1340)}.bytes())
	}
	single := testing.AllocsPerRun(100, func() { e.Deliver(one) })
	merged := testing.AllocsPerRun(100, func() { e.Deliver(run) })
	if merged > single {
		t.Errorf("%v allocations for a run of 48, %v for one packet", merged, single)
	}
}

// sink takes packets and does nothing.
type sink struct {
	stack.NetworkDispatcher
	packets int
}

func (s *sink) DeliverNetworkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) { s.packets++ }
