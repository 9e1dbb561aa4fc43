package ingress

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"testing"
)

// fakeSocket is a UDP socket whose datagrams the test hands to the listener
// itself; its Close is a signal.
type fakeSocket struct {
	net.PacketConn // nil: the methods that a listener does not use
	closed         chan struct{}
	sent           int
}

func newFakeSocket() *fakeSocket { return &fakeSocket{closed: make(chan struct{})} }

func (f *fakeSocket) ReadMsgUDPAddrPort([]byte, []byte) (int, int, int, netip.AddrPort, error) {
	<-f.closed
	return 0, 0, 0, netip.AddrPort{}, net.ErrClosed
}

func (f *fakeSocket) WriteMsgUDPAddrPort(b, _ []byte, _ netip.AddrPort) (int, int, error) {
	f.sent++
	return len(b), 0, nil
}

func (f *fakeSocket) Close() error { close(f.closed); return nil }
func (f *fakeSocket) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.10:53"))
}

// fakeListener is a listener that serves spec on a fake socket.
func fakeListener(t testing.TB, spec Spec, handler Handler) (*Server, *udpListener, *fakeSocket) {
	t.Helper()
	s := New(slog.New(slog.DiscardHandler), handler)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Close(ctx)
	})
	spec.Network, spec.Addr = "udp", netip.MustParseAddrPort("203.0.113.10:53")
	spec = spec.withDefaults()
	socket := newFakeSocket()
	l, err := newUDPListener(s, spec.key(), socket, spec)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.listeners[l.key] = l
	s.mu.Unlock()
	l.serve(spec)
	return s, l, socket
}

// accepted passes what comes in on, and holds the session until the end.
func accepted(to chan<- Accepted) Handler {
	return func(ctx context.Context, a Accepted) {
		select {
		case to <- a:
		default: // a flow of the flood
		}
		<-ctx.Done()
	}
}

func spoofed(i uint32) netip.AddrPort {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 0x0b000000+i)
	return netip.AddrPortFrom(netip.AddrFrom4(a), uint16(i)|1)
}

// A million spoofed flows fill the table and stop there; the flows that were
// there before lose nothing.
func TestFloodOfSpoofedFlows(t *testing.T) {
	flood := uint32(1_000_000)
	if testing.Short() || raceOn {
		flood = 50_000
	}
	const table, live = 1000, 50
	in := make(chan Accepted, live)
	s, l, _ := fakeListener(t, Spec{App: "dns", MaxFlows: table}, accepted(in))
	client := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(1000+i))
	}
	var sessions []net.Conn
	buf := make([]byte, 2048)
	for i := range live {
		l.dispatch(buf[:100], nil, client(i))
		a := <-in
		if _, err := a.Conn.Read(buf); err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, a.Conn)
	}
	big := make([]byte, 1400)
	for i := range flood {
		l.dispatch(big, nil, spoofed(i))
		if i%100 != 0 {
			continue
		}
		which := int(i/100) % live
		l.dispatch(buf[:100], nil, client(which))
		if n, err := sessions[which].Read(buf); n != 100 || err != nil {
			t.Fatalf("after %d flows of the flood a live one lost a datagram: %d, %v", i, n, err)
		}
	}
	l.mu.Lock()
	size := len(l.sessions)
	l.mu.Unlock()
	if size != table {
		t.Errorf("%d sessions, want the table's %d", size, table)
	}
	full := uint64(0)
	s.Drops(func(_, why string, n uint64) {
		if why == DropTableFull {
			full = n
		}
	})
	if want := uint64(flood) - (table - live); full != want {
		t.Errorf("counted %d turned away, want %d", full, want)
	}
}

