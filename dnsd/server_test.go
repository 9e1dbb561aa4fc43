package dnsd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// TestServer asks the real server over loopback, on both families and
// transports.
func TestServer(t *testing.T) {
	list := []netip.AddrPort{loopback}
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		l.Close()
		list = append(list, netip.MustParseAddrPort("[::1]:0"))
	}
	s := start(t, Spec{Listen: list})
	cases := []struct {
		name, qname string
		qtype       uint16
		rcode       int
		answer      string
	}{
		{"A", "db.apps.example.com.", dns.TypeA, dns.RcodeSuccess, "db.apps.example.com. 30 IN A 203.0.113.10"},
		{"AAAA", "db.apps.example.com.", dns.TypeAAAA, dns.RcodeSuccess, "db.apps.example.com. 30 IN AAAA 2001:db8::10"},
		{"case", "DB.apps.example.com.", dns.TypeA, dns.RcodeSuccess, "DB.apps.example.com. 30 IN A 203.0.113.10"},
		{"NODATA", "four.apps.example.com.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"NXDOMAIN", "no.apps.example.com.", dns.TypeA, dns.RcodeNameError, ""},
		{"REFUSED", "example.org.", dns.TypeA, dns.RcodeRefused, ""},
		{"AXFR", "apps.example.com.", dns.TypeAXFR, dns.RcodeRefused, ""},
	}
	for _, at := range s.Addrs() {
		for _, network := range transportLabels {
			for _, c := range cases {
				t.Run(at.Addr().String()+" "+network+" "+c.name, func(t *testing.T) {
					m := ask(t, network, at, query(c.qname, c.qtype))
					if m.Rcode != c.rcode || lines(m.Answer) != c.answer {
						t.Errorf("%s %q, want %s %q", dns.RcodeToString[m.Rcode], lines(m.Answer), dns.RcodeToString[c.rcode], c.answer)
					}
				})
			}
		}
	}
}

// TestServerTruncates over UDP, and gives the whole answer over TCP.
func TestServerTruncates(t *testing.T) {
	at := start(t, Spec{}).Addrs()[0]
	q := query("more.apps.example.com.", dns.TypeA).SetEdns0(4096, false)
	if m := ask(t, "udp", at, q); !m.Truncated || len(m.Answer) != 0 {
		t.Errorf("over UDP: tc %t, %d answers", m.Truncated, len(m.Answer))
	}
	if m := ask(t, "tcp", at, q); m.Truncated || len(m.Answer) != 300 {
		t.Errorf("over TCP: tc %t, %d answers", m.Truncated, len(m.Answer))
	}
}

// TestServerReadsLargeQueries: a query padded to 700 bytes is well-formed.
func TestServerReadsLargeQueries(t *testing.T) {
	at := start(t, Spec{}).Addrs()[0]
	q := query("db.apps.example.com.", dns.TypeA).SetEdns0(1232, false)
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 640)}}
	for _, network := range transportLabels {
		if m := ask(t, network, at, q); m.Rcode != dns.RcodeSuccess {
			t.Errorf("%s: %s", network, dns.RcodeToString[m.Rcode])
		}
	}
}

// TestServerNeverAnswersAnswers sends a response, then a query, over one
// socket: the first thing that comes back belongs to the query.
func TestServerNeverAnswersAnswers(t *testing.T) {
	s := start(t, Spec{})
	conn, err := net.Dial("udp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	response := query("db.apps.example.com.", dns.TypeA)
	response.Response = true
	conn.Write(mustPack(t, response))
	conn.Write([]byte{1, 2, 3})
	eventually(t, "counting both", func() bool { return dropped(s, "response") == 1 && dropped(s, "short") == 1 })
	q := query("db.apps.example.com.", dns.TypeA)
	conn.Write(mustPack(t, q))
	conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 512)
	if _, err := conn.Read(buf); err != nil || binary.BigEndian.Uint16(buf) != q.Id {
		t.Errorf("read %x, %v; want the answer to %x", buf[:2], err, q.Id)
	}
}

// dialTCP opens a connection that ends with the test.
func dialTCP(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func framed(raw []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...)
}

func readFramed(conn io.Reader) ([]byte, error) {
	var n uint16
	if err := binary.Read(conn, binary.BigEndian, &n); err != nil {
		return nil, err
	}
	raw := make([]byte, n)
	_, err := io.ReadFull(conn, raw)
	return raw, err
}

