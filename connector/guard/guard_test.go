package guard

import (
	"net/netip"
	"strings"
	"testing"
)

// rules parses rules that the test knows to be good.
func rules(t testing.TB, texts ...string) []Rule {
	t.Helper()
	var out []Rule
	for _, s := range texts {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func TestParseRule(t *testing.T) {
	tests := []struct {
		name, in string
		want     Rule
		canon    string // what String gives, where it differs from in
		err      string // a part of the error
	}{
		{name: "prefix and port", in: "tcp/10.0.0.0/16:5432", want: Rule{"tcp", netip.MustParsePrefix("10.0.0.0/16"), 5432, 5432}},
		{name: "prefix and range", in: "tcp/10.0.0.0/16:80-443", want: Rule{"tcp", netip.MustParsePrefix("10.0.0.0/16"), 80, 443}},
		{name: "range of one", in: "tcp/10.0.0.0/16:80-80", want: Rule{"tcp", netip.MustParsePrefix("10.0.0.0/16"), 80, 80}, canon: "tcp/10.0.0.0/16:80"},
		{name: "udp", in: "udp/10.0.0.0/16:53", want: Rule{"udp", netip.MustParsePrefix("10.0.0.0/16"), 53, 53}},
		{name: "address", in: "tcp/10.0.0.1", want: Rule{"tcp", netip.MustParsePrefix("10.0.0.1/32"), 0, 0}},
		{name: "address and port", in: "tcp/10.0.0.1:1", want: Rule{"tcp", netip.MustParsePrefix("10.0.0.1/32"), 1, 1}},
		{name: "prefix, every port", in: "tcp/10.0.0.0/8", want: Rule{"tcp", netip.MustParsePrefix("10.0.0.0/8"), 0, 0}},
		{name: "all of IPv4", in: "tcp/0.0.0.0/0", want: Rule{"tcp", netip.MustParsePrefix("0.0.0.0/0"), 0, 0}},
		{name: "IPv6 prefix", in: "tcp/2001:db8::/64", want: Rule{"tcp", netip.MustParsePrefix("2001:db8::/64"), 0, 0}},
		{name: "IPv6 prefix and port", in: "tcp/2001:db8::/64:443", want: Rule{"tcp", netip.MustParsePrefix("2001:db8::/64"), 443, 443}},
		{name: "IPv6 prefix in brackets", in: "tcp/[2001:db8::]/64:443", want: Rule{"tcp", netip.MustParsePrefix("2001:db8::/64"), 443, 443}, canon: "tcp/2001:db8::/64:443"},
		{name: "IPv6 prefix and bits in brackets", in: "tcp/[2001:db8::/64]:443", want: Rule{"tcp", netip.MustParsePrefix("2001:db8::/64"), 443, 443}, canon: "tcp/2001:db8::/64:443"},
		{name: "IPv6 address", in: "udp/2001:db8::1", want: Rule{"udp", netip.MustParsePrefix("2001:db8::1/128"), 0, 0}},
		{name: "IPv6 address that ends like a port", in: "udp/2001:db8::53", want: Rule{"udp", netip.MustParsePrefix("2001:db8::53/128"), 0, 0}},
		{name: "IPv6 address and port", in: "udp/[2001:db8::1]:53", want: Rule{"udp", netip.MustParsePrefix("2001:db8::1/128"), 53, 53}},

		{name: "empty", in: "", err: `start with "tcp/" or "udp/"`},
		{name: "no protocol", in: "10.0.0.0/16", err: `start with "tcp/" or "udp/"`},
		{name: "upper case", in: "TCP/10.0.0.1", err: `start with "tcp/" or "udp/"`},
		{name: "icmp", in: "icmp/10.0.0.1", err: `start with "tcp/" or "udp/"`},
		{name: "a name", in: "tcp/db.internal:5432", err: "names are not allowed"},
		{name: "host bits", in: "tcp/10.0.0.1/16", err: `write "10.0.0.0/16"`},
		{name: "too many bits", in: "tcp/10.0.0.0/33", err: "no prefix"},
		{name: "port 0", in: "tcp/10.0.0.1:0", err: "1 to 65535"},
		{name: "port 65536", in: "tcp/10.0.0.1:65536", err: "1 to 65535"},
		{name: "port with a leading zero", in: "tcp/10.0.0.1:080", err: "1 to 65535"},
		{name: "port with a sign", in: "tcp/10.0.0.1:+80", err: "1 to 65535"},
		{name: "no port after the colon", in: "tcp/10.0.0.1:", err: "missing after the last colon"},
		{name: "range backwards", in: "tcp/10.0.0.1:443-80", err: "write 80-443"},
		{name: "open range", in: "tcp/10.0.0.1:80-", err: "1 to 65535"},
		{name: "two ranges", in: "tcp/10.0.0.1:1-2-3", err: "1 to 65535"},
		{name: "mapped", in: "tcp/::ffff:10.0.0.1", err: "IPv4-mapped"},
		{name: "mapped prefix", in: "tcp/::ffff:10.0.0.0/112", err: "IPv4"},
		{name: "zone", in: "tcp/fe80::1%eth0", err: "zone"},
		{name: "space", in: "tcp/10.0.0.1 ", err: "no address"},
		{name: "IPv4 in brackets", in: "tcp/[10.0.0.1]:80", err: "brackets"},
		{name: "open bracket", in: "tcp/[2001:db8::1:80", err: "brackets"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseRule(tt.in)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("ParseRule(%q) = %v, %v; want an error with %q", tt.in, got, err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Fatalf("ParseRule(%q) = %+v, %v; want %+v", tt.in, got, err, tt.want)
			}
			canon := tt.canon
			if canon == "" {
				canon = tt.in
			}
			if got.String() != canon {
				t.Errorf("String() = %q, want %q", got.String(), canon)
			}
		})
	}
}

func TestRuleText(t *testing.T) {
	var r Rule
	if err := r.UnmarshalText([]byte("tcp/10.0.0.0/16:80-443")); err != nil {
		t.Fatal(err)
	}
	if text, err := r.MarshalText(); err != nil || string(text) != "tcp/10.0.0.0/16:80-443" {
		t.Errorf("MarshalText() = %q, %v", text, err)
	}
	before := r
	if err := r.UnmarshalText([]byte("nonsense")); err == nil || r != before {
		t.Errorf("UnmarshalText of nonsense: %v, left %v", err, r)
	}
}

func TestAllow(t *testing.T) {
	tests := []struct {
		name        string
		allow, deny []string
		proto, dst  string
		want        Verdict
		why         string
	}{
		{name: "no rules", proto: "tcp", dst: "10.0.0.1:80", want: Allow},
		{name: "no rules, public", proto: "udp", dst: "192.0.2.1:53", want: Allow},
		{name: "no rules, IPv6", proto: "tcp", dst: "[2001:db8::1]:80", want: Allow},
		{name: "allowed", allow: []string{"tcp/10.0.0.0/16:80"}, proto: "tcp", dst: "10.0.9.1:80", want: Allow, why: "allow has tcp/10.0.0.0/16:80"},
		{name: "other port", allow: []string{"tcp/10.0.0.0/16:80"}, proto: "tcp", dst: "10.0.9.1:81", want: Deny, why: "allow does not have it"},
		{name: "other protocol", allow: []string{"tcp/10.0.0.0/16:80"}, proto: "udp", dst: "10.0.9.1:80", want: Deny},
		{name: "other prefix", allow: []string{"tcp/10.0.0.0/16:80"}, proto: "tcp", dst: "10.1.0.1:80", want: Deny},
		{name: "first of a range", allow: []string{"tcp/10.0.0.0/16:80-443"}, proto: "tcp", dst: "10.0.0.1:80", want: Allow},
		{name: "last of a range", allow: []string{"tcp/10.0.0.0/16:80-443"}, proto: "tcp", dst: "10.0.0.1:443", want: Allow},
		{name: "below a range", allow: []string{"tcp/10.0.0.0/16:80-443"}, proto: "tcp", dst: "10.0.0.1:79", want: Deny},
		{name: "above a range", allow: []string{"tcp/10.0.0.0/16:80-443"}, proto: "tcp", dst: "10.0.0.1:444", want: Deny},
		{name: "second rule", allow: []string{"tcp/10.0.0.1:80", "udp/10.0.0.1:53"}, proto: "udp", dst: "10.0.0.1:53", want: Allow},
		{name: "deny alone", deny: []string{"tcp/10.0.0.1"}, proto: "tcp", dst: "10.0.0.1:80", want: Deny, why: "deny has tcp/10.0.0.1"},
		{name: "beside a deny", deny: []string{"tcp/10.0.0.1"}, proto: "tcp", dst: "10.0.0.2:80", want: Allow},
		{name: "deny wins", allow: []string{"tcp/10.0.0.0/16"}, deny: []string{"tcp/10.0.0.1"}, proto: "tcp", dst: "10.0.0.1:80", want: Deny},
		{name: "deny is of its protocol", allow: []string{"udp/10.0.0.0/16"}, deny: []string{"tcp/10.0.0.1"}, proto: "udp", dst: "10.0.0.1:80", want: Allow},
		{name: "deny sees through a mapped address", deny: []string{"tcp/10.0.0.1"}, proto: "tcp", dst: "[::ffff:10.0.0.1]:80", want: Deny},
		{name: "loopback under an allow of everything", allow: []string{"tcp/0.0.0.0/0"}, proto: "tcp", dst: "127.0.0.1:80", want: Deny, why: "loopback"},
		{name: "metadata named in allow", allow: []string{"tcp/169.254.169.254"}, proto: "tcp", dst: "169.254.169.254:80", want: Deny, why: "metadata"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := New(Spec{Allow: rules(t, tt.allow...), Deny: rules(t, tt.deny...)})
			got, why := g.Allow(tt.proto, netip.MustParseAddrPort(tt.dst))
			if got != tt.want || why == "" || !strings.Contains(why, tt.why) {
				t.Errorf("Allow(%s/%s) = %v, %q; want %v and %q", tt.proto, tt.dst, got, why, tt.want, tt.why)
			}
		})
	}
}

