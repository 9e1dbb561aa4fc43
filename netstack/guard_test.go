package netstack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Whatever the link says of checksums, gVisor makes them all, and verifies
// none: the guard does.
func TestGuardSaysWhoSums(t *testing.T) {
	const both = stack.CapabilityRXChecksumOffload | stack.CapabilityTXChecksumOffload
	for _, caps := range []stack.LinkEndpointCapabilities{stack.CapabilityNone, stack.CapabilityRXChecksumOffload, stack.CapabilityTXChecksumOffload, both} {
		guard := &linkGuard{LinkEndpoint: &wireEnd{caps: caps | stack.CapabilityLoopback}}
		if got, want := guard.Capabilities(), stack.CapabilityRXChecksumOffload|stack.CapabilityLoopback; got != want {
			t.Errorf("the link's capabilities %b came out as %b, want %b", caps, got, want)
		}
	}
}

// Trap 4: UDP's checksum is the last defence of reassembly. It is computed
// and verified even where the link says that this is not needed.
func TestChecksumsInSpiteOfOffload(t *testing.T) {
	near, far := newWire(1400)
	near.caps = stack.CapabilityRXChecksumOffload | stack.CapabilityTXChecksumOffload
	t.Cleanup(far.Close)
	s := newStack(t, Config{})
	n := addNIC(t, s, NICConfig{Link: near, Sources: []netip.Addr{source4}})
	sent := &capture{}
	near.setFilter(sent.filter)
	u, err := n.DialContext(t.Context(), "udp", service4)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	q := sent.last()
	ip := header.IPv4(q)
	pseudo := header.PseudoHeaderChecksum(header.UDPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(q)-20))
	if checksum.Checksum(q[20:], pseudo) != 0xffff || header.UDP(q[20:]).Checksum() == 0 {
		t.Error("the datagram was sent without a checksum")
	}

	reply := answer(q, "right")
	wrong := append([]byte(nil), reply...)
	wrong[len(wrong)-1] ^= 1
	near.deliver(wrong)
	near.deliver(reply)
	buf := make([]byte, 16)
	if got, err := u.Read(buf); string(buf[:got]) != "right" || err != nil {
		t.Errorf("read %q, %v", buf[:got], err)
	}
	if s.drops.Count(whyUDPChecksum) != 1 {
		t.Error("the wrong datagram was not counted")
	}
}

// answer makes the datagram that a peer sends back to the sender of q.
func answer(q []byte, payload string) []byte {
	b := append([]byte(nil), q[:28]...)
	b = append(b, payload...)
	copy(b[12:16], q[16:20])
	copy(b[16:20], q[12:16])
	copy(b[20:22], q[22:24])
	copy(b[22:24], q[20:22])
	return finishUDP(b)
}

// gsoLink is a link that can segment by itself.
type gsoLink struct{ *wireEnd }

func (gsoLink) GSOMaxSize() uint32               { return 60_000 }
func (gsoLink) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// The guard must not hide what the link can do.
func TestGuardPassesGSO(t *testing.T) {
	var guard stack.GSOEndpoint = &linkGuard{LinkEndpoint: gsoLink{}}
	if guard.SupportedGSO() != stack.HostGSOSupported || guard.GSOMaxSize() != 60_000 {
		t.Errorf("GSO %v of %d bytes", guard.SupportedGSO(), guard.GSOMaxSize())
	}
	guard = &linkGuard{LinkEndpoint: &wireEnd{}}
	if guard.SupportedGSO() != stack.GSONotSupported {
		t.Error("GSO on a link without it")
	}
}

// past is what stands behind the guard: it keeps what is let through.
type past struct {
	stack.NetworkDispatcher
	got [][]byte
}

func (p *past) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	p.got = append(p.got, pkt.Data().AsRange().ToSlice())
}

// newInbound is a guard's way in, on a NIC of its own.
func newInbound(t testing.TB) (*inbound, *past) {
	t.Helper()
	near, far := newWire(1400)
	t.Cleanup(far.Close)
	p := &past{}
	return &inbound{next: p, nic: addNIC(t, newStack(t, Config{}), NICConfig{Link: near})}, p
}

// tcpPacket makes a segment that comes over flow, all checksums right; options
// are IPv4's.
func tcpPacket(flow flowKey, options, payload []byte) []byte {
	src, dst, hlen := flow.remote.Addr(), flow.local.Addr(), ip6HeaderLen
	if src.Is4() {
		hlen = ip4HeaderLen + len(options)
	}
	b := append(make([]byte, hlen+header.TCPMinimumSize), payload...)
	if src.Is4() {
		header.IPv4(b).Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: protoTCP,
			SrcAddr: tcpip.AddrFrom4(src.As4()), DstAddr: tcpip.AddrFrom4(dst.As4())})
		b[0] = 0x40 | byte(hlen/4)
		copy(b[ip4HeaderLen:], options)
	} else {
		header.IPv6(b).Encode(&header.IPv6Fields{PayloadLength: uint16(len(b) - hlen), TransportProtocol: protoTCP, HopLimit: 64,
			SrcAddr: tcpip.AddrFrom16(src.As16()), DstAddr: tcpip.AddrFrom16(dst.As16())})
	}
	header.TCP(b[hlen:]).Encode(&header.TCPFields{SrcPort: flow.remote.Port(), DstPort: flow.local.Port(), SeqNum: 1, AckNum: 1,
		DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck, WindowSize: 1000})
	return mendTCP(b)
}

// bounds returns where the TCP of b lies, by what its IP header says; not ok
// where that cannot be.
func bounds(b []byte) (hlen, total int, ok bool) {
	if b[0]>>4 == 4 {
		hlen, total = int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	} else {
		hlen, total = ip6HeaderLen, ip6HeaderLen+int(binary.BigEndian.Uint16(b[4:]))
	}
	return hlen, total, hlen >= ip4HeaderLen && total >= hlen && total <= len(b)
}

// hosts returns the addresses in b's IP header.
func hosts(b []byte) (src, dst tcpip.Address) {
	if b[0]>>4 == 4 {
		return header.IPv4(b).SourceAddress(), header.IPv4(b).DestinationAddress()
	}
	return header.IPv6(b).SourceAddress(), header.IPv6(b).DestinationAddress()
}

// mendTCP makes the checksums of b right, whose lengths must be.
func mendTCP(b []byte) []byte {
	hlen, total, _ := bounds(b)
	if b[0]>>4 == 4 {
		header.IPv4(b).SetChecksum(0)
		header.IPv4(b).SetChecksum(^checksum.Checksum(b[:hlen], 0))
	}
	src, dst := hosts(b)
	segment := header.TCP(b[hlen:total])
	segment.SetChecksum(0)
	segment.SetChecksum(^checksum.Checksum(segment, header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(segment)))))
	return b
}

// inFragments cuts b, without IPv4 options, in two, the first with size bytes
// of TCP. A size of 0 makes one fragment that is alone, in IPv6.
func inFragments(b []byte, size int) [][]byte {
	if b[0]>>4 == 4 {
		return [][]byte{fragment4(b, 0, size, true), fragment4(b, size, len(b)-ip4HeaderLen-size, false)}
	}
	one := func(off, size int, more byte) []byte {
		f := append(slices.Clone(b[:ip6HeaderLen]), protoTCP, 0, byte(off>>8), byte(off)|more, 0, 0, 0, 77)
		f[6] = protoFragment
		binary.BigEndian.PutUint16(f[4:], uint16(8+size))
		return append(f, b[ip6HeaderLen+off:][:size]...)
	}
	rest := len(b) - ip6HeaderLen - size
	if size == 0 {
		return [][]byte{one(0, rest, 0)}
	}
	return [][]byte{one(0, size, 1), one(size, rest, 0)}
}

