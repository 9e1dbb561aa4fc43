package monitor

import (
	"fmt"
	"net/netip"
	"time"
)

// TypeTCP is the check that opens a TCP connection and aborts it.
const TypeTCP = "tcp"

// Defaults of a Spec's fields, and their bounds.
const (
	DefaultInterval = 5 * time.Second
	DefaultTimeout  = 2 * time.Second
	DefaultRise     = 2
	DefaultFall     = 2

	MinInterval = 100 * time.Millisecond
	MaxInterval = 24 * time.Hour
	MaxCount    = 100 // of Rise and of Fall
)

// Spec is one monitor of the configuration.
type Spec struct {
	// Name is what pools refer to.
	Name string
	// Type is the kind of check; empty is "tcp".
	Type string
	// Interval is the time from the end of one check to the start of the
	// next, give or take a tenth. Default 5s, 100ms to 24h.
	Interval time.Duration
	// Timeout is how long one check may take. Default 2s, or Interval where
	// that is shorter; never longer than Interval.
	Timeout time.Duration
	// Rise is how many checks in a row must pass before an endpoint that was
	// down is up. Default 2, 1 to 100.
	Rise int
	// Fall is how many checks in a row must fail before an endpoint that was
	// up is down. Default 2, 1 to 100.
	Fall int
}

// WithDefaults returns s with its empty fields filled in.
func (s Spec) WithDefaults() Spec {
	if s.Type == "" {
		s.Type = TypeTCP
	}
	if s.Interval == 0 {
		s.Interval = DefaultInterval
	}
	if s.Timeout == 0 {
		s.Timeout = min(DefaultTimeout, s.Interval)
	}
	if s.Rise == 0 {
		s.Rise = DefaultRise
	}
	if s.Fall == 0 {
		s.Fall = DefaultFall
	}
	return s
}

// Validate calls report for every problem of the monitor, with the defaults
// filled in. path is the key that is wrong, value what it holds, hint what to
// do.
func (s Spec) Validate(report func(path, value, hint string)) {
	s = s.WithDefaults()
	if s.Name == "" {
		report("name", "", "give the monitor a name for pools to refer to")
	}
	if s.Type != TypeTCP {
		report("type", s.Type, "use one of: "+TypeTCP)
	}
	if s.Interval < MinInterval || s.Interval > MaxInterval {
		report("interval", s.Interval.String(), fmt.Sprintf("use %s to %s", MinInterval, MaxInterval))
	}
	if s.Timeout < time.Millisecond || s.Timeout > s.Interval {
		report("timeout", s.Timeout.String(), fmt.Sprintf("use 1ms up to the interval, %s", s.Interval))
	}
	if s.Rise < 1 || s.Rise > MaxCount {
		report("rise", fmt.Sprint(s.Rise), fmt.Sprintf("use 1 to %d checks", MaxCount))
	}
	if s.Fall < 1 || s.Fall > MaxCount {
		report("fall", fmt.Sprint(s.Fall), fmt.Sprintf("use 1 to %d checks", MaxCount))
	}
}

// Target is an endpoint together with the monitor that watches it.
type Target struct {
	Network string // virtual network
	Addr    netip.AddrPort
	Monitor string // a Spec's Name
}

func (t Target) String() string {
	return fmt.Sprintf("%s/%s (monitor %q)", t.Network, t.Addr, t.Monitor)
}
