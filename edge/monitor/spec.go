package monitor

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/warrenmesh/warren/check"
)

// Who runs a monitor's checks.
const (
	RunByEdge      = "edge"      // this edge, through the tunnel
	RunByConnector = "connector" // a connector of the network, where it stands
)

// Defaults of a Spec's fields, and their bounds.
const (
	DefaultInterval = 5 * time.Second
	DefaultTimeout  = 2 * time.Second
	DefaultRise     = 2
	DefaultFall     = 2

	MinInterval = 100 * time.Millisecond
	MaxInterval = 24 * time.Hour
	MaxCount    = 100 // of Rise and of Fall
	MaxRetries  = 10
)

// Spec is one monitor of the configuration.
type Spec struct {
	// Name is what pools refer to.
	Name string
	// Check is what a check does.
	Check check.Spec
	// Interval is the time from the end of one check to the start of the
	// next, give or take a tenth. Default 5s, 100ms to 24h.
	Interval time.Duration
	// Timeout is how long one check, or one of its retries, may take. Default
	// 2s, or Interval where that is shorter; never longer than Interval.
	Timeout time.Duration
	// Retries is how often a check that fails is repeated at once before it
	// counts as failed. Default 0, at most 10.
	Retries int
	// Rise is how many checks in a row must pass before an endpoint that was
	// down is up. Default 2, 1 to 100.
	Rise int
	// Fall is how many checks in a row must fail before an endpoint that was
	// up is down. Default 2, 1 to 100.
	Fall int
	// RunBy is who runs the checks: "edge", which is the default, or
	// "connector".
	RunBy string
}

// WithDefaults returns s with its empty fields filled in.
func (s Spec) WithDefaults() Spec {
	s.Check = s.Check.WithDefaults()
	if s.RunBy == "" {
		s.RunBy = RunByEdge
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
	s.Check.Validate(report)
	if s.RunBy != RunByEdge && s.RunBy != RunByConnector {
		report("run_by", s.RunBy, "use one of: "+RunByEdge+" "+RunByConnector)
	}
	if s.Interval < MinInterval || s.Interval > MaxInterval {
		report("interval", s.Interval.String(), fmt.Sprintf("use %s to %s", MinInterval, MaxInterval))
	}
	if s.Timeout < time.Millisecond || s.Timeout > s.Interval {
		report("timeout", s.Timeout.String(), fmt.Sprintf("use 1ms up to the interval, %s", s.Interval))
	}
	if s.Retries < 0 || s.Retries > MaxRetries {
		report("retries", fmt.Sprint(s.Retries), fmt.Sprintf("use 0 to %d", MaxRetries))
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

// Task is a check that connectors run: every Spec.Interval, as a check of the
// edge's own is, with Spec.Timeout and Spec.Retries.
type Task struct {
	// ID names the task for as long as it is watched with these settings, and
	// is never used again.
	ID      uint64
	Network string
	Addr    netip.AddrPort
	// Spec has defaults filled in and no Name, which several monitors may
	// share. Tasks with the same settings share the pointer.
	Spec *Spec
}