// TCP with a wrong checksum does not come past the guard, unless the link has
// looked at it already.
func TestTCPChecksums(t *testing.T) {
	payload := patterned(1, 1)[:333]
	for _, flow := range []flowKey{flow4, flow6} {
		v4 := flow.local.Addr().Is4()
		hlen := ip6HeaderLen
		if v4 {
			hlen = ip4HeaderLen
		}
		right := func() []byte { return tcpPacket(flow, nil, payload) }
		wrong := func(at int) []byte { b := right(); b[at] ^= 0x20; return b }
		type row struct {
			name      string
			packets   [][]byte
			validated bool // by the link
			whole     []byte
		}
		tests := []row{
			{"right", [][]byte{right()}, false, right()},
			{"right and validated", [][]byte{right()}, true, right()},
			{"right, even", [][]byte{tcpPacket(flow, nil, payload[:332])}, false, tcpPacket(flow, nil, payload[:332])},
			{"right, nothing in it", [][]byte{tcpPacket(flow, nil, nil)}, false, tcpPacket(flow, nil, nil)},
			{"right, with bytes behind it", [][]byte{append(right(), 1, 2, 3)}, false, right()},
			{"right, in fragments", inFragments(right(), 128), false, right()},
			{"the first byte", [][]byte{wrong(hlen + header.TCPMinimumSize)}, false, nil},
			{"the last byte", [][]byte{wrong(len(right()) - 1)}, false, nil},
			{"the sequence number", [][]byte{wrong(hlen + 4)}, false, nil},
			{"a port", [][]byte{wrong(hlen)}, false, nil},
			{"the checksum", [][]byte{wrong(hlen + header.TCPChecksumOffset)}, false, nil},
			{"an address", [][]byte{wrong(hlen - 1)}, false, nil},
			{"wrong and validated", [][]byte{wrong(hlen + 30)}, true, wrong(hlen + 30)},
			{"wrong, with bytes behind it", [][]byte{append(wrong(hlen+30), 1, 2)}, false, nil},
			{"wrong, in fragments", inFragments(wrong(hlen+30), 128), false, nil},
			{"wrong in the last fragment", inFragments(wrong(len(right())-1), 128), false, nil},
		}
		if v4 {
			options := []byte{1, 1, 1, 0}
			with := func() []byte { return tcpPacket(flow, options, payload) }
			spoilt := with()
			spoilt[ip4HeaderLen] = 0
			// What falls over in the header alone is under its checksum alone.
			tests = append(tests, row{"right, with options", [][]byte{with()}, false, with()},
				row{"an option", [][]byte{spoilt}, false, nil},
				row{"the TTL", [][]byte{wrong(8)}, false, nil},
				row{"the IPv4 checksum", [][]byte{wrong(10)}, false, nil},
				row{"the TTL, and validated", [][]byte{wrong(8)}, true, wrong(8)})
		} else {
			tests = append(tests, row{"right, a fragment that is alone", inFragments(right(), 0), false, right()},
				row{"wrong, a fragment that is alone", inFragments(wrong(hlen+30), 0), false, nil},
				row{"the hop limit, which nothing covers", [][]byte{wrong(7)}, false, wrong(7)})
		}
		for _, tt := range tests {
			t.Run(tt.name+" "+flow.remote.String(), func(t *testing.T) {
				in, past := newInbound(t)
				for _, b := range tt.packets {
					pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
					pkt.RXChecksumValidated = tt.validated
					in.DeliverNetworkPacket(networkProtocol(v4), pkt)
					pkt.DecRef()
				}
				drops := &in.nic.stack.drops
				if tt.whole == nil {
					if drops.Count(whyChecksum) != 1 || drops.Total() != 1 || len(past.got) != 0 {
						t.Errorf("%d packets came past, %d were dropped, %d of them for the checksum", len(past.got), drops.Total(), drops.Count(whyChecksum))
					}
					return
				}
				if len(past.got) != 1 || drops.Total() != 0 {
					t.Fatalf("%d packets came past, %d were dropped", len(past.got), drops.Total())
				}
				got, want := past.got[0], tt.whole
				if v4 && len(tt.packets) > 1 { // the header was mended without the id
					got, want = got[hlen:], want[hlen:]
				}
				if !tt.validated && !bytes.Equal(got, want) || tt.validated && !bytes.HasPrefix(got, want) {
					t.Errorf("%x came past, want %x", got, want)
				}
			})
		}
	}
}

// What falls over on the way does not come out of a flow: gVisor trusts the
// guard, so that nobody else would notice.
func TestCorruptedSegmentsAreSentAgain(t *testing.T) {
	for _, to := range []netip.AddrPort{service4, service6} {
		l := newLab(t)
		var passed atomic.Uint64
		corrupt := func(b []byte) int {
			hlen, _, ok := bounds(b)
			if n := passed.Add(1); ok && n%50 == 0 { // a bit of TCP's
				b[hlen+rand.IntN(len(b)-hlen)] ^= 1 << rand.IntN(8)
			}
			return 1
		}
		l.edgeEnd.setFilter(corrupt)
		l.connectorEnd.setFilter(corrupt)
		a, b := l.pair(t, to)
		exchange(t, a, b, 2<<20)
		if n := l.edge.drops.Count(whyChecksum) + l.connector.drops.Count(whyChecksum); n == 0 {
			t.Errorf("%s: of %d packets none was dropped for its checksum", to, passed.Load())
		}
	}
}

