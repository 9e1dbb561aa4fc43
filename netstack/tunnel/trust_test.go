package tunnel

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/shim"
)

// trusted is one end of a tunnel whose other end a test plays, and time: what
// it sends is held, so that the test reads it, and nobody watches.
type trusted struct {
	*Tunnel
	peer     *Peer
	src, dst netip.AddrPort // of what the peer sends
}

// trustingEdge is an edge with a connector, and a stack behind it.
func trustingEdge(t *testing.T) *trusted {
	t.Helper()
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	p, err := e.network(t, "berlin").AddConnector(ConnectorConfig{Name: "b1", PublicKey: newKey(t).PublicKey(),
		Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.enter(); err != nil { // so that the network does not rest
		t.Fatal(err)
	}
	t.Cleanup(p.leave)
	return alone(e.Tunnel, p, origin4, netip.MustParseAddrPort("100.127.0.1:50000"))
}

// trustingConnector is a connector with an edge.
func trustingConnector(t *testing.T) *trusted {
	t.Helper()
	c, err := New(Config{PrivateKey: newKey(t), Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	p, err := c.AddEdge(EdgeConfig{Name: "edge", PublicKey: newKey(t).PublicKey()})
	if err != nil {
		t.Fatal(err)
	}
	return alone(c, p, netip.MustParseAddrPort("100.127.0.1:50000"), origin4)
}

func alone(tun *Tunnel, p *Peer, src, dst netip.AddrPort) *trusted {
	tun.outbox.hold(0)
	tun.stop()
	tun.ended.Wait()
	p.forgot = false // watch may have begun a handshake, which the test does not play
	return &trusted{tun, p, src, dst}
}

// hears has the peer send an echo.
func (e *trusted) hears(b []byte) { e.admit(b, time.Now()) }

// echo is a request of the peer's, of one boot.
func (e *trusted) echo(flags byte) []byte {
	return appendEcho(nil, e.peer.Overlay(), e.Overlay(), echo{id: echoIDLiveness, flags: flags, boot: 1}, 0)
}

// promises reports whether our echoes say that we look at no checksum.
func (e *trusted) promises() bool { return e.peer.ourFlags()&flagTrusting != 0 }

// believes reports whether a TCP packet of the peer's that has no checksum
// reaches the stack.
func (e *trusted) believes(t *testing.T) bool {
	t.Helper()
	wrong := func() (n uint64) {
		e.Drops(func(where, why string, count uint64) {
			if where == "netstack" && why == "checksum" {
				n += count
			}
		})
		return n
	}
	segment := make([]byte, header.TCPMinimumSize)
	header.TCP(segment).Encode(&header.TCPFields{SrcPort: e.src.Port(), DstPort: e.dst.Port(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagRst})
	packet := inner(e.src.Addr().String(), e.dst.Addr().String(), protoTCP, segment)
	b := make([]byte, shimLen, shimLen+len(packet))
	shim.Put(b, e.peer.Overlay(), e.Overlay(), len(packet), true)
	before, admitted := wrong(), e.admitted.Load()
	if _, err := (&wire{t: e.Tunnel}).Write([][]byte{append(b, packet...)}, 0); err != nil || e.admitted.Load() != admitted+1 {
		t.Fatalf("the packet was not admitted, %v", err)
	}
	return wrong() == before
}

// sums reports whether the segments that leave for the peer have checksums.
func (e *trusted) sums(t *testing.T) bool {
	t.Helper()
	const segments, mss = 3, 1000
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv4MinimumSize + header.TCPMinimumSize,
		Payload:            buffer.MakeWithData(bytes.Repeat([]byte{7}, segments*mss)),
	})
	header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{
		SrcPort: e.dst.Port(), DstPort: e.src.Port(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck})
	src, dst := tcpip.AddrFrom4(e.dst.Addr().As4()), tcpip.AddrFrom4(e.src.Addr().As4())
	header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize)).Encode(&header.IPv4Fields{TotalLength: uint16(pkt.Size()),
		TTL: 64, Protocol: protoTCP, SrcAddr: src, DstAddr: dst})
	pkt.NetworkProtocolNumber, pkt.TransportProtocolNumber = header.IPv4ProtocolNumber, header.TCPProtocolNumber
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: mss}
	var list stack.PacketBufferList
	list.PushBack(pkt)
	defer list.DecRef()
	if _, err := e.peer.link.WritePackets(list); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := make([][]byte, 8), make([]int, 8)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	n := e.peer.link.Read(bufs, sizes, 0)
	if n != segments {
		t.Fatalf("%d segments leave, want %d", n, segments)
	}
	right := 0
	for i := range n {
		segment := header.TCP(bufs[i][header.IPv4MinimumSize:sizes[i]])
		if summed(segment, src, dst) {
			right++
		} else if segment.Checksum() != 0 {
			t.Errorf("a segment leaves with the wrong checksum %#x", segment.Checksum())
		}
	}
	if right != 0 && right != n {
		t.Errorf("%d of %d segments leave with a checksum", right, n)
	}
	return right > 0
}

