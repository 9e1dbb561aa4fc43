package dnsd

import (
	"bytes"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// FuzzRespond sends raw bytes: no panic, no answer to a response, no answer
// longer than the client has room for, and every answer is one to its query.
func FuzzRespond(f *testing.F) {
	for _, m := range []*dns.Msg{
		query("db.apps.example.com.", dns.TypeA),
		query("MORE.apps.example.com.", dns.TypeA).SetEdns0(65535, true),
		query("apps.example.com.", dns.TypeNS).SetEdns0(512, false),
		new(dns.Msg).SetAxfr("apps.example.com."),
		new(dns.Msg).SetIxfr("apps.example.com.", 1, "a.", "b."),
		new(dns.Msg).SetUpdate("apps.example.com."),
		new(dns.Msg).SetNotify("apps.example.com."),
		query(`\000\.\255.apps.example.com.`, dns.TypeANY),
	} {
		f.Add(mustPack(f, m), false)
		f.Add(mustPack(f, m), true)
	}
	f.Add([]byte{0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, false)
	f.Add(append(mustPack(f, query("db.apps.example.com.", dns.TypeA)), "\x00\x00\x29\xff\xff\x00\x01\x00\x00\x00\x00"...), false)
	r := newResponder(f)
	f.Fuzz(func(t *testing.T, raw []byte, tcp bool) {
		over, size := overUDP, udpSize
		if tcp {
			over, size = overTCP, 65535
		}
		sent := slices.Clone(raw)
		reply, why := r.respond(raw, make([]byte, maxQuery), over)
		if !bytes.Equal(sent, raw) {
			t.Fatal("the query was changed")
		}
		if reply == nil {
			if len(raw) >= headerLen && raw[2]&0x80 == 0 {
				t.Fatalf("a query was dropped for %q", why)
			}
			return
		}
		checkReply(t, raw, reply, size, tcp)
	})
}

func checkReply(t *testing.T, raw, reply []byte, size int, tcp bool) {
	if raw[2]&0x80 != 0 {
		t.Fatalf("a response was answered: %x", reply)
	}
	if !bytes.Equal(reply[:2], raw[:2]) || reply[2]&0x80 == 0 || (reply[2]^raw[2])&0x78 != 0 {
		t.Fatalf("header %x is no answer to %x", reply[:4], raw[:4])
	}
	var q, m dns.Msg
	broken := q.Unpack(raw) != nil
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("the reply %x does not unpack: %v", reply, err)
	}
	if opt := q.IsEdns0(); !tcp && (broken || opt == nil) {
		size = plainSize
	} else if !tcp {
		size = min(size, max(512, int(opt.UDPSize())))
	}
	if len(reply) > size {
		t.Fatalf("%d bytes, limit %d", len(reply), size)
	}
	if !broken && len(q.Question) == 1 && !slices.Equal(q.Question, m.Question) {
		t.Fatalf("question %v, want %v", m.Question, q.Question)
	}
	if m.Truncated && len(m.Answer)+len(m.Ns) > 0 {
		t.Fatalf("a truncated answer has records: %v", &m)
	}
	if m.Rcode != dns.RcodeSuccess && len(m.Answer) > 0 {
		t.Fatalf("an error with an answer: %v", &m)
	}
}
