package lookup

import (
	"errors"
	"net"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// question is what was asked on a conn.
type question struct {
	id   uint16
	name string // in lower case
	typ  dnsmessage.Type
}

// asking is a question whoever asked it, and however often.
type asking struct {
	name string
	typ  dnsmessage.Type
}

// outcome is what a reply amounts to.
type outcome int

const (
	unanswered outcome = iota // no reply, or one that says that the server failed
	missing                   // there is no such name, or no such record
	answered
)

// reply is what was read off a reply.
type reply struct {
	outcome outcome
	ttl     time.Duration // the smallest of the answer, or the negative one; -1 where the reply has none
}

// readQuestion reads the question of a query.
func readQuestion(message []byte) (question, bool) {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || h.Response {
		return question{}, false
	}
	q, err := p.Question()
	if err != nil {
		return question{}, false
	}
	return question{id: h.ID, name: strings.ToLower(q.Name.String()), typ: q.Type}, true
}

// readReply reads a reply to q. It fails where the standard library does not
// take the message for a reply to q. One that was truncated answers nothing,
// unless it is whole all the same: the question is asked again over TCP
// (RFC 7766 section 5).
func readReply(q question, message []byte, whole bool) (reply, bool) {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || !h.Response || h.ID != q.id {
		return reply{}, false
	}
	asked, err := p.Question()
	if err != nil || asked.Type != q.typ || asked.Class != dnsmessage.ClassINET || !same(asked.Name.String(), q.name) {
		return reply{}, false
	}
	if err := p.SkipAllQuestions(); err != nil {
		return reply{}, false
	}
	if h.Truncated && !whole {
		return reply{outcome: unanswered, ttl: -1}, true
	}
	switch h.RCode {
	case dnsmessage.RCodeNameError:
		return reply{outcome: missing, ttl: negativeTTL(&p, true)}, true
	case dnsmessage.RCodeSuccess:
	default:
		return reply{outcome: unanswered, ttl: -1}, true
	}
	ttl, found := time.Duration(-1), false
	for {
		rr, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return reply{outcome: unanswered, ttl: -1}, true
		}
		if life := lifetime(rr.TTL); ttl < 0 || life < ttl {
			ttl = life
		}
		found = found || rr.Type == q.typ
		if err := p.SkipAnswer(); err != nil {
			return reply{outcome: unanswered, ttl: -1}, true
		}
	}
	if found {
		return reply{outcome: answered, ttl: ttl}, true
	}
	if negative := negativeTTL(&p, false); ttl < 0 || negative >= 0 && negative < ttl {
		ttl = negative // of an alias that leads nowhere, the alias lives on its own TTL
	}
	return reply{outcome: missing, ttl: ttl}, true
}

// negativeTTL is for how long "there is none" is good: the lesser of the SOA's
// own TTL and its minimum (RFC 2308 section 5), or -1 without a SOA.
func negativeTTL(p *dnsmessage.Parser, answers bool) time.Duration {
	if answers && p.SkipAllAnswers() != nil {
		return -1
	}
	for {
		rr, err := p.AuthorityHeader()
		if err != nil {
			return -1
		}
		if rr.Type != dnsmessage.TypeSOA {
			if p.SkipAuthority() != nil {
				return -1
			}
			continue
		}
		soa, err := p.SOAResource()
		if err != nil {
			return -1
		}
		return min(lifetime(rr.TTL), lifetime(soa.MinTTL))
	}
}

// lifetime reads a TTL; one with the highest bit is none (RFC 2181 section 8).
func lifetime(seconds uint32) time.Duration {
	if seconds > 1<<31-1 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// facts are what was seen of a whole lookup: the latest reply to each
// question. The zero value is none, as where /etc/hosts had the answer.
type facts map[asking]reply

func (f *facts) asked(q question) {
	if *f == nil {
		*f = make(facts)
	}
	k := asking{q.name, q.typ}
	if _, known := (*f)[k]; !known {
		(*f)[k] = reply{outcome: unanswered, ttl: -1}
	}
}

// replied keeps r. A question may be asked of many servers: one that knows
// counts for more than one that failed before or after it.
func (f *facts) replied(q question, r reply) {
	k := asking{q.name, q.typ}
	if had := (*f)[k]; had.outcome == unanswered || r.outcome != unanswered {
		(*f)[k] = r
	}
}

// positive is for how long the addresses are good. They came of the name that
// was asked for last; what earlier ones of a search list did not have does not
// make them worse, but a family that was not heard of does.
func (f facts) positive() time.Duration {
	ttl, partial := time.Duration(-1), false
	for k, r := range f {
		switch r.outcome {
		case answered:
			if r.ttl >= 0 && (ttl < 0 || r.ttl < ttl) {
				ttl = r.ttl
			}
			for _, other := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
				if f[asking{k.name, other}].outcome == unanswered {
					partial = true
				}
			}
		}
	}
	if ttl < 0 {
		ttl = DefaultTTL
	}
	if partial {
		ttl = min(ttl, partialTTL)
	}
	return ttl
}

// notFound reports whether err says that there is no such name, and every
// question was answered with that.
func (f facts) notFound(err error) bool {
	var dns *net.DNSError
	if !errors.As(err, &dns) || !dns.IsNotFound {
		return false
	}
	for _, r := range f {
		if r.outcome == unanswered {
			return false
		}
	}
	return true
}

// negative is for how long err is good; 0 where it is no answer.
func (f facts) negative(err error) time.Duration {
	if !f.notFound(err) {
		return 0
	}
	ttl := time.Duration(-1)
	for _, r := range f {
		if r.ttl >= 0 && (ttl < 0 || r.ttl < ttl) {
			ttl = r.ttl
		}
	}
	if ttl < 0 {
		return DefaultTTL
	}
	return ttl
}
