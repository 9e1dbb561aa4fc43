package link

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// packet makes an outgoing packet: an IPv4 header, a transport header of
// protocol with flags (TCP), and payload.
func packet(protocol tcpip.TransportProtocolNumber, flags header.TCPFlags, payload []byte) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv4MinimumSize + header.TCPMinimumSize,
		Payload:            buffer.MakeWithData(payload),
	})
	switch protocol {
	case header.TCPProtocolNumber:
		tcp := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize))
		tcp.Encode(&header.TCPFields{DataOffset: header.TCPMinimumSize, Flags: flags})
	case header.UDPProtocolNumber:
		pkt.TransportHeader().Push(header.UDPMinimumSize)
	case header.ICMPv4ProtocolNumber:
		pkt.TransportHeader().Push(header.ICMPv4MinimumSize)
	}
	pkt.TransportProtocolNumber = protocol
	ip := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(pkt.Size()), Protocol: uint8(protocol)})
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	return pkt
}

func write(t *testing.T, e *Endpoint, pkt *stack.PacketBuffer) {
	t.Helper()
	var list stack.PacketBufferList
	list.PushBack(pkt)
	if n, err := e.WritePackets(list); n != 1 || err != nil {
		t.Errorf("WritePackets = %d, %v; want 1, nil", n, err)
	}
	list.DecRef()
}

func openEndpoint(t *testing.T, cfg Config) *Endpoint {
	t.Helper()
	cfg.MTU = 1400
	if cfg.Deferrer == nil {
		cfg.Deferrer = NewDeferrer(4)
		t.Cleanup(cfg.Deferrer.Close)
	}
	e := New(cfg)
	t.Cleanup(e.Close)
	e.SetOpen(true)
	return e
}

func buffers(n, size int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	return bufs, make([]int, n)
}

func TestPacketsComeOutWholeAndInOrder(t *testing.T) {
	e := openEndpoint(t, Config{})
	rng := rand.New(rand.NewPCG(1, 2))
	var want [][]byte
	for i := range 300 {
		payload := make([]byte, 4+rng.IntN(1300))
		binary.BigEndian.PutUint32(payload, uint32(i))
		write(t, e, packet(header.TCPProtocolNumber, header.TCPFlagAck, payload))
		want = append(want, payload)
	}
	const offset = 56
	got := 0
	for {
		bufs, sizes := buffers(7, 2048)
		n := e.Read(bufs, sizes, offset)
		if n == 0 {
			break
		}
		for i := range n {
			p := bufs[i][offset : offset+sizes[i]]
			if !bytes.Equal(p[header.IPv4MinimumSize+header.TCPMinimumSize:], want[got]) {
				t.Fatalf("packet %d differs", got)
			}
			got++
		}
	}
	if got != len(want) {
		t.Errorf("read %d packets, want %d", got, len(want))
	}
	if e.queue != (queue{}) {
		t.Errorf("an empty queue holds %+v", e.queue)
	}
}

func TestReadyIsCalledWhenTheQueueFills(t *testing.T) {
	calls := 0
	e := openEndpoint(t, Config{Ready: func() { calls++ }})
	for range 3 {
		write(t, e, packet(header.UDPProtocolNumber, 0, []byte("x")))
	}
	if calls != 1 {
		t.Errorf("Ready called %d times for three packets, want 1", calls)
	}
	bufs, sizes := buffers(8, 2048)
	e.Read(bufs, sizes, 0)
	write(t, e, packet(header.UDPProtocolNumber, 0, []byte("x")))
	if calls != 2 {
		t.Errorf("Ready called %d times after the queue was emptied, want 2", calls)
	}
}

// TestFullQueue: data waits for room, a RST does not, other answers are dropped
// and counted, and a session that is lost or a NIC that is removed wakes who
// waits.
func TestFullQueue(t *testing.T) {
	for _, tc := range []struct {
		name    string
		release func(e *Endpoint)
		kept    int
		why     string
	}{
		{"room", func(e *Endpoint) { b, s := buffers(2, 2048); e.Read(b, s, 0) }, 2, ""},
		{"session lost", func(e *Endpoint) { e.SetOpen(false) }, 0, WhyNoSession},
		{"closed", (*Endpoint).Close, 0, WhyClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := openEndpoint(t, Config{MaxPackets: 2})
				for range 2 {
					write(t, e, packet(header.TCPProtocolNumber, header.TCPFlagAck, []byte("data")))
				}
				// Inside Deliver these two would be written by the goroutine
				// that has to drain the queue in the end.
				write(t, e, packet(header.TCPProtocolNumber, header.TCPFlagRst, nil))
				write(t, e, packet(header.ICMPv4ProtocolNumber, 0, nil))
				if n := e.drops.Count(WhyQueueFull); n != 1 {
					t.Errorf("%d answers dropped by a full queue, want 1", n)
				}
				written := make(chan struct{})
				go func() {
					write(t, e, packet(header.TCPProtocolNumber, header.TCPFlagAck, []byte("late")))
					close(written)
				}()
				synctest.Wait()
				select {
				case <-written:
					t.Fatal("a data packet did not wait for room")
				default:
				}
				tc.release(e)
				<-written
				if e.Len() != tc.kept {
					t.Errorf("%d packets wait, want %d", e.Len(), tc.kept)
				}
				if tc.why != "" && e.drops.Count(tc.why) != 4 {
					t.Errorf("%d dropped for %s, want 4", e.drops.Count(tc.why), tc.why)
				}
			})
		})
	}
}