// TestServerTCPManyQueries sends 300 pipelined queries on one connection (the
// dns package's own server resets after 128) in one write, and expects every
// answer, in order.
func TestServerTCPManyQueries(t *testing.T) {
	conn := dialTCP(t, start(t, Spec{}).Addrs()[0])
	const n = 300
	var sent bytes.Buffer
	for i := range n {
		q := query("db.apps.example.com.", dns.TypeA)
		q.Id = uint16(i)
		sent.Write(framed(mustPack(t, q)))
	}
	go conn.Write(sent.Bytes())
	for i := range n {
		raw, err := readFramed(conn)
		if err != nil || binary.BigEndian.Uint16(raw) != uint16(i) {
			t.Fatalf("answer %d: %x, %v", i, raw, err)
		}
	}
}

// TestServerTCPSplitQuery sends a query byte by byte.
func TestServerTCPSplitQuery(t *testing.T) {
	conn := dialTCP(t, start(t, Spec{}).Addrs()[0])
	for _, b := range framed(mustPack(t, query("db.apps.example.com.", dns.TypeA))) {
		if _, err := conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if raw, err := readFramed(conn); err != nil || raw[3]&0xF != 0 {
		t.Errorf("answer %x, %v", raw, err)
	}
}

// closedByServer reports whether a read ends because the server closed.
func closedByServer(conn net.Conn) bool {
	_, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	return err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

// TestServerTCPBadQueries: what cannot be a query ends its connection.
func TestServerTCPBadQueries(t *testing.T) {
	response := query("db.apps.example.com.", dns.TypeA)
	response.Response = true
	for name, raw := range map[string][]byte{
		"empty":      {0, 0},
		"short":      {0, 3, 1, 2, 3},
		"too long":   {0xFF, 0xFF, 1},
		"a response": framed(mustPack(t, response)),
	} {
		t.Run(name, func(t *testing.T) {
			conn := dialTCP(t, start(t, Spec{}).Addrs()[0])
			conn.Write(raw)
			if !closedByServer(conn) {
				t.Error("the connection is still open")
			}
		})
	}
}

// TestServerTCPIdle: neither silence nor a trickle holds a connection.
func TestServerTCPIdle(t *testing.T) {
	at := start(t, Spec{Idle: 50 * time.Millisecond}).Addrs()[0]
	silent, half := dialTCP(t, at), dialTCP(t, at)
	half.Write([]byte{0, 40, 1, 2})
	if !closedByServer(silent) || !closedByServer(half) {
		t.Error("an idle connection is still open")
	}
}

// TestServerTCPCaps: connections over a cap are closed at once, those within
// go on, and one that ends makes room.
func TestServerTCPCaps(t *testing.T) {
	for name, c := range map[string]struct {
		spec   Spec
		reason string
	}{
		"total":      {Spec{MaxConns: 2}, "connections"},
		"per source": {Spec{MaxConnsPerSource: 2}, "connections_of_source"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, c.spec)
			q := framed(mustPack(t, query("db.apps.example.com.", dns.TypeA)))
			held := []net.Conn{dialTCP(t, s.Addrs()[0]), dialTCP(t, s.Addrs()[0])}
			for _, conn := range held {
				conn.Write(q)
				if _, err := readFramed(conn); err != nil {
					t.Fatal(err)
				}
			}
			if !closedByServer(dialTCP(t, s.Addrs()[0])) {
				t.Fatal("the third connection is open")
			}
			if n := dropped(s, c.reason); n != 1 {
				t.Errorf("%s dropped %d, want 1", c.reason, n)
			}
			held[0].Close()
			eventually(t, "making room", func() bool {
				conn := dialTCP(t, s.Addrs()[0])
				defer conn.Close()
				conn.Write(q)
				_, err := readFramed(conn)
				return err == nil
			})
		})
	}
}

func TestSourceKey(t *testing.T) {
	for in, want := range map[string]string{
		"203.0.113.10":        "203.0.113.10",
		"::ffff:203.0.113.10": "203.0.113.10",
		"2001:db8:1:2:3::4":   "2001:db8:1:2::",
		"fe80::1%eth0":        "fe80::",
	} {
		if got := sourceKey(netip.MustParseAddr(in)); got != netip.MustParseAddr(want) {
			t.Errorf("sourceKey(%s) = %s, want %s", in, got, want)
		}
	}
}

