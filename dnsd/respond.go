package dnsd

import "github.com/miekg/dns"

const (
	headerLen = 12 // RFC 1035 section 4.1.1

	// udpSize is the largest answer over UDP, and what our OPT offers: it fits
	// every IPv6 path without fragments (DNS flag day 2020, RFC 9715).
	udpSize = 1232
	// plainSize is the largest answer over UDP to a client without EDNS
	// (RFC 1035 section 4.2.1).
	plainSize = dns.MinMsgSize
)

// transport is what a query came over.
type transport int

const (
	overUDP transport = iota
	overTCP
)

// responder turns a query's bytes into the answer's bytes. It holds no state
// of a client, reads no clock and never blocks.
type responder struct {
	feed   Feed
	counts queryCounts
}

// respond answers one message, into buf where it fits. A nil reply means that
// the message gets none, and why.
func (r *responder) respond(query, buf []byte, over transport) (reply []byte, why drop) {
	if len(query) < headerLen {
		return nil, dropShort
	}
	if query[2]&0x80 != 0 {
		return nil, dropResponse // answering answers could go on for ever
	}
	var q dns.Msg
	broken := q.Unpack(query) != nil
	if broken {
		q.Question, q.Answer, q.Ns, q.Extra = nil, nil, nil, nil
	}
	opt, options := findOPT(q.Extra)

	// A fresh header: of the query's flags only RD is an answer's business,
	// and only for QUERY. AD, CD, RA and Z stay clear (RFC 4035 section 3.1.6).
	m := dns.Msg{MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Opcode: q.Opcode}, Compress: true}
	m.RecursionDesired = q.RecursionDesired && q.Opcode == dns.OpcodeQuery
	if len(q.Question) == 1 {
		m.Question = q.Question
	}
	zoneName := ""
	switch {
	case q.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
	case broken, len(q.Question) != 1, len(q.Answer) != 0, options > 1, opt != nil && opt.Hdr.Name != ".":
		// One question (RFC 9619), no answers, at most one OPT, owned by the
		// root (RFC 6891 sections 6.1.1 and 6.1.2).
		m.Rcode = dns.RcodeFormatError
	case opt != nil && opt.Version() != 0:
		m.Rcode = dns.RcodeBadVers // RFC 6891 section 6.1.3
	default:
		zoneName = r.answer(&m, q.Question[0])
	}
	r.counts.add(zoneName, m.Question, m.Rcode, over)
	if opt != nil {
		m.Extra = append(m.Extra[:len(m.Extra):len(m.Extra)], freshOPT(opt))
	}
	return pack(&m, buf, limit(opt, over)), ""
}

// answer fills in the answer to a well-formed question and returns the zone
// that it is from.
func (r *responder) answer(m *dns.Msg, q dns.Question) string {
	switch {
	case q.Qclass != dns.ClassINET:
		m.Rcode = dns.RcodeRefused
		return ""
	case q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR:
		m.Rcode = dns.RcodeRefused // nobody has leave to transfer (RFC 5936 section 2.2.1)
		return ""
	case isMeta(q.Qtype):
		m.Rcode = dns.RcodeFormatError
		return ""
	}
	snapshot := r.feed.Zones()
	if snapshot == nil {
		m.Rcode = dns.RcodeServerFailure // the resolver asks another nameserver
		return ""
	}
	a := snapshot.Lookup(q.Name, q.Qtype)
	m.Rcode = a.Rcode
	m.Authoritative = a.Zone != ""
	m.Answer, m.Ns, m.Extra = a.Answer, a.Authority, a.Additional
	return a.Zone
}

// isMeta reports types that are parts of a message, never a question
// (RFC 6895 section 3.1). ANY and the transfers are questions.
func isMeta(qtype uint16) bool {
	switch qtype {
	case dns.TypeNone, dns.TypeOPT, dns.TypeTKEY, dns.TypeTSIG:
		return true
	}
	return false
}

// findOPT returns the last OPT record and how many there are.
func findOPT(extra []dns.RR) (opt *dns.OPT, n int) {
	for _, rr := range extra {
		if o, ok := rr.(*dns.OPT); ok {
			opt, n = o, n+1
		}
	}
	return opt, n
}

// freshOPT is our OPT: version 0, our size, DO as the client set it (RFC 3225
// section 3), and none of the client's options or other flags.
func freshOPT(asked *dns.OPT) *dns.OPT {
	o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	o.SetUDPSize(udpSize)
	if asked.Do() {
		o.SetDo()
	}
	return o
}

// limit is how long the answer may be, in bytes.
func limit(opt *dns.OPT, over transport) int {
	switch {
	case over == overTCP:
		return dns.MaxMsgSize
	case opt == nil:
		return plainSize
	}
	// A size below 512 means 512 (RFC 6891 section 6.2.3).
	return min(max(int(opt.UDPSize()), plainSize), udpSize)
}

// pack writes m within size bytes. Addresses in the additional section are a
// courtesy and go first; then the whole answer goes and TC says so, because
// half an RRset is of no use to anybody (RFC 2181 section 9).
func pack(m *dns.Msg, buf []byte, size int) []byte {
	if out, err := m.PackBuffer(buf); err == nil && len(out) <= size {
		return out
	}
	opt := m.IsEdns0()
	m.Extra = nil
	if opt != nil {
		m.Extra = []dns.RR{opt}
	}
	if out, err := m.PackBuffer(buf); err == nil && len(out) <= size {
		return out
	}
	m.Truncated = true
	m.Answer, m.Ns = nil, nil
	if out, err := m.PackBuffer(buf); err == nil && len(out) <= size {
		return out
	}
	// Not even the question packs again. The client still learns of it.
	bare := dns.Msg{MsgHdr: dns.MsgHdr{Id: m.Id, Response: true, Opcode: m.Opcode, Rcode: dns.RcodeServerFailure}}
	out, _ := bare.PackBuffer(buf)
	return out
}
