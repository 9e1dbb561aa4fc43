package wire

import (
	"cmp"
	"encoding/json"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of the messages of PathWork. A request and an answer within them fit
// into MaxWorkBody, however their texts are escaped.
const (
	MaxWorkBody = 1 << 20 // bytes of either

	MaxChecks     = 5000               // of one connector
	MaxSpecs      = 512                // ways to check, of all its checks
	MaxSpec       = 64 << 10           // bytes of one of them
	MaxAllSpecs   = 320 << 10          // bytes of all
	MaxNames      = 256                // of one connector
	MaxHost       = 253                // bytes of a name
	MaxResults    = 800                // in a request; there may be more requests
	MaxFound      = 32                 // names in a request
	MaxAddrs      = 64                 // of a name
	MaxCheckError = 128                // bytes of what is said of a failure
	MaxRetries    = 10                 // of a check, at once
	MaxRTT        = time.Hour          // of a result
	MaxTTL        = 7 * 24 * time.Hour // of a name

	MinCheckInterval = 100 * time.Millisecond
	MaxCheckInterval = 24 * time.Hour

	// HoldWork is how long the edge holds a request for work back for want of
	// news. The connector may send its next request meanwhile: the edge then
	// answers the one that it holds at once.
	HoldWork = 20 * time.Second
)

// WorkRequest is the body of POST /v1/work.
type WorkRequest struct {
	// Revision of the work that the connector does, which Results and Names
	// are about; 0: it does none, and asks for an answer at once. The edge
	// answers when it has another one, or after HoldWork.
	Revision uint64       `json:"revision"`
	Results  checkResults `json:"results,omitempty"` // of checks, oldest first, at most MaxResults
	Names    foundNames   `json:"names,omitempty"`   // what names resolved to, oldest first, at most MaxFound
}

// WorkAnswer is the answer to it. A connector that the edge has no work for is
// refused with CodeNotAllowed, and stops what it did.
type WorkAnswer struct {
	Revision uint64 `json:"revision"` // never 0
	Work            // all of it; none where Revision is that of the request
}

// Work is what a connector does for its edge besides flows.
type Work struct {
	Specs  workSpecs `json:"specs,omitempty"`  // at most MaxSpecs
	Checks checks    `json:"checks,omitempty"` // at most MaxChecks
	Names  names     `json:"names,omitempty"`  // at most MaxNames
}

// WorkSpec is one way to check. Durations are nanoseconds in JSON.
type WorkSpec struct {
	Check    json.RawMessage `json:"check"`             // a check.Spec
	Interval time.Duration   `json:"interval"`          // from the end of one check to the start of the next
	Timeout  time.Duration   `json:"timeout"`           // of one try
	Retries  int             `json:"retries,omitempty"` // tries at once after one that failed
}

// Check is one endpoint that is checked in one way.
type Check struct {
	ID   uint64         `json:"id"`   // the edge's name for it
	Spec int            `json:"spec"` // index into Work.Specs
	Addr netip.AddrPort `json:"addr"` // as the edge would dial it: aliases count
}

// Name is a private name that the connector's own resolver is asked for.
type Name struct {
	Host string `json:"host"`
}

// Class says in one word why a check failed.
type Class string

// Classes of failed checks. Any other, and none, is a failure of the check
// itself, as with an answer that was not the expected one.
const (
	ClassRefused     Class = "refused"
	ClassUnreachable Class = "unreachable"
	ClassDenied      Class = "denied" // by the connector's guard, or outside its routes
	ClassTimedOut    Class = "timed_out"
	ClassUnable      Class = "unable" // the connector cannot check: nothing is known of the endpoint
)

// CheckResult is what came of one check. The RTT is nanoseconds in JSON.
type CheckResult struct {
	ID      uint64        `json:"id"`
	RTT     time.Duration `json:"rtt,omitempty"`
	Error   string        `json:"error,omitempty"`   // empty: it passed; at most MaxCheckError
	Class   Class         `json:"class,omitempty"`   // of the error
	Expires int64         `json:"expires,omitempty"` // when the endpoint's certificate ends, in Unix seconds; 0: none was seen
}

// Found is what a name resolved to. The TTL is nanoseconds in JSON.
type Found struct {
	Host     string        `json:"host"`
	Addrs    addrs         `json:"addrs,omitempty"` // at most MaxAddrs
	TTL      time.Duration `json:"ttl,omitempty"`
	Error    string        `json:"error,omitempty"`     // empty: it resolved; at most MaxCheckError
	NotFound bool          `json:"not_found,omitempty"` // the error is the resolver's answer: there is no such name
}

// DecodeWork is Decode for the messages of PathWork, of at most MaxWorkBody
// bytes.
func DecodeWork(r io.Reader, into any) error { return decode(r, MaxWorkBody, into) }

// Clean brings the request within its bounds, and leaves out what makes no
// sense. Who sends one calls it, and who has read one.
func (r *WorkRequest) Clean() {
	r.Results = r.Results[:min(len(r.Results), MaxResults)]
	for i := range r.Results {
		r.Results[i].clean()
	}
	r.Names = r.Names[:min(len(r.Names), MaxFound)]
	kept := r.Names[:0]
	for _, n := range r.Names {
		if !isHost(n.Host) {
			continue
		}
		n.Addrs = cleanAddrs(n.Addrs)
		n.TTL = min(max(n.TTL, 0), MaxTTL)
		n.Error = cleanText(n.Error, MaxCheckError)
		if n.NotFound || n.Error != "" || len(n.Addrs) == 0 {
			n.Addrs, n.Error = nil, cmp.Or(n.Error, "no address")
		}
		kept = append(kept, n)
	}
	r.Names = kept
}

func (c *CheckResult) clean() {
	c.RTT = min(max(c.RTT, 0), MaxRTT)
	c.Expires = max(c.Expires, 0)
	switch c.Class {
	case "", ClassRefused, ClassUnreachable, ClassDenied, ClassTimedOut, ClassUnable:
	default: // of a later release
		c.Class, c.Error = "", cmp.Or(c.Error, "failed")
	}
	if c.Error == "" && c.Class == "" {
		return
	}
	c.Error = cmp.Or(cleanText(c.Error, MaxCheckError), "failed")
	c.RTT = 0
}

// Clean brings the work within its bounds, and leaves out what makes no sense:
// a spec that is no JSON, a check without a spec, what is there twice. It
// reports how many checks and names that were. Who sends work calls it, and
// who has read some. It writes to none of w's arrays.
func (w *Work) Clean() (checks, names int) {
	checks, names = len(w.Checks), len(w.Names)
	place := w.cleanSpecs()
	ids := make(map[uint64]bool, min(len(w.Checks), MaxChecks))
	kept := make([]Check, 0, min(len(w.Checks), MaxChecks))
	for _, c := range w.Checks {
		if len(kept) == MaxChecks {
			break
		}
		if c.Spec < 0 || c.Spec >= len(place) || place[c.Spec] < 0 || ids[c.ID] || !c.Addr.Addr().IsValid() {
			continue
		}
		ids[c.ID] = true
		c.Spec = place[c.Spec]
		c.Addr = netip.AddrPortFrom(c.Addr.Addr().Unmap().WithZone(""), c.Addr.Port())
		kept = append(kept, c)
	}
	w.Checks = kept
	known := make(map[string]bool, min(len(w.Names), MaxNames))
	hosts := make([]Name, 0, min(len(w.Names), MaxNames))
	for _, n := range w.Names {
		if len(hosts) < MaxNames && isHost(n.Host) && !known[n.Host] {
			known[n.Host] = true
			hosts = append(hosts, n)
		}
	}
	w.Names = hosts
	return checks - len(kept), names - len(hosts)
}

// cleanSpecs returns where each spec is now; -1: it is not.
func (w *Work) cleanSpecs() (place []int) {
	place = make([]int, len(w.Specs))
	kept := make([]WorkSpec, 0, min(len(w.Specs), MaxSpecs))
	size := 0
	for i, s := range w.Specs {
		place[i] = -1
		if len(kept) == MaxSpecs || len(s.Check) > MaxSpec {
			continue
		}
		text, err := json.Marshal(s.Check) // as it will be sent, which may be longer
		if err != nil || len(text) > MaxSpec || size+len(text) > MaxAllSpecs || text[0] != '{' {
			continue
		}
		size += len(text)
		s.Check = text
		s.Interval = min(max(s.Interval, MinCheckInterval), MaxCheckInterval)
		s.Timeout = min(max(s.Timeout, time.Millisecond), s.Interval)
		s.Retries = min(max(s.Retries, 0), MaxRetries)
		place[i] = len(kept)
		kept = append(kept, s)
	}
	w.Specs = kept
	return place
}

// isHost tells whether text can be a name that is asked for: what is wrong with
// it beyond that, a resolver says.
func isHost(text string) bool {
	if text == "" || len(text) > MaxHost {
		return false
	}
	for _, c := range []byte(text) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// cleanAddrs is the first MaxAddrs of list, without disguises and repetitions.
func cleanAddrs(list []netip.Addr) []netip.Addr {
	var kept []netip.Addr
	for _, a := range list {
		if a = a.Unmap().WithZone(""); a.IsValid() && len(kept) < MaxAddrs && !slices.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// cleanText is text fit for a log line, of at most limit bytes.
func cleanText(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text[:min(len(text), 4*limit)])
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "")
	}
	return strings.Clone(text) // or it would keep all of what it was cut from
}
