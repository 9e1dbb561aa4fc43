package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Spec is the private side's own say about what may be dialled, whatever the
// edge asks for: the [guard] table of connector.toml.
//
// The zero value allows every destination but the always-denied ones; see
// Guard.Allow.
type Spec struct {
	// Allow, where it is not empty, is the whole of what may be dialled; and
	// only addresses that it covers, with whatever port, may be pinged.
	// Default: empty, which leaves the routes that the edge grants.
	Allow []Rule
	// Deny is never dialled. It wins over Allow, and over aliases. A rule
	// without ports keeps its addresses from being pinged, too.
	Deny []Rule
}

// Validate calls report once for each problem, with the key path below
// [guard] ("allow[2]"), the value as written, and what to do about it. Rules
// that came from ParseRule have none.
func (s Spec) Validate(report func(path, value, hint string)) {
	check := func(name string, rules []Rule) {
		for i, r := range rules {
			if _, err := ParseRule(r.String()); err != nil {
				report(fmt.Sprintf("%s[%d]", name, i), r.String(), err.Error())
			}
		}
	}
	check("allow", s.Allow)
	check("deny", s.Deny)
}

// Rule is a set of destinations: a protocol, a prefix of addresses, and a
// range of ports. The zero value is no rule and matches nothing.
type Rule struct {
	// Proto is "tcp" or "udp".
	Proto string
	// Prefix is masked and never an IPv4-mapped IPv6 prefix; one address is a
	// prefix of its full length.
	Prefix netip.Prefix
	// First and Last are the range of ports, both ends included; 0 and 0
	// stand for every port.
	First, Last uint16
}

// ParseRule reads one rule:
//
//	tcp/10.0.0.0/16:5432       one port of a prefix
//	tcp/10.0.0.0/16:80-443     a range of ports
//	tcp/10.0.0.1               every port of an address
//	udp/2001:db8::/64:53       IPv6, the port after the prefix length
//	udp/[2001:db8::1]:53       an IPv6 address with a port takes brackets
//
// The error says what is wrong and what to write instead.
func ParseRule(s string) (Rule, error) {
	proto, rest, ok := strings.Cut(s, "/")
	if !ok || (proto != "tcp" && proto != "udp") {
		return Rule{}, fmt.Errorf("parsing rule %q: want it to start with \"tcp/\" or \"udp/\"", s)
	}
	host, ports, err := splitPorts(rest)
	if err != nil {
		return Rule{}, fmt.Errorf("parsing rule %q: %w", s, err)
	}
	r := Rule{Proto: proto}
	if r.Prefix, err = parsePrefix(host); err != nil {
		return Rule{}, fmt.Errorf("parsing rule %q: %w", s, err)
	}
	if ports == "" {
		return r, nil
	}
	if r.First, r.Last, err = parsePorts(ports); err != nil {
		return Rule{}, fmt.Errorf("parsing rule %q: %w", s, err)
	}
	return r, nil
}

var errEmptyPorts = errors.New("a port is missing after the last colon: write a port, a range such as 80-443, or no colon for every port")

// splitPorts cuts "host", "host:ports", "prefix/bits" or "prefix/bits:ports".
// A colon belongs to the ports when it stands after the prefix length, after
// a bracket, or is the only one.
func splitPorts(s string) (host, ports string, err error) {
	colon := strings.LastIndexByte(s, ':')
	slash := strings.LastIndexByte(s, '/')
	bracket := strings.LastIndexByte(s, ']')
	switch {
	case colon < 0 || colon < slash || colon < bracket:
		host = s
	case slash < 0 && bracket < 0 && strings.IndexByte(s, ':') != colon:
		host = s // an IPv6 address without brackets has no port
	case colon == len(s)-1:
		return "", "", errEmptyPorts
	default:
		host, ports = s[:colon], s[colon+1:]
	}
	if rest, ok := strings.CutPrefix(host, "["); ok {
		addr, bits, ok := strings.Cut(rest, "]")
		if !ok || !strings.Contains(addr, ":") {
			return "", "", errors.New("brackets go around an IPv6 address, as in [2001:db8::1]:443")
		}
		host = addr + bits
	}
	return host, ports, nil
}

// parsePrefix reads an address or a prefix without host bits.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%q is no address: names are not allowed here", s)
		}
		if a.Zone() != "" || a.Is4In6() {
			return netip.Prefix{}, fmt.Errorf("write %q without a zone and not as an IPv4-mapped address", s)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no prefix such as 10.0.0.0/16", s)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("write %q as an IPv4 prefix", s)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has bits set after its length: write %q", s, p.Masked())
	}
	return p, nil
}

func parsePorts(s string) (first, last uint16, err error) {
	lo, hi, isRange := strings.Cut(s, "-")
	if !isRange {
		hi = lo
	}
	if first, err = parsePort(lo); err != nil {
		return 0, 0, err
	}
	if last, err = parsePort(hi); err != nil {
		return 0, 0, err
	}
	if first > last {
		return 0, 0, fmt.Errorf("the range of ports %q ends before it begins: write %d-%d", s, last, first)
	}
	return first, last, nil
}

func parsePort(s string) (uint16, error) {
	// ParseUint takes "+1" for no number, but "01" for 1.
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' {
		return 0, fmt.Errorf("%q is no port: want 1 to 65535", s)
	}
	return uint16(n), nil
}

// Matches tells whether the rule covers dst.
func (r Rule) Matches(proto string, dst netip.AddrPort) bool {
	if r.Proto != proto || !r.Prefix.Contains(dst.Addr()) {
		return false
	}
	return r.First == 0 || r.First <= dst.Port() && dst.Port() <= r.Last
}

// everyPort tells whether the rule is of all ports.
func (r Rule) everyPort() bool { return r.First <= 1 && (r.Last == 0 || r.Last == 65535) }

// String writes the rule as ParseRule reads it.
func (r Rule) String() string {
	host := r.Prefix.String()
	if r.Prefix.IsSingleIP() {
		host = r.Prefix.Addr().String()
		if r.Prefix.Addr().Is6() && r.First != 0 {
			host = "[" + host + "]"
		}
	}
	switch {
	case r.First == 0 && r.Last == 0:
		return r.Proto + "/" + host
	case r.First == r.Last:
		return fmt.Sprintf("%s/%s:%d", r.Proto, host, r.First)
	}
	return fmt.Sprintf("%s/%s:%d-%d", r.Proto, host, r.First, r.Last)
}

// UnmarshalText is ParseRule for decoders.
func (r *Rule) UnmarshalText(text []byte) error {
	parsed, err := ParseRule(string(text))
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}

// MarshalText is String for encoders.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }
