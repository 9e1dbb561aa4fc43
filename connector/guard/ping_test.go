package guard

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
)

func TestAllowPing(t *testing.T) {
	tests := []struct {
		name        string
		allow, deny []string
		dst         string
		want        Verdict
	}{
		{"no list", nil, nil, "10.0.0.1", Allow},
		{"no list, IPv6", nil, nil, "2001:db8::1", Allow},
		{"one port is allowed", []string{"tcp/10.0.0.0/16:5432"}, nil, "10.0.0.1", Allow},
		{"a UDP port is allowed", []string{"udp/10.0.0.0/16:53"}, nil, "10.0.0.1", Allow},
		{"outside what is allowed", []string{"tcp/10.0.0.0/16:5432"}, nil, "10.1.0.1", Deny},
		{"the other family", []string{"tcp/10.0.0.0/16"}, nil, "2001:db8::1", Deny},
		{"one port is denied", nil, []string{"tcp/10.0.0.1:22"}, "10.0.0.1", Allow},
		{"every TCP port is denied", nil, []string{"tcp/10.0.0.1"}, "10.0.0.1", Deny},
		{"every UDP port is denied", nil, []string{"udp/10.0.0.0/8"}, "10.0.0.1", Deny},
		{"every port is denied as a range", nil, []string{"tcp/10.0.0.1:1-65535"}, "10.0.0.1", Deny},
		{"all ports but one are denied", nil, []string{"tcp/10.0.0.1:2-65535"}, "10.0.0.1", Allow},
		{"deny wins", []string{"tcp/10.0.0.0/16:5432"}, []string{"udp/10.0.0.1"}, "10.0.0.1", Deny},
		{"the neighbour is denied", nil, []string{"tcp/10.0.0.1"}, "10.0.0.2", Allow},
		{"loopback", []string{"tcp/127.0.0.1:80"}, nil, "127.0.0.1", Deny},
		{"loopback, IPv6", nil, nil, "::1", Deny},
		{"loopback in disguise", nil, nil, "::ffff:127.0.0.1", Deny},
		{"link-local", nil, nil, "169.254.1.1", Deny},
		{"link-local with a zone", nil, nil, "fe80::1%eth0", Deny},
		{"metadata", []string{"tcp/169.254.169.254"}, nil, "169.254.169.254", Deny},
		{"metadata, IPv6", nil, nil, "fd00:ec2::254", Deny},
		{"multicast", nil, nil, "224.0.0.1", Deny},
		{"broadcast", nil, nil, "255.255.255.255", Deny},
		{"allowed in disguise", []string{"tcp/10.0.0.0/16"}, nil, "::ffff:10.0.0.1", Allow},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := New(Spec{Allow: rules(t, tt.allow...), Deny: rules(t, tt.deny...)})
			got, why := g.AllowPing(netip.MustParseAddr(tt.dst))
			if got != tt.want || why == "" {
				t.Errorf("AllowPing(%s) = %v (%s), want %v", tt.dst, got, why, tt.want)
			}
		})
	}
	if v, _ := New(Spec{}).AllowPing(netip.Addr{}); v != Deny {
		t.Error("no address may be pinged")
	}
}

// TestAllowPingAgainstOracle: no address is pingable of which the flows say that
// it is out of reach, and the rest is as the rules are written down.
func TestAllowPingAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	verdicts := map[Verdict]int{}
	for range 20000 {
		var spec Spec
		for range rng.IntN(4) {
			spec.Allow = append(spec.Allow, randomRule(rng))
		}
		for range rng.IntN(3) {
			spec.Deny = append(spec.Deny, randomRule(rng))
		}
		dst := randomAddr(rng)
		got, why := New(spec).AllowPing(dst)
		if want := pingOracle(spec, dst); got != want {
			t.Fatalf("AllowPing(%s) = %v (%s), oracle says %v; spec %+v", dst, got, why, want, spec)
		}
		verdicts[got]++
		if got == Deny {
			continue
		}
		reachable := false // rules of the tests have ports from 1 to 9, or all
		for port := range uint16(12) {
			for _, proto := range []string{"tcp", "udp"} {
				open := Spec{Allow: spec.Allow} // what single ports deny does not matter
				v, _ := New(open).Allow(proto, netip.AddrPortFrom(dst, port+1))
				reachable = reachable || v == Allow
			}
		}
		if !reachable {
			t.Fatalf("%s may be pinged, and no port of it be reached; spec %+v", dst, spec)
		}
	}
	if verdicts[Allow] < 1000 || verdicts[Deny] < 1000 {
		t.Fatalf("the cases are one-sided: %v", verdicts)
	}
}

func pingOracle(spec Spec, dst netip.Addr) Verdict {
	if oracle(Spec{}, "tcp", netip.AddrPortFrom(dst, 1)) == Deny {
		return Deny
	}
	ip := net.IP(dst.AsSlice())
	if four := ip.To4(); four != nil {
		ip = four
	}
	covers := func(r Rule) bool {
		_, n, err := net.ParseCIDR(r.Prefix.String())
		if err != nil {
			panic(err)
		}
		return n.Contains(ip)
	}
	for _, r := range spec.Deny {
		if covers(r) && r.First == 0 {
			return Deny
		}
	}
	for _, r := range spec.Allow {
		if covers(r) {
			return Allow
		}
	}
	return Verdict(len(spec.Allow) == 0)
}
