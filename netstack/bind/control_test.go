//go:build linux

package bind

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func FuzzReadControl(f *testing.F) {
	for _, src := range []string{"192.0.2.1", "2001:db8::1", "fe80::1"} {
		var w wire
		w.set(netip.MustParseAddrPort("192.0.2.9:9"), netip.MustParseAddr(src), 3)
		f.Add(w.control.bytes()[:w.controlLen])
		f.Add(w.control.bytes())
		f.Add(w.control.bytes()[:w.controlLen-9])
	}
	gathered := []byte{20, 0, 0, 0, 0, 0, 0, 0, unix.IPPROTO_UDP, 0, 0, 0, unix.UDP_GRO, 0, 0, 0, 0xac, 5, 0, 0, 0, 0, 0, 0}
	var o origin
	if got := o.readControl(gathered); got != 1452 {
		f.Errorf("datagrams of %d bytes", got)
	}
	f.Add(gathered)
	f.Fuzz(func(t *testing.T, b []byte) {
		var c received // aligned, as the kernel's are
		n := copy(c.bytes(), b)
		var o origin
		o.readControl(c.bytes()[:n])
		if o.hasLocal && !bytes.Contains(b, o.local[:4]) {
			t.Errorf("%v is not in %x", o.local, b)
		}
	})
}

func TestControlMessageReadsBack(t *testing.T) {
	for _, src := range []string{"192.0.2.1", "2001:db8::1", "fe80::1"} {
		var w wire
		w.set(netip.MustParseAddrPort("192.0.2.9:9"), netip.MustParseAddr(src), 3)
		if w.controlLen > int(unsafe.Sizeof(control{})) {
			t.Fatalf("%d bytes of control", w.controlLen)
		}
		// What is sent names the source where what is received names the
		// destination: Spec_dst in IPv4, the one address in IPv6.
		o := origin{is6: strings.Contains(src, ":")}
		o.readControl(w.control.bytes()[:w.controlLen])
		if e := o.endpoint(); e.SrcToString() != src {
			t.Errorf("%s read back as %s", src, e.SrcToString())
		}
	}
}
