package bind

import (
	"net/netip"
	"testing"
)

func TestParseEndpoint(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"192.0.2.1:51820", "192.0.2.1:51820"},
		{"[2001:db8::1]:1", "[2001:db8::1]:1"},
		{"[::ffff:192.0.2.1]:51820", "192.0.2.1:51820"},
		{"[fe80::1%1]:51820", "[fe80::1%1]:51820"},
		{"[fe80::1%lo]:51820", "[fe80::1%lo]:51820"},
		{"[fe80::1%nosuchdevice]:51820", ""},
		{"192.0.2.1", ""},
		{"192.0.2.1:0", ""},
		{"0.0.0.0:1", ""},
		{"[::]:1", ""},
		{"example.net:51820", ""},
		{"192.0.2.1:65536", ""},
		{"", ""},
	} {
		e, err := New(Config{}).ParseEndpoint(tt.in)
		switch {
		case tt.want == "" && err == nil:
			t.Errorf("%q was accepted", tt.in)
		case tt.want != "" && err != nil:
			t.Errorf("%q: %v", tt.in, err)
		case err == nil && (e.DstToString() != tt.want || e.SrcIP().IsValid() || e.SrcToString() != ""):
			t.Errorf("%q became %q from %q", tt.in, e.DstToString(), e.SrcToString())
		}
	}
}

func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"192.0.2.1:51820", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:51820", "[fe80::1%1]:51820", "x", "[::]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseEndpoint(s)
		if err != nil {
			return
		}
		want := netip.MustParseAddrPort(s)
		if e.AddrPort() != netip.AddrPortFrom(want.Addr().Unmap(), want.Port()) {
			t.Fatalf("%q became %v", s, e.AddrPort())
		}
		again, err := parseEndpoint(e.DstToString())
		if err != nil || again.AddrPort() != e.AddrPort() || string(again.DstToBytes()) != string(e.DstToBytes()) {
			t.Fatalf("%q printed and parsed again: %v, %v", s, again, err)
		}
	})
}

func numbered(i int) *origin {
	o := &origin{port: uint16(i), hasLocal: true, local: [16]byte{127, 0, 0, 1}}
	o.remote = [16]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
	return o
}

func TestEndpointCacheIsBoundedAndKeepsWhatIsUsed(t *testing.T) {
	c := newEndpointCache()
	peer := numbered(0)
	held := c.get(peer)
	for i := 1; i < 20*cacheSize; i++ { // a flood from forged sources
		if got := c.get(numbered(i)); got.DstIP() != netip.AddrFrom4([4]byte(numbered(i).remote[:4])) {
			t.Fatalf("endpoint %d is %v", i, got.DstIP())
		}
		if i%1000 == 0 && c.get(peer) != held {
			t.Fatalf("the endpoint in use was forgotten after %d others", i)
		}
		if len(c.young)+len(c.old) > 2*cacheSize {
			t.Fatalf("%d endpoints held", len(c.young)+len(c.old))
		}
	}
}

func TestEndpointCacheAgainstFreshEndpoints(t *testing.T) {
	c := newEndpointCache()
	seen := map[origin]*Endpoint{}
	for i := range 3000 {
		o := numbered(i % 7)
		o.local[3] = byte(i % 3)
		o.hasLocal = i%5 != 0
		e, fresh := c.get(o), o.endpoint()
		if e.AddrPort() != fresh.AddrPort() || e.SrcIP() != fresh.SrcIP() || e.wire != fresh.wire {
			t.Fatalf("%+v: got %v from %v", o, e.DstToString(), e.SrcToString())
		}
		if old := seen[*o]; old != nil && (old == e) == old.cleared.Load() {
			t.Fatalf("%+v: the same endpoint %v, though cleared %v", o, old == e, old.cleared.Load())
		}
		seen[*o] = e
		if i%11 == 0 {
			e.ClearSrc()
		}
	}
}

func TestLinkLocalKeepsItsInterface(t *testing.T) {
	o := &origin{is6: true, hasLocal: true, port: 5, scope: 3}
	o.remote = netip.MustParseAddr("fe80::1").As16()
	o.local = netip.MustParseAddr("fe80::2").As16()
	e := o.endpoint()
	if e.DstToString() != "[fe80::1%3]:5" || e.SrcToString() != "fe80::2" {
		t.Errorf("%s from %s", e.DstToString(), e.SrcToString())
	}
}
