// Package drops counts what a room throws away, by reason. Nothing in Warren
// drops a packet, a datagram or a flow without a count here; the edge turns
// the counts into warren_drops_total{where,why}.
//
// The reasons are a fixed set of constants in the room that drops: a Counter
// must never be given text that came from the network.
package drops

import (
	"sync"
	"sync/atomic"
)

// Counter counts drops of one place. The zero value works; a Counter must not
// be copied. All methods may be called concurrently, and counting a reason
// that was counted before takes no lock and does not allocate.
type Counter struct {
	counts sync.Map // reason (string) → *atomic.Uint64
}

// Add counts n drops for the reason why.
func (c *Counter) Add(why string, n uint64) {
	v, ok := c.counts.Load(why)
	if !ok {
		v, _ = c.counts.LoadOrStore(why, new(atomic.Uint64))
	}
	v.(*atomic.Uint64).Add(n)
}

// Count returns how often why was counted.
func (c *Counter) Count(why string) uint64 {
	v, ok := c.counts.Load(why)
	if !ok {
		return 0
	}
	return v.(*atomic.Uint64).Load()
}

// Total returns the sum over all reasons.
func (c *Counter) Total() uint64 {
	var sum uint64
	c.counts.Range(func(_, v any) bool {
		sum += v.(*atomic.Uint64).Load()
		return true
	})
	return sum
}

// Each calls yield with every reason and its count, in no order.
func (c *Counter) Each(yield func(why string, n uint64)) {
	c.counts.Range(func(k, v any) bool {
		yield(k.(string), v.(*atomic.Uint64).Load())
		return true
	})
}
