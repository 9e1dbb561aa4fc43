package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/netx"
)

const maxDatagram = 65507 // RFC 768 and RFC 791: 65,535 less two headers

// acceptUDP lets the connector accept every flow and returns them.
func (l *lab) acceptUDP(t testing.TB) <-chan *UDPConn {
	t.Helper()
	conns := make(chan *UDPConn, 1024)
	err := l.connector.ForwardUDP(ForwardUDPConfig{Pending: 4096, Handler: func(r *UDPRequest) {
		c, err := r.Accept()
		if err != nil {
			t.Logf("accepting: %v", err)
			return
		}
		conns <- c
	}})
	if err != nil {
		t.Fatal(err)
	}
	return conns
}

func TestUDPDatagrams(t *testing.T) {
	for _, to := range []netip.AddrPort{service4, service6} {
		t.Run(to.String(), func(t *testing.T) {
			l := newLab(t)
			conns := l.acceptUDP(t)
			a := l.dial(t, "udp", to)
			var b *UDPConn
			buf := make([]byte, 70_000)
			for _, size := range []int{0, 1, 1372, 1373, 8192, maxDatagram} {
				out := make([]byte, size)
				for i := range out {
					out[i] = byte(i * 7)
				}
				if _, err := a.Write(out); err != nil {
					t.Fatalf("writing %d bytes: %v", size, err)
				}
				if b == nil {
					b = <-conns
				}
				if n, err := b.Read(buf); err != nil || !bytes.Equal(buf[:n], out) {
					t.Fatalf("of %d bytes %d arrived, %v", size, n, err)
				}
				if _, err := b.Write(out); err != nil {
					t.Fatalf("answering %d bytes: %v", size, err)
				}
				if n, err := a.Read(buf); err != nil || !bytes.Equal(buf[:n], out) {
					t.Fatalf("of %d bytes back %d arrived, %v", size, n, err)
				}
			}
			if _, err := a.Write(make([]byte, 65536)); err == nil {
				t.Error("a datagram of 65536 bytes was taken")
			}
			// What does not fit the buffer is dropped, the next one is whole.
			a.Write([]byte("long"))
			a.Write([]byte("next"))
			if n, err := b.Read(buf[:2]); n != 2 || err != nil {
				t.Errorf("a short read gave %d bytes, %v", n, err)
			}
			if n, err := b.Read(buf); string(buf[:n]) != "next" || err != nil {
				t.Errorf("then %q, %v", buf[:n], err)
			}
			if l.nic.Flows() != 1 || l.cnic.Flows() != 1 {
				t.Errorf("%d and %d flows, want 1 each", l.nic.Flows(), l.cnic.Flows())
			}
			b.Close()
		})
	}
}

func TestUDPDeadlinesAndClose(t *testing.T) {
	l := newLab(t)
	u := l.dial(t, "udp", service4).(*UDPConn)
	buf := make([]byte, 10)
	u.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := u.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v, want a timeout", err)
	}
	if err := u.WaitReadable(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("wait: %v, want a timeout", err)
	}
	u.SetDeadline(time.Time{})
	read, waited := make(chan error), make(chan error)
	go func() { _, err := u.Read(buf); read <- err }()
	go func() { waited <- u.WaitReadable() }()
	u.Close()
	for _, err := range []error{<-read, <-waited, u.Close(), u.SetDeadline(time.Time{})} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	}
	if _, err := u.Write(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write: %v, want net.ErrClosed", err)
	}
	if n := l.nic.Flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

// Datagrams of a flow that come while its handler thinks are one flow, and
// none is lost.
func TestUDPFirstDatagramsAreKept(t *testing.T) {
	const burst = 40
	l := newLab(t)
	var requests atomic.Int64
	release := make(chan struct{})
	conns := make(chan *UDPConn, 1)
	l.connector.ForwardUDP(ForwardUDPConfig{Handler: func(r *UDPRequest) {
		requests.Add(1)
		<-release
		c, err := r.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		conns <- c
	}})
	a := l.dial(t, "udp", service4)
	var sender sync.WaitGroup
	sender.Go(func() {
		for i := range burst {
			a.Write([]byte{byte(i)})
			if i == burst/2 {
				close(release)
			}
		}
	})
	b := <-conns
	seen := make(map[byte]bool)
	buf := make([]byte, 10)
	b.SetReadDeadline(time.Now().Add(10 * time.Second))
	for len(seen) < burst {
		n, err := b.Read(buf)
		if err != nil || n != 1 || seen[buf[0]] {
			t.Fatalf("after %d datagrams: %d bytes, %v", len(seen), n, err)
		}
		seen[buf[0]] = true
	}
	sender.Wait()
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests for one flow", n)
	}
}

