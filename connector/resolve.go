package connector

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// resolveWithin bounds one resolution of an edge's name.
const resolveWithin = 10 * time.Second

// Resolver turns names into addresses, in the order to try them;
// *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// resolve returns the edge's addresses in the order to try them: the one that
// the tunnel calls now comes first, so that a name with many addresses does
// not make a connector wander.
func (e *edge) resolve(ctx context.Context) ([]netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	addrs, err := resolveURLs(ctx, e.c.deps.Resolver, e.urls())
	if err != nil {
		return nil, err
	}
	if i := slices.Index(addrs, e.at); i > 0 {
		addrs = slices.Insert(slices.Delete(addrs, i, i+1), 0, e.at)
	}
	return addrs, nil
}

// resolveURLs returns the addresses that urls stand for now, at least one. It
// fails only where none of them has any.
func resolveURLs(ctx context.Context, r Resolver, urls []EdgeURL) ([]netip.AddrPort, error) {
	if len(urls) == 0 {
		return nil, errors.New("resolving the edge: no address of it is known: run again with a new token")
	}
	var all []netip.AddrPort
	var failures []error
	for _, u := range urls {
		addrs, err := resolveURL(ctx, r, u)
		if err != nil {
			failures = append(failures, err)
		}
		for _, a := range addrs {
			if !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	}
	if len(all) == 0 {
		return nil, errors.Join(failures...)
	}
	return all, nil
}

// resolveURL returns the addresses that url stands for now, at least one.
func resolveURL(ctx context.Context, r Resolver, url EdgeURL) ([]netip.AddrPort, error) {
	if a, err := netip.ParseAddr(url.Host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), url.Port)}, nil
	}
	found, err := r.LookupNetIP(ctx, "ip", url.Host)
	if err != nil {
		return nil, fmt.Errorf("resolving edge %q: %w: is the name right, and does this machine's DNS answer?", url.Host, err)
	}
	var addrs []netip.AddrPort
	for _, a := range found {
		if at := netip.AddrPortFrom(a.Unmap(), url.Port); !slices.Contains(addrs, at) {
			addrs = append(addrs, at)
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("resolving edge %q: the name has no address", url.Host)
	}
	return addrs, nil
}