// A flood from sources that are denied is counted and leaves no trace: no
// session, no flow, no byte held. Who is not denied is served in its midst.
func TestFloodOfDeniedSources(t *testing.T) {
	const flood, live = 50_000, 10
	in := make(chan Accepted, live+1)
	s, l, _ := fakeListener(t, Spec{App: "dns", MaxFlows: live}, accepted(in))
	welcome := netip.MustParsePrefix("198.51.100.0/24")
	s.Admit = func(spec *Spec, client netip.Addr) bool {
		if spec.App != "dns" {
			t.Errorf("asked for app %q", spec.App)
		}
		return welcome.Contains(client)
	}
	b := make([]byte, 100)
	for i := range uint32(flood) {
		l.dispatch(b, nil, spoofed(i))
		if i%(flood/live) == 0 {
			l.dispatch(b, nil, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i / (flood / live))}), 1000))
			if a := <-in; !welcome.Contains(a.Client.Addr()) {
				t.Fatalf("%v has a session", a.Client)
			}
		}
	}
	l.mu.Lock()
	if len(l.sessions) != live || l.census.flows != live || len(l.census.sources) != live {
		t.Errorf("%d sessions, census %+v, want %d", len(l.sessions), l.census, live)
	}
	l.mu.Unlock()
	if held, want := s.queued.Load(), int64(live*(len(b)+datagramOverhead)); held != want {
		t.Errorf("%d bytes held, want %d", held, want)
	}
	s.Drops(func(_, why string, n uint64) {
		if want := map[string]uint64{DropDenied: flood}[why]; n != want {
			t.Errorf("%s: %d, want %d", why, n, want)
		}
	})
	client := spoofed(1)
	if n := testing.AllocsPerRun(1000, func() { l.dispatch(b, nil, client) }); n > 0 {
		t.Errorf("%v allocations for a denied datagram, want none", n)
	}
}

// A client that a reload denies keeps the session that it has.
func TestDeniedLaterKeepsItsSession(t *testing.T) {
	in := make(chan Accepted, 1)
	s, l, _ := fakeListener(t, Spec{App: "dns"}, accepted(in))
	allowed := true
	s.Admit = func(*Spec, netip.Addr) bool { return allowed }
	client := netip.MustParseAddrPort("198.51.100.1:1000")
	l.dispatch([]byte("one"), nil, client)
	a := <-in
	allowed = false
	l.dispatch([]byte("two"), nil, client)
	buf := make([]byte, 8)
	for _, want := range []string{"one", "two"} {
		if n, err := a.Conn.Read(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("read %q, %v, want %q", buf[:n], err, want)
		}
	}
	_ = a.Conn.Close()
	l.dispatch([]byte("three"), nil, client)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sessions) != 0 {
		t.Error("a denied client began another session")
	}
}

// Sessions that nobody reads yet cannot take all the room there is.
func TestFloodLeavesRoomForLiveSessions(t *testing.T) {
	in := make(chan Accepted, 1)
	s, l, _ := fakeListener(t, Spec{App: "dns"}, accepted(in))
	live := netip.MustParseAddrPort("198.51.100.1:1000")
	l.dispatch([]byte("x"), nil, live)
	a := <-in
	buf := make([]byte, 1<<16)
	if _, err := a.Conn.Read(buf); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 65507)
	for i := range uint32(2 * maxQueued / len(big)) {
		l.dispatch(big, nil, spoofed(i))
	}
	if held := s.queued.Load(); held > maxQueued/2 {
		t.Errorf("unread sessions hold %d bytes, want at most half of %d", held, maxQueued)
	}
	l.dispatch(big, nil, live)
	if n, err := a.Conn.Read(buf); n != len(big) || err != nil {
		t.Errorf("the live session read %d bytes, %v", n, err)
	}
}

// A session that is not read holds so much and no more, drops the newest, and
// gives everything back when it ends.
func TestSessionQueueIsBounded(t *testing.T) {
	for _, size := range []int{0, 1, 100, 2048, 2049, 65507} {
		in := make(chan Accepted, 1)
		s, l, socket := fakeListener(t, Spec{App: "dns"}, accepted(in))
		client := netip.MustParseAddrPort("198.51.100.1:1000")
		b := make([]byte, size)
		l.dispatch([]byte("first"), nil, client)
		a := <-in
		buf := make([]byte, 1<<16)
		if n, err := a.Conn.Read(buf); err != nil || string(buf[:n]) != "first" {
			t.Fatalf("read %q, %v", buf[:n], err)
		}
		for range 100_000 {
			l.dispatch(b, nil, client)
		}
		idle := netip.MustParseAddrPort("198.51.100.1:1001") // nobody reads it at all
		for range 100_000 {
			l.dispatch(b, nil, idle)
		}
		if held := s.queued.Load(); held > 2*sessionQueue || held < sessionQueue {
			t.Errorf("%d byte datagrams: %d bytes held, want up to %d in each of two sessions", size, held, sessionQueue)
		}
		if n, err := a.Conn.Read(buf); n != size || err != nil {
			t.Errorf("read %d bytes, %v, want %d", n, err, size)
		}
		l.retire()
		_ = a.Conn.Close()
		l.mu.Lock()
		other := l.sessions[sessionKey{client: idle}]
		l.mu.Unlock()
		_ = other.Close()
		if held := s.queued.Load(); held != 0 {
			t.Errorf("%d bytes are still counted after the end", held)
		}
		<-socket.closed // the last session of a retired listener frees it
		l.mu.Lock()
		if len(l.census.sources) != 0 || l.census.flows != 0 || len(l.sessions) != 0 {
			t.Errorf("%+v, sessions %v are left over", l.census, l.sessions)
		}
		l.mu.Unlock()
	}
}

