package dnsd

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// answerTo sends a message through the responder and unpacks what comes back;
// nil where nothing does.
func answerTo(t testing.TB, r *responder, raw []byte, over transport) (*dns.Msg, drop) {
	t.Helper()
	reply, why := r.respond(raw, make([]byte, maxQuery), over)
	if reply == nil {
		return nil, why
	}
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("unpacking the reply %x: %v", reply, err)
	}
	return m, why
}

func mustPack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func newResponder(t testing.TB) *responder { return &responder{feed: exampleFeed(t)} }

const negativeSOA = "apps.example.com. 30 IN SOA ns1.apps.example.com. hostmaster.apps.example.com. 7 3600 600 1209600 30"

// TestRespond asks well-formed questions; what zones answer in detail is
// tested in dnsd/zone.
func TestRespond(t *testing.T) {
	cases := []struct {
		name, qname    string
		qtype, qclass  uint16
		rcode          int
		aa             bool
		answer, ns, ex string
	}{
		{name: "A", qname: "db.apps.example.com.", qtype: dns.TypeA, aa: true, answer: "db.apps.example.com. 30 IN A 203.0.113.10"},
		{name: "NODATA", qname: "four.apps.example.com.", qtype: dns.TypeAAAA, aa: true, ns: negativeSOA},
		{name: "empty non-terminal", qname: "b.apps.example.com.", qtype: dns.TypeA, aa: true, ns: negativeSOA},
		{name: "NXDOMAIN is authoritative", qname: "no.apps.example.com.", qtype: dns.TypeA, rcode: dns.RcodeNameError, aa: true, ns: negativeSOA},
		{name: "wildcard", qname: "x.dev.apps.example.com.", qtype: dns.TypeA, aa: true, answer: "x.dev.apps.example.com. 30 IN A 203.0.113.11"},
		{name: "CAA", qname: "db.apps.example.com.", qtype: dns.TypeCAA, aa: true, ns: negativeSOA},
		{name: "ANY", qname: "db.apps.example.com.", qtype: dns.TypeANY, aa: true, answer: "db.apps.example.com. 30 IN A 203.0.113.10"},
		{name: "NS with glue", qname: "apps.example.com.", qtype: dns.TypeNS, aa: true, answer: "apps.example.com. 3600 IN NS ns1.apps.example.com.\napps.example.com. 3600 IN NS ns2.example.net.", ex: "ns1.apps.example.com. 3600 IN A 127.0.0.1\nns1.apps.example.com. 3600 IN AAAA ::1"},
		{name: "outside the zones", qname: "example.com.", qtype: dns.TypeA, rcode: dns.RcodeRefused},
		{name: "the root", qname: ".", qtype: dns.TypeNS, rcode: dns.RcodeRefused},
		{name: "class CH", qname: "version.bind.", qtype: dns.TypeTXT, qclass: dns.ClassCHAOS, rcode: dns.RcodeRefused},
		{name: "class CH inside the zone", qname: "db.apps.example.com.", qtype: dns.TypeA, qclass: dns.ClassCHAOS, rcode: dns.RcodeRefused},
		{name: "class ANY", qname: "db.apps.example.com.", qtype: dns.TypeA, qclass: dns.ClassANY, rcode: dns.RcodeRefused},
		{name: "AXFR", qname: "apps.example.com.", qtype: dns.TypeAXFR, rcode: dns.RcodeRefused},
		{name: "IXFR", qname: "apps.example.com.", qtype: dns.TypeIXFR, rcode: dns.RcodeRefused},
		{name: "type OPT is no question", qname: "db.apps.example.com.", qtype: dns.TypeOPT, rcode: dns.RcodeFormatError},
		{name: "type TSIG is no question", qname: "db.apps.example.com.", qtype: dns.TypeTSIG, rcode: dns.RcodeFormatError},
		{name: "type 0 is no question", qname: "db.apps.example.com.", qtype: 0, rcode: dns.RcodeFormatError},
	}
	r := newResponder(t)
	for _, c := range cases {
		for over, network := range transportLabels {
			t.Run(c.name+" over "+network, func(t *testing.T) {
				q := query(c.qname, c.qtype)
				if c.qclass != 0 {
					q.Question[0].Qclass = c.qclass
				}
				m, _ := answerTo(t, r, mustPack(t, q), transport(over))
				if m.Rcode != c.rcode || m.Authoritative != c.aa {
					t.Errorf("rcode %s, aa %t; want %s, %t", dns.RcodeToString[m.Rcode], m.Authoritative, dns.RcodeToString[c.rcode], c.aa)
				}
				if m.Id != q.Id || !m.Response || m.RecursionAvailable || !m.RecursionDesired || m.Truncated {
					t.Errorf("header %+v", m.MsgHdr)
				}
				if diff := cmp.Diff(q.Question, m.Question); diff != "" {
					t.Errorf("question (-want +got):\n%s", diff)
				}
				got := []string{lines(m.Answer), lines(m.Ns), lines(m.Extra)}
				if diff := cmp.Diff([]string{c.answer, c.ns, c.ex}, got); diff != "" {
					t.Errorf("sections (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestRespondCase: resolvers that randomise the case of letters compare the
// question byte by byte.
func TestRespondCase(t *testing.T) {
	raw := mustPack(t, query("dB.aPpS.eXaMpLe.CoM.", dns.TypeA))
	reply, _ := newResponder(t).respond(raw, make([]byte, maxQuery), overUDP)
	if !bytes.Equal(reply[12:len(raw)], raw[12:]) {
		t.Errorf("question %q, want %q", reply[12:len(raw)], raw[12:])
	}
	var m dns.Msg
	if err := m.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	if got, want := lines(m.Answer), "dB.aPpS.eXaMpLe.CoM. 30 IN A 203.0.113.10"; got != want {
		t.Errorf("answer %q, want %q", got, want)
	}
}

// TestRespondFlags sets every flag that a query can have: of them all only RD
// comes back, and only for QUERY.
func TestRespondFlags(t *testing.T) {
	r := newResponder(t)
	const aa, tc, rd, ra, z, ad, cd = 1 << 10, 1 << 9, 1 << 8, 1 << 7, 1 << 6, 1 << 5, 1 << 4
	for opcode := range uint16(16) {
		raw := mustPack(t, query("db.apps.example.com.", dns.TypeA))
		binary.BigEndian.PutUint16(raw[2:], opcode<<11|aa|tc|rd|ra|z|ad|cd|0xF)
		reply, _ := r.respond(raw, make([]byte, maxQuery), overUDP)
		want := uint16(1<<15|aa|rd) | dns.RcodeSuccess
		if opcode != dns.OpcodeQuery {
			want = 1<<15 | opcode<<11 | dns.RcodeNotImplemented
		}
		if got := binary.BigEndian.Uint16(reply[2:]); got != want {
			t.Errorf("opcode %d: flags %016b, want %016b", opcode, got, want)
		}
		if !bytes.Equal(reply[:2], raw[:2]) {
			t.Errorf("opcode %d: id %x, want %x", opcode, reply[:2], raw[:2])
		}
	}
}

// TestRespondHeaderOnly: every opcode without a question, which is where a
// handler that trusts Question[0] falls over.
func TestRespondHeaderOnly(t *testing.T) {
	r := newResponder(t)
	for opcode := range byte(16) {
		for _, count := range []byte{0, 1} { // 1: a count that lies
			raw := []byte{0xAB, 0xCD, opcode << 3, 0, 0, count, 0, 0, 0, 0, 0, 0}
			reply, _ := r.respond(raw, make([]byte, maxQuery), overUDP)
			rcode := byte(dns.RcodeNotImplemented)
			if opcode == dns.OpcodeQuery {
				rcode = dns.RcodeFormatError
			}
			want := []byte{0xAB, 0xCD, 0x80 | opcode<<3, rcode, 0, 0, 0, 0, 0, 0, 0, 0}
			if !bytes.Equal(reply, want) {
				t.Errorf("opcode %d, count %d: %x, want %x", opcode, count, reply, want)
			}
		}
	}
}

func TestRespondMalformed(t *testing.T) {
	good := mustPack(t, query("db.apps.example.com.", dns.TypeA))
	with := func(change func(m *dns.Msg)) []byte {
		m := query("db.apps.example.com.", dns.TypeA)
		change(m)
		return mustPack(t, m)
	}
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	record, _ := dns.NewRR("db.apps.example.com. 30 IN A 192.0.2.1")
	ownedOPT := append(slices.Clone(good), "\x01x\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"...)
	ownedOPT[11] = 1
	cases := []struct {
		name  string
		raw   []byte
		rcode int // -1: no answer
		why   drop
	}{
		{"nothing", nil, -1, dropShort},
		{"half a header", good[:11], -1, dropShort},
		{"a response", with(func(m *dns.Msg) { m.Response = true }), -1, dropResponse},
		{"a response with an opcode we do not know", with(func(m *dns.Msg) { m.Response = true; m.Opcode = 6 }), -1, dropResponse},
		{"half a question", good[:20], dns.RcodeFormatError, ""},
		{"two questions", with(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError, ""},
		{"an answer in the query", with(func(m *dns.Msg) { m.Answer = []dns.RR{record} }), dns.RcodeFormatError, ""},
		{"two OPTs", with(func(m *dns.Msg) { m.Extra = []dns.RR{opt, opt} }), dns.RcodeFormatError, ""},
		{"an OPT that is not the root's", ownedOPT, dns.RcodeFormatError, ""},
		{"half an OPT", append(append(slices.Clone(good[:11]), 1), append(slices.Clone(good[12:]), "\x00\x00\x29\x04\xd0\x00\x00"...)...), dns.RcodeFormatError, ""},
		{"a compression pointer to itself", append(slices.Clone(good[:12]), 0xC0, 12, 0, 1, 0, 1), dns.RcodeFormatError, ""},
		{"an UPDATE with records that do not parse", append([]byte{1, 2, 5 << 3, 0, 0, 1, 0, 1, 0, 0, 0, 0}, 0xFF, 0xFF), dns.RcodeNotImplemented, ""},
		{"a TSIG of a key that nobody knows does no harm", with(func(m *dns.Msg) { m.SetTsig("k.", dns.HmacSHA256, 300, 1) }), dns.RcodeSuccess, ""},
	}
	r := newResponder(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m, why := answerTo(t, r, c.raw, overUDP)
			if m == nil {
				if c.rcode != -1 || why != c.why {
					t.Errorf("dropped for %q, want rcode %d", why, c.rcode)
				}
				return
			}
			if m.Rcode != c.rcode {
				t.Errorf("rcode %s, want %d", dns.RcodeToString[m.Rcode], c.rcode)
			}
			if c.name == "half an OPT" && (len(m.Question) != 0 || len(m.Extra) != 0) {
				t.Errorf("parts of a broken query came back: %v", m)
			}
			if c.rcode != dns.RcodeSuccess && (len(m.Answer)+len(m.Ns) > 0 || m.Authoritative) {
				t.Errorf("an error that answers: %v", m)
			}
		})
	}
}

func TestRespondEDNS(t *testing.T) {
	with := func(change func(o *dns.OPT)) []byte {
		m := query("db.apps.example.com.", dns.TypeA).SetEdns0(1400, false)
		change(m.IsEdns0())
		return mustPack(t, m)
	}
	cookie := &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}
	cases := []struct {
		name  string
		raw   []byte
		rcode int
		do    bool
	}{
		{"plain", with(func(*dns.OPT) {}), dns.RcodeSuccess, false},
		{"DO", with(func(o *dns.OPT) { o.SetDo() }), dns.RcodeSuccess, true},
		{"version 1", with(func(o *dns.OPT) { o.SetVersion(1) }), dns.RcodeBadVers, false},
		{"version 255 with options", with(func(o *dns.OPT) { o.SetVersion(255); o.Option = append(o.Option, cookie) }), dns.RcodeBadVers, false},
		{"options", with(func(o *dns.OPT) {
			o.Option = append(o.Option, cookie, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")},
				&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{192, 0, 2, 0}})
		}), dns.RcodeSuccess, false},
		{"unknown flags", with(func(o *dns.OPT) { o.SetZ(0x3FFF) }), dns.RcodeSuccess, false},
		{"padding to 700 bytes", with(func(o *dns.OPT) { o.Option = append(o.Option, &dns.EDNS0_PADDING{Padding: make([]byte, 640)}) }), dns.RcodeSuccess, false},
	}
	r := newResponder(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m, _ := answerTo(t, r, c.raw, overUDP)
			if m.Rcode != c.rcode {
				t.Errorf("rcode %d, want %d", m.Rcode, c.rcode)
			}
			if (c.rcode == dns.RcodeSuccess) != (len(m.Answer) == 1) {
				t.Errorf("%d answers", len(m.Answer))
			}
			if _, n := findOPT(m.Extra); n != 1 {
				t.Fatalf("%d OPTs, want one", n)
			}
			o := m.IsEdns0()
			if o.UDPSize() != udpSize || o.Version() != 0 || o.Do() != c.do || o.Z() != 0 || len(o.Option) != 0 {
				t.Errorf("OPT %v", o)
			}
		})
	}
	t.Run("not asked for", func(t *testing.T) {
		m, _ := answerTo(t, r, mustPack(t, query("db.apps.example.com.", dns.TypeA)), overUDP)
		if m.IsEdns0() != nil {
			t.Error("an OPT that nobody asked for")
		}
	})
	t.Run("NOTIMP and REFUSED carry it too", func(t *testing.T) {
		refused := query("example.org.", dns.TypeA).SetEdns0(1232, false)
		notimp := query("db.apps.example.com.", dns.TypeA).SetEdns0(1232, false)
		notimp.Opcode = dns.OpcodeStatus
		for _, q := range []*dns.Msg{refused, notimp} {
			if m, _ := answerTo(t, r, mustPack(t, q), overUDP); m.IsEdns0() == nil {
				t.Errorf("no OPT in %v", m)
			}
		}
	})
}

// TestRespondSize holds every answer to what the client has room for. A cut
// answer is empty, says so, and keeps its OPT.
func TestRespondSize(t *testing.T) {
	cases := []struct {
		name, qname string
		edns        int // -1: none
		over        transport
		limit       int
		answers     int // 0: truncated
	}{
		{"40 addresses without EDNS", "many.apps.example.com.", -1, overUDP, 512, 0},
		{"40 addresses, EDNS 512", "many.apps.example.com.", 512, overUDP, 512, 0},
		{"40 addresses, EDNS 0 means 512", "many.apps.example.com.", 0, overUDP, 512, 0},
		{"40 addresses, EDNS 1232", "many.apps.example.com.", 1232, overUDP, 1232, 40},
		{"300 addresses, EDNS 65535 is 1232", "more.apps.example.com.", 65535, overUDP, 1232, 0},
		{"300 addresses over TCP", "more.apps.example.com.", -1, overTCP, 65535, 300},
		{"300 addresses over TCP, EDNS 512 is for UDP", "more.apps.example.com.", 512, overTCP, 65535, 300},
		{"300 addresses in odd case", "mOre.apps.example.com.", -1, overTCP, 65535, 300},
	}
	r := newResponder(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			q := query(c.qname, dns.TypeA)
			if c.edns >= 0 {
				q.SetEdns0(uint16(c.edns), false)
			}
			reply, _ := r.respond(mustPack(t, q), make([]byte, maxQuery), c.over)
			if len(reply) > c.limit {
				t.Errorf("%d bytes, limit %d", len(reply), c.limit)
			}
			var m dns.Msg
			if err := m.Unpack(reply); err != nil {
				t.Fatal(err)
			}
			if len(m.Answer) != c.answers || m.Truncated != (c.answers == 0) || len(m.Ns) != 0 {
				t.Errorf("%d answers, tc %t; want %d", len(m.Answer), m.Truncated, c.answers)
			}
			if (m.IsEdns0() != nil) != (c.edns >= 0) {
				t.Errorf("OPT %v", m.IsEdns0())
			}
		})
	}
}