func TestAlwaysDenied(t *testing.T) {
	denied := []string{
		"127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "::127.0.0.1",
		"169.254.0.1", "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "fe80::1%eth0",
		"224.0.0.1", "239.255.255.255", "ff02::1", "0.0.0.0", "0.1.2.3", "::", "255.255.255.255", "64:ff9b::ffff:ffff",
		"fd00:ec2::254", "fd20:ce::254", "168.63.129.16", "100.100.100.200", "::ffff:100.100.100.200",
	}
	for _, s := range denied {
		if AlwaysDenied(netip.MustParseAddr(s)) == "" {
			t.Errorf("AlwaysDenied(%s) is empty", s)
		}
	}
	if AlwaysDenied(netip.Addr{}) == "" {
		t.Error("AlwaysDenied of no address is empty")
	}
	for _, s := range []string{"10.0.0.1", "192.168.0.1", "172.16.0.1", "100.64.0.1", "203.0.113.1", "1.0.0.0", "fd00::1", "2001:db8::1", "64:ff9b::a00:1", "169.253.255.255", "169.255.0.0", "223.255.255.255"} {
		if why := AlwaysDenied(netip.MustParseAddr(s)); why != "" {
			t.Errorf("AlwaysDenied(%s) = %q", s, why)
		}
	}
}

