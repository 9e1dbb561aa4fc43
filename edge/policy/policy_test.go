package policy_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/warrenmesh/warren/edge/policy"
)

func prefixes(list ...string) []netip.Prefix {
	if list == nil {
		return nil
	}
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestDecide(t *testing.T) {
	office := prefixes("198.51.100.0/24", "2001:db8:1::/48")
	cases := []struct {
		name        string
		allow, deny []netip.Prefix
		client      string
		want        policy.Verdict
		why         string
	}{
		{"no rules", nil, nil, "203.0.113.7", policy.Allow, "nothing denies the source"},
		{"denied", nil, office, "198.51.100.7", policy.Deny, "deny has 198.51.100.0/24"},
		{"not denied", nil, office, "198.51.101.7", policy.Allow, "nothing denies the source"},
		{"allowed", office, nil, "198.51.100.7", policy.Allow, "allow has 198.51.100.0/24"},
		{"not allowed", office, nil, "198.51.101.7", policy.Deny, "allow does not have the source"},
		{"allowed, IPv6", office, nil, "2001:db8:1::7", policy.Allow, "allow has 2001:db8:1::/48"},
		{"deny wins over a longer allow", prefixes("198.51.100.7/32"), prefixes("198.51.100.0/24"), "198.51.100.7", policy.Deny, "deny has 198.51.100.0/24"},
		{"the longest prefix is named", nil, prefixes("198.51.0.0/16", "198.51.100.0/24"), "198.51.100.7", policy.Deny, "deny has 198.51.100.0/24"},
		{"everything denied", prefixes("0.0.0.0/0"), prefixes("0.0.0.0/0"), "198.51.100.7", policy.Deny, "deny has 0.0.0.0/0"},
		{"all of IPv4 is not IPv6", prefixes("0.0.0.0/0"), nil, "2001:db8::1", policy.Deny, "allow does not have the source"},
		{"all of IPv6 is not IPv4", prefixes("::/0"), nil, "198.51.100.7", policy.Deny, "allow does not have the source"},
		{"mapped client", nil, office, "::ffff:198.51.100.7", policy.Deny, "deny has 198.51.100.0/24"},
		{"mapped client against ::/0", nil, prefixes("::/0"), "::ffff:198.51.100.7", policy.Allow, "nothing denies the source"},
		{"mapped prefix", nil, prefixes("::ffff:198.51.100.0/120"), "198.51.100.7", policy.Deny, "deny has 198.51.100.0/24"},
		{"zone", nil, prefixes("fe80::/10"), "fe80::1%eth0", policy.Deny, "deny has fe80::/10"},
		{"host bits", prefixes("198.51.100.99/24"), nil, "198.51.100.7", policy.Allow, "allow has 198.51.100.0/24"},
		{"empty allow list", []netip.Prefix{}, nil, "198.51.100.7", policy.Deny, "allow does not have the source"},
		{"edge of the prefix", office, nil, "198.51.100.255", policy.Allow, "allow has 198.51.100.0/24"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			rules, err := policy.New(policy.Spec{Allow: c.allow, Deny: c.deny})
			if err != nil {
				t.Fatal(err)
			}
			got, why := rules.Decide(netip.MustParseAddr(c.client))
			if got != c.want || why != c.why {
				t.Errorf("%v, %q; want %v, %q", got, why, c.want, c.why)
			}
		})
	}
}

func TestUnknownSourceIsDenied(t *testing.T) {
	rules, err := policy.New(policy.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	if got, why := rules.Decide(netip.Addr{}); got != policy.Deny || why == "" {
		t.Errorf("%v, %q", got, why)
	}
	var zero policy.Verdict
	if zero != policy.Deny || zero.String() != "deny" || policy.Allow.String() != "allow" {
		t.Error("the zero verdict does not deny")
	}
}

// A rule that cannot be compiled must not be left out.
func TestInvalidPrefixIsRefused(t *testing.T) {
	for _, spec := range []policy.Spec{{Allow: make([]netip.Prefix, 1)}, {Deny: make([]netip.Prefix, 1)}} {
		if _, err := policy.New(spec); err == nil {
			t.Errorf("%+v was compiled", spec)
		}
	}
}

// oracle decides by looking at every prefix.
func oracle(spec policy.Spec, client netip.Addr) policy.Verdict {
	client = client.Unmap().WithZone("")
	in := func(list []netip.Prefix) bool {
		for _, p := range list {
			if p.Addr().Is4In6() && p.Bits() >= 96 {
				p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
			}
			if p.Contains(client) {
				return true
			}
		}
		return false
	}
	if in(spec.Deny) || spec.Allow != nil && !in(spec.Allow) {
		return policy.Deny
	}
	return policy.Allow
}

// randomAddr is one of few addresses, so that prefixes meet often.
func randomAddr(random *rand.Rand) netip.Addr {
	var b [16]byte
	switch random.IntN(3) {
	case 0:
		return netip.AddrFrom4([4]byte{10, byte(random.IntN(2)), byte(random.IntN(4)), byte(random.IntN(256))})
	case 1:
		copy(b[10:], []byte{0xff, 0xff, 10, byte(random.IntN(2)), byte(random.IntN(4)), byte(random.IntN(256))})
	default:
		copy(b[:], []byte{0x20, 0x01, 0x0d, 0xb8, 0, byte(random.IntN(2))})
		b[15] = byte(random.IntN(256))
	}
	return netip.AddrFrom16(b)
}

func TestAgainstLinearScan(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	list := func() []netip.Prefix {
		var out []netip.Prefix
		for range random.IntN(6) {
			a := randomAddr(random)
			out = append(out, netip.PrefixFrom(a, random.IntN(a.BitLen()+1)))
		}
		return out
	}
	seen := map[policy.Verdict]int{}
	for range 3000 {
		spec := policy.Spec{Allow: list(), Deny: list()}
		rules, err := policy.New(spec)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			client := randomAddr(random)
			got, why := rules.Decide(client)
			if want := oracle(spec, client); got != want {
				t.Fatalf("%v for %v: %v (%s), want %v", spec, client, got, why, want)
			}
			seen[got]++
		}
	}
	if seen[policy.Allow] < 1000 || seen[policy.Deny] < 1000 {
		t.Errorf("the verdicts were %v: the test says little", seen)
	}
}

func FuzzDecide(f *testing.F) {
	f.Add("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3")
	f.Add("::ffff:10.0.0.0/104", "2001:db8::/32", "::ffff:10.1.2.3")
	f.Add("::/0", "fe80::/10", "fe80::1%eth0")
	f.Fuzz(func(t *testing.T, allow, deny, client string) {
		a, err1 := netip.ParsePrefix(allow)
		d, err2 := netip.ParsePrefix(deny)
		c, err3 := netip.ParseAddr(client)
		if err1 != nil || err2 != nil || err3 != nil {
			return
		}
		spec := policy.Spec{Allow: []netip.Prefix{a}, Deny: []netip.Prefix{d}}
		rules, err := policy.New(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got, why := rules.Decide(c); got != oracle(spec, c) || why == "" {
			t.Errorf("%v (%q), want %v", got, why, oracle(spec, c))
		}
	})
}

func TestDecideAllocatesNothing(t *testing.T) {
	rules, err := policy.New(policy.Spec{Allow: prefixes("10.0.0.0/8"), Deny: prefixes("10.1.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	clients := []netip.Addr{netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("192.0.2.1")}
	n := testing.AllocsPerRun(100, func() {
		for _, c := range clients {
			rules.Decide(c)
		}
	})
	if n > 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