// expect checks all that an end shows.
func (e *trusted) expect(t *testing.T, when string, trusts, sums bool) {
	t.Helper()
	if got := e.promises(); got != trusts {
		t.Errorf("%s: it promises to look at no checksum: %v, want %v", when, got, trusts)
	}
	if got := e.believes(t); got != trusts {
		t.Errorf("%s: it takes a segment without a checksum: %v, want %v", when, got, trusts)
	}
	if got := e.sums(t); got != sums {
		t.Errorf("%s: its segments have checksums: %v, want %v", when, got, sums)
	}
}

// TestTrustOfAnEdge: it trusts who promises to trust it, for as long.
func TestTrustOfAnEdge(t *testing.T) {
	e := trustingEdge(t)
	if e.promises() {
		t.Error("trust in who has said nothing")
	}
	e.hears(e.echo(0))
	e.expect(t, "an echo of another version", false, true)
	e.hears(e.echo(flagDraining))
	e.expect(t, "another flag", false, true)
	foreign := e.echo(flagTrusting)
	copy(foreign[echoDataOffset:], "PING")
	finishEcho(foreign, e.peer.Overlay(), e.Overlay())
	e.hears(foreign)
	e.expect(t, "an echo of another make", false, true)
	e.hears(appendReply(nil, e.echo(flagTrusting), e.peer.Overlay(), e.Overlay()))
	e.expect(t, "our own flag, sent back by a router", false, true)
	e.hears(e.echo(flagTrusting))
	e.expect(t, "the promise", true, false)
	e.hears(e.echo(flagTrusting | flagDraining))
	e.expect(t, "the promise again", true, false)
	e.hears(foreign)
	e.expect(t, "an echo of another make behind the promise", true, false)
	e.hears(e.echo(0))
	e.expect(t, "the promise is taken back", false, true)
	e.hears(e.echo(flagTrusting))
	e.expect(t, "the promise of old", true, false)
}

// TestTrustOfAConnector: it trusts its edge from the beginning, and sends no
// checksums for as long as the edge looks at none.
func TestTrustOfAConnector(t *testing.T) {
	c := trustingConnector(t)
	if !c.promises() || !c.believes(t) {
		t.Error("no trust in an edge")
	}
	c.hears(c.echo(0))
	c.expect(t, "an echo without the promise", true, true)
	c.hears(c.echo(flagTrusting))
	c.expect(t, "the promise", true, false)
	c.hears(c.echo(0))
	c.expect(t, "the promise is taken back", true, true)
}

// dies has the peer come up and fall silent, and returns when it was dead.
func (e *trusted) dies(t *testing.T) time.Time {
	t.Helper()
	at := time.Now()
	tick := func() { e.peer.tick(&pass{t: e.Tunnel, now: at}) }
	if tick(); !e.peer.Alive() {
		t.Fatal("the peer does not come up")
	}
	for range 100 {
		at = at.Add(watchEvery)
		if tick(); !e.peer.Alive() {
			return at
		}
	}
	t.Fatal("the peer is not found dead")
	return at
}