// TestResetsAreBounded: the room of RSTs ends somewhere.
func TestResetsAreBounded(t *testing.T) {
	e := openEndpoint(t, Config{MaxPackets: 2})
	for range 2 + resetRoom + 5 {
		write(t, e, packet(header.TCPProtocolNumber, header.TCPFlagRst, nil))
	}
	if e.Len() != 2+resetRoom || e.drops.Count(WhyQueueFull) != 5 {
		t.Errorf("%d wait and %d dropped, want %d and 5", e.Len(), e.drops.Count(WhyQueueFull), 2+resetRoom)
	}
}

func TestByteBound(t *testing.T) {
	e := openEndpoint(t, Config{MaxBytes: 3000})
	big := bytes.Repeat([]byte{1}, 4000)
	write(t, e, packet(header.UDPProtocolNumber, 0, big)) // alone it fits any bound
	write(t, e, packet(header.ICMPv4ProtocolNumber, 0, big))
	if e.Len() != 1 || e.drops.Count(WhyQueueFull) != 1 {
		t.Errorf("%d wait and %d dropped, want 1 and 1", e.Len(), e.drops.Count(WhyQueueFull))
	}
}

func TestNoSession(t *testing.T) {
	e := openEndpoint(t, Config{})
	e.SetOpen(false)
	write(t, e, packet(header.TCPProtocolNumber, header.TCPFlagSyn, nil))
	if e.Len() != 0 || e.drops.Count(WhyNoSession) != 1 {
		t.Errorf("%d wait and %d dropped without a session, want 0 and 1", e.Len(), e.drops.Count(WhyNoSession))
	}
}

func TestOversizeIsCounted(t *testing.T) {
	e := openEndpoint(t, Config{})
	write(t, e, packet(header.UDPProtocolNumber, 0, make([]byte, 3000)))
	write(t, e, packet(header.UDPProtocolNumber, 0, []byte("fits")))
	bufs, sizes := buffers(4, 2048)
	if n := e.Read(bufs, sizes, 40); n != 1 || sizes[0] != 32 {
		t.Errorf("Read = %d packets, the first of %d bytes; want the small one alone", n, sizes[0])
	}
	if e.drops.Count(WhyOversize) != 1 {
		t.Errorf("oversize drops = %d, want 1", e.drops.Count(WhyOversize))
	}
}

// dispatcher is a fake of the stack's side: it records what is delivered.
type dispatcher struct {
	stack.NetworkDispatcher
	delivered chan tcpip.NetworkProtocolNumber
	block     chan struct{} // when set, delivery waits for it
}

func (d *dispatcher) DeliverNetworkPacket(p tcpip.NetworkProtocolNumber, _ *stack.PacketBuffer) {
	if d.block != nil {
		<-d.block
	}
	d.delivered <- p
}

// TestICMPErrorsDoNotBlockDeliver: a stack that is stuck in the handling of an
// ICMP error does not stop Deliver, and the backlog is bounded and counted.
func TestICMPErrorsDoNotBlockDeliver(t *testing.T) {
	e := openEndpoint(t, Config{})
	d := &dispatcher{delivered: make(chan tcpip.NetworkProtocolNumber, 16), block: make(chan struct{})}
	e.Attach(d)
	unreachable := make([]byte, 28)
	unreachable[0], unreachable[9], unreachable[20] = 0x45, 1, 3
	for range 8 {
		e.Deliver([][]byte{unreachable}) // the Deferrer takes 4 and one is being handled
	}
	if n := e.drops.Count(WhyErrorQueue); n < 3 || n > 4 {
		t.Errorf("%d ICMP errors dropped, want 3 or 4", n)
	}
	close(d.block)
	if p := <-d.delivered; p != header.IPv4ProtocolNumber {
		t.Errorf("delivered protocol %d", p)
	}
}

func TestDeliver(t *testing.T) {
	v6 := make([]byte, 48)
	v6[0], v6[6] = 0x60, 17
	v4 := make([]byte, 28)
	v4[0], v4[9] = 0x45, 17
	for _, tc := range []struct {
		name   string
		packet []byte
		want   tcpip.NetworkProtocolNumber
		why    string
	}{
		{"IPv4", v4, header.IPv4ProtocolNumber, ""},
		{"IPv6", v6, header.IPv6ProtocolNumber, ""},
		{"version 5", []byte{0x50}, 0, WhyVersion},
		{"nothing", nil, 0, WhyVersion},
		{"one byte of IPv4", []byte{0x45}, header.IPv4ProtocolNumber, ""},
		{"one byte of IPv6", []byte{0x60}, header.IPv6ProtocolNumber, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := openEndpoint(t, Config{})
			e.Deliver([][]byte{tc.packet})
			if e.drops.Count(WhyDetached) != 1 {
				t.Error("a packet without a stack was not counted")
			}
			d := &dispatcher{delivered: make(chan tcpip.NetworkProtocolNumber, 1)}
			e.Attach(d)
			e.Deliver([][]byte{tc.packet})
			if tc.why != "" {
				if e.drops.Count(tc.why) != 1 {
					t.Errorf("%s was not counted", tc.why)
				}
				return
			}
			if got := <-d.delivered; got != tc.want {
				t.Errorf("delivered protocol %#x, want %#x", got, tc.want)
			}
		})
	}
}
