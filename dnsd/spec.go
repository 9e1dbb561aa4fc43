package dnsd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Port is where DNS is asked.
const Port = 53

// The defaults of a Spec.
const (
	DefaultMaxConns          = 1024
	DefaultMaxConnsPerSource = 32
	DefaultIdle              = 10 * time.Second
)

// Spec is what the operator may set. The zero Spec listens nowhere.
type Spec struct {
	// Listen are the addresses that are served, each over UDP and TCP. Port 0
	// is any port that is free for both. ListenOn makes the usual list.
	Listen []netip.AddrPort
	// MaxConns is how many TCP connections may be open; more are closed at
	// once. Default 1024.
	MaxConns int
	// MaxConnsPerSource is how many of them one IPv4 address or one IPv6 /64
	// may hold. Default 32.
	MaxConnsPerSource int
	// Idle is how long a TCP connection may take for its next query, from the
	// first byte to the last or without any (RFC 7766 section 6.2.3). While
	// more than half of MaxConns are open it is a fifth of that. Default 10 s.
	Idle time.Duration
}

// Validate returns everything that is wrong with the Spec, joined.
func (s Spec) Validate() error {
	var errs []error
	for i, a := range s.Listen {
		switch {
		case !a.IsValid():
			errs = append(errs, fmt.Errorf("listen[%d]: the address is missing: write one such as 203.0.113.10:53", i))
		case a.Addr().IsMulticast():
			errs = append(errs, fmt.Errorf("listen[%d] = %q: DNS cannot listen on a multicast address", i, a))
		case slices.Contains(unmapped(s.Listen[:i]), unmapped(s.Listen)[i]):
			errs = append(errs, fmt.Errorf("listen[%d] = %q: the address is given twice: remove one of the two", i, a))
		}
	}
	if s.MaxConns < 0 || s.MaxConnsPerSource < 0 || s.Idle < 0 {
		errs = append(errs, errors.New("max_conns, max_conns_per_source and idle cannot be negative: leave them out for their defaults"))
	}
	return errors.Join(errs...)
}

// normal fills what was left out and writes IPv4 addresses as such. It shares
// nothing with s.
func (s Spec) normal() Spec {
	s.Listen = unmapped(s.Listen)
	if s.MaxConns == 0 {
		s.MaxConns = DefaultMaxConns
	}
	if s.MaxConnsPerSource == 0 {
		s.MaxConnsPerSource = DefaultMaxConnsPerSource
	}
	if s.Idle == 0 {
		s.Idle = DefaultIdle
	}
	return s
}

func unmapped(list []netip.AddrPort) []netip.AddrPort {
	out := make([]netip.AddrPort, len(list))
	for i, a := range list {
		out[i] = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return out
}

// ListenOn makes the default Listen of the machine's own addresses: each once,
// at the port. It refuses the wildcard: on many machines a stub resolver holds
// port 53 of 127.0.0.53, and then the whole wildcard is taken; and a public
// DNS server has no business on the machine's private addresses.
func ListenOn(binds []netip.Addr, port uint16) ([]netip.AddrPort, error) {
	var list []netip.AddrPort
	for _, b := range binds {
		b = b.Unmap()
		if !b.IsValid() || b.IsUnspecified() {
			return nil, fmt.Errorf("choosing where DNS listens: the address %q stands for every address of this machine: "+
				"bind the apps to named addresses, or list DNS's own in [dns] listen", b)
		}
		if at := netip.AddrPortFrom(b, port); !slices.Contains(list, at) {
			list = append(list, at)
		}
	}
	return list, nil
}