// TestPromisesEndWithThePeer: who comes back may be another, and gets checksums
// until it has said what it is.
func TestPromisesEndWithThePeer(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(*testing.T) *trusted
	}{{"edge", trustingEdge}, {"connector", trustingConnector}} {
		t.Run(tc.name, func(t *testing.T) {
			e := tc.end(t)
			e.hears(e.echo(flagTrusting))
			e.expect(t, "the promise", true, false)
			died := e.dies(t)
			e.believes(t) // its packet opens the link
			if !e.sums(t) {
				t.Error("who came back is sent segments without checksums")
			}
			e.hears(e.echo(flagTrusting))
			e.expect(t, "the promise of who came back", true, false)

			// That came before it died, as watch sees it: it brings nobody back.
			e.peer.forgot = false
			e.peer.tick(&pass{t: e.Tunnel, now: died})
			if e.peer.Alive() || e.peer.open.Load() {
				t.Fatal("a packet from before its death brought the peer back")
			}
			e.believes(t)
			if !e.sums(t) {
				t.Error("segments without checksums, after a packet that brought nobody back")
			}
		})
	}
}

// TestTrustAges: a word that is not repeated holds for a while, though the peer
// lives.
func TestTrustAges(t *testing.T) {
	e := trustingEdge(t)
	e.hears(e.echo(flagTrusting))
	for _, tc := range []struct {
		after time.Duration
		holds bool
	}{{trustFor - time.Second, true}, {trustFor + time.Second, false}} {
		now := time.Now().Add(tc.after)
		e.peer.heardAt.Store(e.clock(now)) // by something else
		e.peer.tick(&pass{t: e.Tunnel, now: now})
		if !e.peer.Alive() {
			t.Fatal("the peer is dead")
		}
		e.expect(t, tc.after.String()+" after the promise", tc.holds, !tc.holds)
	}
}

// TestTrustEndsWithThePeer: who comes back may be a router of another make,
// which never says what it is; what it sends is looked at.
func TestTrustEndsWithThePeer(t *testing.T) {
	e := trustingEdge(t)
	e.hears(e.echo(flagTrusting))
	e.dies(t)
	if e.promises() || e.believes(t) {
		t.Error("who came back is trusted")
	}
}

// tap counts the TCP segments that are held against the routes, the first of a
// flow in each Write, by whether they have their checksum.
type tap struct {
	summed, unsummed atomic.Int64
	early            atomic.Int64 // without one, before we promised to look at none
}

func (c *tap) on(t *Tunnel) {
	t.check = func(p *Peer, in shim.Inner) shim.Why {
		if in.Proto == protoTCP && len(in.Payload) >= header.TCPMinimumSize {
			switch {
			case summed(in.Payload, tcpip.AddrFrom4(in.Src.As4()), tcpip.AddrFrom4(in.Dst.As4())):
				c.summed.Add(1)
			case p.link.Trusted():
				c.unsummed.Add(1)
			default:
				c.early.Add(1)
			}
		}
		return p.check(in)
	}
}

// summed reports whether a segment has its checksum.
func summed(segment header.TCP, src, dst tcpip.Address) bool {
	return checksum.Checksum(segment, header.PseudoHeaderChecksum(protoTCP, src, dst, uint16(len(segment)))) == 0xffff
}

// tapped is an edge and a connector of ours, and a flow through an echo.
type tapped struct {
	edge, connector     *Tunnel
	peer, far           *Peer // the connector, as the edge sees it, and the edge, as the connector does
	atEdge, atConnector tap
	conn                net.Conn
	await               func(t testing.TB, what string, ok func() bool)
}

