// Package check makes one health check of one endpoint: it connects, asks, and
// judges the answer.
//
// A Spec says what to ask. New prepares it, once, into a Check that any number
// of goroutines may Run against any number of endpoints; the function Run does
// both for a check that is made only once. Everything reaches the endpoint
// through a Dialer that the caller gives, so that an edge checks through its
// tunnel and a connector from where it stands, with the same code. How often a
// check is made, and what its results amount to, is the caller's business.
//
// A check believes nothing that an endpoint sends: what it reads is bounded,
// and nothing outlives Run, neither a socket nor a goroutine. TCP connections
// are aborted, for a close would leave a TIME_WAIT behind at each end and at
// the connector. An error says in a few words what was wrong, and never holds
// a header's value.
package check

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Bounds of what a check reads, and of what it follows.
const (
	MaxRead      = 64 << 10 // bytes of an answer's headers, and again of its body
	MaxRedirects = 5
)

// ErrUnable is a check that could not be made, for a reason that is not the
// endpoint's. A Dialer's error may wrap it, as may what is known of a check that
// somebody else has made.
var ErrUnable = errors.New("the check could not be made")

// Dialer reaches endpoints. It honours ctx, and its failures wrap the Err
// values of netx where one fits.
type Dialer interface {
	// Dial opens a connection to addr; proto is "tcp" or "udp". For "tcp" it
	// returns only once the endpoint has accepted. A datagram conn reports a
	// port-unreachable as netx.ErrRefused (or what netx.Classify takes for it)
	// when it is read or written.
	Dial(ctx context.Context, proto string, addr netip.AddrPort) (net.Conn, error)
	// Ping sends an ICMP echo request and returns once it is answered.
	Ping(ctx context.Context, addr netip.Addr) error
}

// Result is the outcome of one check.
type Result struct {
	// RTT is how long the connect took, or the answer to the question (udp,
	// icmp, dns). 0 if the check failed or nothing came back.
	RTT time.Duration
	// Err says what was wrong; nil if the check passed. It wraps what the
	// Dialer's error did if the endpoint could not be reached, an Err value of
	// netx say, and nothing if it answered wrongly or too late.
	Err error
	// Expires is when the endpoint's certificate ends (tls and https), even if
	// the check failed; zero where none was seen.
	Expires time.Time
}

// Check is a Spec that is ready to run. It is immutable.
type Check struct {
	spec Spec
	run  func(c *Check, ctx context.Context, d Dialer, addr netip.AddrPort) Result

	send, expect []byte         // tcp, udp
	roots        *x509.CertPool // tls, https; nil: the system's
	codes        codes          // http, https
	headers      string         // http, https: the lines that no endpoint changes
	question     dns.Question   // dns
	rcode        int            // dns
}

// New prepares s. The first thing that Validate has to say is its error. It
// reads no file: Load does.
func New(s Spec) (*Check, error) {
	s = s.WithDefaults()
	var err error
	s.Validate(func(path, value, hint string) {
		switch {
		case err != nil:
		case path == "type":
			err = fmt.Errorf("unknown type %q; %s", value, hint)
		default:
			err = fmt.Errorf("%s %q: %s", path, value, hint)
		}
	})
	if err != nil {
		return nil, err
	}
	c := &Check{spec: s}
	c.prepare()
	return c, nil
}

// prepare reads the fields of the type, which have passed Validate.
func (c *Check) prepare() {
	s := &c.spec
	switch s.Type {
	case TypeTCP, TypeUDP:
		c.run = (*Check).tcp
		if s.Type == TypeUDP {
			c.run = (*Check).udp
		}
		c.send, _ = payload(s.Send, s.SendHex)
		c.expect, _ = payload(s.Expect, s.ExpectHex)
	case TypeTLS:
		c.run = (*Check).tls
		c.roots, _ = authorities(s.CA)
	case TypeHTTP, TypeHTTPS:
		c.run = (*Check).http
		c.roots, _ = authorities(s.CA)
		c.codes, _ = parseCodes(s.ExpectedCodes)
		c.headers = headerLines(s.Headers)
	case TypeICMP:
		c.run = (*Check).icmp
	case TypeDNS:
		c.run = (*Check).dns
		c.question = dns.Question{Name: dns.Fqdn(s.Question), Qtype: recordTypes()[s.RecordType], Qclass: dns.ClassINET}
		c.rcode = rcodes()[s.ExpectedRcode]
	case TypePostgres:
		c.run = (*Check).postgres
	case TypeSMTP:
		c.run = (*Check).smtp
	case TypeRedis:
		c.run = (*Check).redis
	}
}

// Run makes one check of addr. It returns when ctx ends at the latest, which
// should have a deadline.
func (c *Check) Run(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	r := c.run(c, ctx, d, addr)
	if r.Err == nil && late(ctx) {
		r.Err = netx.ErrTimedOut
	}
	if r.Err != nil {
		r.RTT = 0
	}
	return r
}

// Run makes one check of addr as s says. Who makes it again and again uses New.
func Run(ctx context.Context, d Dialer, addr netip.AddrPort, s *Spec) Result {
	c, err := New(*s)
	if err != nil {
		return Result{Err: err}
	}
	return c.Run(ctx, d, addr)
}

// late reports whether ctx's deadline has passed: a dialer that does not
// honour it must not make a slow endpoint pass.
func late(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && time.Now().After(deadline) || errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// icmp pings.
func (c *Check) icmp(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	start := time.Now()
	if err := d.Ping(ctx, addr.Addr()); err != nil {
		return Result{Err: err}
	}
	return Result{RTT: time.Since(start)}
}
