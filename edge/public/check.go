package public

import (
	"errors"
	"fmt"
	"net/netip"
)

// class is a range of addresses that no public origin has.
type class struct {
	prefix netip.Prefix
	what   string
}

func classes(list ...string) []class {
	out := make([]class, 0, len(list)/2)
	for i := 0; i < len(list); i += 2 {
		out = append(out, class{netip.MustParsePrefix(list[i]), list[i+1]})
	}
	return out
}

// reserved are the ranges that the registries of special purposes (IANA, RFC
// 6890) say are not globally reachable, and some that are and lead home.
var reserved = classes(
	"0.0.0.0/8", "\"this network\" (RFC 1122)",
	"10.0.0.0/8", "private (RFC 1918)",
	"100.64.0.0/10", "a provider's shared space (RFC 6598)",
	"127.0.0.0/8", "loopback (RFC 1122)",
	"169.254.0.0/16", "link-local (RFC 3927)",
	"172.16.0.0/12", "private (RFC 1918)",
	"192.0.0.0/24", "reserved for protocols (RFC 6890)",
	"192.0.2.0/24", "for documentation (RFC 5737)",
	"192.88.99.0/24", "a 6to4 relay's (RFC 7526)",
	"192.168.0.0/16", "private (RFC 1918)",
	"198.18.0.0/15", "for benchmarks (RFC 2544)",
	"198.51.100.0/24", "for documentation (RFC 5737)",
	"203.0.113.0/24", "for documentation (RFC 5737)",
	"240.0.0.0/4", "reserved (RFC 1112)",
	"::1/128", "loopback (RFC 4291)",
	"64:ff9b:1::/48", "a local IPv4 translator's (RFC 8215)",
	"2001::/23", "reserved for protocols, Teredo among them (RFC 2928)",
	"2001:db8::/32", "for documentation (RFC 3849)",
	"3fff::/20", "for documentation (RFC 9637)",
	"fc00::/7", "private (RFC 4193)",
	"fe80::/10", "link-local (RFC 4291)",
	"fec0::/10", "site-local (RFC 3879)",
	"::/96", "an IPv4-compatible one (RFC 4291)",
)

// Ranges that are judged by other means.
var (
	broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	global    = netip.MustParsePrefix("2000::/3")     // RFC 4291 section 2.4: what has been given out
	nat64     = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052 section 2.1
	sixToFour = netip.MustParsePrefix("2002::/16")    // RFC 3056 section 2
)

// metadata are the services that hand a cloud machine its credentials. A broad
// prefix in Allow does not open them.
var metadata = [...]netip.Addr{
	netip.MustParseAddr("169.254.169.254"), // nearly every cloud
	netip.MustParseAddr("169.254.170.2"),   // AWS, "Amazon ECS task metadata endpoint"
	netip.MustParseAddr("169.254.170.23"),  // AWS, "EKS Pod Identity Agent"
	netip.MustParseAddr("fd00:ec2::254"),   // AWS, "Instance metadata", IMDS over IPv6
	netip.MustParseAddr("fd00:ec2::23"),    // AWS, "EKS Pod Identity Agent"
	netip.MustParseAddr("fd20:ce::254"),    // Google Cloud, "Access VM metadata", IPv6-only machines
	netip.MustParseAddr("168.63.129.16"),   // Azure, "What is IP address 168.63.129.16?"
	netip.MustParseAddr("100.100.100.200"), // Alibaba Cloud, "Instance metadata"
	netip.MustParseAddr("192.0.0.192"),     // Oracle Cloud, classic instances' metadata
}