// TestRespondSizeExactly finds the EDNS size at which an answer just fits, and
// that the size counts the OPT.
func TestRespondSizeExactly(t *testing.T) {
	r := newResponder(t)
	full, _ := r.respond(mustPack(t, query("many.apps.example.com.", dns.TypeA).SetEdns0(1232, false)), make([]byte, maxQuery), overUDP)
	for size, truncated := range map[int]bool{len(full): false, len(full) - 1: true} {
		m, _ := answerTo(t, r, mustPack(t, query("many.apps.example.com.", dns.TypeA).SetEdns0(uint16(size), false)), overUDP)
		if m.Truncated != truncated {
			t.Errorf("size %d of %d: tc %t, want %t", size, len(full), m.Truncated, truncated)
		}
	}
}

// TestRespondGlueIsOptional: addresses of nameservers that do not fit are left
// out without TC (RFC 2181 section 9).
func TestRespondGlueIsOptional(t *testing.T) {
	source := example()
	source.Zones[0].Nameservers[0].Addrs = manyAddrs(60)
	feed := new(Current)
	feed.Publish(mustBuild(t, source))
	m, _ := answerTo(t, &responder{feed: feed}, mustPack(t, query("apps.example.com.", dns.TypeNS)), overUDP)
	if m.Truncated || len(m.Answer) != 2 || len(m.Extra) != 0 {
		t.Errorf("tc %t, %d answers, %d additional; want false, 2, 0", m.Truncated, len(m.Answer), len(m.Extra))
	}
}

