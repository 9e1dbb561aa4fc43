package lookup

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler answers a query that came over "udp" or "tcp" with messages to send
// as they are, one after the other; none is silence.
type handler func(network string, query *dns.Msg) [][]byte

// serve runs a resolver on loopback, and returns a Resolver that asks it
// whatever resolv.conf says.
func serve(t *testing.T, h handler) *Resolver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _, _ = l.Close(), p.Close(); wg.Wait() })
	wg.Go(func() { servePackets(p, h) })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveStream(c, h) })
		}
	})
	return New(Deps{Dial: to(l.Addr().String())})
}

// to returns a Dial that takes every server for the one at addr.
func to(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

func servePackets(p net.PacketConn, h handler) {
	b := make([]byte, 4096)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(b[:n]) != nil {
			continue
		}
		for _, m := range h("udp", q) {
			_, _ = p.WriteTo(m, from)
		}
	}
}

func serveStream(c net.Conn, h handler) {
	defer func() { _ = c.Close() }()
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		return
	}
	q := new(dns.Msg)
	if q.Unpack(b) != nil {
		return
	}
	for _, m := range h("tcp", q) {
		_, _ = c.Write(binary.BigEndian.AppendUint16(nil, uint16(len(m))))
		for _, part := range [][]byte{m[:1], m[1:]} { // in pieces, as TCP may
			_, _ = c.Write(part)
		}
	}
}

// zone answers from records in master file format; a name without any does
// not exist. soa, if not "", goes into negative answers.
func zone(t *testing.T, soa string, records ...string) func(*dns.Msg) *dns.Msg {
	t.Helper()
	var all []dns.RR
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rr)
	}
	return func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		name, exists := q.Question[0].Name, false
		for range 8 { // a chain of aliases at most
			next := ""
			for _, rr := range all {
				if rr.Header().Name != name {
					continue
				}
				exists = true
				alias, ok := rr.(*dns.CNAME)
				if ok {
					next = alias.Target
				}
				if ok || rr.Header().Rrtype == q.Question[0].Qtype {
					m.Answer = append(m.Answer, rr)
				}
			}
			if name = next; name == "" {
				break
			}
		}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		if rr, err := dns.NewRR(soa); err == nil && rr != nil && len(m.Answer) == 0 {
			m.Ns = append(m.Ns, rr)
		}
		return m
	}
}

func pack(m *dns.Msg) []byte {
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// plain serves a zone as an honest resolver does.
func plain(answer func(*dns.Msg) *dns.Msg) handler {
	return func(network string, q *dns.Msg) [][]byte {
		b := pack(answer(q))
		if network == "udp" && len(b) > 1232 {
			m := new(dns.Msg).SetReply(q)
			m.Truncated, m.RecursionAvailable = true, true
			b = pack(m)
		}
		return [][]byte{b}
	}
}
