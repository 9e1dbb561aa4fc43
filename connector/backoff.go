package connector

import (
	"math/rand/v2"
	"time"
)

// Back-off between attempts to reach an edge: what is resolved and tried again
// comes after about 1, 2, 4, … and at most 30 s. The tunnel calls the edge more
// often than that all the while; these are only new names and other addresses.
const (
	backoffFirst = time.Second
	backoffMax   = 30 * time.Second
)

// backoff counts failed attempts. The zero value is ready.
type backoff struct {
	failures int
}

// next returns how long to wait after one more failure: doubled each time,
// with a quarter of jitter to either side, so that connectors which lost the
// same edge do not come back at once.
func (b *backoff) next() time.Duration {
	d := backoffMax
	if b.failures < 5 {
		d = min(backoffFirst<<b.failures, backoffMax)
	}
	b.failures++
	return jittered(d)
}

// jittered is d, or up to a quarter of it less or more.
func jittered(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2) }

// reset forgets the failures.
func (b *backoff) reset() { b.failures = 0 }
