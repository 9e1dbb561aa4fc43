package public

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	d := New(Spec{Own: []netip.Addr{netip.MustParseAddr("8.8.4.4"), netip.MustParseAddr("::ffff:9.9.9.9"), netip.MustParseAddr("2606:4700::1")}})
	for _, test := range []struct{ addr, why string }{ // why "" is allowed
		{"8.8.8.8", ""},
		{"1.1.1.1", ""},
		{"100.63.255.255", ""},
		{"100.128.0.0", ""},
		{"172.15.255.255", ""},
		{"172.32.0.0", ""},
		{"192.167.255.255", ""},
		{"198.17.255.255", ""},
		{"198.20.0.0", ""},
		{"223.255.255.255", ""},
		{"2606:4700:4700::1111", ""},
		{"2a00:1450:4001:81b::200e", ""},
		{"::ffff:8.8.8.8", ""},
		{"64:ff9b::8.8.8.8", ""},
		{"2002:808:808::1", ""},

		{"127.0.0.1", "loopback"},
		{"127.255.255.254", "loopback"},
		{"::1", "loopback"},
		{"::ffff:127.0.0.1", "loopback"},
		{"64:ff9b::127.0.0.1", "NAT64 form of 127.0.0.1, which is loopback"},
		{"2002:7f00:1::", "6to4 address of 127.0.0.1, which is loopback"},
		{"::127.0.0.1", "IPv4-compatible"},
		{"::ffff:0:127.0.0.1", "outside of the space"},
		{"0.0.0.0", "unspecified"},
		{"0.1.2.3", "this network"},
		{"::", "unspecified"},
		{"::ffff:0.0.0.0", "unspecified"},
		{"64:ff9b::", "NAT64 form of 0.0.0.0, which is the unspecified"},
		{"169.254.0.1", "link-local"},
		{"fe80::1", "link-local"},
		{"fe80::1%eth0", "zone"},
		{"2606:4700:4700::1111%eth0", "zone"},
		{"169.254.169.254", "metadata"},
		{"::ffff:169.254.169.254", "metadata"},
		{"64:ff9b::a9fe:a9fe", "metadata"},
		{"2002:a9fe:a9fe::", "metadata"},
		{"fd00:ec2::254", "metadata"},
		{"168.63.129.16", "metadata"},
		{"100.100.100.200", "metadata"},
		{"10.0.0.1", "private"},
		{"172.16.0.1", "private"},
		{"172.31.255.255", "private"},
		{"192.168.0.1", "private"},
		{"::ffff:192.168.0.1", "private"},
		{"64:ff9b::10.0.0.1", "private"},
		{"2002:a00:1::1", "private"},
		{"64:ff9b:1::8.8.8.8", "translator"},
		{"fd12:3456::1", "private"},
		{"fc00::1", "private"},
		{"fec0::1", "site-local"},
		{"100.64.0.1", "shared space"},
		{"100.127.255.255", "shared space"},
		{"224.0.0.1", "multicast"},
		{"239.255.255.255", "multicast"},
		{"ff02::1", "multicast"},
		{"64:ff9b::224.0.0.1", "multicast"},
		{"192.0.0.8", "reserved"},
		{"192.0.2.1", "documentation"},
		{"198.51.100.1", "documentation"},
		{"203.0.113.1", "documentation"},
		{"2001:db8::1", "documentation"},
		{"3fff::1", "documentation"},
		{"198.18.0.1", "benchmarks"},
		{"192.88.99.1", "6to4"},
		{"240.0.0.1", "reserved"},
		{"255.255.255.255", "broadcast"},
		{"2001:0:4136:e378::1", "Teredo"},
		{"100::1", "outside of the space"},
		{"5f00::1", "outside of the space"},
		{"4000::1", "outside of the space"},
		{"8.8.4.4", "edge's own"},
		{"9.9.9.9", "edge's own"},
		{"::ffff:8.8.4.4", "edge's own"},
		{"64:ff9b::8.8.4.4", "edge's own"},
		{"2606:4700::1", "edge's own"},
	} {
		t.Run(test.addr, func(t *testing.T) {
			err := d.Check(netip.MustParseAddr(test.addr))
			if test.why == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			if err == nil || !errors.Is(err, ErrNotPublic) || !strings.Contains(err.Error(), test.why) {
				t.Fatalf("err = %v, want one with %q", err, test.why)
			}
		})
	}
	if err := d.Check(netip.Addr{}); !errors.Is(err, ErrNotPublic) {
		t.Errorf("no address: %v", err)
	}
}

