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
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

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
	// Err says what was wrong; nil if the check passed.
	Err error
	// Expires is when the endpoint's certificate ends (tls and https); zero
	// where none was seen.
	Expires time.Time
}

// Check is a Spec that is ready to run. It is immutable.
type Check struct {
	spec Spec
	run  func(c *Check, ctx context.Context, d Dialer, addr netip.AddrPort) Result
}

// New prepares s, which should have passed Validate; what it did not is the
// error. It reads no file: Load does.
func New(s Spec) (*Check, error) {
	if !slices.Contains(Types(), s.WithDefaults().Type) {
		return nil, fmt.Errorf("unknown type %q; use one of: %s", s.Type, strings.Join(Types(), " "))
	}
	return &Check{spec: s, run: (*Check).tcp}, nil
}

// Run makes one check of addr. It returns when ctx ends at the latest, which
// should have a deadline.
func (c *Check) Run(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	return c.run(c, ctx, d, addr)
}

// Run makes one check of addr as s says. Who makes it again and again uses New.
func Run(ctx context.Context, d Dialer, addr netip.AddrPort, s *Spec) Result {
	c, err := New(*s)
	if err != nil {
		return Result{Err: err}
	}
	return c.Run(ctx, d, addr)
}

func (c *Check) tcp(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	start := time.Now()
	conn, err := d.Dial(ctx, "tcp", addr)
	took := time.Since(start)
	if err != nil {
		return Result{Err: err}
	}
	netx.Abort(conn)
	if late(ctx) {
		return Result{Err: netx.ErrTimedOut}
	}
	return Result{RTT: took}
}

// late reports whether ctx's deadline has passed: a dialer that does not
// honour it must not make a slow endpoint pass.
func late(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && time.Now().After(deadline) || errors.Is(ctx.Err(), context.DeadlineExceeded)
}
