package netstack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// built returns the packets that o is sent as.
func built(o *udpOut) [][]byte {
	var list stack.PacketBufferList
	o.appendTo(&list)
	defer list.Reset()
	var all [][]byte
	for _, pkt := range list.AsSlice() {
		v := pkt.ToView()
		all = append(all, append([]byte(nil), v.AsSlice()...))
		v.Release()
	}
	return all
}

var (
	flow4 = flowKey{local: netip.AddrPortFrom(source4, 40000), remote: service4}
	flow6 = flowKey{local: netip.AddrPortFrom(source6, 40000), remote: service6}
)

// validUDP is the oracle: what gVisor's headers say of a packet.
func validUDP(b []byte) bool {
	var (
		src, dst tcpip.Address
		udp      []byte
		network  tcpip.NetworkProtocolNumber
	)
	switch header.IPVersion(b) {
	case 4:
		ip := header.IPv4(b)
		if !ip.IsValid(len(b)) || !ip.IsChecksumValid() || ip.TransportProtocol() != header.UDPProtocolNumber {
			return false
		}
		src, dst, udp, network = ip.SourceAddress(), ip.DestinationAddress(), ip.Payload(), header.IPv4ProtocolNumber
	case 6:
		ip := header.IPv6(b)
		if !ip.IsValid(len(b)) || ip.NextHeader() != uint8(header.UDPProtocolNumber) {
			return false
		}
		src, dst, udp, network = ip.SourceAddress(), ip.DestinationAddress(), ip.Payload(), header.IPv6ProtocolNumber
	default:
		return false
	}
	if len(udp) < header.UDPMinimumSize {
		return false
	}
	h := header.UDP(udp)
	if length := int(h.Length()); length >= header.UDPMinimumSize && length <= len(udp) {
		h = h[:length] // gVisor's check counts the padding in
	}
	if network == header.IPv6ProtocolNumber && h.Checksum() == 0 {
		return false // RFC 8200 section 8.1; gVisor computes on
	}
	length, sum := header.UDPValid(h, func() uint16 { return checksum.Checksum(h.Payload(), 0) }, uint16(len(h)-header.UDPMinimumSize), network, src, dst, false)
	return length && sum
}

// FuzzParseUDP: what the parser takes is what gVisor's headers find valid, but
// for addresses that cannot be an end of a flow.
func FuzzParseUDP(f *testing.F) {
	for _, flow := range []flowKey{flow4, flow6} {
		for _, size := range []int{0, 1, 17, 1000} {
			o := udpOut{src: flow.local, dst: flow.remote, payload: patterned(1, 1)[:size], mtu: 1400, id: 7}
			f.Add(built(&o)[0], false)
		}
	}
	f.Add([]byte{0x45}, true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if len(b) == 0 || len(b) > 65535 {
			return
		}
		if mend { // or the fuzzer would have to find checksums
			mendUDP(b)
		}
		var (
			d   datagram
			why string
		)
		if b[0]>>4 == 4 {
			if len(b) > 9 {
				b[9] = protoUDP
				if mend {
					mendUDP(b)
				}
			}
			d, why = parseUDP4(b)
		} else {
			if len(b) > 6 {
				b[6] = protoUDP
				if mend {
					mendUDP(b)
				}
			}
			d, why = parseUDP6(b)
		}
		if why == whyUDPAddress {
			return
		}
		if want := validUDP(b); (why == "") != want {
			t.Fatalf("%x: dropped for %q, gVisor says %v", b, why, want)
		}
		if why != "" {
			return
		}
		hlen := ip6HeaderLen
		if d.ip[0]>>4 == 4 {
			hlen = int(d.ip[0]&15) * 4
		}
		u := header.UDP(b[hlen:])
		if d.src.Port() != u.SourcePort() || d.dst.Port() != u.DestinationPort() || len(d.payload) != int(u.Length())-8 {
			t.Fatalf("%x: from %v to %v with %d bytes", b, d.src, d.dst, len(d.payload))
		}
		if q := d.quote(); len(q) != hlen+8 || !bytes.Equal(q, b[:hlen+8]) {
			t.Fatalf("%x is quoted as %x", b, q)
		}
	})
}

// mendUDP makes lengths and checksums of b right where there is room for them.
func mendUDP(b []byte) {
	if len(b) >= 28 && b[0]>>4 == 4 {
		b[0] = 0x45
		binary.BigEndian.PutUint16(b[6:], 0)
		finishUDP(b)
		return
	}
	if len(b) >= 48 && b[0]>>4 == 6 {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		u := header.UDP(b[40:])
		u.SetLength(uint16(len(u)))
		u.SetChecksum(0)
		ip := header.IPv6(b)
		sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(u)))
		if u.SetChecksum(^checksum.Checksum(u, sum)); u.Checksum() == 0 {
			u.SetChecksum(0xffff)
		}
	}
}

