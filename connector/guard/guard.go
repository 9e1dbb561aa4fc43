// Package guard is the private side's own say about what its connector may
// dial: an allow-list, a deny-list, and the addresses that no edge may ever
// reach (loopback, link-local, metadata services).
//
// A Guard is asked twice for each flow: Allow before anything is dialled, with
// the destination that the edge asked for, and AllowTarget with the address
// that an alias turned out to mean; once for each ping, AllowPing; and for each
// address of a name that an edge asks for, AllowHost. All are pure: the same facts, the same (verdict, why). The package never resolves a
// name and never dials.
package guard

import (
	"net/netip"
	"slices"
)

// Verdict is what the guard decides. The zero value is Deny.
type Verdict bool

// The two verdicts.
const (
	Deny  Verdict = false
	Allow Verdict = true
)

// String is "allow" or "deny".
func (v Verdict) String() string {
	if v {
		return "allow"
	}
	return "deny"
}

// Guard decides. It is immutable, and safe for concurrent use.
type Guard struct {
	allow, deny []Rule
}

// New makes a Guard of spec.
func New(spec Spec) *Guard {
	return &Guard{
		allow: append([]Rule(nil), spec.Allow...),
		deny:  append([]Rule(nil), spec.Deny...),
	}
}

// Allow decides about a destination that the edge asks for. In this order:
// what is never reachable, [guard] deny, [guard] allow. Without an allow-list
// the rest is allowed, which leaves the routes that the edge grants.
//
// why says which of them decided, in words for an operator.
func (g *Guard) Allow(proto string, dst netip.AddrPort) (v Verdict, why string) {
	dst = plain(dst)
	if why := AlwaysDenied(dst.Addr()); why != "" {
		return Deny, why
	}
	if why := g.denied(proto, dst); why != "" {
		return Deny, why
	}
	if len(g.allow) == 0 {
		return Allow, "no [guard] allow-list"
	}
	for _, r := range g.allow {
		if r.Matches(proto, dst) {
			return Allow, "[guard] allow has " + r.String()
		}
	}
	return Deny, "[guard] allow does not have it"
}

// AllowTarget decides about the address that an alias led to. The alias is
// the operator's own word, so the allow-list has no say; the deny-list has.
// An address that is never reachable is allowed only when the alias names it
// itself (named), and not when a name happened to resolve to it: whoever
// answers for the name would choose what the connector reaches.
func (g *Guard) AllowTarget(proto string, dst netip.AddrPort, named bool) (v Verdict, why string) {
	dst = plain(dst)
	if why := g.denied(proto, dst); why != "" {
		return Deny, why
	}
	if why := AlwaysDenied(dst.Addr()); why != "" && !named {
		return Deny, why + " that the alias does not name: write the address itself in \"to\""
	}
	return Allow, "alias"
}

// AllowPing decides whether an edge may have dst pinged. The rules are of TCP
// and UDP, and a ping tells only whether a host is there, so:
//
//   - what is never reachable is never pinged;
//   - a rule of [guard] deny that covers the address with every port, of either
//     protocol, denies the ping: "tcp/10.0.0.1" hides the host. A rule with
//     ports ("tcp/10.0.0.1:22") closes these alone and says nothing of the host;
//   - where there is an allow-list, some rule of it has to cover the address,
//     whatever its protocol and ports: who may reach a service of the host may
//     know that the host is there;
//   - without an allow-list the rest is allowed, which leaves the routes that
//     the edge grants.
//
// An alias does not matter: it serves a port from elsewhere, not a host.
func (g *Guard) AllowPing(dst netip.Addr) (v Verdict, why string) {
	dst = dst.Unmap().WithZone("")
	if why := AlwaysDenied(dst); why != "" {
		return Deny, why
	}
	for _, r := range g.deny {
		if r.everyPort() && r.Prefix.Contains(dst) {
			return Deny, "[guard] deny has " + r.String()
		}
	}
	if len(g.allow) == 0 {
		return Allow, "no [guard] allow-list"
	}
	for _, r := range g.allow {
		if r.Prefix.Contains(dst) {
			return Allow, "[guard] allow has " + r.String()
		}
	}
	return Deny, "[guard] allow has no rule for the address"
}

// AllowHost decides whether an edge may learn that a name has the address dst:
// where Allow would let a flow to some port of it be, of either protocol.
func (g *Guard) AllowHost(dst netip.Addr) (v Verdict, why string) {
	dst = dst.Unmap().WithZone("")
	if why := AlwaysDenied(dst); why != "" {
		return Deny, why
	}
	for _, proto := range []string{"tcp", "udp"} {
		// The lowest port that may be reached is the first of all, or of an
		// allow rule, or the one behind a deny rule.
		ports := []int{1}
		for _, r := range g.allow {
			if r.Proto == proto && r.Prefix.Contains(dst) {
				ports = append(ports, max(1, int(r.First)))
			}
		}
		for _, r := range g.deny {
			if r.Proto == proto && r.First != 0 && r.Prefix.Contains(dst) {
				ports = append(ports, int(r.Last)+1)
			}
		}
		slices.Sort(ports)
		for _, port := range slices.Compact(ports) {
			if port > 65535 {
				break
			}
			if v, why = g.Allow(proto, netip.AddrPortFrom(dst, uint16(port))); v == Allow {
				return v, why
			}
		}
	}
	return Deny, why
}

func (g *Guard) denied(proto string, dst netip.AddrPort) string {
	for _, r := range g.deny {
		if r.Matches(proto, dst) {
			return "[guard] deny has " + r.String()
		}
	}
	return ""
}

// plain takes the disguises off: an IPv4-mapped address is the IPv4 one, and
// a zone does not change what an address is.
func plain(dst netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port())
}

// metadata are the services that hand a cloud machine its credentials, at
// addresses outside link-local (169.254.169.254 is in it).
var metadata = [...]netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS, "Instance metadata", IMDS over IPv6
	netip.MustParseAddr("fd20:ce::254"),    // Google Cloud, "Access VM metadata", IPv6-only machines
	netip.MustParseAddr("168.63.129.16"),   // Azure, "What is IP address 168.63.129.16?"
	netip.MustParseAddr("100.100.100.200"), // Alibaba Cloud, "Instance metadata"
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")           // RFC 1122 section 3.2.1.3 (a)
	nat64       = netip.MustParsePrefix("64:ff9b::/96")        // RFC 6052 section 2.1
	compatible  = netip.MustParsePrefix("::/96")               // RFC 4291 section 2.5.5.1
	broadcast   = netip.AddrFrom4([4]byte{255, 255, 255, 255}) // RFC 919 section 7
)

// AlwaysDenied says why no edge may ask for a, or "" when one may. An address
// that carries an IPv4 address inside (mapped, compatible, NAT64) is judged by
// that one too.
func AlwaysDenied(a netip.Addr) (why string) {
	a = a.Unmap().WithZone("")
	switch {
	case !a.IsValid():
		return "no address"
	case a.IsUnspecified():
		return "an unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a == netip.AddrFrom4([4]byte{169, 254, 169, 254}):
		return "a metadata address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a.IsMulticast():
		return "a multicast address"
	case a == broadcast:
		return "a broadcast address"
	case a.Is4() && thisNetwork.Contains(a):
		return "an address of \"this network\""
	}
	for _, m := range metadata {
		if a == m {
			return "a metadata address"
		}
	}
	if nat64.Contains(a) || compatible.Contains(a) {
		b := a.As16()
		return AlwaysDenied(netip.AddrFrom4([4]byte(b[12:])))
	}
	return ""
}