// Check returns nil if addr may be dialled, and else an error that wraps
// ErrNotPublic and says what addr is and what to list to allow it. It is
// pure: the same address, the same answer.
func (d *Dialer) Check(addr netip.Addr) error {
	if !addr.IsValid() {
		return fmt.Errorf("%w: there is no address", ErrNotPublic)
	}
	if addr.Zone() != "" {
		return fmt.Errorf("%w: %s has a zone, which means something on one machine alone", ErrNotPublic, addr)
	}
	addr = addr.Unmap()
	if what := never(addr); what != "" {
		return fmt.Errorf("%w: %s is %s, which is no endpoint's and cannot be allowed", ErrNotPublic, addr, what)
	}
	what, exact := d.judge(addr)
	if what == "" || d.allowed(addr, exact) {
		return nil
	}
	own := netip.PrefixFrom(addr, addr.BitLen())
	if exact {
		return fmt.Errorf("%w: %s is %s: if it is wanted all the same, list %q, that address alone, in [public] allow", ErrNotPublic, addr, what, own)
	}
	return fmt.Errorf("%w: %s is %s: if it is wanted, list %q, or a prefix that holds it, in [public] allow", ErrNotPublic, addr, what, own)
}

// allowed reports whether the operator has listed addr: in any prefix, or by
// its own where exact is set.
func (d *Dialer) allowed(addr netip.Addr, exact bool) bool {
	for _, p := range d.spec.Allow {
		if p.Contains(addr) && (!exact || p.IsSingleIP()) {
			return true
		}
	}
	return false
}

// judge says what a is that a public origin's address is not, or "", and
// whether only a itself can be listed to allow it.
func (d *Dialer) judge(a netip.Addr) (what string, exact bool) {
	for _, m := range metadata {
		if a == m {
			return "a cloud's metadata service, which hands out credentials", true
		}
	}
	if _, ours := d.own[a]; ours {
		return "the edge's own", false
	}
	for _, c := range reserved {
		if c.prefix.Contains(a) {
			return c.what, false
		}
	}
	if a.Is4() {
		return "", false
	}
	inner, how, ok := embedded(a)
	if !ok {
		if !global.Contains(a) {
			return "outside of the space of public IPv6 (2000::/3)", false
		}
		return "", false
	}
	what = never(inner)
	if what == "" {
		what, exact = d.judge(inner)
	}
	if what == "" {
		return "", false
	}
	return fmt.Sprintf("%s of %s, which is %s", how, inner, what), exact
}

// never says what a is that nothing can be dialled at, or "". The kernel takes
// the unspecified address for loopback.
func never(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "the unspecified address"
	case a.IsMulticast():
		return "multicast"
	case a == broadcast:
		return "broadcast"
	}
	return ""
}

// embedded returns the IPv4 address that packets to a end up at, and what a is.
func embedded(a netip.Addr) (inner netip.Addr, how string, ok bool) {
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), "the NAT64 form", true
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), "a 6to4 address", true
	}
	return netip.Addr{}, "", false
}

// Validate calls report once for each problem, with the key ("allow[0]"), the
// value as written, and what to do about it.
func (s Spec) Validate(report func(path, value, hint string)) {
	for i, p := range s.Allow {
		if err := checkPrefix(p); err != nil {
			report(fmt.Sprintf("allow[%d]", i), p.String(), err.Error())
		}
	}
	if s.Timeout < 0 || s.Timeout > MaxTimeout {
		report("timeout", s.Timeout.String(), fmt.Sprintf("want more than 0 and at most %v, which is what the edge waits", MaxTimeout))
	}
	if s.MaxDials < 0 {
		report("max_dials", fmt.Sprint(s.MaxDials), "want 1 or more")
	}
}

func checkPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("want a prefix, such as \"10.1.0.0/16\"")
	case p.Addr().Is4In6():
		return fmt.Errorf("write it as an IPv4 prefix: \"%s/%d\"", p.Addr().Unmap(), max(p.Bits()-96, 0))
	case p != p.Masked():
		return fmt.Errorf("it has bits beyond its length: write %q", p.Masked())
	case p.IsSingleIP() && never(p.Addr()) != "" || p.Bits() >= 4 && p.Addr().IsMulticast():
		return errors.New("it is no endpoint's: nothing can be dialled there")
	}
	return nil
}