// A datagram that the demultiplexer looked up just before its flow was
// accepted reaches the forwarder just after: it belongs to the flow.
func TestUDPDatagramLateForForwarder(t *testing.T) {
	l := newLab(t)
	conns := l.acceptUDP(t)
	sent := &capture{}
	l.edgeEnd.setFilter(sent.filter)
	a := l.dial(t, "udp", service4)
	a.Write([]byte("first"))
	b := <-conns
	defer b.Close()
	buf := make([]byte, 16)
	if n, err := b.Read(buf); string(buf[:n]) != "first" || err != nil {
		t.Fatalf("read %q, %v", buf[:n], err)
	}

	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(sent.last())})
	defer pkt.DecRef()
	late, why := parseUDP4(pkt.Data().AsRange().ToSlice())
	if why != "" {
		t.Fatalf("the datagram cannot be parsed: %s", why)
	}
	l.connector.udp.handle(l.cnic, &late, pkt)
	if n, err := b.Read(buf); string(buf[:n]) != "first" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if len(conns) != 0 || len(l.connector.udp.pending) != 0 {
		t.Error("a second flow was begun")
	}
}

func TestUDPPendingIsBounded(t *testing.T) {
	l := newLab(t)
	release := make(chan struct{})
	l.connector.ForwardUDP(ForwardUDPConfig{Pending: 2, Handler: func(r *UDPRequest) { <-release }})
	defer close(release)
	a := l.dial(t, "udp", service4)
	for range 2 * pendingBytes / 65000 {
		a.Write(make([]byte, 65000))
	}
	others := []net.Conn{l.dial(t, "udp", service4), l.dial(t, "udp", service4)}
	for _, c := range others {
		c.Write([]byte("x"))
	}
	// The last of them is one too many and is told so.
	if _, err := others[1].Read(make([]byte, 1)); !errors.Is(err, netx.ErrUnreachable) {
		t.Errorf("read %v, want unreachable", err)
	}
	if l.connector.drops.Count(whyPending) != 1 || l.connector.drops.Count(whyPendingBytes) == 0 {
		t.Errorf("drops: %d for flows, %d for bytes",
			l.connector.drops.Count(whyPending), l.connector.drops.Count(whyPendingBytes))
	}
}

func TestUDPUnreachable(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cause error
		want  error
	}{
		{"refused", netx.ErrRefused, netx.ErrRefused},
		{"unreachable", netx.ErrUnreachable, netx.ErrUnreachable},
		{"timed out", netx.ErrTimedOut, netx.ErrTimedOut},
		{"denied", errors.New("denied"), netx.ErrUnreachable},
	} {
		for _, to := range []netip.AddrPort{service4, service6} {
			t.Run(tt.name+" "+to.String(), func(t *testing.T) {
				l := newLab(t)
				sent, answer := &capture{}, &capture{}
				l.edgeEnd.setFilter(sent.filter)
				l.connectorEnd.setFilter(answer.filter)
				l.connector.ForwardUDP(ForwardUDPConfig{Handler: func(r *UDPRequest) { r.Reject(tt.cause) }})
				a := l.dial(t, "udp", to)
				a.Write([]byte("datagram"))
				if err := a.(*UDPConn).WaitReadable(); err != nil {
					t.Fatal(err)
				}
				if _, err := a.Read(make([]byte, 10)); !errors.Is(err, tt.want) {
					t.Errorf("read %v, want %v", err, tt.want)
				}
				typ, code := byte(3), map[error]byte{netx.ErrRefused: 3, netx.ErrUnreachable: 1, netx.ErrTimedOut: 0}[tt.want]
				if to.Addr().Is6() {
					typ, code = 1, map[error]byte{netx.ErrRefused: 4, netx.ErrUnreachable: 3, netx.ErrTimedOut: 0}[tt.want]
				}
				checkUnreachable(t, answer.last(), sent.pkts[0], typ, code)

				// Later in the flow, without a datagram at hand to quote.
				conns := l.acceptUDP(t)
				a.Write([]byte("again"))
				b := <-conns
				b.Write([]byte("before"))
				b.Unreachable(tt.cause)
				buf := make([]byte, 10)
				if n, err := a.Read(buf); string(buf[:n]) != "before" || err != nil {
					t.Fatalf("read %q, %v: a datagram comes before what was said after it", buf[:n], err)
				}
				if _, err := a.Read(buf); !errors.Is(err, tt.want) {
					t.Errorf("read %v, want %v", err, tt.want)
				}
				b.Write([]byte("alive")) // both ends live on
				if n, err := a.Read(buf); string(buf[:n]) != "alive" || err != nil {
					t.Errorf("then %q, %v", buf[:n], err)
				}
				b.Close()
			})
		}
	}
}

