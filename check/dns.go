package check

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// dns asks the question over UDP.
func (c *Check) dns(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	query := dns.Msg{MsgHdr: dns.MsgHdr{Id: dns.Id(), RecursionDesired: true}, Question: []dns.Question{c.question}}
	packed, err := query.Pack()
	if err != nil {
		return Result{Err: fmt.Errorf("writing the question %q: %s", c.spec.Question, plain(err.Error()))}
	}
	s, err := open(ctx, d, "udp", addr)
	if err != nil {
		return Result{Err: err}
	}
	defer s.end()
	took, err := ask(s, packed, "awaiting the answer about "+fmt.Sprintf("%q", c.spec.Question), func(answer []byte) (bool, error) {
		return judgeDNS(answer, query.Id, c.question, c.rcode)
	})
	return Result{RTT: took, Err: err}
}

// judgeDNS reports whether a datagram answers the question, and what is wrong
// with it.
func judgeDNS(answer []byte, id uint16, question dns.Question, want int) (mine bool, wrong error) {
	if len(answer) < 12 || answer[0] != byte(id>>8) || answer[1] != byte(id) {
		return false, nil // RFC 5452 §4.4: not ours, by mistake or by design
	}
	var m dns.Msg
	if err := m.Unpack(answer); err != nil {
		return true, fmt.Errorf("answered with a malformed message: %s", plain(err.Error()))
	}
	if !m.Response {
		return true, fmt.Errorf("answered with a question")
	}
	// A server that refuses may leave the question out.
	if len(m.Question) > 0 && (!strings.EqualFold(m.Question[0].Name, question.Name) || m.Question[0].Qtype != question.Qtype) {
		return false, nil
	}
	if m.Rcode != want {
		return true, fmt.Errorf("answered %s, want %s", rcodeText(m.Rcode), rcodeText(want))
	}
	return true, nil
}

func rcodeText(rcode int) string {
	if text, ok := dns.RcodeToString[rcode]; ok {
		return text
	}
	return fmt.Sprintf("code %d", rcode)
}

// maxRcode is the largest that fits the header: those above need EDNS, which
// no check sends.
const maxRcode = dns.RcodeNotZone

// rcodes are the codes that can be expected, by name (RFC 6895 §2.3).
func rcodes() map[string]int {
	m := make(map[string]int)
	for code, name := range dns.RcodeToString {
		if code <= maxRcode {
			m[name] = code
		}
	}
	return m
}

// recordTypes are the types that can be asked for, by name: no transfers, no
// pseudo-records.
func recordTypes() map[string]uint16 {
	m := make(map[string]uint16)
	for code, name := range dns.TypeToString {
		if code != dns.TypeNone && code != dns.TypeOPT && (code < dns.TypeTKEY || code > dns.TypeANY) {
			m[name] = code
		}
	}
	return m
}
