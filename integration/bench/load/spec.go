package load

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// The kinds of load.
const (
	KindBulk    = "bulk"    // streams of bytes as fast as they go
	KindRR      = "rr"      // a request and its answer, over and over, on connections that stay
	KindPing    = "ping"    // rr by one worker at a low rate, to run beside another load
	KindConnect = "connect" // connect, a byte each way, close
	KindUDP     = "udp"     // datagrams to an echo
	KindIdle    = "idle"    // connections that do nothing
)

// The directions of bulk.
const (
	Up   = "up"   // client to origin
	Down = "down" // origin to client
	Both = "both" // Streams connections up and as many down, at once
)

// Who closes a connection first.
const (
	ByClient = "client"
	ByOrigin = "origin"
)

// Bounds of a Spec, which keep a typing error from filling the memory.
const (
	maxStreams  = 60000
	maxSize     = 1 << 20
	minDatagram = headerSize
	maxDatagram = 8972 // what one packet of MTU 9000 holds
	maxDuration = time.Hour
)

// Spec says what a client does. It crosses processes as JSON; the two
// functions do not.
type Spec struct {
	// Kind is one of the Kind constants.
	Kind string `json:"kind"`
	// Target is what the client connects to: the contender's listener that
	// leads to the origin's port for this kind.
	Target netip.AddrPort `json:"target"`
	// Sources are addresses of the client's own machine to take in turn, for
	// more ports than one address has. None: the kernel chooses.
	Sources []netip.Addr `json:"sources,omitempty"`
	// Direction of bulk: Up, Down or Both.
	Direction string `json:"direction,omitempty"`
	// Streams is the number of bulk streams each way, of workers of rr and
	// connect, of udp flows, of idle connections. Default 1.
	Streams int `json:"streams,omitempty"`
	// Size is the payload of a request (default 64) or of a datagram (32 to
	// 8972, default 1200), in bytes.
	Size int `json:"size,omitempty"`
	// Warmup is how long the load runs before anything counts: slow start,
	// first sessions, caches. Bulk wants a second at least.
	Warmup time.Duration `json:"warmup,omitempty"`
	// Duration is how long it counts. Idle without one holds until the
	// context ends.
	Duration time.Duration `json:"duration,omitempty"`
	// Rate is the number of operations a second, of all workers together
	// (open loop). 0 is closed loop: each worker begins an operation when
	// its last one ends. Ping: default 100.
	Rate float64 `json:"rate,omitempty"`
	// Closer of connect: ByClient (Target leads to PortConnect) or ByOrigin
	// (Target leads to PortGreet).
	Closer string `json:"closer,omitempty"`
	// Timeout is how long an operation may take. Default 10 s; udp, where it
	// frees a place in the window, 250 ms.
	Timeout time.Duration `json:"timeout,omitempty"`

	// Began is called once where counting begins: after the warm-up, or once
	// all idle connections are open. Ended is called where it ends. Both from
	// a goroutine of Run's, and before Run returns.
	Began func() `json:"-"`
	Ended func() `json:"-"`
}

// Validate reports everything that is wrong with s, or nil.
func (s Spec) Validate() error {
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	kinds := []string{KindBulk, KindRR, KindPing, KindConnect, KindUDP, KindIdle}
	check(slices.Contains(kinds, s.Kind), "kind %q is none of %q", s.Kind, kinds)
	check(s.Target.IsValid() && s.Target.Port() != 0, "target %q is not an address with a port", s.Target)
	for _, source := range s.Sources {
		check(source.Is4() == s.Target.Addr().Is4(), "source %q is not of the target's family", source)
	}
	check(s.Streams >= 0 && s.Streams <= maxStreams, "streams %d is outside 0 to %d", s.Streams, maxStreams)
	check(s.Kind != KindPing || s.Streams <= 1, "streams %d: a ping is one worker", s.Streams)
	check(s.Warmup >= 0 && s.Warmup <= maxDuration, "warmup %v is outside 0 to %v", s.Warmup, maxDuration)
	check(s.Timeout >= 0 && s.Timeout <= maxDuration, "timeout %v is outside 0 to %v", s.Timeout, maxDuration)
	check(s.Duration >= 0 && s.Duration <= maxDuration, "duration %v is outside 0 to %v", s.Duration, maxDuration)
	check(s.Duration > 0 || s.Kind == KindIdle, "duration is missing")
	if s.Kind == KindBulk {
		check(slices.Contains([]string{Up, Down, Both}, s.Direction), "direction %q is none of up, down, both", s.Direction)
	} else {
		check(s.Direction == "", "direction %q: only bulk has one", s.Direction)
	}
	if s.Kind == KindConnect {
		check(s.Closer == ByClient || s.Closer == ByOrigin, "closer %q is neither client nor origin", s.Closer)
	} else {
		check(s.Closer == "", "closer %q: only connect has one", s.Closer)
	}
	switch s.Kind {
	case KindRR, KindPing:
		check(s.Size >= 0 && s.Size <= maxSize, "size %d is outside 0 to %d", s.Size, maxSize)
	case KindUDP:
		check(s.Size == 0 || s.Size >= minDatagram && s.Size <= maxDatagram, "size %d is outside %d to %d", s.Size, minDatagram, maxDatagram)
	default:
		check(s.Size == 0, "size %d: %s has none", s.Size, s.Kind)
	}
	check(s.Rate >= 0 && s.Rate <= 1e7, "rate %v is outside 0 to 10,000,000", s.Rate)
	check(s.Rate == 0 || s.Kind != KindBulk && s.Kind != KindIdle, "rate %v: %s has none", s.Rate, s.Kind)
	return errors.Join(problems...)
}

// filled returns s with its defaults.
func (s Spec) filled() Spec {
	s.Streams = max(s.Streams, 1)
	if s.Timeout == 0 {
		s.Timeout = 10 * time.Second
		if s.Kind == KindUDP {
			s.Timeout = 250 * time.Millisecond
		}
	}
	if s.Size == 0 {
		switch s.Kind {
		case KindRR, KindPing:
			s.Size = 64
		case KindUDP:
			s.Size = 1200
		}
	}
	if s.Kind == KindPing && s.Rate == 0 {
		s.Rate = 100
	}
	if s.Began == nil {
		s.Began = func() {}
	}
	if s.Ended == nil {
		s.Ended = func() {}
	}
	return s
}
