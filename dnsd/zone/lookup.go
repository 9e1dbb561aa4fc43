package zone

import (
	"slices"

	"github.com/miekg/dns"
)

// Snapshot is the zones at one moment. It never changes, and its methods may
// be called at the same time. A nil Snapshot holds no zones.
type Snapshot struct {
	revision uint64
	zones    []string
	// nodes are all names that exist, folded, with their final dot: those that
	// own records and the empty non-terminals between them and their apex. So
	// the longest suffix of a question that is in the map is its closest
	// encloser (RFC 4592 section 3.3.1) and knows the zone: one map however
	// many zones there are, and never a list.
	nodes map[string]*node
}

// held is a zone as the snapshot holds it.
type held struct {
	apex     string   // with the final dot
	name     string   // without it, for logs and metrics
	parent   *held    // the zone that this one lies in, if the snapshot has it
	negative []dns.RR // the authority section of negative answers
	glue     []dns.RR // addresses of nameservers, for the apex NS answer

	hostTTL, nsTTL uint32 // seconds; used while building
}

// node is one name that exists.
type node struct {
	zone     *held
	sets     []set // few: a scan beats a map
	wildcard *node // the "*" child
}

// set is an RRset.
type set struct {
	rrtype  uint16
	records []dns.RR
}

func (n *node) add(rrtype uint16, records []dns.RR) {
	if len(records) > 0 {
		n.sets = append(n.sets, set{rrtype, records})
	}
}

func (n *node) records(rrtype uint16) []dns.RR {
	for i := range n.sets {
		if n.sets[i].rrtype == rrtype {
			return n.sets[i].records
		}
	}
	return nil
}

// addGlue adds a nameserver's addresses to the apex NS answer.
func (z *held) addGlue(n *node) {
	z.glue = append(z.glue, n.records(dns.TypeA)...)
	z.glue = append(z.glue, n.records(dns.TypeAAAA)...)
}

// Answer is what the zones say to one question. Its records are shared with
// the snapshot: they must not be changed.
type Answer struct {
	// Zone that answers, without the final dot; "" if the name is outside all
	// of them.
	Zone string
	// Rcode is dns.RcodeSuccess, dns.RcodeNameError, or dns.RcodeRefused for
	// names outside the zones.
	Rcode int
	// Answer, Authority and Additional are the sections. Success with an empty
	// Answer is NODATA. The owner of the records in Answer is spelt as the
	// question spelt it.
	Answer, Authority, Additional []dns.RR
}

// Revision is the one of the Source.
func (s *Snapshot) Revision() uint64 {
	if s == nil {
		return 0
	}
	return s.revision
}

// Zones returns the names of the zones, without final dots, in the order of the
// Source.
func (s *Snapshot) Zones() []string {
	if s == nil {
		return nil
	}
	return slices.Clone(s.zones)
}

// Lookup answers a question of class IN. qname is in presentation form, as
// the dns package unpacks it, in any case of letters. Zone transfers and the
// meta types other than ANY are the caller's to refuse: here they are types
// that no name has.
func (s *Snapshot) Lookup(qname string, qtype uint16) Answer {
	if s == nil {
		return Answer{Rcode: dns.RcodeRefused}
	}
	qname = dns.Fqdn(qname)
	closest, exact := s.find(fold(qname))
	if closest == nil {
		return Answer{Rcode: dns.RcodeRefused}
	}
	z := closest.zone
	if !exact {
		if closest.wildcard == nil {
			return Answer{Zone: z.name, Rcode: dns.RcodeNameError, Authority: z.negative}
		}
		closest = closest.wildcard
	}
	if exact && qtype == dns.TypeDS && z.parent != nil && closest.records(dns.TypeSOA) != nil {
		// DS belongs to the parent's side of the cut (RFC 4035 section
		// 3.1.4.1), which has none: the zone is not signed.
		return Answer{Zone: z.parent.name, Authority: z.parent.negative}
	}
	records := closest.records(qtype)
	if qtype == dns.TypeANY {
		records = closest.any()
	}
	if len(records) == 0 {
		return Answer{Zone: z.name, Authority: z.negative}
	}
	answer := Answer{Zone: z.name, Answer: spell(records, qname)}
	if qtype == dns.TypeNS {
		answer.Additional = z.glue
	}
	return answer
}

// find returns the longest existing suffix of a folded name, and whether it is
// the name itself.
func (s *Snapshot) find(name string) (closest *node, exact bool) {
	if n := s.nodes[name]; n != nil {
		return n, true
	}
	for offset, end := dns.NextLabel(name, 0); !end; offset, end = dns.NextLabel(name, offset) {
		if n := s.nodes[name[offset:]]; n != nil {
			return n, false
		}
	}
	return nil, false
}

// any is the one RRset that a question for ANY gets (RFC 8482 section 4.1).
func (n *node) any() []dns.RR {
	for _, rrtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSOA} {
		if records := n.records(rrtype); records != nil {
			return records
		}
	}
	return nil
}

// spell gives records the owner name of the question: its case (resolvers
// that randomise it compare), and the name that a wildcard stood in for.
// Records that are spelt so already are shared, not copied.
func spell(records []dns.RR, qname string) []dns.RR {
	if records[0].Header().Name == qname {
		return records
	}
	spelt := make([]dns.RR, len(records))
	for i, rr := range records {
		spelt[i] = dns.Copy(rr)
		spelt[i].Header().Name = qname
	}
	return spelt
}