// inViews makes a packet of b whose bytes lie in up to three views.
func inViews(b []byte, cuts ...uint16) *stack.PacketBuffer {
	var payload buffer.Buffer
	for _, at := range cuts {
		n := min(int(at), len(b))
		_ = payload.Append(buffer.NewViewWithData(b[:n]))
		b = b[n:]
	}
	_ = payload.Append(buffer.NewViewWithData(b))
	return stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payload})
}

// soundTCP is the oracle: what gVisor's headers say of a packet's checksums. A
// packet whose lengths cannot be is gVisor's to refuse.
func soundTCP(b []byte) bool {
	hlen, total, ok := bounds(b)
	if !ok {
		return true
	}
	if b[0]>>4 == 4 && !header.IPv4(b).IsChecksumValid() {
		return false
	}
	src, dst := hosts(b)
	segment := header.TCP(b[hlen:total])
	if len(segment) >= header.TCPMinimumSize {
		if data := int(segment.DataOffset()); data >= header.TCPMinimumSize && data <= len(segment) {
			return segment.IsChecksumValid(src, dst, checksum.Checksum(segment[data:], 0), uint16(len(segment)-data))
		}
	}
	return checksum.Checksum(segment, header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(segment)))) == 0xffff
}

// FuzzValidTCP: the guard lets through what gVisor's own check finds valid, in
// whatever pieces it lies, and as it came.
func FuzzValidTCP(f *testing.F) {
	for _, flow := range []flowKey{flow4, flow6} {
		for _, size := range []int{0, 1, 16, 1001} {
			b := tcpPacket(flow, nil, patterned(1, 1)[:size])
			f.Add(b, uint16(21), uint16(20), false)
			f.Add(b[:len(b)-1], uint16(21), uint16(20), false)
		}
	}
	f.Add(tcpPacket(flow4, []byte{1, 1, 1, 0}, []byte("x")), uint16(20), uint16(3), true)
	f.Add(append(tcpPacket(flow6, nil, []byte("padded")), 0, 0, 0), uint16(61), uint16(1), true)
	f.Add([]byte{0x45}, uint16(0), uint16(0), false)
	f.Add(append([]byte{0x4f, 0, 0, 60}, make([]byte, 40)...), uint16(9), uint16(9), true)
	in, past := newInbound(f)
	f.Fuzz(func(t *testing.T, b []byte, first, second uint16, mend bool) {
		if len(b) == 0 || len(b) > 65535 {
			return
		}
		b = slices.Clone(b)
		v4, least, valid := b[0]>>4 == 4, ip6HeaderLen, valid6
		if v4 {
			least, valid = ip4HeaderLen, valid4
		}
		if len(b) >= least {
			if v4 { // no fragment
				b[6], b[7], b[9] = b[6]&0xc0, 0, protoTCP
			} else {
				b[6] = protoTCP
			}
			// Or the fuzzer would have to find checksums.
			if hlen, total, ok := bounds(b); mend && ok && total-hlen >= header.TCPMinimumSize {
				mendTCP(b)
			}
		}
		drops := &in.nic.stack.drops
		malformed, wrong := drops.Count(whyMalformed), drops.Count(whyChecksum)
		past.got = nil
		pkt := inViews(b, first, second)
		defer pkt.DecRef()
		in.DeliverNetworkPacket(networkProtocol(v4), pkt)
		malformed, wrong = drops.Count(whyMalformed)-malformed, drops.Count(whyChecksum)-wrong
		switch {
		case len(b) < least:
			if len(past.got) != 0 || malformed != 1 {
				t.Fatalf("%x: no header, and %d came past, %d were dropped", b, len(past.got), malformed)
			}
			return
		case !soundTCP(b):
			if len(past.got) != 0 || wrong != 1 {
				t.Fatalf("%x: wrong, and %d came past, %d were dropped", b, len(past.got), wrong)
			}
		case len(past.got) != 1 || !bytes.HasPrefix(b, past.got[0]):
			t.Fatalf("%x: right, and what came past is %x", b, past.got)
		default:
			if _, total, ok := bounds(b); ok && len(past.got[0]) != total {
				t.Fatalf("%x: %d bytes came past", b, len(past.got[0]))
			}
		}
		if valid(pkt) != soundTCP(b) {
			t.Fatalf("%x: another verdict at the second look", b)
		}
	})
}
