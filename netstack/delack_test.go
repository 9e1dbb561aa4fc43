package netstack

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/netx"
)

// segments counts a wire's TCP packets by kind.
type segments struct {
	mu          sync.Mutex
	pure, whole int
	acked       uint32        // highest acknowledgement
	ack         chan struct{} // told of each empty one
}

func newSegments() *segments { return &segments{ack: make(chan struct{}, 1024)} }

func (s *segments) filter(b []byte) int {
	ip := header.IPv4(b)
	tcp := header.TCP(b[ip.HeaderLength():])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole++
	if len(tcp) == int(tcp.DataOffset()) && tcp.Flags() == header.TCPFlagAck {
		s.pure++
		s.acked = tcp.AckNumber()
		select {
		case s.ack <- struct{}{}:
		default:
		}
	}
	return 1
}

func (s *segments) counts() (pure, whole int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pure, s.whole
}

// A request and its answer are two packets: each acknowledges the other.
func TestAnswersCarryAcknowledgements(t *testing.T) {
	l := newLab(t)
	a, b := l.pair(t, service4)
	up, down := newSegments(), newSegments()
	l.edgeEnd.setFilter(up.filter)
	l.connectorEnd.setFilter(down.filter)
	const rounds = 500
	msg := make([]byte, 64)
	for range rounds {
		for _, c := range []interface {
			Write([]byte) (int, error)
		}{a, b} {
			if _, err := c.Write(msg); err != nil {
				t.Fatal(err)
			}
			r := b
			if c == b {
				r = a
			}
			if _, err := readFull(r, len(msg)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, s := range map[string]*segments{"up": up, "down": down} {
		pure, whole := s.counts()
		t.Logf("%s: %d packets for %d messages, %d of them only acknowledge", name, whole, rounds, pure)
		// A machine that stands still lets some ticks pass.
		if pure > rounds/4 {
			t.Errorf("%s: %d of %d packets only acknowledge", name, pure, whole)
		}
	}
}

// What no answer takes along is acknowledged all the same, and every second
// segment at once.
func TestAcknowledgementsWithoutAnswer(t *testing.T) {
	l := newLab(t)
	a, b := l.pair(t, service4)
	down := newSegments()
	l.connectorEnd.setFilter(down.filter)
	expect := func(what string) {
		t.Helper()
		select {
		case <-down.ack:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s is not acknowledged", what)
		}
	}
	send := func(n int) {
		t.Helper()
		if _, err := a.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if _, err := readFull(b, n); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		send(10)
		expect("one segment")
	}
	send(10)
	send(10)
	expect("the second segment")
	send(10 * 1400)
	expect("a burst")
}

// The end of the handshake goes with what the dialler has to say; where that is
// nothing it goes when the dialler waits for the peer's data, or by itself.
func TestOpeningGoesWithData(t *testing.T) {
	l := newLab(t)
	conns := l.acceptTCP(t)
	ticks := func(on bool) {
		l.nic.acks.mu.Lock()
		defer l.nic.acks.mu.Unlock()
		l.nic.acks.ticking = !on
	}
	ticks(false)
	for range 100 {
		up := newSegments()
		l.edgeEnd.setFilter(up.filter)
		a := l.dial(t, "tcp", service4)
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		b := <-conns
		if _, err := readFull(b, 1); err != nil {
			t.Fatal(err)
		}
		if pure, _ := up.counts(); pure > 0 { // not all: the RST of the dial before may be late
			t.Error("the handshake was ended by a packet of its own")
		}
		netx.Abort(a)
	}

	up := newSegments()
	l.edgeEnd.setFilter(up.filter)
	a := l.dial(t, "tcp", service4).(*TCPConn)
	over := make(chan error, 1)
	go func() { over <- a.WaitReadable() }()
	<-up.ack
	b := <-conns
	if _, err := b.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err != nil || a.ack.opening.Load() {
		t.Errorf("waiting: %v; the handshake may still wait: %v", err, a.ack.opening.Load())
	}

	ticks(true)
	l.dial(t, "tcp", service4)
	<-conns
}

// A connection that is aborted as soon as it is there has been: the other end
// takes it, or hears of a connection that was reset, not of a dial that was
// given up.
func TestAbortEndsTheHandshake(t *testing.T) {
	l := newLab(t)
	ended := make(chan error, 1)
	err := l.connector.ForwardTCP(ForwardTCPConfig{Handler: func(r *TCPRequest) {
		c, err := r.Accept()
		if err == nil {
			_ = c.Close()
		}
		ended <- err
	}})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		netx.Abort(l.dial(t, "tcp", service4))
		if err := <-ended; err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("accepting: %v", err)
		}
	}
}

func TestWhatMayWait(t *testing.T) {
	const mtu = 1400
	at := func(ack uint32, flags header.TCPFlags, options ...byte) header.TCP {
		h := make(header.TCP, header.TCPMinimumSize+len(options))
		h.Encode(&header.TCPFields{AckNum: ack, Flags: flags, DataOffset: uint8(len(h))})
		copy(h[header.TCPMinimumSize:], options)
		return h
	}
	stamp := []byte{1, 1, header.TCPOptionTS, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	sack := []byte{1, 1, header.TCPOptionSACK, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	const ack = header.TCPFlagAck
	for _, tt := range []struct {
		name  string
		state ackState
		sent  uint32
		h     header.TCP
		want  bool
		after ackState
	}{
		{"news", ackDelay, 100, at(164, ack), true, ackDelay},
		{"news with a timestamp", ackDelay, 100, at(164, ack, stamp...), true, ackDelay},
		{"news over the wrap", ackDelay, 0xffffffff, at(64, ack), true, ackDelay},
		{"one whole segment", ackDelay, 100, at(100+mtu, ack), true, ackDelay},
		{"more than a segment", ackDelay, 100, at(101+mtu, ack), false, ackDelay},
		{"nothing new: a window, or a duplicate", ackDelay, 100, at(100, ack), false, ackDelay},
		{"a hole", ackDelay, 100, at(164, ack, sack...), false, ackDelay},
		{"a hole and a timestamp", ackDelay, 100, at(164, ack, append(append([]byte{}, stamp...), sack...)...), false, ackDelay},
		{"the end of the handshake", ackUnknown, 0, at(164, ack), false, ackDelay},
		{"a SYN", ackUnknown, 0, at(0, header.TCPFlagSyn), false, ackUnknown},
		{"our FIN", ackDelay, 100, at(164, ack|header.TCPFlagFin), false, ackOver},
		{"our RST", ackDelay, 100, at(164, ack|header.TCPFlagRst), false, ackOver},
		{"pushed data", ackDelay, 100, at(164, ack|header.TCPFlagPsh), false, ackDelay},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			c := &TCPConn{nic: l.nic}
			c.ack.state, c.ack.sent = tt.state, tt.sent
			if got := c.note(tt.h); got != tt.want || c.ack.state != tt.after {
				t.Errorf("may wait: %v, then state %d; want %v, %d", got, c.ack.state, tt.want, tt.after)
			}
		})
	}
}

// A NIC that goes lets go of what is held, whenever that is.
func TestHeldAcknowledgementsEndWithTheNIC(t *testing.T) {
	for range 50 {
		l := newLab(t)
		conns := l.acceptTCP(t)
		for range 4 {
			a := l.dial(t, "tcp", service4)
			b := <-conns
			if _, err := a.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := readFull(b, 1); err != nil {
				t.Fatal(err)
			}
		}
		l.cnic.Remove()
		l.nic.Remove()
		for _, n := range []*NIC{l.nic, l.cnic} {
			n.acks.mu.Lock()
			left := len(n.acks.conns)
			n.acks.mu.Unlock()
			if left > 0 {
				t.Fatalf("%d conns still hold an acknowledgement", left)
			}
		}
	}
}

func TestHoldingDoesNotAllocate(t *testing.T) {
	l := newLab(t)
	c := &TCPConn{nic: l.nic}
	c.ack.state = ackDelay
	c.ack.listed.Store(true)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: header.TCPMinimumSize})
	defer pkt.DecRef()
	h := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize))
	n := uint32(0)
	if allocs := testing.AllocsPerRun(200, func() {
		n++
		h.Encode(&header.TCPFields{AckNum: n, Flags: header.TCPFlagAck, DataOffset: header.TCPMinimumSize})
		if held := c.hold(pkt, true); held != (n%2 == 1) {
			t.Fatalf("acknowledgement %d: held %v", n, held)
		} else if held {
			l.nic.acks.list(c)
		}
	}); allocs > 0 {
		t.Errorf("holding an acknowledgement allocates %v times", allocs)
	}
	c.ack.drop()
}

// BenchmarkRoundTrip is a request and its answer, 64 bytes each.
func BenchmarkRoundTrip(b *testing.B) {
	l := newLab(b)
	x, y := l.pair(b, service4)
	go func() {
		p := make([]byte, 64)
		for {
			if _, err := io.ReadFull(y, p); err != nil {
				return
			}
			y.Write(p)
		}
	}()
	p := make([]byte, 64)
	for b.Loop() {
		x.Write(p)
		if _, err := io.ReadFull(x, p); err != nil {
			b.Fatal(err)
		}
	}
}
