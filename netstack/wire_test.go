package netstack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wireEnd is one end of a cable between two stacks: a LinkEndpoint with an
// unbounded queue and a goroutine that delivers to the other end.
type wireEnd struct {
	mtu  atomic.Uint32
	caps stack.LinkEndpointCapabilities
	peer *wireEnd
	// filter, if set, sees each outgoing packet and says how many copies
	// travel: 0 loses it, 2 duplicates it.
	filter atomic.Pointer[func(b []byte) int]

	dispatcherMu sync.RWMutex
	dispatcher   stack.NetworkDispatcher

	mu     sync.Mutex
	more   sync.Cond
	queue  [][]byte
	busy   bool // the last batch is still being delivered
	closed bool
	done   chan struct{}
}

// newWire makes a cable and starts its two goroutines; Close of both ends
// (the stacks' NICs do it) stops them.
func newWire(mtu uint32) (a, b *wireEnd) {
	a, b = &wireEnd{done: make(chan struct{})}, &wireEnd{done: make(chan struct{})}
	a.peer, b.peer = b, a
	for _, e := range []*wireEnd{a, b} {
		e.mtu.Store(mtu)
		e.more.L = &e.mu
		go e.pump()
	}
	return a, b
}

// pump delivers what this end sent to the other.
func (e *wireEnd) pump() {
	defer close(e.done)
	for {
		e.mu.Lock()
		e.busy = false
		for len(e.queue) == 0 && !e.closed {
			e.more.Wait()
		}
		if e.closed {
			e.mu.Unlock()
			return
		}
		batch := e.queue
		e.queue, e.busy = nil, true
		e.mu.Unlock()
		for _, b := range batch {
			e.peer.deliver(b)
		}
	}
}

// deliver gives the stack behind this end a packet, as if it had arrived.
func (e *wireEnd) deliver(b []byte) {
	e.dispatcherMu.RLock()
	d := e.dispatcher
	e.dispatcherMu.RUnlock()
	if d == nil {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	defer pkt.DecRef()
	d.DeliverNetworkPacket(networkProtocol(b[0]>>4 == 4), pkt)
}

func (e *wireEnd) setFilter(f func(b []byte) int) { e.filter.Store(&f) }

func (e *wireEnd) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	all := pkts.AsSlice()
	for _, pkt := range all {
		v := pkt.ToView()
		b := append([]byte(nil), v.AsSlice()...)
		v.Release()
		copies := 1
		if f := e.filter.Load(); f != nil {
			copies = (*f)(b)
		}
		e.mu.Lock()
		for range copies {
			e.queue = append(e.queue, b)
		}
		e.more.Signal()
		e.mu.Unlock()
	}
	return len(all), nil
}

func (e *wireEnd) Close() {
	e.mu.Lock()
	e.closed = true
	e.more.Broadcast()
	e.mu.Unlock()
}

func (e *wireEnd) Attach(d stack.NetworkDispatcher) {
	e.dispatcherMu.Lock()
	defer e.dispatcherMu.Unlock()
	e.dispatcher = d
}

// Len is how many packets have not been delivered, as the tunnel's link says.
func (e *wireEnd) Len() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.busy {
		return len(e.queue) + 1
	}
	return len(e.queue)
}

func (e *wireEnd) IsAttached() bool                             { return true }
func (e *wireEnd) MTU() uint32                                  { return e.mtu.Load() }
func (e *wireEnd) SetMTU(mtu uint32)                            { e.mtu.Store(mtu) }
func (e *wireEnd) MaxHeaderLength() uint16                      { return 0 }
func (e *wireEnd) LinkAddress() tcpip.LinkAddress               { return "" }
func (e *wireEnd) SetLinkAddress(tcpip.LinkAddress)             {}
func (e *wireEnd) Capabilities() stack.LinkEndpointCapabilities { return e.caps }
func (e *wireEnd) Wait()                                        {}
func (e *wireEnd) ARPHardwareType() header.ARPHardwareType      { return header.ARPHardwareNone }
func (e *wireEnd) AddHeader(*stack.PacketBuffer)                {}
func (e *wireEnd) ParseHeader(*stack.PacketBuffer) bool         { return true }
func (e *wireEnd) SetOnCloseAction(func())                      {}

// Addresses of the tests: our inner sources and a private service.
var (
	source4  = netip.MustParseAddr("100.127.0.1")
	source6  = netip.MustParseAddr("fd00:127::1")
	service4 = netip.MustParseAddrPort("10.0.0.10:5432")
	service6 = netip.MustParseAddrPort("[fd00:10::10]:5432")
)

// lab is an edge's stack and a connector's, joined by one wire.
type lab struct {
	edge, connector       *Stack
	nic, cnic             *NIC
	edgeEnd, connectorEnd *wireEnd
	ctx                   context.Context
}

func newLab(t testing.TB) *lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	l := &lab{edge: newStack(t, Config{}), connector: newStack(t, Config{Promiscuous: true}), ctx: ctx}
	t.Cleanup(cancel)
	l.edgeEnd, l.connectorEnd = newWire(1400)
	l.nic = addNIC(t, l.edge, NICConfig{Name: "edge", Link: l.edgeEnd, Sources: []netip.Addr{source4, source6}})
	l.cnic = addNIC(t, l.connector, NICConfig{Name: "connector", Link: l.connectorEnd})
	return l
}

func newStack(t testing.TB, cfg Config) *Stack {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func addNIC(t testing.TB, s *Stack, cfg NICConfig) *NIC {
	t.Helper()
	n, err := s.AddNIC(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// acceptTCP lets the connector accept every connection and returns them.
func (l *lab) acceptTCP(t testing.TB) <-chan *TCPConn {
	t.Helper()
	conns := make(chan *TCPConn, 1024)
	err := l.connector.ForwardTCP(ForwardTCPConfig{Pending: 4096, Handler: func(r *TCPRequest) {
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

// dial opens a flow through the edge's NIC, or fails the test.
func (l *lab) dial(t testing.TB, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := l.nic.DialContext(l.ctx, network, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// idle reports whether nothing waits to be delivered from this end.
func (e *wireEnd) idle() bool { return e.Len() == 0 }

// twoEdges is two plain stacks, joined by one wire: for Listen.
type twoEdges struct {
	a, b *NIC
	ctx  context.Context
}

func newTwoEdges(t testing.TB) *twoEdges {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	x, y := newWire(1400)
	return &twoEdges{
		a:   addNIC(t, newStack(t, Config{}), NICConfig{Link: x, Sources: []netip.Addr{netip.MustParseAddr("100.64.0.1")}}),
		b:   addNIC(t, newStack(t, Config{}), NICConfig{Link: y, Sources: []netip.Addr{netip.MustParseAddr("100.64.0.2")}}),
		ctx: ctx,
	}
}

// contextUntil ends when the channel closes.
func contextUntil(parent context.Context, ended <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
