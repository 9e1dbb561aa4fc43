package link

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// guarded is an endpoint beneath gVisor as netstack has it: who verifies stands
// between the two, and gVisor looks at no checksum.
type guarded struct {
	*Endpoint
	wrong atomic.Int64 // packets that were dropped
}

func (g *guarded) Capabilities() stack.LinkEndpointCapabilities {
	return g.Endpoint.Capabilities() | stack.CapabilityRXChecksumOffload
}

func (g *guarded) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		d = &verifier{d, g}
	}
	g.Endpoint.Attach(d)
}

// verifier passes on what is validated, and TCP that is sound.
type verifier struct {
	stack.NetworkDispatcher
	guard *guarded
}

func (v *verifier) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if !pkt.RXChecksumValidated {
		b := pkt.ToView()
		defer b.Release()
		if !sound(b.AsSlice()) {
			v.guard.wrong.Add(1)
			return
		}
	}
	v.NetworkDispatcher.DeliverNetworkPacket(protocol, pkt)
}

// pair is two stacks, each behind an endpoint, and what carries packets from
// each to the other.
type pair struct {
	ends   [2]*Endpoint
	guards [2]*guarded
	stacks [2]*stack.Stack
	wake   [2]chan struct{}
	stop   chan struct{}
	work   sync.WaitGroup
	single bool                            // deliver packets one at a time
	mangle func(packets [][]byte) [][]byte // what the path does, nil: nothing
	moved  *atomic.Int64                   // counts the bytes from the first end, nil: nothing

	corrupts bool // the path makes wrong packets of right ones
}

// trust has one end send without checksums to another that looks at none.
func (p *pair) trust(from, to int) {
	p.ends[from].SetOwn(true)
	p.ends[to].SetTrusted(true)
}

func newPair(t testing.TB, v6 bool) *pair {
	t.Helper()
	p := &pair{stop: make(chan struct{})}
	d := NewDeferrer(64)
	for i := range p.ends {
		p.wake[i] = make(chan struct{}, 1)
		p.ends[i] = New(Config{MTU: 1400, Deferrer: d, Ready: func() {
			select {
			case p.wake[i] <- struct{}{}:
			default:
			}
		}})
		s := stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
		})
		p.stacks[i] = s
		sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
		receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 512 << 10, Max: 16 << 20}
		send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 8 << 20}
		for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &receive, &send} {
			if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
				t.Fatal(err)
			}
		}
		p.guards[i] = &guarded{Endpoint: p.ends[i]}
		if err := s.CreateNIC(1, p.guards[i]); err != nil {
			t.Fatal(err)
		}
		address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)}).WithPrefix()}
		subnet := header.IPv4EmptySubnet
		if v6 {
			address = tcpip.ProtocolAddress{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom16([16]byte{0xfd, 15: byte(1 + i)}).WithPrefix()}
			subnet = header.IPv6EmptySubnet
		}
		if err := s.AddProtocolAddress(1, address, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
		s.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: 1}})
		p.ends[i].SetOpen(true)
	}
	t.Cleanup(func() {
		for _, e := range p.ends {
			e.Close()
		}
		close(p.stop)
		p.work.Wait()
		for _, s := range p.stacks {
			s.Destroy()
		}
		d.Close()
	})
	return p
}

func (p *pair) start() {
	for i := range p.ends {
		p.work.Go(func() { p.carry(i) })
	}
}

// carry moves packets from end i to the other.
func (p *pair) carry(i int) {
	bufs, sizes := buffers(128, 2048)
	packets := make([][]byte, 0, 128)
	for {
		n := p.ends[i].Read(bufs, sizes, 16)
		packets = packets[:0]
		for j := range n {
			packets = append(packets, bufs[j][16:16+sizes[j]])
			if p.moved != nil && i == 0 {
				p.moved.Add(int64(sizes[j]))
			}
		}
		if p.mangle != nil {
			packets = p.mangle(packets)
		}
		if p.single {
			for _, b := range packets {
				p.ends[1-i].Deliver([][]byte{b})
			}
		} else {
			p.ends[1-i].Deliver(packets)
		}
		if n > 0 {
			continue
		}
		select {
		case <-p.wake[i]:
		case <-p.stop:
			return
		}
	}
}

