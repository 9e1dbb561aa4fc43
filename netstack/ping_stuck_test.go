package netstack

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// A link without room holds no ping longer than its context, and no more
// requests than there are places.
func TestPingEndsWithAStuckLink(t *testing.T) {
	near, far := newWire(1400)
	defer far.Close()
	link := &stuckLink{wireEnd: near, freed: make(chan struct{})}
	s := newStack(t, Config{})
	nic := addNIC(t, s, NICConfig{Link: link, Sources: []netip.Addr{source4}})
	link.stuck.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := nic.Ping(ctx, host4); !errors.Is(err, netx.ErrTimedOut) {
		t.Errorf("the ping ended with %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	var pinging sync.WaitGroup
	for range maxPings {
		pinging.Go(func() { _, _ = nic.Ping(gone, host4) })
	}
	waitFor(t, func() bool {
		nic.pings.mu.Lock()
		defer nic.pings.mu.Unlock()
		return len(nic.pings.waiting)+nic.pings.stuck == maxPings
	})
	cancel()
	pinging.Wait()
	if _, err := nic.Ping(t.Context(), host4); !errors.Is(err, errTooManyPings) {
		t.Errorf("one request too many: %v", err)
	}
	nic.Remove()
	s.Close() // waits for the requests
	nic.pings.mu.Lock()
	defer nic.pings.mu.Unlock()
	if nic.pings.stuck != 0 || len(nic.pings.waiting) != 0 {
		t.Errorf("%d requests are left, and %d pings", nic.pings.stuck, len(nic.pings.waiting))
	}
}
