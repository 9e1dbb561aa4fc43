package netstack

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warrenmesh/warren/netstack/netx"
)

// replicas is one edge stack with two NICs, each towards a connector that
// serves the same addresses from the same source.
type replicas struct {
	*lab
	rival    *NIC     // the second NIC
	rivalEnd *wireEnd // the edge's end of its wire
}

func newReplicas(t *testing.T) *replicas {
	t.Helper()
	r := &replicas{lab: newLab(t)}
	var far *wireEnd
	r.rivalEnd, far = newWire(1400)
	t.Cleanup(far.Close)
	r.rival = addNIC(t, r.edge, NICConfig{Name: "rival", Link: r.rivalEnd, Sources: []netip.Addr{source4, source6}})
	// Once used, the sources are the second NIC's own addresses too: what is
	// sent to them there is not dropped for that reason.
	r.rival.assign(source4)
	r.rival.assign(source6)
	return r
}

// capture keeps copies of the packets that a wire's end sends.
type capture struct {
	mu   sync.Mutex
	pkts [][]byte
}

func (c *capture) filter(b []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pkts = append(c.pkts, append([]byte(nil), b...))
	return 1
}

func (c *capture) last() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pkts[len(c.pkts)-1]
}

// forgeTCP makes the next segment of a flow, as its peer would send it: it
// takes a real segment with data and gives it other bytes.
func forgeTCP(segment []byte, payload string) []byte {
	b := append([]byte(nil), segment...)
	ip := header.IPv4(b)
	tcp := header.TCP(b[ip.HeaderLength():])
	copy(tcp[tcp.DataOffset():], payload)
	tcp.SetChecksum(0)
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(tcp)))
	tcp.SetChecksum(^checksum.Checksum(tcp, sum))
	return b
}

// Trap 1: another connector of the same network forges the exact 4-tuple of a
// flow, with the sequence number that comes next. None of it may be read.
func TestForgedTupleFromOtherNIC(t *testing.T) {
	r := newReplicas(t)
	got := &capture{}
	a, b := r.pair(t, service4)

	// The real segment is held back, so that the forgery arrives in its place.
	r.connectorEnd.setFilter(func(p []byte) int { got.filter(p); return 0 })
	if _, err := b.Write([]byte("true")); err != nil {
		t.Fatal(err)
	}
	genuine := got.last()
	forged := forgeTCP(genuine, "lies")
	r.rivalEnd.deliver(forged)
	r.connectorEnd.setFilter(func([]byte) int { return 1 })
	r.edgeEnd.deliver(genuine)

	buf := make([]byte, 16)
	if n, err := a.Read(buf); string(buf[:n]) != "true" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	// The same forgery through the flow's own NIC is believed: the test is
	// able to fail.
	b.Write([]byte("next"))
	if n, _ := a.Read(buf); string(buf[:n]) != "next" {
		t.Fatalf("read %q", buf[:n])
	}
	r.connectorEnd.setFilter(func(p []byte) int { got.filter(p); return 0 })
	b.Write([]byte("last"))
	r.edgeEnd.deliver(forgeTCP(got.last(), "fake"))
	if n, _ := a.Read(buf); string(buf[:n]) != "fake" {
		t.Fatalf("read %q: the control did not work", buf[:n])
	}
}

func TestForgedDatagramFromOtherNIC(t *testing.T) {
	r := newReplicas(t)
	got := &capture{}
	r.edgeEnd.setFilter(got.filter)
	u := r.dial(t, "udp", service4).(*UDPConn)
	if _, err := u.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	r.rivalEnd.deliver(answer(got.last(), "lies"))
	r.edgeEnd.deliver(answer(got.last(), "true"))
	buf := make([]byte, 16)
	if n, err := u.Read(buf); string(buf[:n]) != "true" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
}

// finishUDP sets the lengths and checksums of an IPv4 datagram.
func finishUDP(b []byte) []byte {
	ip := header.IPv4(b)
	ip.SetTotalLength(uint16(len(b)))
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(b[20:])
	u.SetLength(uint16(len(u)))
	u.SetChecksum(0)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(u)))
	u.SetChecksum(^checksum.Checksum(u, sum))
	return b
}