func (p *pair) dial(t testing.TB, v6 bool, serve func(net.Conn)) net.Conn {
	t.Helper()
	at := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}), Port: 7}
	protocol := ipv4.ProtocolNumber
	if v6 {
		at.Addr, protocol = tcpip.AddrFrom16([16]byte{0xfd, 15: 2}), ipv6.ProtocolNumber
	}
	l, err := gonet.ListenTCP(p.stacks[1], at, protocol)
	if err != nil {
		t.Fatal(err)
	}
	p.work.Go(func() {
		defer l.Close()
		if c, err := l.Accept(); err == nil {
			serve(c)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := gonet.DialContextTCP(ctx, p.stacks[0], at, protocol)
	if err != nil {
		l.Close() // or it is waited for
		t.Fatal(err)
	}
	return conn
}

func echoAll(c net.Conn) {
	_, _ = io.Copy(c, c)
	c.Close()
}

// exchange sends size bytes of a pattern through an echo, and checks what
// comes back.
func exchange(t *testing.T, p *pair, v6 bool, size int) {
	t.Helper()
	conn := p.dial(t, v6, echoAll)
	want := make([]byte, 64<<10)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	var at atomic.Int64
	stalled := time.AfterFunc(time.Minute, func() { t.Errorf("stalled after %d bytes", at.Load()); conn.Close() })
	defer stalled.Stop()
	var writer sync.WaitGroup
	writer.Go(func() {
		for range size / len(want) {
			if _, err := conn.Write(want); err != nil {
				t.Error(err)
				return
			}
		}
		_ = conn.(*gonet.TCPConn).CloseWrite()
	})
	got := make([]byte, len(want))
	for range size / len(want) {
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("after %d bytes: %v", at.Load(), err)
		}
		at.Add(int64(len(got)))
	}
	if _, err := conn.Read(got); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	writer.Wait()
	conn.Close()
}

// TestEchoes: two stacks push at each other as hard as they can, so that the
// windows of both are full all the time; whatever is switched, and whatever
// the path does, the bytes are the same and none waits for ever.
func TestEchoes(t *testing.T) {
	for _, tc := range []struct {
		name string
		v6   bool
		size int
		set  func(p *pair)
	}{
		{"IPv4", false, 48 << 20, func(p *pair) {}},
		{"IPv6", true, 48 << 20, func(p *pair) {}},
		// One segment at a time and many acknowledged together: see narrow.
		{"not merged", false, 96 << 20, func(p *pair) { p.single = true }},
		{"loss and reordering", true, 4 << 20, func(p *pair) {
			p.mangle = func(packets [][]byte) [][]byte {
				if len(packets) > 1 && rand.IntN(10) == 0 {
					i, j := rand.IntN(len(packets)), rand.IntN(len(packets))
					packets[i], packets[j] = packets[j], packets[i]
					if rand.IntN(4) == 0 {
						packets = slices.Delete(packets, i, i+1)
					}
				}
				return packets
			}
		}},
		{"bits fall over", false, 4 << 20, func(p *pair) {
			p.corrupts = true
			var passed atomic.Int64
			p.mangle = func(packets [][]byte) [][]byte {
				for _, b := range packets {
					if passed.Add(1)%100 == 0 { // but not of the version: the endpoint drops that
						b[1+rand.IntN(len(b)-1)] ^= 1 << rand.IntN(8)
					}
				}
				return packets
			}
		}},
		{"no checksums", false, 48 << 20, func(p *pair) { p.trust(0, 1); p.trust(1, 0) }},
		{"no checksums, IPv6", true, 16 << 20, func(p *pair) { p.trust(0, 1); p.trust(1, 0) }},
		{"no checksums one way", false, 16 << 20, func(p *pair) { p.trust(0, 1) }},
		{"no checksums the other way", true, 16 << 20, func(p *pair) { p.trust(1, 0) }},
		{"no checksums, not merged", false, 16 << 20, func(p *pair) { p.trust(0, 1); p.trust(1, 0); p.single = true }},
		{"checksums come and go", false, 16 << 20, func(p *pair) {
			p.ends[0].SetTrusted(true)
			p.ends[1].SetTrusted(true)
			p.mangle = func(packets [][]byte) [][]byte {
				p.ends[rand.IntN(2)].SetOwn(rand.IntN(2) == 0)
				return packets
			}
		}},
		{"the MTU falls and rises", false, 16 << 20, func(p *pair) {
			p.mangle = func(packets [][]byte) [][]byte {
				p.ends[rand.IntN(2)].SetMTU(uint32(1280 + rand.IntN(2)*120))
				return packets
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPair(t, tc.v6)
			tc.set(p)
			p.start()
			size := tc.size
			if raceEnabled {
				size /= 16
			}
			exchange(t, p, tc.v6, size)
			for _, e := range p.ends {
				e.Drops(func(why string, n uint64) { t.Errorf("%d dropped: %s", n, why) })
			}
			if n := p.guards[0].wrong.Load() + p.guards[1].wrong.Load(); n > 0 != p.corrupts {
				t.Errorf("%d dropped for their checksum", n)
			}
		})
	}
}