// TestRespondSharesNoSections: answers that are made at the same time put
// their own OPT behind glue that they share. The race detector sees it too.
func TestRespondSharesNoSections(t *testing.T) {
	source := example()
	source.Zones[0].Nameservers[0].Addrs = append(manyAddrs(3), addrs("2001:db8::1")...)
	feed := new(Current)
	feed.Publish(mustBuild(t, source))
	r := &responder{feed: feed}
	var askers sync.WaitGroup
	for _, do := range []bool{true, false} {
		raw := mustPack(t, query("apps.example.com.", dns.TypeNS).SetEdns0(1232, do))
		askers.Go(func() {
			for range 500 {
				var m dns.Msg
				reply, _ := r.respond(raw, make([]byte, maxQuery), overUDP)
				if err := m.Unpack(reply); err != nil || m.IsEdns0().Do() != do {
					t.Errorf("DO %t was answered with %v, %v", do, m.IsEdns0(), err)
					return
				}
			}
		})
	}
	askers.Wait()
}

// TestRespondWithoutZones: before the first snapshot the client should ask
// another nameserver; with none of our zones it is refused.
func TestRespondWithoutZones(t *testing.T) {
	raw := mustPack(t, query("db.apps.example.com.", dns.TypeA))
	feed := new(Current)
	r := &responder{feed: feed}
	if m, _ := answerTo(t, r, raw, overUDP); m.Rcode != dns.RcodeServerFailure || m.Authoritative {
		t.Errorf("before the first snapshot: %v, want SERVFAIL", m)
	}
	source := example()
	source.Zones, source.Hosts = nil, nil
	feed.Publish(mustBuild(t, source))
	if m, _ := answerTo(t, r, raw, overUDP); m.Rcode != dns.RcodeRefused {
		t.Errorf("without zones: %v, want REFUSED", m)
	}
}

