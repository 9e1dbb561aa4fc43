package netstack

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Defaults of ForwardPingConfig. An edge that monitors 5,000 endpoints by ping
// every 5 s asks 1,000 times a second.
const (
	// DefaultPendingPings is how many pings of one destination may wait for
	// its answer.
	DefaultPendingPings = 32
	// DefaultPendingPingsTotal is how many may wait in all. Each holds a
	// goroutine, its packet and a socket of the handler's.
	DefaultPendingPingsTotal = 2048
	// DefaultPingRate is how many a second are taken, and at once.
	DefaultPingRate = 2000
)

// whyEchoRate: an echo request beyond the pace.
const whyEchoRate = "echo_rate"

// ForwardPingConfig says what becomes of echo requests that arrive.
type ForwardPingConfig struct {
	// Handler is called for each echo request, on a goroutine of its own, with
	// who sent it, whom it wants and how many bytes of data it carries. Where
	// it returns nil, the request is answered: same identifier, sequence number
	// and data. An error that is netx.ErrTimedOut is answered with ICMP net
	// unreachable (IPv6: no route), which says so between our own ends, and any
	// other with ICMP host unreachable (IPv6: address unreachable). It must end
	// soon after ctx does, which is when the NIC is removed or the Stack
	// closed; nothing is answered then.
	Handler func(ctx context.Context, src, dst netip.Addr, size int) error

	Pending      int // per destination; default DefaultPendingPings. Beyond it: host unreachable, counted
	PendingTotal int // default DefaultPendingPingsTotal; beyond it likewise
	Rate         int // a second, and as a burst; default DefaultPingRate. Beyond it: dropped, counted
}

// pingForwarder hands echo requests to the handler.
type pingForwarder struct {
	stack *Stack

	mu      sync.Mutex // guards what follows
	cfg     ForwardPingConfig
	pace    *rate.Limiter
	pending int
	perDest map[netip.Addr]int
}

func (f *pingForwarder) init(s *Stack) { f.stack = s }

// ForwardPing sets what becomes of echo requests that arrive at a promiscuous
// stack; until then nobody is reachable. It may be called again.
func (s *Stack) ForwardPing(cfg ForwardPingConfig) error {
	if !s.cfg.Promiscuous || cfg.Handler == nil {
		return errors.New("forwarding pings: a promiscuous stack and a handler are required")
	}
	if cfg.Pending <= 0 {
		cfg.Pending = DefaultPendingPings
	}
	if cfg.PendingTotal <= 0 {
		cfg.PendingTotal = DefaultPendingPingsTotal
	}
	if cfg.Rate <= 0 {
		cfg.Rate = DefaultPingRate
	}
	s.ping.mu.Lock()
	defer s.ping.mu.Unlock()
	s.ping.cfg = cfg
	s.ping.pace = rate.NewLimiter(rate.Limit(cfg.Rate), cfg.Rate)
	return nil
}

// handle takes the echo request e, which is the packet b and keeps it. It runs
// inside delivery and must not block.
func (f *pingForwarder) handle(nic *NIC, b []byte, e *echo) (why string) {
	handler, why := f.admit(e.dst)
	if why != "" {
		if why != whyEchoRate {
			nic.writeUnreachable(quoteEcho(b), netx.ErrUnreachable)
		}
		return why
	}
	request := *e
	if !f.stack.spawn(func() {
		defer f.done(request.dst)
		f.serve(nic, handler, b, &request)
	}) {
		f.done(request.dst)
		return whyGone
	}
	return ""
}

// serve asks the handler and answers.
func (f *pingForwarder) serve(nic *NIC, handler pingHandler, b []byte, e *echo) {
	err := handler(nic.ctx, e.src, e.dst, len(e.data))
	switch {
	case nic.ctx.Err() != nil:
	case err == nil:
		nic.writeEcho(e.answer())
	case netx.Classify(err) == netx.ErrTimedOut:
		nic.writeUnreachable(quoteEcho(b), netx.ErrTimedOut)
	default:
		nic.writeUnreachable(quoteEcho(b), netx.ErrUnreachable)
	}
}

type pingHandler = func(ctx context.Context, src, dst netip.Addr, size int) error

// admit takes a place for a ping of dst; done gives it back.
func (f *pingForwarder) admit(dst netip.Addr) (pingHandler, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.cfg.Handler == nil:
		return nil, whyNoForwarder
	case !f.pace.Allow():
		return nil, whyEchoRate
	case f.pending >= f.cfg.PendingTotal:
		return nil, whyPendingAll
	case f.perDest[dst] >= f.cfg.Pending:
		return nil, whyPending
	}
	if f.perDest == nil {
		f.perDest = make(map[netip.Addr]int)
	}
	f.pending++
	f.perDest[dst]++
	return f.cfg.Handler, ""
}

func (f *pingForwarder) done(dst netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending--
	if f.perDest[dst]--; f.perDest[dst] == 0 {
		delete(f.perDest, dst)
	}
}

// quoteEcho is what an ICMP error holds of the echo request b, which parseEcho
// has accepted.
func quoteEcho(b []byte) []byte {
	hlen := ip6HeaderLen
	if b[0]>>4 == 4 {
		hlen = int(b[0]&0x0f) * 4
	}
	return b[:hlen+icmpHeaderLen]
}
