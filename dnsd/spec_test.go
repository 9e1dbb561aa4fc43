package dnsd

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSpecValidate(t *testing.T) {
	at := netip.MustParseAddrPort
	cases := []struct {
		name string
		spec Spec
		want []string // each is part of the error
	}{
		{"nothing", Spec{}, nil},
		{"two addresses", Spec{Listen: []netip.AddrPort{at("192.0.2.1:53"), at("192.0.2.1:54")}}, nil},
		{"the wildcard, when asked for", Spec{Listen: []netip.AddrPort{at("0.0.0.0:53"), at("[::]:53")}}, nil},
		{"missing", Spec{Listen: []netip.AddrPort{{}}}, []string{"listen[0]"}},
		{"multicast", Spec{Listen: []netip.AddrPort{at("224.0.0.251:53")}}, []string{"listen[0]", "multicast"}},
		{"twice", Spec{Listen: []netip.AddrPort{at("192.0.2.1:53"), at("[::ffff:192.0.2.1]:53")}}, []string{"listen[1]", "twice"}},
		{"all at once", Spec{Listen: []netip.AddrPort{{}, {}}, Idle: -time.Second}, []string{"listen[0]", "listen[1]", "negative"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := c.spec.Validate()
			if (err == nil) != (c.want == nil) {
				t.Fatalf("Validate = %v, want %q", err, c.want)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("Validate = %v, lacks %q", err, part)
				}
			}
		})
	}
}

func TestListenOn(t *testing.T) {
	got, err := ListenOn(addrs("203.0.113.10", "2001:db8::10", "::ffff:203.0.113.10", "203.0.113.10"), Port)
	want := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.10:53"), netip.MustParseAddrPort("[2001:db8::10]:53")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("ListenOn = %v, %v; want %v", got, err, want)
	}
	for _, wild := range []string{"0.0.0.0", "::", "::ffff:0.0.0.0"} {
		if got, err := ListenOn(addrs("203.0.113.10", wild), Port); err == nil || !strings.Contains(err.Error(), "[dns] listen") {
			t.Errorf("ListenOn with %s = %v, %v; want an error", wild, got, err)
		}
	}
	if got, err := ListenOn([]netip.Addr{{}}, Port); err == nil {
		t.Errorf("ListenOn without an address = %v, want an error", got)
	}
}