// TestRespondLongNames: the longest names there are, in and out of the zone.
func TestRespondLongNames(t *testing.T) {
	r := newResponder(t)
	for _, suffix := range []string{"apps.example.com.", "dev.apps.example.com.", "example.org."} {
		name := strings.Repeat("a.", (254-len(suffix))/2) + suffix
		m, _ := answerTo(t, r, mustPack(t, query(name, dns.TypeA)), overUDP)
		if len(m.Question) != 1 || m.Question[0].Name != name || m.Rcode == dns.RcodeServerFailure {
			t.Errorf("%d characters: %v", len(name), m)
		}
	}
}

// TestRespondAllocates keeps the cost of the common question where it is.
func TestRespondAllocates(t *testing.T) {
	r := newResponder(t)
	raw := mustPack(t, query("db.apps.example.com.", dns.TypeA).SetEdns0(1232, false))
	buf := make([]byte, maxQuery)
	r.respond(raw, buf, overUDP)
	if n := testing.AllocsPerRun(100, func() { r.respond(raw, buf, overUDP) }); n > 10 {
		t.Errorf("%v allocations, want 10 at most", n)
	}
}

func BenchmarkRespond(b *testing.B) {
	r := newResponder(b)
	raw := mustPack(b, query("db.apps.example.com.", dns.TypeA).SetEdns0(1232, false))
	buf := make([]byte, maxQuery)
	b.ReportAllocs()
	for b.Loop() {
		r.respond(raw, buf, overUDP)
	}
}
