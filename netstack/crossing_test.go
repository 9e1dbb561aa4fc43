package netstack_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/relay"
)

// cable joins two stacks and costs next to nothing: packets of up to 64 KiB
// (host GSO) cross it whole, copied once, as the tunnel's link copies them.
type cable struct {
	peer *cable

	mu         sync.Mutex
	dispatcher stack.NetworkDispatcher
	more       sync.Cond
	queue      []*stack.PacketBuffer
	closed     bool
}

func newCable() (a, b *cable) {
	a, b = &cable{}, &cable{}
	a.peer, b.peer = b, a
	for _, c := range []*cable{a, b} {
		c.more.L = &c.mu
		go c.pump()
	}
	return a, b
}

func (c *cable) pump() {
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.closed {
			c.more.Wait()
		}
		if c.closed {
			c.mu.Unlock()
			return
		}
		batch := c.queue
		c.queue = nil
		c.mu.Unlock()
		for _, pkt := range batch {
			c.peer.deliver(pkt)
		}
	}
}

func (c *cable) deliver(sent *stack.PacketBuffer) {
	defer sent.DecRef()
	c.mu.Lock()
	d := c.dispatcher
	c.mu.Unlock()
	if d == nil {
		return
	}
	// Headers in a view of their own: gVisor keeps a reference to them while
	// it looks at them once more, which copies the whole chunk that they are in.
	slices := sent.AsSlices()
	head, payload := buffer.NewView(128), buffer.NewView(sent.Size())
	_, _ = head.Write(slices[0])
	for _, b := range slices[1:] {
		_, _ = payload.Write(b)
	}
	if sent.GSOOptions.NeedsCsum {
		ip := header.IPv4(head.AsSlice())
		tcp := header.TCP(ip[ip.HeaderLength():])
		length := len(tcp) + payload.Size()
		tcp.SetChecksum(0)
		sum := header.PseudoHeaderChecksum(ip.TransportProtocol(), ip.SourceAddress(), ip.DestinationAddress(), uint16(length))
		tcp.SetChecksum(^checksum.Combine(checksum.Checksum(payload.AsSlice(), 0), checksum.Checksum(tcp, sum)))
	}
	whole := buffer.MakeWithView(head)
	_ = whole.Append(payload)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: whole})
	defer pkt.DecRef()
	d.DeliverNetworkPacket(ipv4.ProtocolNumber, pkt)
}

func (c *cable) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pkt := range pkts.AsSlice() {
		pkt.IncRef()
		c.queue = append(c.queue, pkt)
	}
	c.more.Signal()
	return pkts.Len(), nil
}

func (c *cable) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.more.Broadcast()
}

func (c *cable) Attach(d stack.NetworkDispatcher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dispatcher = d
}

func (c *cable) IsAttached() bool                     { return true }
func (c *cable) MTU() uint32                          { return 1400 }
func (c *cable) SetMTU(uint32)                        {}
func (c *cable) GSOMaxSize() uint32                   { return 65535 }
func (c *cable) SupportedGSO() stack.SupportedGSO     { return stack.HostGSOSupported }
func (c *cable) MaxHeaderLength() uint16              { return 0 }
func (c *cable) LinkAddress() tcpip.LinkAddress       { return "" }
func (c *cable) SetLinkAddress(tcpip.LinkAddress)     {}
func (c *cable) Wait()                                {}
func (c *cable) AddHeader(*stack.PacketBuffer)        {}
func (c *cable) SetOnCloseAction(func())              {}
func (c *cable) ParseHeader(*stack.PacketBuffer) bool { return true }
func (c *cable) ARPHardwareType() header.ARPHardwareType {
	return header.ARPHardwareNone
}
func (c *cable) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityNone
}

var service = netip.MustParseAddrPort("10.0.0.10:80")

// crossing is a flow through both relays: kernel, edge's stack, connector's
// stack, kernel.
func crossing(b *testing.B) (client, origin net.Conn) {
	edge, err := netstack.New(netstack.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(edge.Close)
	connector, err := netstack.New(netstack.Config{Promiscuous: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(connector.Close)
	edgeEnd, connectorEnd := newCable()
	nic, err := edge.AddNIC(netstack.NICConfig{Name: "edge", Link: edgeEnd, Sources: []netip.Addr{netip.MustParseAddr("100.127.0.1")}})
	if err != nil {
		b.Fatal(err)
	}
	if _, err = connector.AddNIC(netstack.NICConfig{Name: "connector", Link: connectorEnd}); err != nil {
		b.Fatal(err)
	}
	accepted := make(chan net.Conn, 1)
	err = connector.ForwardTCP(netstack.ForwardTCPConfig{Handler: func(r *netstack.TCPRequest) {
		conn, err := r.Accept()
		if err != nil {
			b.Error(err)
		}
		accepted <- conn
	}})
	if err != nil {
		b.Fatal(err)
	}
	inner, err := nic.DialContext(b.Context(), "tcp", service)
	if err != nil {
		b.Fatal(err)
	}
	client, public := kernelPair(b)
	private, origin := kernelPair(b)
	ctx, cancel := context.WithCancel(context.Background())
	var flows sync.WaitGroup
	poller := relay.NewPoller()
	b.Cleanup(func() {
		cancel()
		flows.Wait()
		poller.Close()
		client.Close()
		origin.Close()
	})
	flows.Add(2)
	terms := relay.Options{Idle: time.Hour, Poller: poller}
	relay.Start(ctx, public, inner, terms, func(relay.Result) { flows.Done() })
	relay.Start(ctx, <-accepted, private, terms, func(relay.Result) { flows.Done() })
	return client, origin
}

func kernelPair(b *testing.B) (near, far net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		b.Fatal(err)
	}
	return near, far
}

// BenchmarkCrossing is bulk through a relay, two stacks and a relay, with the
// client and the origin in the same process: ns of processor time a KiB.
func BenchmarkCrossing(b *testing.B) {
	client, origin := crossing(b)
	buf := make([]byte, 256<<10)
	go func() {
		for {
			if _, err := client.Write(buf); err != nil {
				return
			}
		}
	}()
	got := make([]byte, 256<<10)
	b.SetBytes(int64(len(got)))
	for range 16 {
		if _, err := io.ReadFull(origin, got); err != nil {
			b.Fatal(err)
		}
	}
	before := processorTime()
	b.ResetTimer()
	for range b.N {
		if _, err := io.ReadFull(origin, got); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(processorTime()-before)/float64(b.N)/float64(len(got)>>10), "cpu-ns/KiB")
}

func processorTime() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