func newTapped(t *testing.T) *tapped {
	t.Helper()
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	p := &tapped{edge: e.Tunnel, await: e.await}
	p.atEdge.on(p.edge)
	n := e.network(t, "berlin")
	key := newKey(t)
	var err error
	if p.peer, err = n.AddConnector(ConnectorConfig{Name: "b1", PublicKey: key.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}); err != nil {
		t.Fatal(err)
	}
	if p.connector, err = New(Config{PrivateKey: key, Listen: netip.MustParseAddrPort("127.0.0.1:0")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.connector.Close)
	p.atConnector.on(p.connector)
	if p.far, err = p.connector.AddEdge(EdgeConfig{Name: "edge", PublicKey: e.PublicKey(), Endpoint: e.addr()}); err != nil {
		t.Fatal(err)
	}
	if err := p.far.Stack().ForwardTCP(netstack.ForwardTCPConfig{Handler: echoTCP}); err != nil {
		t.Fatal(err)
	}
	e.await(t, "b1 joins", p.peer.Alive)
	p.conn, _ = dialTCP(t, n, "10.0.0.10:7")
	_ = p.conn.SetDeadline(time.Now().Add(patience))
	return p
}

// exchange sends the pattern through the echo, and returns how many segments
// came without a checksum meanwhile, to the edge and to the connector.
func (p *tapped) exchange(t *testing.T) (edge, connector int64) {
	t.Helper()
	unsummed := func(c *tap) int64 { return c.unsummed.Load() + c.early.Load() }
	edge, connector = unsummed(&p.atEdge), unsummed(&p.atConnector)
	got := make([]byte, len(pattern))
	if _, err := p.conn.Write(pattern); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.conn, got); err != nil || !bytes.Equal(got, pattern) {
		t.Fatalf("other bytes came back, or %v", err)
	}
	return unsummed(&p.atEdge) - edge, unsummed(&p.atConnector) - connector
}

// TestTrustIsMutual: an edge and a connector of ours leave out checksums both
// ways, each once the other has promised to look at none, and nothing is lost.
func TestTrustIsMutual(t *testing.T) {
	p := newTapped(t)
	for p.atEdge.unsummed.Load() < 16 || p.atConnector.unsummed.Load() < 16 {
		p.exchange(t)
	}
	if edge, connector := p.peer.link.Trusted(), p.far.link.Trusted(); !edge || !connector {
		t.Errorf("the edge trusts: %v; the connector: %v", edge, connector)
	}
	for name, tun := range map[string]*Tunnel{"edge": p.edge, "connector": p.connector} {
		tun.Drops(func(_, why string, n uint64) {
			if why == "checksum" {
				t.Errorf("the %s dropped %d segments for their checksum", name, n)
			}
		})
	}
	if edge, connector := p.atEdge.early.Load(), p.atConnector.early.Load(); edge+connector > 0 {
		t.Errorf("%d segments without a checksum came to the edge before it had promised to look at none, %d to the connector", edge, connector)
	}
}

// TestTrustIsTakenBack, in the middle of a flow, by a connector that becomes one
// of a version that knows no trust: both ends send checksums again, and look at
// them, and what was lost meanwhile is sent again.
func TestTrustIsTakenBack(t *testing.T) {
	p := newTapped(t)
	for p.atEdge.unsummed.Load() < 16 || p.atConnector.unsummed.Load() < 16 {
		p.exchange(t)
	}
	p.far.link.SetTrusted(false)
	p.connector.greetAll()
	p.await(t, "the edge hears of it", func() bool { return !p.peer.link.Trusted() })
	p.edge.greetAll() // or it says so a second later
	p.await(t, "the connector does", func() bool {
		edge, connector := p.exchange(t)
		return edge+connector == 0
	})
	edge, connector := p.atEdge.summed.Load(), p.atConnector.summed.Load()
	defer func() {
		if p.atEdge.summed.Load() == edge || p.atConnector.summed.Load() == connector {
			t.Error("nothing came with a checksum")
		}
	}()
	for range 8 {
		if edge, connector := p.exchange(t); edge+connector > 0 {
			t.Errorf("%d segments without a checksum came to the edge, %d to the connector", edge, connector)
		}
	}
}
