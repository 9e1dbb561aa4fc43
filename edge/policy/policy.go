// Package policy decides whether a client may use an app: a pure function of
// the app's rules and the client's address, asked before the private side is
// touched. Its reason goes to the flow log.
//
//	rules, err := policy.New(policy.Spec{Allow: allow, Deny: deny})
//	verdict, why := rules.Decide(client)
//
// It must never fail open: what it cannot understand is denied, or refused
// when the rules are made.
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
	restricted bool // Allow is present
	allow      bart.Table[string]
	deny       bart.Table[string]
}

// New compiles the rules. A prefix of IPv4-mapped addresses counts as the
// IPv4 prefix that it stands for, host bits do not count. An invalid prefix
// is an error: a rule that is left out could be a denial.
func New(spec Spec) (*Rules, error) {
	r := &Rules{restricted: spec.Allow != nil}
	if err := fill(&r.allow, "allow", spec.Allow); err != nil {
		return nil, err
	}
	if err := fill(&r.deny, "deny", spec.Deny); err != nil {
		return nil, err
	}
	return r, nil
}

// fill puts the prefixes of one list into its table, each with the reason
// that it is for the verdict.
func fill(table *bart.Table[string], list string, prefixes []netip.Prefix) error {
	for i, p := range prefixes {
		if !p.IsValid() {
			return fmt.Errorf("compiling %s[%d]: %q is no prefix", list, i, p)
		}
		p = unmap(p).Masked()
		table.Insert(p, fmt.Sprintf("%s has %s", list, p))
	}
	return nil
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
	if !client.IsValid() {
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