// TestCheckSaysWhatToList follows the sentence: what it says to list is
// listed, and the address passes.
func TestCheckSaysWhatToList(t *testing.T) {
	for _, text := range []string{"10.0.0.1", "127.0.0.1", "169.254.169.254", "fd00:ec2::254", "fe80::1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "2001:db8::1", "::ffff:10.0.0.1"} {
		a := netip.MustParseAddr(text)
		err := New(Spec{}).Check(a)
		if err == nil {
			t.Fatalf("%s passes", a)
		}
		_, after, _ := strings.Cut(err.Error(), "list \"")
		quoted, _, _ := strings.Cut(after, "\"")
		p, parse := netip.ParsePrefix(quoted)
		if parse != nil {
			t.Fatalf("%q names no prefix: %v", err, parse)
		}
		if err := New(Spec{Allow: []netip.Prefix{p}}).Check(a); err != nil {
			t.Errorf("with %s listed: %v", p, err)
		}
	}
}

func TestAllow(t *testing.T) {
	d := New(Spec{
		Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("100.100.100.200/32")},
		Own:   []netip.Addr{netip.MustParseAddr("8.8.4.4")},
	})
	for addr, want := range map[string]bool{
		"10.0.0.1": true, "127.0.0.1": true, "::1": true, "fe80::1": true, "8.8.4.4": true, "64:ff9b::10.0.0.1": true,
		"100.100.100.200": true,
		"169.254.169.254": false, "fd00:ec2::254": false, "64:ff9b::a9fe:a9fe": false, // a broad prefix is no word about credentials
		"64:ff9b::100.100.100.200": false, // another way there, not listed
		"0.0.0.0":                  false, "::": false, "224.0.0.1": false, "ff02::1": false, "255.255.255.255": false,
	} {
		if err := d.Check(netip.MustParseAddr(addr)); (err == nil) != want {
			t.Errorf("Check(%s) = %v, want allowed = %v", addr, err, want)
		}
	}
	// What is listed is listed as it is written: 10.0.0.1 behind a translator
	// is another network's.
	d = New(Spec{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err := d.Check(netip.MustParseAddr("64:ff9b::10.0.0.1")); err == nil {
		t.Error("10.0.0.0/8 allows 64:ff9b::10.0.0.1")
	}
	if err := d.Check(netip.MustParseAddr("::ffff:10.0.0.1")); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	p := netip.MustParsePrefix
	var got []string
	Spec{
		Allow:   []netip.Prefix{p("10.0.0.0/8"), {}, p("10.1.2.3/8"), p("::ffff:10.0.0.0/104"), p("224.0.0.0/4"), p("0.0.0.0/32"), p("0.0.0.0/0"), p("::/0"), p("ff00::/8")},
		Timeout: -1, MaxDials: -1,
	}.Validate(func(path, _, hint string) { got = append(got, path+": "+hint) })
	want := []string{
		"allow[1]: want a prefix", "allow[2]: it has bits beyond its length: write \"10.0.0.0/8\"", "allow[3]: write it as an IPv4 prefix: \"10.0.0.0/8\"",
		"allow[4]: it is no endpoint's", "allow[5]: it is no endpoint's", "allow[8]: it is no endpoint's", "timeout: ", "max_dials: ",
	}
	if len(got) != len(want) {
		t.Fatalf("problems = %q", got)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("problem %q, want %q", got[i], want[i])
		}
	}
}

// refusedByOracle is written with package net and bits, from the registries
// alone, and knows nothing of Check.
func refusedByOracle(a netip.Addr) bool {
	if a.Zone() != "" {
		return true
	}
	ip := net.IP(a.AsSlice())
	if four := ip.To4(); four != nil {
		v := binary.BigEndian.Uint32(four)
		top := func(bits int, first string) bool {
			return v>>(32-bits) == binary.BigEndian.Uint32(net.ParseIP(first).To4())>>(32-bits)
		}
		return top(8, "0.0.0.0") || top(8, "10.0.0.0") || top(10, "100.64.0.0") || top(8, "127.0.0.0") || top(16, "169.254.0.0") ||
			top(12, "172.16.0.0") || top(24, "192.0.0.0") || top(24, "192.0.2.0") || top(24, "192.88.99.0") || top(16, "192.168.0.0") ||
			top(15, "198.18.0.0") || top(24, "198.51.100.0") || top(24, "203.0.113.0") || v >= 224<<24 || four.Equal(net.ParseIP("168.63.129.16"))
	}
	if string(ip[:12]) == string(net.ParseIP("64:ff9b::")[:12]) {
		return refusedByOracle(netip.AddrFrom4([4]byte(ip[12:])))
	}
	if ip[0] == 0x20 && ip[1] == 2 {
		return refusedByOracle(netip.AddrFrom4([4]byte(ip[2:6])))
	}
	switch {
	case ip[0]>>5 != 1,
		ip[0] == 0x20 && ip[1] == 1 && ip[2] < 2,
		ip[0] == 0x20 && ip[1] == 1 && ip[2] == 0x0d && ip[3] == 0xb8,
		ip[0] == 0x3f && ip[1] == 0xff && ip[2] < 16:
		return true
	}
	return false
}

func TestCheckAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	d, refused := New(Spec{}), 0
	const rounds = 50_000
	for range rounds {
		a := randomAddr(rng)
		err := d.Check(a)
		if (err != nil) != refusedByOracle(a) {
			t.Fatalf("Check(%s) = %v, the oracle says refused = %v", a, err, refusedByOracle(a))
		}
		if err != nil {
			refused++
		}
	}
	if refused < rounds/10 || refused > rounds*9/10 {
		t.Fatalf("the cases are one-sided: %d of %d refused", refused, rounds)
	}
}

// randomAddr picks addresses near the edges of the ranges that matter, in
// every form that hides one.
func randomAddr(rng *rand.Rand) netip.Addr {
	var four [4]byte
	binary.BigEndian.PutUint32(four[:], rng.Uint32())
	if rng.IntN(2) == 0 {
		p := reserved[rng.IntN(14)].prefix
		v := binary.BigEndian.Uint32(p.Addr().AsSlice()) + uint32(rng.IntN(5)) - 2
		if rng.IntN(2) == 0 {
			v += 1 << (32 - p.Bits())
		}
		binary.BigEndian.PutUint32(four[:], v)
	}
	var b [16]byte
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	switch rng.IntN(7) {
	case 0:
		b = netip.MustParseAddr("64:ff9b::").As16()
		copy(b[12:], four[:])
	case 1:
		b[0], b[1] = 0x20, 2
		copy(b[2:], four[:])
	case 2:
		b = netip.AddrFrom4(four).As16()
	case 3:
		heads := [][2]byte{{0x20, 1}, {0x3f, 0xff}, {0xfe, 0x80}, {0xfd, 0}, {0, 0}, {0x1f, 0xff}, {0x40, 0}}
		head := heads[rng.IntN(len(heads))]
		b[0], b[1], b[2] = head[0], head[1], byte(rng.IntN(32))
		if rng.IntN(3) == 0 {
			b[2], b[3] = 0x0d, 0xb8
		}
	case 4:
		b[0] = 0x20 | b[0]&0x1f
	default:
		return netip.AddrFrom4(four)
	}
	return netip.AddrFrom16(b)
}

// FuzzCheck: whatever text an address is written as, nothing that the oracle
// refuses passes.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{
		"127.0.0.1", "::ffff:7f00:1", "::ffff:127.0.0.1", "0:0:0:0:0:FFFF:127.0.0.1", "64:ff9b::7f00:1", "64:FF9B:0:0::127.0.0.1", "2002:7f00:1::1",
		"127.1", "0177.0.0.1", "0x7f.1", "2130706433", "::127.0.0.1", "::ffff:0:127.0.0.1", "fe80::1%eth0", "::1%lo", "[::1]", "::ffff:10.0.0.1%x",
		"169.254.169.254", "fd00:ec2::254", "64:ff9b:1::1", "2001::1", "8.8.8.8", "2606:4700::1", "0.0.0.0", "::",
	} {
		f.Add(s)
	}
	d := New(Spec{})
	f.Fuzz(func(t *testing.T, s string) {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return
		}
		if err := d.Check(a); err == nil && refusedByOracle(a) {
			t.Fatalf("Check(%q) passes", s)
		} else if err != nil && !errors.Is(err, ErrNotPublic) {
			t.Fatalf("Check(%q) = %v", s, err)
		}
		if d.Check(a.Unmap()) == nil != (d.Check(a) == nil) && a.Zone() == "" {
			t.Fatalf("Check(%q) judges the mapped form otherwise", s)
		}
	})
}
