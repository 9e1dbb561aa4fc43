package public

import (
	"net/netip"
	"testing"
)

// TestCheckAllocatesNothing: it is asked for each flow.
func TestCheckAllocatesNothing(t *testing.T) {
	d := New(Spec{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	for _, text := range []string{"8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1", "64:ff9b::808:808", "10.0.0.1"} {
		a := netip.MustParseAddr(text)
		if n := testing.AllocsPerRun(100, func() {
			if d.Check(a) != nil {
				t.Error(a)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", a, n)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	d, a := New(Spec{}), netip.MustParseAddr("2606:4700::1")
	b.ReportAllocs()
	for b.Loop() {
		_ = d.Check(a)
	}
}
