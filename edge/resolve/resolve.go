// Package resolve keeps the addresses of the names that pools and apps point
// at. It answers from memory; asking goes on behind.
//
// New makes a Resolver, Apply tells it the names, Addrs answers. A name of the
// network "@public" is asked of the edge's own resolver, by a lookup that is
// injected; a name of a virtual network is private, and only its connectors
// can resolve it: their answers come in through Report. OnChange tells when
// the addresses of any name are other ones. Stop ends all of it and waits.
//
// A name that cannot be resolved any more keeps the addresses that it had,
// for a bounded time, and its Answer says so:
//
//	          an answer                 a failure, or no report in time
//	unknown ────────────▶ fresh ─────────────────────────────▶ stale
//	                        ▲  │ other addresses: OnChange        │
//	                        │◀─┘                                  │
//	                        └──────────── an answer ──────────────┤
//	unknown ◀─────────────── OnChange ─── MaxAge, or "no such name" for NotFoundAge
//
// The package never dials an address, and judges only whether one can be an
// endpoint's at all.
package resolve

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Public is the network of names that the edge resolves itself.
const Public = "@public"

const (
	// MaxAge is how long the last known addresses outlive the last answer.
	MaxAge = 24 * time.Hour
	// NotFoundAge is how long they do so when what is heard instead is that
	// the name does not exist: long enough for a zone that was broken by a
	// mistake, short enough for one that was emptied on purpose.
	NotFoundAge = 10 * time.Minute
	// MaxAddrs is how many addresses of a name are used, the lowest of them.
	MaxAddrs = 64
)

// ErrUnknown: nobody has answered for the name yet.
var ErrUnknown = errors.New("not resolved yet")

// Name is a name in a network.
type Name struct {
	// Network is a virtual network, or Public.
	Network string
	Host    string
}

// Answer is what is known of a name.
type Answer struct {
	// Addrs are sorted and must not be changed.
	Addrs []netip.Addr
	// Err says why there is no newer answer; nil while Addrs are fresh. With
	// Addrs it means that they are the last known good ones.
	Err error
	// At is when Addrs were learnt, zero if there are none.
	At time.Time
	// Expires is when Addrs cease to be fresh unless they are learnt again.
	Expires time.Time
}

// Stale reports whether Addrs are the last known good ones of a name that
// cannot be resolved now.
func (a Answer) Stale() bool { return len(a.Addrs) > 0 && a.Err != nil }

// Status is a name and what is known of it, for an operator.
type Status struct {
	Name
	Answer
	// Asked is when the name was last asked or reported; zero if never.
	Asked time.Time
	// Failures is how many times in a row there was no answer.
	Failures int
}

// Deps are what a Resolver works with.
type Deps struct {
	// Lookup resolves a public name. It honours ctx; ttl is for how long the
	// addresses, or the error that says that there is no such name (one that
	// wraps a *net.DNSError with IsNotFound), are good. Required.
	Lookup func(ctx context.Context, host string) (addrs []netip.Addr, ttl time.Duration, err error)
	// OnChange, if set, is called after the addresses of any name have
	// changed; one call may stand for many changes. Calls come one after the
	// other, from a goroutine of the Resolver's; it may call everything but
	// Stop.
	OnChange func()
	// Concurrency bounds the lookups at one time. Default 32.
	Concurrency int
}