// Trap 4: flows between the same two hosts, large datagrams, one fragment in
// a hundred lost and some duplicated or late: never a wrong byte.
func TestLargeDatagramsUnderLoss(t *testing.T) {
	flows, datagrams := 8, 60
	if raceEnabled {
		flows, datagrams = 4, 20
	}
	l := newLab(t)
	lose := lossy(100, 11)
	var whole, wrong, anonymous atomic.Int64
	l.edgeEnd.setFilter(func(b []byte) int {
		if binary.BigEndian.Uint16(b[4:]) == 0 {
			anonymous.Add(1) // with id 0 all fragments look like one datagram's
		}
		return lose(b)
	})
	conns := l.acceptUDP(t)
	var readers, writers sync.WaitGroup
	for f := range flows {
		u := l.dial(t, "udp", service4)
		writers.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(f), 3))
			for range datagrams {
				if _, err := u.Write(patterned(uint32(f), rnd.Uint32())); err != nil {
					t.Errorf("writing: %v", err)
					return
				}
			}
		})
	}
	ctx, stop := context.WithCancel(l.ctx)
	readers.Go(func() {
		for {
			select {
			case b := <-conns:
				readers.Go(func() { readPatterned(ctx, b, &whole, &wrong) })
			case <-ctx.Done():
				return
			}
		}
	})
	writers.Wait()
	l.drain()
	stop()
	readers.Wait()
	t.Logf("%d of %d datagrams arrived", whole.Load(), flows*datagrams)
	if anonymous.Load() > 0 {
		t.Errorf("%d fragments had no id", anonymous.Load())
	}
	if wrong.Load() > 0 {
		t.Errorf("%d datagrams had wrong bytes", wrong.Load())
	}
	if whole.Load() == 0 {
		t.Error("nothing arrived")
	}
}

// readPatterned counts what arrives on b until ctx ends: all of one flow, and
// every byte as it was sent, or it is wrong.
func readPatterned(ctx context.Context, b *UDPConn, whole, wrong *atomic.Int64) {
	defer b.Close()
	context.AfterFunc(ctx, func() { b.SetReadDeadline(time.Now()) })
	buf := make([]byte, 70_000)
	const unknown = 1 << 31
	flow := uint32(unknown)
	for {
		n, err := b.Read(buf)
		if err != nil {
			return
		}
		got := binary.BigEndian.Uint32(buf)
		if flow == unknown {
			flow = got
		}
		if got != flow || !bytes.Equal(buf[:n], patterned(got, binary.BigEndian.Uint32(buf[4:]))) {
			wrong.Add(1)
		}
		whole.Add(1)
	}
}

// patterned makes a datagram whose every byte depends on flow and seed.
func patterned(flow, seed uint32) []byte {
	b := make([]byte, maxDatagram)
	rnd := rand.New(rand.NewPCG(uint64(flow), uint64(seed)))
	for i := 0; i+8 <= len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], rnd.Uint64())
	}
	binary.BigEndian.PutUint32(b, flow)
	binary.BigEndian.PutUint32(b[4:], seed)
	return b
}

// drain waits until nothing is on the wire.
func (l *lab) drain() {
	for l.ctx.Err() == nil && !(l.edgeEnd.idle() && l.connectorEnd.idle()) {
		time.Sleep(time.Millisecond)
	}
}

func TestPacketConn(t *testing.T) {
	l := newTwoEdges(t)
	pc, err := l.b.ListenPacket(l.ctx, "udp", netip.MustParseAddrPort("100.64.0.2:0"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := l.a.DialContext(l.ctx, "udp", pc.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.Write([]byte("ping"))
	buf := make([]byte, 10)
	n, from, err := pc.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "ping" || from.String() != u.LocalAddr().String() {
		t.Fatalf("received %q from %v, %v", buf[:n], from, err)
	}
	if _, err := pc.WriteTo([]byte("pong"), from); err != nil {
		t.Fatal(err)
	}
	if n, err := u.Read(buf); string(buf[:n]) != "pong" || err != nil {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	pc.SetReadDeadline(time.Now().Add(-time.Second))
	if _, _, err := pc.ReadFrom(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %v, want a timeout", err)
	}
	pc.SetReadDeadline(time.Time{})
	read := make(chan error)
	go func() { _, _, err := pc.ReadFrom(buf); read <- err }()
	l.b.Remove()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Remove: %v", err)
	}
}
