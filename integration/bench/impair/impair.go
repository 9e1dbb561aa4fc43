// Package impair is a bad cable: a router between two TUN devices that delays,
// loses and reorders packets, for kernels without netem.
//
// Parse reads a Spec from text, Open makes a TUN device in the network
// namespace of the calling thread, Start runs a router between two devices.
// What happens to a packet is decided by Queue, which knows no device and no
// clock.
//
// The package must never change a packet, and never treat one contender's
// packets otherwise than another's: every router draws its lots from the same
// seed.
package impair

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Spec is how bad the cable is. The zero value is a cable that does nothing.
type Spec struct {
	// Delay is what the cable adds to a round trip; each direction has half.
	Delay time.Duration
	// Loss is the share of packets that vanish, in each direction.
	Loss float64
	// Reorder is the share of packets, in each direction, that are held back
	// by reorderBy and so overtaken by those behind them.
	Reorder float64
}

// reorderBy is how late a reordered packet is: enough to be overtaken by some
// dozen packets of a bulk transfer at 200 Mbit/s, and less than a quarter of
// a round trip of 20 ms, which is what RACK forgives (RFC 8985 section 6.2).
const reorderBy = time.Millisecond

// Parse reads "delay=20ms,loss=0.1%,reorder=1%". Any part may be left out;
// empty text is the zero Spec.
func Parse(text string) (Spec, error) {
	var s Spec
	if text == "" {
		return s, nil
	}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		if seen[key] {
			return Spec{}, fmt.Errorf("reading %q: %q is there twice", text, key)
		}
		seen[key] = true
		var err error
		switch key {
		case "delay":
			s.Delay, err = time.ParseDuration(value)
			if err == nil && (s.Delay < 0 || s.Delay > maxDelay) {
				err = fmt.Errorf("want 0s to %v", maxDelay)
			}
		case "loss":
			s.Loss, err = share(value)
		case "reorder":
			s.Reorder, err = share(value)
		default:
			err = fmt.Errorf("want delay=, loss= or reorder=")
		}
		if err != nil {
			return Spec{}, fmt.Errorf("reading %q in %q: %w", part, text, err)
		}
	}
	return s, nil
}

// maxDelay is past any round trip on Earth, and what Queue can hold of it.
const maxDelay = 2 * time.Second

// share reads a percentage.
func share(text string) (float64, error) {
	number, ok := strings.CutSuffix(text, "%")
	if !ok {
		return 0, fmt.Errorf("want a percentage, as in 0.1%%")
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, err
	}
	if !(f >= 0 && f <= 100) {
		return 0, fmt.Errorf("want 0%% to 100%%")
	}
	return f / 100, nil
}

// String is the text that Parse reads.
func (s Spec) String() string {
	var parts []string
	if s.Delay != 0 {
		parts = append(parts, "delay="+s.Delay.String())
	}
	if s.Loss != 0 {
		parts = append(parts, "loss="+strconv.FormatFloat(s.Loss*100, 'g', -1, 64)+"%")
	}
	if s.Reorder != 0 {
		parts = append(parts, "reorder="+strconv.FormatFloat(s.Reorder*100, 'g', -1, 64)+"%")
	}
	return strings.Join(parts, ",")
}
