package guard

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
)

func FuzzParseRule(f *testing.F) {
	for _, s := range []string{
		"tcp/10.0.0.0/16:5432", "tcp/10.0.0.0/16:80-443", "udp/10.0.0.0/16:53", "tcp/10.0.0.1",
		"tcp/2001:db8::/64:443", "tcp/[2001:db8::]/64:443", "tcp/[2001:db8::/64]:443", "udp/[2001:db8::1]:53",
		"udp/2001:db8::53", "tcp/0.0.0.0/0", "tcp/::/0:1-65535", "tcp/10.0.0.1:", "tcp/[]:1", "tcp/::ffff:1.2.3.4",
		"tcp/]/:", "udp/fe80::1%eth0", "tcp/1.2.3.4/32:07",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			if r != (Rule{}) {
				t.Fatalf("ParseRule(%q) fails and returns %v", s, r)
			}
			return
		}
		if r.Prefix != r.Prefix.Masked() || !r.Prefix.IsValid() || r.Prefix.Addr().Is4In6() {
			t.Fatalf("ParseRule(%q) has prefix %v", s, r.Prefix)
		}
		if r.First > r.Last || (r.First == 0) != (r.Last == 0) {
			t.Fatalf("ParseRule(%q) has ports %d-%d", s, r.First, r.Last)
		}
		again, err := ParseRule(r.String())
		if err != nil || again != r {
			t.Fatalf("ParseRule(%q) = %+v, but its String %q reads as %+v, %v", s, r, r.String(), again, err)
		}
		// A rule must cover its own first address.
		dst := netip.AddrPortFrom(r.Prefix.Addr(), max(r.First, 1))
		if !r.Matches(r.Proto, dst) {
			t.Fatalf("%v does not match %v", r, dst)
		}
	})
}

// TestAgainstOracle compares Allow with a naive one that is written with
// package net, bit by bit, over random rules and destinations from a small
// space, so that many of them meet.
func TestAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	verdicts := map[Verdict]int{}
	for range 20000 {
		var spec Spec
		for range rng.IntN(4) {
			spec.Allow = append(spec.Allow, randomRule(rng))
		}
		for range rng.IntN(3) {
			spec.Deny = append(spec.Deny, randomRule(rng))
		}
		proto := []string{"tcp", "udp"}[rng.IntN(2)]
		dst := netip.AddrPortFrom(randomAddr(rng), uint16(1+rng.IntN(6)))
		got, why := New(spec).Allow(proto, dst)
		if want := oracle(spec, proto, dst); got != want {
			t.Fatalf("Allow(%s/%s) = %v (%s), oracle says %v; spec %+v", proto, dst, got, why, want, spec)
		}
		verdicts[got]++
	}
	if verdicts[Allow] < 1000 || verdicts[Deny] < 1000 {
		t.Fatalf("the cases are one-sided: %v", verdicts)
	}
}

// randomAddr picks from addresses that differ in a few bits, with every
// always-denied kind among them.
func randomAddr(rng *rand.Rand) netip.Addr {
	special := []string{"127.0.0.1", "169.254.169.254", "fe80::1", "fd00:ec2::254", "224.0.0.1", "0.0.0.0", "255.255.255.255", "::1"}
	switch rng.IntN(8) {
	case 0:
		return netip.MustParseAddr(special[rng.IntN(len(special))])
	case 1, 2:
		a := netip.MustParseAddr("2001:db8::").As16()
		a[7], a[15] = byte(rng.IntN(4)), byte(rng.IntN(4))
		return netip.AddrFrom16(a)
	case 3:
		return netip.MustParseAddr(fmt.Sprintf("::ffff:10.0.%d.%d", rng.IntN(4), rng.IntN(4)))
	default:
		return netip.AddrFrom4([4]byte{10, byte(rng.IntN(2)), byte(rng.IntN(4)), byte(rng.IntN(4))})
	}
}

func randomRule(rng *rand.Rand) Rule {
	a := randomAddr(rng).Unmap()
	bits := a.BitLen() - rng.IntN(20)
	p, err := a.Prefix(bits)
	if err != nil {
		panic(err)
	}
	r := Rule{Proto: []string{"tcp", "udp"}[rng.IntN(2)], Prefix: p}
	if rng.IntN(2) == 0 {
		r.First = uint16(1 + rng.IntN(6))
		r.Last = r.First + uint16(rng.IntN(4))
	}
	return r
}

func oracle(spec Spec, proto string, dst netip.AddrPort) Verdict {
	ip := net.IP(dst.Addr().AsSlice())
	if four := ip.To4(); four != nil {
		ip = four
	}
	for _, never := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
		"::/128", "::1/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128",
	} {
		if _, n, _ := net.ParseCIDR(never); n.Contains(ip) {
			return Deny
		}
	}
	covers := func(list []Rule) bool {
		for _, r := range list {
			_, n, err := net.ParseCIDR(r.Prefix.String())
			if err != nil {
				panic(err)
			}
			ports := r.First == 0 || dst.Port() >= r.First && dst.Port() <= r.Last
			if r.Proto == proto && n.Contains(ip) && ports {
				return true
			}
		}
		return false
	}
	if covers(spec.Deny) {
		return Deny
	}
	return Verdict(len(spec.Allow) == 0 || covers(spec.Allow))
}