// FuzzBuildUDP: what is built is valid, within the MTU, and joined again it is
// what went in.
func FuzzBuildUDP(f *testing.F) {
	f.Add([]byte("payload"), uint16(1400), uint16(7), false)
	f.Add(patterned(1, 1)[:5000], uint16(576), uint16(0xffff), false)
	f.Add(patterned(1, 1)[:5000], uint16(1280), uint16(0xffff), true)
	f.Add(patterned(2, 1)[:5000], uint16(68), uint16(1), false)
	f.Fuzz(func(t *testing.T, payload []byte, mtu, id uint16, v6 bool) {
		flow, least, join := flow4, minMTU4, join4
		if v6 {
			flow, least, join = flow6, minMTU6, join6
		}
		o := udpOut{src: flow.local, dst: flow.remote, payload: payload, mtu: int(mtu), id: uint32(id) | 1}
		if !o.fits() {
			return
		}
		packets := built(&o)
		for _, b := range packets {
			if len(b) > max(int(mtu), least) {
				t.Fatalf("packet of %d bytes at MTU %d", len(b), mtu)
			}
		}
		if fits := len(payload)+48 <= max(int(mtu), least); fits && len(packets) != 1 {
			t.Fatalf("%d packets for %d bytes at MTU %d", len(packets), len(payload), mtu)
		}
		whole := join(t, packets)
		d, why := parseUDP4(whole)
		if v6 {
			d, why = parseUDP6(whole)
		}
		if why != "" || !validUDP(whole) {
			t.Fatalf("%x: dropped for %q", whole, why)
		}
		if !bytes.Equal(d.payload, payload) || d.src != flow.local || d.dst != flow.remote {
			t.Fatalf("%d of %d bytes from %v to %v", len(d.payload), len(payload), d.src, d.dst)
		}
	})
}

// join4 makes one packet of fragments that came in order, and checks each.
func join4(t *testing.T, packets [][]byte) []byte {
	t.Helper()
	whole := append([]byte(nil), packets[0][:20]...)
	for i, b := range packets {
		ip := header.IPv4(b)
		if !ip.IsValid(len(b)) || !ip.IsChecksumValid() || ip.ID() == 0 || ip.ID() != header.IPv4(packets[0]).ID() {
			t.Fatalf("header %x", b[:20])
		}
		flags := ip.Flags()
		if flags&header.IPv4FlagDontFragment != 0 || flags&header.IPv4FlagMoreFragments != 0 != (i < len(packets)-1) {
			t.Fatalf("flags %x of packet %d of %d", flags, i, len(packets))
		}
		if int(ip.FragmentOffset()) != len(whole)-20 {
			t.Fatalf("fragment at %d, want %d", ip.FragmentOffset(), len(whole)-20)
		}
		whole = append(whole, ip.Payload()...)
	}
	binary.BigEndian.PutUint32(whole[4:], 0)
	ip := header.IPv4(whole)
	ip.SetTotalLength(uint16(len(whole)))
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	return whole
}

// join6 is join4 for IPv6.
func join6(t *testing.T, packets [][]byte) []byte {
	t.Helper()
	if len(packets) == 1 {
		return packets[0]
	}
	whole := append([]byte(nil), packets[0][:40]...)
	for i, b := range packets {
		if !header.IPv6(b).IsValid(len(b)) || b[6] != protoFragment {
			t.Fatalf("header %x", b[:40])
		}
		frag := header.IPv6Fragment(b[40:])
		if frag.TransportProtocol() != header.UDPProtocolNumber || frag.More() != (i < len(packets)-1) ||
			int(frag.FragmentOffset())*8 != len(whole)-40 || frag.ID() != header.IPv6Fragment(packets[0][40:]).ID() || frag.ID() == 0 {
			t.Fatalf("fragment header %x of packet %d of %d", b[40:48], i, len(packets))
		}
		whole = append(whole, b[48:]...)
	}
	whole[6] = protoUDP
	header.IPv6(whole).SetPayloadLength(uint16(len(whole) - 40))
	return whole
}

// What cannot be an end of a flow is dropped and counted.
func TestUDPAddresses(t *testing.T) {
	for _, tt := range []struct {
		name     string
		src, dst string
	}{
		{"multicast source", "224.0.0.1:53", "100.127.0.1:40000"},
		{"broadcast source", "255.255.255.255:53", "100.127.0.1:40000"},
		{"loopback source", "127.0.0.1:53", "100.127.0.1:40000"},
		{"no source port", "10.0.0.10:0", "100.127.0.1:40000"},
		{"multicast destination", "10.0.0.10:53", "224.0.0.1:53"},
		{"mapped", "[::ffff:10.0.0.10]:53", "[fd00:127::1]:53"},
		{"multicast destination v6", "[fd00:10::10]:53", "[ff02::1]:53"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			o := udpOut{src: netip.MustParseAddrPort(tt.src), dst: netip.MustParseAddrPort(tt.dst), payload: []byte("x"), mtu: 1400, id: 1}
			l.edgeEnd.deliver(built(&o)[0])
			l.connectorEnd.deliver(built(&o)[0])
			if l.edge.drops.Count(whyUDPAddress) != 1 || l.connector.drops.Count(whyUDPAddress) != 1 {
				t.Error("not counted")
			}
		})
	}
}
