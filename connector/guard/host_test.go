package guard

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestAllowHost(t *testing.T) {
	tests := []struct {
		name        string
		allow, deny []string
		dst         string
		want        Verdict
	}{
		{"no list", nil, nil, "10.0.0.1", Allow},
		{"one port is allowed", []string{"tcp/10.0.0.0/16:5432"}, nil, "10.0.0.1", Allow},
		{"a UDP port is allowed", []string{"udp/10.0.0.0/16:53"}, nil, "10.0.0.1", Allow},
		{"outside what is allowed", []string{"tcp/10.0.0.0/16"}, nil, "10.1.0.1", Deny},
		{"one port is denied", nil, []string{"tcp/10.0.0.1:1"}, "10.0.0.1", Allow},
		{"one protocol is denied", nil, []string{"tcp/10.0.0.1"}, "10.0.0.1", Allow},
		{"both are denied", nil, []string{"tcp/10.0.0.1", "udp/10.0.0.1:1-65535"}, "10.0.0.1", Deny},
		{"all ports but the last are denied", nil, []string{"tcp/10.0.0.1:1-65534", "udp/10.0.0.1"}, "10.0.0.1", Allow},
		{"in pieces", nil, []string{"tcp/10.0.0.1:9-65535", "tcp/10.0.0.0/8:1-8", "udp/10.0.0.1"}, "10.0.0.1", Deny},
		{"what is allowed is denied", []string{"tcp/10.0.0.1:80-90"}, []string{"tcp/10.0.0.0/8:80-85", "tcp/10.0.0.1:86-100"}, "10.0.0.1", Deny},
		{"all but one", []string{"tcp/10.0.0.1:80-90"}, []string{"tcp/10.0.0.0/8:80-85", "tcp/10.0.0.1:87-100"}, "10.0.0.1", Allow},
		{"loopback", []string{"tcp/127.0.0.1:80"}, nil, "127.0.0.1", Deny},
		{"metadata in disguise", nil, nil, "::ffff:169.254.169.254", Deny},
		{"allowed in disguise", []string{"tcp/10.0.0.0/16"}, nil, "::ffff:10.0.0.1", Allow},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := New(Spec{Allow: rules(t, tt.allow...), Deny: rules(t, tt.deny...)})
			got, why := g.AllowHost(netip.MustParseAddr(tt.dst))
			if got != tt.want || why == "" {
				t.Errorf("AllowHost(%s) = %v (%s), want %v", tt.dst, got, why, tt.want)
			}
		})
	}
	if v, _ := New(Spec{}).AllowHost(netip.Addr{}); v != Deny {
		t.Error("no address may be told")
	}
}

// TestAllowHostAgainstOracle asks for every port that the rules know.
func TestAllowHostAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	verdicts := map[Verdict]int{}
	for range 20000 {
		var spec Spec
		for range rng.IntN(4) {
			spec.Allow = append(spec.Allow, randomRule(rng))
		}
		for range rng.IntN(5) {
			spec.Deny = append(spec.Deny, randomRule(rng))
		}
		dst := randomAddr(rng)
		want := Deny
		for port := range uint16(12) { // rules of the tests have ports from 1 to 9, or all
			for _, proto := range []string{"tcp", "udp"} {
				want = want || oracle(spec, proto, netip.AddrPortFrom(dst, port+1))
			}
		}
		if got, why := New(spec).AllowHost(dst); got != want {
			t.Fatalf("AllowHost(%s) = %v (%s), oracle says %v; spec %+v", dst, got, why, want, spec)
		}
		verdicts[want]++
	}
	if verdicts[Allow] < 1000 || verdicts[Deny] < 1000 {
		t.Fatalf("the cases are one-sided: %v", verdicts)
	}
}
