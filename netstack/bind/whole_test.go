//go:build linux

package bind

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// TestLargeDatagramsCrossWhole: on an Ethernet of 1300 bytes a datagram that
// fits the internet arrives, in pieces; one that does not fit is dropped and
// counted, though it would have arrived in pieces as well.
func TestLargeDatagramsCrossWhole(t *testing.T) {
	needIPv6(t)
	for _, to := range []string{"192.0.2.2", "2001:db8::2"} {
		t.Run(to, func(t *testing.T) {
			acrossVeth(t, 1300, func(across func(func())) {
				a, b := openHere(t, Config{}), New(Config{})
				defer a.Close()
				var fns []conn.ReceiveFunc
				var port uint16
				across(func() {
					var err error
					if fns, port, err = b.Open(0); err != nil {
						t.Error(err)
					}
				})
				timer := time.AfterFunc(wait, func() { b.Close() }) // ends receiving
				defer func() { timer.Stop(); b.Close() }()
				in := newScatterRig(maxBatch, 1<<16-1).batch
				e, _ := parseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(to), port).String())
				for i, size := range []int{1, largestCommon, largestCommon + 1, 9000, 1000} {
					out := bytes.Repeat([]byte{byte(i)}, size)
					if err := a.Send([][]byte{out}, e); err != nil {
						t.Error(err)
					}
					if size > largestCommon {
						continue
					}
					n, err := fns[0](in.bufs, in.sizes, in.eps)
					if err != nil || n != 1 || !bytes.Equal(in.bufs[0][:in.sizes[0]], out) {
						t.Errorf("of %d bytes: %d datagrams, of %d bytes, %v", size, n, in.sizes[0], err)
						return
					}
				}
				if got := drops(a)[whyTooLarge]; got != 2 {
					t.Errorf("%d were too large, want 2; %v", got, drops(a))
				}
			})
		})
	}
}