// The order of datagrams holds however the queue wraps.
func TestSessionQueueKeepsOrder(t *testing.T) {
	in := make(chan Accepted, 1)
	_, l, _ := fakeListener(t, Spec{App: "dns"}, accepted(in))
	client := netip.MustParseAddrPort("198.51.100.1:1000")
	var written, read uint32
	var c net.Conn
	put := func() {
		l.dispatch(binary.BigEndian.AppendUint32(nil, written), nil, client)
		written++
		if c == nil {
			c = (<-in).Conn
		}
	}
	get := func() {
		buf := make([]byte, 8)
		n, err := c.Read(buf)
		if err != nil || n != 4 || binary.BigEndian.Uint32(buf) != read {
			t.Fatalf("read %x, %v; want %d", buf[:n], err, read)
		}
		read++
	}
	for round := range 50 {
		for range round % 7 * 5 {
			put()
		}
		for read+uint32(round%4) < written {
			get()
		}
	}
	for read < written {
		get()
	}
}

func TestSourcesThatCannotBeAnswered(t *testing.T) {
	s, l, _ := fakeListener(t, Spec{App: "dns"}, func(context.Context, Accepted) { t.Error("a session began") })
	for _, client := range []string{"198.51.100.1:0", "0.0.0.0:53", "224.0.0.1:53", "[::]:53", "[ff02::1]:53"} {
		l.dispatch([]byte("x"), nil, netip.MustParseAddrPort(client))
	}
	bad := uint64(0)
	s.Drops(func(_, why string, n uint64) {
		if why == DropBadSource {
			bad = n
		}
	})
	if bad != 5 {
		t.Errorf("counted %d, want 5", bad)
	}
}

func TestSourceIsTheSubnetOfIPv6(t *testing.T) {
	cases := []struct{ a, b string }{
		{"2001:db8::1", "2001:db8::ffff:1"},
		{"198.51.100.1", "198.51.100.1"},
	}
	for _, c := range cases {
		if sourceOf(netip.MustParseAddr(c.a)) != sourceOf(netip.MustParseAddr(c.b)) {
			t.Errorf("%s and %s are two sources", c.a, c.b)
		}
	}
	if sourceOf(netip.MustParseAddr("198.51.100.1")) == sourceOf(netip.MustParseAddr("198.51.100.2")) {
		t.Error("two IPv4 addresses are one source")
	}
}

func TestDatagramOfASessionAllocatesNothing(t *testing.T) {
	if raceOn {
		t.Skip("the race detector's sync.Pool forgets at random")
	}
	in := make(chan Accepted, 1)
	_, l, _ := fakeListener(t, Spec{App: "dns"}, accepted(in))
	client := netip.MustParseAddrPort("198.51.100.1:1000")
	b, buf := make([]byte, 1400), make([]byte, 2048)
	l.dispatch(b, nil, client)
	c := (<-in).Conn
	_, _ = c.Read(buf)
	n := testing.AllocsPerRun(1000, func() {
		l.dispatch(b, nil, client)
		_, _ = c.Read(buf)
		_, _ = c.Write(buf[:100])
	})
	if n > 0 {
		t.Errorf("%v allocations a datagram, want none", n)
	}
}

func BenchmarkDispatch(b *testing.B) {
	in := make(chan Accepted, 1)
	_, l, _ := fakeListener(b, Spec{App: "dns"}, accepted(in))
	client := netip.MustParseAddrPort("198.51.100.1:1000")
	d, buf := make([]byte, 1400), make([]byte, 2048)
	l.dispatch(d, nil, client)
	c := (<-in).Conn
	_, _ = c.Read(buf)
	b.SetBytes(int64(len(d)))
	for b.Loop() {
		l.dispatch(d, nil, client)
		_, _ = c.Read(buf)
	}
}