// Trap 1, the other half: an ICMP error that quotes another NIC's flow.
func TestForgedICMPFromOtherNIC(t *testing.T) {
	for _, to := range []netip.AddrPort{service4, service6} {
		t.Run(to.String(), func(t *testing.T) {
			r := newReplicas(t)
			got := &capture{}
			r.edgeEnd.setFilter(func(b []byte) int { got.filter(b); return 0 })
			dialled := make(chan error, 1)
			go func() {
				_, err := r.nic.DialContext(r.ctx, "tcp", to)
				dialled <- err
			}()
			syn := r.await(t, got)
			before := r.edge.drops.Count(whyICMPUnknown)
			r.rivalEnd.deliver(unreachablePacket(syn[:quoteLen(syn)], netx.ErrUnreachable))
			if n := r.edge.drops.Count(whyICMPUnknown) - before; n != 1 {
				t.Errorf("%d forged errors were counted, want 1", n)
			}
			// The genuine one says something else, so that the two differ.
			r.edgeEnd.deliver(unreachablePacket(syn[:quoteLen(syn)], netx.ErrTimedOut))
			if err := <-dialled; netx.Classify(err) != netx.ErrTimedOut {
				t.Errorf("the dial ended with %v", err)
			}
		})
	}
}

func quoteLen(b []byte) int {
	if b[0]>>4 == 4 {
		return ip4HeaderLen + quotedPorts
	}
	return ip6HeaderLen + quotedPorts
}

// await waits until something was captured and returns it.
func (r *replicas) await(t *testing.T, c *capture) []byte {
	t.Helper()
	for r.ctx.Err() == nil {
		c.mu.Lock()
		n := len(c.pkts)
		c.mu.Unlock()
		if n > 0 {
			return c.last()
		}
	}
	t.Fatal("nothing was sent")
	return nil
}

// An ICMP error must not end a flow that is established (RFC 1122 4.2.3.9).
func TestICMPDoesNotEndEstablished(t *testing.T) {
	l := newLab(t)
	got := &capture{}
	l.edgeEnd.setFilter(got.filter)
	a, b := l.pair(t, service4)
	sent := got.last()
	for _, cause := range []error{netx.ErrRefused, netx.ErrUnreachable, netx.ErrTimedOut} {
		l.edgeEnd.deliver(unreachablePacket(sent[:quoteLen(sent)], cause))
	}
	exchange(t, a, b, 10_000)
}

// Fragments of one datagram that come through two NICs are two datagrams.
func TestFragmentsDoNotMixBetweenNICs(t *testing.T) {
	r := newReplicas(t)
	got := &capture{}
	r.edgeEnd.setFilter(got.filter)
	u := r.dial(t, "udp", service4).(*UDPConn)
	u.Write([]byte("question"))
	q := got.last()
	whole := answer(q, string(patterned(1, 1)[:64]))
	first, second := fragment4(whole, 0, 32, true), fragment4(whole, 32, 40, false)

	r.edgeEnd.deliver(first)
	r.rivalEnd.deliver(second) // completes nothing
	if n := len(r.nic.fragments.partial) + len(r.rival.fragments.partial); n != 2 {
		t.Fatalf("%d datagrams wait, want one at each NIC", n)
	}
	r.edgeEnd.deliver(second)
	buf := make([]byte, 100)
	if n, err := u.Read(buf); n != 64 || err != nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// fragment4 cuts size bytes at off out of an IPv4 packet's payload.
func fragment4(whole []byte, off, size int, more bool) []byte {
	b := append([]byte(nil), whole[:20]...)
	b = append(b, whole[20+off:20+off+size]...)
	binary.BigEndian.PutUint16(b[4:], 77)
	flags := uint16(off / 8)
	if more {
		flags |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], flags)
	ip := header.IPv4(b)
	ip.SetTotalLength(uint16(len(b)))
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	return b
}
