package ingress

import (
	"net/netip"
	"testing"
)

func TestPacketInfoRoundTrip(t *testing.T) {
	for _, c := range []struct {
		v6   bool
		addr string
	}{{false, "203.0.113.10"}, {true, "2001:db8::10"}} {
		p := &packetInfo{v6: c.v6}
		want := netip.MustParseAddr(c.addr)
		if got := p.destination(p.from(want)); got != want {
			t.Errorf("%v came back as %v", want, got)
		}
		other := &packetInfo{v6: !c.v6}
		if got := other.destination(p.from(want)); got.IsValid() {
			t.Errorf("read %v out of the other family's message", got)
		}
	}
}

func FuzzPacketInfo(f *testing.F) {
	for _, addr := range []string{"203.0.113.10", "2001:db8::10"} {
		a := netip.MustParseAddr(addr)
		f.Add((&packetInfo{v6: a.Is6()}).from(a))
	}
	f.Add(make([]byte, packetInfoSpace))
	f.Fuzz(func(t *testing.T, oob []byte) {
		for _, v6 := range []bool{false, true} {
			if a := (&packetInfo{v6: v6}).destination(oob); a.IsValid() && a.Is6() != v6 {
				t.Errorf("an address of the wrong family: %v", a)
			}
		}
	})
}
