package load

import (
	"math"
	"math/bits"
	"time"
)

// A histogram has subBuckets buckets for each power of two, so that a bucket
// is at most 1/128 as wide as its values are large; a quantile is given as the
// middle of its bucket, which is wrong by 0.4 % at most. Below 128 ns it is
// exact, above 2^38 ns (4.6 minutes) everything falls into the last bucket.
const (
	subBits    = 7
	subBuckets = 1 << subBits
	topBits    = 38
	buckets    = (topBits - subBits + 1) * subBuckets
)

// histogram counts durations in a fixed space of 32 KiB. The zero value is
// ready.
type histogram struct {
	counts [buckets]uint64
	n      uint64
	sum    time.Duration
	max    time.Duration
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.counts[bucket(uint64(d))]++
	h.n++
	h.sum += d
	h.max = max(h.max, d)
}

func (h *histogram) merge(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.n += other.n
	h.sum += other.sum
	h.max = max(h.max, other.max)
}

// quantile returns the smallest recorded value that at least q of all values
// do not exceed (nearest rank), or 0 where nothing was recorded.
func (h *histogram) quantile(q float64) time.Duration {
	rank := max(1, uint64(math.Ceil(q*float64(h.n))))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= rank {
			return min(middle(i), h.max)
		}
	}
	return 0
}

// bucket returns the bucket of v. With e the number of low bits that are left
// out, v>>e is in [subBuckets, 2·subBuckets), and the buckets of e follow
// those of e-1.
func bucket(v uint64) int {
	e := max(0, bits.Len64(v)-subBits-1)
	return min(e<<subBits+int(v>>e), buckets-1)
}

// middle is the value in the middle of a bucket.
func middle(i int) time.Duration {
	e := max(0, i>>subBits-1)
	low := uint64(i-e<<subBits) << e
	return time.Duration(low + 1<<e>>1)
}
