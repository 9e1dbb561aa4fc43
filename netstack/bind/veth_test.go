//go:build linux

package bind

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// acrossVeth runs f in a network namespace, from which an Ethernet of the given
// MTU leads to another one, where across runs what it is given. This side is
// 192.0.2.1 and 2001:db8::1, the other 192.0.2.2 and 2001:db8::2.
func acrossVeth(t testing.TB, mtu int, f func(across func(func()))) {
	inNamespace(t, func(ip func(...string)) {
		calls, tid := make(chan func()), make(chan int)
		go func() {
			runtime.LockOSThread() // and never unlocked
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Errorf("making a second network namespace: %v", err)
			}
			tid <- unix.Gettid()
			for call := range calls {
				call()
			}
			tid <- 0
		}()
		across := func(call func()) {
			done := make(chan struct{})
			calls <- func() { defer close(done); call() }
			<-done
		}
		ip("link", "add", "v0", "mtu", strconv.Itoa(mtu), "type", "veth", "peer", "name", "v1", "mtu", strconv.Itoa(mtu), "netns", strconv.Itoa(<-tid))
		up := func(dev, host string) {
			ip("addr", "add", "192.0.2."+host+"/24", "dev", dev)
			ip("addr", "add", "2001:db8::"+host+"/64", "dev", dev, "nodad")
			ip("link", "set", dev, "up")
		}
		up("v0", "1")
		across(func() { up("v1", "2") })
		f(across)
		close(calls)
		<-tid
	})
}

// TestMessagesCrossAnEthernetWhole: what was put together arrives together,
// and nothing is copied on its way to the buffers. With messages as large as
// the kernel takes them it would come in single datagrams.
func TestMessagesCrossAnEthernetWhole(t *testing.T) {
	needIPv6(t)
	for _, tt := range []struct{ mtu, size, count, messages int }{
		{1500, 1452, 128, 4},
		{9000, 8952, 128, 22},
		{1500, 112, 128, 2},
	} {
		for _, to := range []string{"192.0.2.2", "2001:db8::2"} {
			t.Run(fmt.Sprintf("%d/%d/%s", tt.mtu, tt.size, to), func(t *testing.T) {
				acrossVeth(t, tt.mtu, func(across func(func())) {
					a, b := openHere(t, Config{}), New(Config{Batch: maxBatch})
					var fns []conn.ReceiveFunc
					var port uint16
					across(func() {
						var err error
						if fns, port, err = b.Open(0); err != nil {
							t.Error(err)
						}
					})
					defer a.Close()
					timer := time.AfterFunc(wait, func() { b.Close() }) // ends receiving
					defer func() { timer.Stop(); b.Close() }()
					in := newScatterRig(maxBatch, 1<<16-1).batch
					size := tt.size
					if to[0] == '2' {
						size -= 20 // of a larger header
					}
					out := sized(repeat(size, tt.count)...)
					e, _ := parseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(to), port).String())
					// What is sent before the neighbour is known may be lost.
					send(t, a, e, "who are you?")
					if n, err := fns[0](in.bufs, in.sizes, in.eps); n != 1 || err != nil {
						t.Errorf("%d datagrams, %v", n, err)
					}
					const rounds = 20
					for range rounds {
						if err := a.Send(out, e); err != nil {
							t.Error(err)
						}
						for left := slices.Clone(out); len(left) > 0; {
							n, err := fns[0](in.bufs, in.sizes, in.eps)
							if err != nil {
								t.Errorf("%d are missing: %v; %+v", len(left), err, b.Stats())
								return
							}
							for i, ep := range in.eps[:n] {
								if ep == nil {
									continue
								}
								if string(in.bufs[i][:in.sizes[i]]) != string(left[0]) {
									t.Errorf("datagram %d is another one", tt.count-len(left))
								}
								left = left[1:]
							}
						}
					}
					tx, rx := a.Stats(), b.Stats()
					if want := uint64(1 + rounds*tt.messages); tx.TxMessages != want || rx.RxMessages != want || tx.TxRefused != 0 || len(drops(a)) > 0 {
						t.Errorf("%d messages sent and %d received, want %d", tx.TxMessages, rx.RxMessages, want)
					}
				})
			})
		}
	}
}

// BenchmarkVeth is BenchmarkBind over an Ethernet between two namespaces.
func BenchmarkVeth(b *testing.B) {
	for _, count := range []int{1, 41, 128} {
		for _, name := range []string{"std", "batch32", "batch64", "batch96", "batch128"} {
			b.Run(fmt.Sprintf("%dx1452/%s", count, name), func(b *testing.B) {
				from, to := conn.NewStdNetBind(), conn.NewStdNetBind()
				if name != "std" {
					batch, _ := strconv.Atoi(name[len("batch"):])
					from, to = New(Config{}), New(Config{Batch: batch})
				}
				acrossVeth(b, 1500, func(across func(func())) {
					benchmarkBind(b, from, to, across, "192.0.2.2", count, 1452)
				})
			})
		}
	}
}