func TestAllowTarget(t *testing.T) {
	tests := []struct {
		name        string
		allow, deny []string
		dst         string
		named       bool
		want        Verdict
		why         string
	}{
		{name: "beyond the allow-list", allow: []string{"tcp/10.0.0.0/16"}, dst: "192.0.2.1:80", want: Allow},
		{name: "denied", deny: []string{"tcp/192.0.2.1"}, dst: "192.0.2.1:80", named: true, want: Deny, why: "deny has"},
		{name: "named loopback", dst: "127.0.0.1:80", named: true, want: Allow},
		{name: "named metadata", dst: "169.254.169.254:80", named: true, want: Allow},
		{name: "resolved to loopback", dst: "127.0.0.1:80", want: Deny, why: "does not name"},
		{name: "resolved to metadata", dst: "169.254.169.254:80", want: Deny, why: "metadata"},
		{name: "resolved to a mapped loopback", dst: "[::ffff:127.0.0.1]:80", want: Deny},
		{name: "deny wins over a named one", deny: []string{"tcp/127.0.0.0/8"}, dst: "127.0.0.1:80", named: true, want: Deny},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := New(Spec{Allow: rules(t, tt.allow...), Deny: rules(t, tt.deny...)})
			got, why := g.AllowTarget("tcp", netip.MustParseAddrPort(tt.dst), tt.named)
			if got != tt.want || !strings.Contains(why, tt.why) {
				t.Errorf("AllowTarget(%s, %v) = %v, %q; want %v, %q", tt.dst, tt.named, got, why, tt.want, tt.why)
			}
		})
	}
}

func TestNewKeepsItsOwnRules(t *testing.T) {
	spec := Spec{Allow: rules(t, "tcp/10.0.0.1")}
	g := New(spec)
	spec.Allow[0] = rules(t, "tcp/10.0.0.2")[0]
	if v, _ := g.Allow("tcp", netip.MustParseAddrPort("10.0.0.1:80")); v != Allow {
		t.Error("changing the Spec after New changed the guard")
	}
}

func TestSpecValidate(t *testing.T) {
	var paths []string
	spec := Spec{
		Allow: append(rules(t, "tcp/10.0.0.1"), Rule{Proto: "sctp", Prefix: netip.MustParsePrefix("10.0.0.0/8")}),
		Deny:  []Rule{{}, {Proto: "tcp", Prefix: netip.MustParsePrefix("10.0.0.0/8"), First: 9, Last: 8}},
	}
	spec.Validate(func(path, _, hint string) {
		if hint == "" {
			t.Errorf("%s has no hint", path)
		}
		paths = append(paths, path)
	})
	if got := strings.Join(paths, " "); got != "allow[1] deny[0] deny[1]" {
		t.Errorf("Validate reports %q", got)
	}
}

func TestAllowDoesNotAllocate(t *testing.T) {
	g := New(Spec{Allow: rules(t, "tcp/10.1.0.0/16:80-443", "tcp/2001:db8::/64")})
	refused := netip.MustParseAddrPort("10.0.0.1:80")
	if n := testing.AllocsPerRun(100, func() { g.Allow("tcp", refused) }); n != 0 {
		t.Errorf("Allow allocates %v times on a refused destination", n)
	}
}

func BenchmarkAllow(b *testing.B) {
	var list []Rule
	for i := range 100 {
		list = append(list, Rule{"tcp", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16), 80, 443})
	}
	g := New(Spec{Allow: list})
	dst := netip.MustParseAddrPort("10.200.0.1:80")
	b.ReportAllocs()
	for b.Loop() {
		g.Allow("tcp", dst)
	}
}
