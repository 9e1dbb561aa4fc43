package lookup

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/dns/dnsmessage"
)

func seeds(f *testing.F) {
	answer := zone(&testing.T{}, soa, "x.example. 60 IN A 192.0.2.1", "x.example. 60 IN AAAA 2001:db8::1", "y.example. 5 IN CNAME x.example.", "t.example. 1 IN TXT hi")
	for _, name := range []string{"x.example.", "y.example.", "t.example.", "none.example."} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
			q := new(dns.Msg).SetQuestion(name, typ)
			f.Add(pack(answer(q))[2:])
		}
	}
	f.Add([]byte{})
	f.Add([]byte("\x81\x80\x00\x01\xff\xff\x00\x00\x00\x00"))
}

// FuzzReadReply holds the TTLs against another library's reading of the same
// message.
func FuzzReadReply(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, rest []byte) {
		message := append([]byte{0, 7}, rest...)
		m := new(dns.Msg)
		other := m.Unpack(message)
		q := question{id: 7, name: "x.example.", typ: 1}
		if other == nil && len(m.Question) > 0 {
			q.name = m.Question[0].Name
		}
		r, ok := readReply(q, message, false)
		if r.ttl < -1 || r.ttl > (1<<31)*time.Second {
			t.Fatalf("ttl = %v", r.ttl)
		}
		if !ok && r != (reply{}) {
			t.Fatalf("no reply, and %+v", r)
		}
		if !ok || other != nil || r.outcome != answered {
			return
		}
		least := time.Duration(1<<62 - 1)
		for _, rr := range m.Answer {
			life := time.Duration(rr.Header().Ttl) * time.Second
			if rr.Header().Ttl >= 1<<31 {
				life = 0
			}
			least = min(least, life)
		}
		if least != r.ttl {
			t.Fatalf("ttl = %v, the other library reads %v in %v", r.ttl, least, m)
		}
	})
}

// FuzzLookup answers each question of a lookup with the same bytes, with the
// right id, over UDP and TCP.
func FuzzLookup(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, rest []byte) {
		r := New(Deps{Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
			if network == "udp" {
				return &canned{rest: rest}, nil
			}
			return struct{ net.Conn }{&canned{rest: rest, stream: true}}, nil
		}})
		addrs, ttl, err := r.Lookup(t.Context(), "x.example.")
		if ttl < 0 || len(addrs) > MaxAddrs || (err == nil) != (len(addrs) > 0) {
			t.Fatalf("%v, %v, %v", addrs, ttl, err)
		}
		if !slices.IsSortedFunc(addrs, netip.Addr.Compare) || slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is4In6() || !a.IsValid() }) {
			t.Fatalf("addrs = %v", addrs)
		}
	})
}

// canned is a conn that answers once, to a question for AAAA with other where
// there is one.
type canned struct {
	rest   []byte
	other  []byte
	stream bool
	out    []byte
}

func (c *canned) Write(b []byte) (int, error) {
	id := b
	if c.stream {
		id = b[2:]
	}
	rest := c.rest
	if q, ok := readQuestion(id); ok && c.other != nil && q.typ == dnsmessage.TypeAAAA {
		rest = c.other
	}
	c.out = append([]byte{id[0], id[1]}, rest...)
	if c.stream {
		c.out = append([]byte{byte(len(c.out) >> 8), byte(len(c.out))}, c.out...)
	}
	return len(b), nil
}

func (c *canned) Read(b []byte) (int, error) {
	if len(c.out) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.out)
	if c.out = c.out[n:]; !c.stream {
		c.out = nil
	}
	return n, nil
}

func (c *canned) ReadFrom(b []byte) (int, net.Addr, error)  { n, err := c.Read(b); return n, nil, err }
func (c *canned) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }
func (c *canned) Close() error                              { return nil }
func (c *canned) LocalAddr() net.Addr                       { return &net.UDPAddr{} }
func (c *canned) RemoteAddr() net.Addr                      { return &net.UDPAddr{} }
func (c *canned) SetDeadline(time.Time) error               { return nil }
func (c *canned) SetReadDeadline(time.Time) error           { return nil }
func (c *canned) SetWriteDeadline(time.Time) error          { return nil }
