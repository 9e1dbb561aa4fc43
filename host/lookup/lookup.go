// Package lookup asks this machine's own resolver for the addresses of a name,
// and knows for how long an answer is good.
//
// New makes a Resolver, Lookup asks. It is the standard library's resolver
// with its conns tapped: /etc/hosts, search domains, ndots, several servers and
// the reload of resolv.conf are as in every other Go program, and the TTLs are
// read off the replies as they pass. Nothing is cached here: whoever asks keeps
// the answer for its TTL.
//
// The package never dials what it resolves, and judges no address.
package lookup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// MaxAddrs is how many addresses an answer holds at most. Of more, the
	// lowest are taken, so that the same set is always cut in the same way.
	MaxAddrs = 64
	// DefaultTTL is how long an answer is good that came without a TTL: an
	// address that needed no resolver, or a line of /etc/hosts.
	DefaultTTL = 30 * time.Second
	// DefaultTimeout bounds a lookup in time.
	DefaultTimeout = 10 * time.Second
	// partialTTL bounds the TTL of an answer where one of the two families was
	// not heard of, so that the other half is not missing for long.
	partialTTL = 5 * time.Second
)

// ErrNotFound: the resolver says that the name, or any address of it, does not
// exist. An error that wraps it wraps a *net.DNSError whose IsNotFound is set
// too, for those who do not import this package.
var ErrNotFound = errors.New("no such name")

// Deps are what a Resolver stands on. The zero value is this machine.
type Deps struct {
	// Dial opens the conns to the servers that resolv.conf names: network is
	// "udp" or "tcp", address the server's. A conn for "udp" must be a
	// net.PacketConn as well. Default: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout bounds one Lookup. Default 10 s.
	Timeout time.Duration
}

// Resolver asks. It is immutable, and safe for concurrent use.
type Resolver struct {
	deps Deps
}

// New makes a Resolver.
func New(deps Deps) *Resolver {
	if deps.Dial == nil {
		deps.Dial = new(net.Dialer).DialContext
	}
	if deps.Timeout <= 0 {
		deps.Timeout = DefaultTimeout
	}
	return &Resolver{deps: deps}
}

// Lookup returns the addresses of host, of both families, sorted, without
// duplicates, at least one and at most MaxAddrs, none of them IPv4-mapped or
// with a zone; and for how long they are good, which may be 0.
//
// An error that wraps ErrNotFound is an answer too, and ttl says for how long
// that is good (RFC 2308). Every other error is a failure to get an answer
// (no server answers, all of them fail, ctx is done) and has no ttl.
func (r *Resolver) Lookup(ctx context.Context, host string) (addrs []netip.Addr, ttl time.Duration, err error) {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return nil, 0, fmt.Errorf("resolving %q: an address with a zone means something on this machine alone: leave out the zone", host)
		}
		return []netip.Addr{a.Unmap()}, DefaultTTL, nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.deps.Timeout)
	defer cancel()
	// A net.Resolver of its own for each lookup: it would merge questions that
	// are asked at one time, and only one of them would see the replies.
	tap := newTap(r.deps.Dial)
	defer tap.close()
	found, err := (&net.Resolver{PreferGo: true, Dial: tap.dial}).LookupNetIP(ctx, "ip", host)
	seen := tap.close()
	if err == nil {
		if addrs = tidy(found); len(addrs) > 0 {
			return addrs, seen.positive(), nil
		}
		err = &net.DNSError{Err: "no usable address", Name: host, IsNotFound: true}
	}
	return nil, seen.negative(err), explain(host, err, seen)
}

// explain makes the error of a lookup. What the standard library takes for
// "not found" is one only if every question had an answer: it says so too
// when one family does not exist and the other was not heard of.
func explain(host string, err error, seen facts) error {
	if !seen.notFound(err) {
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsNotFound {
			err = errors.New("the resolver did not answer every question")
		}
		return fmt.Errorf("resolving %q: %w: does this machine's DNS work?", host, err)
	}
	return fmt.Errorf("resolving %q: %w: %w: is it spelt right?", host, ErrNotFound, err)
}

// tidy sorts addresses, takes their disguises off, and cuts the list.
func tidy(found []netip.Addr) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(found))
	for _, a := range found {
		if a = a.Unmap(); a.IsValid() && a.Zone() == "" {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	return slices.Clip(addrs[:min(len(addrs), MaxAddrs)])
}

// same reports whether two names are one, in any case (RFC 4343).
func same(a, b string) bool { return strings.EqualFold(a, b) }
