package netstack

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

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
