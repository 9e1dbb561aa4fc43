package netstack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// offer gives n's way in a packet as a link does: as bytes first, as a packet
// where those are not taken. It reports whether they were.
func offer(n *NIC, b []byte) bool {
	in := &inbound{nic: n}
	given := bytes.Clone(b)
	taken, wake := in.DeliverDatagram(given)
	clear(given) // what is kept would be spoilt
	if wake != nil {
		wake.Wake()
	}
	if !taken {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		in.DeliverNetworkPacket(networkProtocol(b[0]>>4 == 4), pkt)
		pkt.DecRef()
	}
	return taken
}

// Both ways in come to the same: what arrives, and what is dropped for which
// reason.
func TestDeliverDatagram(t *testing.T) {
	for _, flow := range []flowKey{flow4, flow6} {
		l := newLab(t)
		c := l.dial(t, "udp", flow.remote).(*UDPConn)
		make1 := func(size, mtu int) [][]byte {
			return built(&udpOut{src: flow.remote, dst: c.key.local, payload: patterned(1, uint32(size))[:size], mtu: mtu, id: 9})
		}
		for _, tt := range []struct {
			name   string
			packet []byte
			taken  bool
			size   int // that arrives; -1: nothing
			why    string
		}{
			{"small", make1(100, 1400)[0], true, 100, ""},
			{"empty", make1(0, 1400)[0], true, 0, ""},
			{"just small", make1(2048, 9000)[0], true, 2048, ""},
			{"large", make1(2049, 9000)[0], false, 2049, ""},
			{"wrong", func() []byte { b := make1(100, 1400)[0]; b[len(b)-1]++; return b }(), true, -1, whyUDPChecksum},
			{"short", make1(100, 1400)[0][:60], true, -1, whyMalformed},
			{"another flow", built(&udpOut{src: flow.remote, dst: flow.local, payload: []byte("x"), mtu: 1400, id: 9})[0], false, -1, whyUDPUnknown},
			{"fragment", make1(3000, 1400)[0], false, -1, ""},
			{"the other fragments", make1(3000, 1400)[1], false, -1, ""},
			{"the last fragment", make1(3000, 1400)[2], false, 3000, ""},
		} {
			t.Run(tt.name+" "+flow.remote.String(), func(t *testing.T) {
				before := l.edge.drops.Total()
				if got := offer(l.nic, tt.packet); got != tt.taken {
					t.Errorf("taken: %v", got)
				}
				if tt.why != "" && (l.edge.drops.Count(tt.why) != 1 || l.edge.drops.Total() != before+1) {
					t.Errorf("%d drops for %q, %d in all", l.edge.drops.Count(tt.why), tt.why, l.edge.drops.Total()-before)
				}
				buf := make([]byte, 4096)
				if tt.size < 0 {
					c.SetReadDeadline(time.Now().Add(-time.Second))
					if n, err := c.Read(buf); err == nil {
						t.Errorf("%d bytes arrived", n)
					}
					c.SetReadDeadline(time.Time{})
					return
				}
				if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], patterned(1, uint32(tt.size))[:tt.size]) {
					t.Errorf("%d bytes arrived, %v", n, err)
				}
			})
		}
	}
}

// Datagrams keep their order whichever way they come, none is lost below the
// bounds, and beyond them each is counted.
func TestInboxBounds(t *testing.T) {
	l := newLab(t)
	c := l.dial(t, "udp", service4).(*UDPConn)
	rnd := rand.New(rand.NewPCG(1, 3))
	sent := 0
	for l.edge.drops.Count(whyInboxFull) < 10 {
		b := make([]byte, 4+rnd.IntN(2*len(smallBuffer{})))
		binary.BigEndian.PutUint32(b, uint32(sent))
		offer(l.nic, built(&udpOut{src: service4, dst: c.key.local, payload: b, mtu: 9000, id: 9})[0])
		if sent++; sent > inboxBytes {
			t.Fatal("no bound")
		}
	}
	if held := l.nic.unread.Load(); held > inboxBytes || held != int64(c.in.held) {
		t.Errorf("%d bytes are held, %d counted at the NIC", c.in.held, held)
	}
	buf := make([]byte, 8192)
	got, last := 0, -1
	for c.in.held > 0 {
		n, err := c.Read(buf)
		if err != nil || n < 4 || int(binary.BigEndian.Uint32(buf)) <= last {
			t.Fatalf("%d bytes, %v, behind %d", n, err, last)
		}
		last = int(binary.BigEndian.Uint32(buf))
		got++
	}
	if dropped := int(l.edge.drops.Count(whyInboxFull)); got+dropped != sent {
		t.Errorf("%d read and %d dropped of %d", got, dropped, sent)
	}
	offer(l.nic, built(&udpOut{src: service4, dst: c.key.local, payload: []byte("unread"), mtu: 9000, id: 9})[0])
	c.Close()
	if n := l.nic.unread.Load(); n != 0 {
		t.Errorf("%d bytes are held after the end", n)
	}
}