// TestIdleShrinks while more than half of the connections are taken.
func TestIdleShrinks(t *testing.T) {
	var table connTable
	limits := &Spec{MaxConns: 2, MaxConnsPerSource: 9, Idle: time.Minute}
	for i, want := range []time.Duration{time.Minute, time.Minute, time.Minute / 5} {
		if got := table.idle(limits); got != want {
			t.Errorf("with %d connections %v, want %v", i, got, want)
		}
		table.admit(new(net.TCPConn), netip.Addr{}, limits)
	}
}

// TestServerWildcardAnswersFromTheAddressAsked: on the wildcard, where an
// operator asks for it, the answer's source is what the client dialled.
func TestServerWildcardAnswersFromTheAddressAsked(t *testing.T) {
	s := start(t, Spec{Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:0")}})
	// A connected socket hears nobody but the address that it dialled, and
	// without the option the kernel would answer from 127.0.0.1.
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.99"), s.Addrs()[0].Port())
	for _, network := range transportLabels {
		if m := ask(t, network, at, query("db.apps.example.com.", dns.TypeA)); m.Rcode != dns.RcodeSuccess {
			t.Errorf("%s: %v", network, m)
		}
	}
}

// TestServerFollowsTheFeed: what is published is what the next query gets,
// while queries go on.
func TestServerFollowsTheFeed(t *testing.T) {
	feed := exampleFeed(t)
	s := New(Spec{Listen: []netip.AddrPort{loopback}}, feed, quiet)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	at := s.Addrs()[0]
	stop := make(chan struct{})
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := dns.Client{Timeout: patience}
				if _, _, err := c.Exchange(query("dB.apps.example.com.", dns.TypeA), at.String()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for revision := range uint64(50) {
		source := example()
		source.Revision = 100 + revision
		feed.Publish(mustBuild(t, source))
		m := ask(t, "udp", at, query("apps.example.com.", dns.TypeSOA))
		if got := m.Answer[0].(*dns.SOA).Serial; got != uint32(source.Revision) {
			t.Fatalf("serial %d, want %d", got, source.Revision)
		}
	}
	close(stop)
	others.Wait()
}

// TestServerCloses: after Close the port is free and the server refuses to
// prepare anything; closing twice is harmless.
func TestServerCloses(t *testing.T) {
	s := start(t, Spec{})
	at := s.Addrs()[0]
	conn := dialTCP(t, at)
	conn.Write(framed(mustPack(t, query("db.apps.example.com.", dns.TypeA))))
	if _, err := readFramed(conn); err != nil {
		t.Fatal(err)
	}
	s.StopAccepting()
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !closedByServer(conn) {
		t.Error("the connection is still open")
	}
	if _, err := s.Prepare(Spec{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Prepare = %v, want net.ErrClosed", err)
	}
	start(t, Spec{Listen: []netip.AddrPort{at}})
}

// TestServerCutsWhatDoesNotEnd: a client that does not read its answers is
// cut when the context ends.
func TestServerCutsWhatDoesNotEnd(t *testing.T) {
	s := New(Spec{Listen: []netip.AddrPort{loopback}}, exampleFeed(t), quiet)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	conn := dialTCP(t, s.Addrs()[0])
	q := framed(mustPack(t, query("more.apps.example.com.", dns.TypeA)))
	var sent sync.WaitGroup
	sent.Go(func() {
		for {
			if _, err := conn.Write(q); err != nil {
				return
			}
		}
	})
	conn.Read(make([]byte, 1)) // the flood has begun
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := s.Close(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Close = %v", err)
	}
	conn.Close()
	sent.Wait()
}

func TestServerStartNamesEveryFailure(t *testing.T) {
	first := freePort(t)
	taken, err := net.ListenPacket("udp4", first.String())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	spec := Spec{Listen: []netip.AddrPort{loopback, first, netip.MustParseAddrPort("192.0.2.1:0")}}
	s := New(spec, exampleFeed(t), quiet)
	defer s.Close(context.Background())
	err = s.Start()
	if err == nil {
		t.Fatal("Start succeeded on a taken port")
	}
	for _, part := range []string{
		`listening for DNS on "udp/` + first.String() + `": address already in use: this process (pid `,
		`listening for DNS on "tcp/192.0.2.1:0": cannot assign requested address: the address is not on this machine`,
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
	if len(s.Addrs()) != 0 {
		t.Errorf("serving %v after a failed start", s.Addrs())
	}
	tcp, err := net.Listen("tcp4", first.String())
	if err != nil {
		t.Fatalf("the TCP half of the taken address is still open: %v", err)
	}
	tcp.Close()
}
