// Package policy decides whether a client may use an app: a pure function of
// the app's rules and the client's address, asked before the private side is
// touched. Its reason goes to the flow log.
//
//	rules := policy.New(policy.Spec{Allow: allow, Deny: deny})
//	verdict, why := rules.Decide(client)
//
// It must never fail open: what it cannot understand, it denies.
package policy

import (
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
)

// Verdict is what was decided. The zero value denies.
type Verdict int

const (
	Deny Verdict = iota
	Allow
)

// String returns "allow" or "deny".
func (v Verdict) String() string {
	if v == Allow {
		return "allow"
	}
	return "deny"
}

// Spec is one app's rules. The zero value allows everyone.
type Spec struct {
	// Allow are the sources that may connect, all others are denied. Nil
	// allows everyone; empty and not nil, nobody.
	Allow []netip.Prefix
	// Deny are the sources that may not; it wins over Allow.
	Deny []netip.Prefix
}

// Rules is a Spec made ready for lookups. It does not change, and any
// goroutine may ask it.
type Rules struct {
	broken     string // why nobody gets in: a rule that is none
	restricted bool   // Allow is present
	allow      bart.Table[string]
	deny       bart.Table[string]
}

// New compiles the rules. A prefix of IPv4-mapped addresses counts as the
// IPv4 prefix that it stands for, host bits do not count. Rules with an invalid
// prefix deny everyone: left out, it could be a denial that is missing.
func New(spec Spec) *Rules {
	r := &Rules{restricted: spec.Allow != nil}
	r.fill(&r.allow, "allow", spec.Allow)
	r.fill(&r.deny, "deny", spec.Deny)
	return r
}

// fill puts the prefixes of one list into its table, each with the reason
// that it is for the verdict.
func (r *Rules) fill(table *bart.Table[string], list string, prefixes []netip.Prefix) {
	for i, p := range prefixes {
		if !p.IsValid() {
			r.broken = fmt.Sprintf("%s[%d] is no prefix", list, i)
			continue
		}
		p = unmap(p).Masked()
		table.Insert(p, fmt.Sprintf("%s has %s", list, p))
	}
}

// Why a client was allowed or denied by no prefix of its own.
const (
	whyOpen     = "nothing denies the source"
	whyUnlisted = "allow does not have the source"
	whyNoSource = "the source is unknown"
)

// Decide returns the verdict for a client and the reason in words: deny wins;
// where there is an allow list, what is not on it is denied. An IPv4-mapped
// client counts as the IPv4 client that it is; a zone does not count.
func (r *Rules) Decide(client netip.Addr) (Verdict, string) {
	switch {
	case r.broken != "":
		return Deny, r.broken
	case !client.IsValid():
		return Deny, whyNoSource
	}
	client = client.Unmap()
	if why, ok := r.deny.Lookup(client); ok {
		return Deny, why
	}
	if !r.restricted {
		return Allow, whyOpen
	}
	if why, ok := r.allow.Lookup(client); ok {
		return Allow, why
	}
	return Deny, whyUnlisted
}

// unmap turns ::ffff:10.0.0.0/104 into 10.0.0.0/8. A shorter prefix holds
// IPv6 addresses too and stays as it is: no client has a mapped address.
func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}
