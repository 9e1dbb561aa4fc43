//go:build linux

package bind

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

func TestSendAndReceiveDoNotAllocate(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		t.Run(addr, func(t *testing.T) {
			if addr == "::1" {
				needIPv6(t)
			}
			at := netip.AddrPortFrom(netip.MustParseAddr(addr), 0)
			told := 0
			a, b := New(Config{Listen: at, OnSent: func([][]byte) { told++ }}), New(Config{Listen: at})
			if _, _, err := a.Open(0); err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			fns, port, err := b.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			var to conn.Endpoint = newEndpoint(netip.AddrPortFrom(at.Addr(), port), at.Addr(), 0)
			const n = 128
			out, in, sizes, eps := make([][]byte, n), make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
			for i := range n {
				out[i], in[i] = make([]byte, 1452), make([]byte, 1<<16-1)
			}
			if m := b.BatchSize(); m < n {
				in = in[:m]
			}
			allocs := testing.AllocsPerRun(100, func() {
				if err := a.Send(out, to); err != nil {
					t.Fatal(err)
				}
				for got := 0; got < n; {
					m, err := fns[0](in, sizes, eps)
					if err != nil {
						t.Fatal(err)
					}
					got += m
				}
			})
			if allocs != 0 {
				t.Errorf("%v allocations for %d datagrams, want 0", allocs, n)
			}
			if s := a.Stats(); s.TxDatagrams != 101*n || s.TxCalls != 101 || told != 101 {
				t.Errorf("%+v, told %d times", s, told)
			}
		})
	}
}

// inNamespace runs f on a thread in a network namespace of its own, in which
// only loopback is up. Sockets that f opens stay in there.
func inNamespace(t testing.TB, f func(ip func(args ...string))) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		lacking(t, "iproute2")
	}
	done := make(chan string)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- "the right to make network namespaces: " + err.Error()
			return
		}
		defer close(done)
		ip := func(args ...string) {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
			}
		}
		ip("link", "set", "lo", "up")
		f(ip)
	}()
	if lack := <-done; lack != "" {
		lacking(t, lack)
	}
}

// openHere opens a Bind without receiving, to be closed by the caller.
func openHere(t testing.TB, c Config) *Bind {
	b := New(c)
	if _, _, err := b.Open(0); err != nil {
		t.Error(err)
	}
	return b
}

func TestSendErrorsOfRoutes(t *testing.T) {
	needIPv6(t)
	inNamespace(t, func(ip func(...string)) {
		ip("route", "add", "unreachable", "192.0.2.1")
		ip("route", "add", "prohibit", "192.0.2.2")
		ip("route", "add", "blackhole", "192.0.2.3")
		ip("-6", "route", "add", "unreachable", "2001:db8::1")
		b := openHere(t, Config{})
		defer b.Close()
		for _, tt := range []struct {
			to   string
			err  error
			drop string
		}{
			{"192.0.2.1:9", syscall.EHOSTUNREACH, whyUnreachable},
			{"192.0.2.2:9", syscall.EACCES, whyUnreachable},
			{"192.0.2.3:9", syscall.EINVAL, whyInvalid},
			{"192.0.2.4:9", syscall.ENETUNREACH, whyUnreachable},
			{"[2001:db8::1]:9", syscall.EHOSTUNREACH, whyUnreachable},
			{"[2001:db8::2]:9", syscall.ENETUNREACH, whyUnreachable},
		} {
			before := drops(b)
			e, _ := parseEndpoint(tt.to)
			err := b.Send(make([][]byte, 200), e)
			if !errors.Is(err, tt.err) || !strings.HasPrefix(fmt.Sprint(err), "sending to "+tt.to+": ") {
				t.Errorf("%s: error %v, want %v", tt.to, err, tt.err)
			}
			if after := drops(b); after[tt.drop] != before[tt.drop]+200 {
				t.Errorf("%s: dropped %v, before %v", tt.to, after, before)
			}
		}
		// Reachable again, no trace is left.
		ip("route", "del", "unreachable", "192.0.2.1")
		ip("addr", "add", "192.0.2.1/32", "dev", "lo")
		e, _ := parseEndpoint("192.0.2.1:9")
		if err := b.Send(make([][]byte, 2), e); err != nil {
			t.Error(err)
		}
	})
}

func TestFirewallIsCountedAndTold(t *testing.T) {
	noFirewall := false
	inNamespace(t, func(func(...string)) {
		rules := "add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o udp dport 9 drop"
		nft := exec.Command("nft", rules).Run()
		iptables := exec.Command("iptables", "-A", "OUTPUT", "-p", "udp", "--dport", "9", "-j", "DROP").Run()
		if nft != nil && iptables != nil {
			noFirewall = true
			return
		}
		b := openHere(t, Config{})
		defer b.Close()
		e, _ := parseEndpoint("127.0.0.1:9")
		if err := b.Send(make([][]byte, 3), e); !errors.Is(err, syscall.EPERM) {
			t.Errorf("error %v, want EPERM", err)
		}
		if got := drops(b); got[whyFirewall] != 3 {
			t.Errorf("dropped %v", got)
		}
	})
	if noFirewall {
		lacking(t, "a firewall that nft or iptables can set up")
	}
}

// TestSendDoesNotWaitForEver fills a socket's buffer: what is sent to a
// neighbour that never answers waits for its address.
func TestSendDoesNotWaitForEver(t *testing.T) {
	inNamespace(t, func(ip func(...string)) {
		ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
		ip("link", "set", "v0", "up")
		ip("link", "set", "v1", "up")
		ip("addr", "add", "192.0.2.1/24", "dev", "v0")
		b := openHere(t, Config{SendBuffer: 16 << 10, SendWait: 20 * time.Millisecond})
		defer b.Close()
		silent, _ := parseEndpoint("192.0.2.9:9")
		full := func() bool { return drops(b)[whyBufferFull] > 0 }
		for range 100 {
			if full() {
				break
			}
			if err := b.Send([][]byte{make([]byte, 1400), make([]byte, 1400)}, silent); err != nil {
				t.Errorf("a full buffer is an error: %v", err)
				return
			}
		}
		if !full() {
			t.Error("the buffer never filled: the test tests nothing")
		}

		// Several at once take turns; Close ends their wait.
		b.config.SendWait = time.Hour
		ended := make(chan error)
		for range 3 {
			go func() { ended <- b.Send([][]byte{make([]byte, 1400), make([]byte, 60000)}, silent) }()
		}
		for len(b.current.Load().v4.turn) == 0 {
			runtime.Gosched()
		}
		b.Close()
		for range 3 {
			if err := <-ended; err != nil && !errors.Is(err, net.ErrClosed) {
				t.Errorf("ended with %v, want net.ErrClosed", err)
			}
		}
	})
}

func TestStickinessOfIPv6(t *testing.T) {
	needIPv6(t)
	inNamespace(t, func(ip func(...string)) {
		for _, a := range []string{"2001:db8::1/128", "2001:db8::2/128", "2001:db8::3/128"} {
			ip("addr", "add", a, "dev", "lo", "nodad")
		}
		b := open(t, New(Config{}))
		for _, addr := range []string{"2001:db8::1", "2001:db8::3", "2001:db8::2", "::1"} {
			client, d := ping(t, b, netip.MustParseAddr(addr))
			defer client.Close()
			if d.ep.SrcToString() != addr {
				t.Errorf("source %q, want %q", d.ep.SrcToString(), addr)
			}
			send(t, b.Bind, d.ep, "pong")
			if got := read(t, client); got != "pong" {
				t.Errorf("%s: got %q", addr, got)
			}
		}
	})
}

// ping speaks to b at addr until something arrives. The kernel makes the local
// route of a new address a little later than the address, and a socket that
// was connected in between keeps the wrong one; so each attempt has its own.
func ping(t *testing.T, b *opened, addr netip.Addr) (net.Conn, datagram) {
	for tries := 0; ; tries++ {
		client, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, b.port)))
		if err != nil {
			t.Fatalf("speaking to %v: %v", addr, err)
		}
		if _, err := client.Write([]byte("ping")); err != nil {
			t.Logf("speaking to %v: %v", addr, err)
		}
		for late, patience := true, time.After(20*time.Millisecond); late; {
			select {
			case d := <-b.got:
				if d.ep.DstToString() == client.LocalAddr().String() {
					return client, d
				} // or it is a late one, of an attempt that was given up
			case <-patience:
				late = false
			}
		}
		client.Close()
		if tries == 500 {
			t.Fatalf("nothing arrives at %v", addr)
		}
	}
}

func TestPathMTU(t *testing.T) {
	needIPv6(t)
	inNamespace(t, func(ip func(...string)) {
		ip("link", "add", "v0", "mtu", "1400", "type", "veth", "peer", "name", "v1")
		ip("link", "set", "v1", "mtu", "1400", "up")
		ip("link", "set", "v0", "up")
		ip("addr", "add", "192.0.2.1/24", "dev", "v0")
		ip("addr", "add", "2001:db8::1/64", "dev", "v0", "nodad")
		ip("route", "add", "198.51.100.0/24", "via", "192.0.2.2", "mtu", "1300")
		b := New(Config{}) // it need not be open
		for dst, want := range map[string]int{
			"127.0.0.1": 65535, "192.0.2.7": 1400, "198.51.100.9": 1300,
			"2001:db8::7": 1400, "::1": 65536, "::ffff:192.0.2.7": 1400,
		} {
			if got, err := b.PathMTU(netip.MustParseAddr(dst)); err != nil || got != want {
				t.Errorf("to %s: %d, %v, want %d", dst, got, err, want)
			}
		}
		for _, dst := range []string{"203.0.113.1", "2001:db8:1::1"} {
			if _, err := b.PathMTU(netip.MustParseAddr(dst)); !errors.Is(err, syscall.ENETUNREACH) || !strings.Contains(err.Error(), dst) {
				t.Errorf("to %s: %v", dst, err)
			}
		}
		if _, err := b.PathMTU(netip.Addr{}); err == nil {
			t.Error("no address, no error")
		}
		named := New(Config{Listen: netip.MustParseAddrPort("192.0.2.1:0")})
		if got, err := named.PathMTU(netip.MustParseAddr("198.51.100.9")); err != nil || got != 1300 {
			t.Errorf("from a named address: %d, %v", got, err)
		}
		if _, err := named.PathMTU(netip.MustParseAddr("::1")); !errors.Is(err, syscall.EAFNOSUPPORT) {
			t.Errorf("to the other family: %v", err)
		}
	})
}

// TestPathMTUDiscoveryIsOff sends more than the interface takes at once: it
// leaves in fragments, whatever the kernel believes of the path.
func TestPathMTUDiscoveryIsOff(t *testing.T) {
	b := openHere(t, Config{})
	defer b.Close()
	for _, tt := range []struct {
		s                *socket
		level, opt, want int
	}{
		{b.current.Load().v4, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT},
		{b.current.Load().v6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT},
	} {
		if tt.s == nil {
			continue
		}
		_ = tt.s.kernel.Load().raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptInt(int(fd), tt.level, tt.opt); err != nil || got != tt.want {
				t.Errorf("%s: %d, %v, want %d", tt.s.network, got, err, tt.want)
			}
		})
	}
	inNamespace(t, func(ip func(...string)) {
		ip("link", "add", "v0", "mtu", "1400", "type", "veth", "peer", "name", "v1")
		ip("link", "set", "v1", "up")
		ip("link", "set", "v0", "up")
		ip("addr", "add", "192.0.2.1/24", "dev", "v0")
		ip("neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "v0")
		b := openHere(t, Config{})
		defer b.Close()
		e, _ := parseEndpoint("192.0.2.2:9")
		if err := b.Send([][]byte{make([]byte, largestCommon)}, e); err != nil || len(drops(b)) != 0 {
			t.Errorf("%v, dropped %v", err, drops(b))
		}
	})
}

// TestMachineWithIPv6Disabled by sysctl still makes IPv6 sockets.
func TestMachineWithIPv6Disabled(t *testing.T) {
	inNamespace(t, func(func(...string)) {
		for _, of := range []string{"all", "default", "lo"} {
			name := "/proc/sys/net/ipv6/conf/" + of + "/disable_ipv6"
			if err := os.WriteFile(name, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("writing %s: %v", name, err)
			}
		}
		b := New(Config{})
		fns, port, err := b.Open(0)
		if err != nil {
			t.Error(err)
			return
		}
		defer b.Close()
		e, _ := parseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
		rig := newScatterRig(4, 1<<16-1)
		for range 2 { // to its parsed endpoint, then to the one it came from
			if err := b.Send([][]byte{[]byte("to"), []byte("my"), []byte("self")}, e); err != nil {
				t.Error(err)
				return
			}
			for got := ""; got != "tomyself"; {
				n, err := fns[0](rig.bufs, rig.sizes, rig.eps)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range n {
					got += string(rig.bufs[i][:rig.sizes[i]])
					if rig.eps[i] != nil {
						e = rig.eps[i].(*Endpoint)
					}
				}
			}
		}
		if e.SrcToString() != "127.0.0.1" || e.DstToString() != fmt.Sprintf("127.0.0.1:%d", port) {
			t.Errorf("endpoint %v from %v", e.DstToString(), e.SrcToString())
		}
	})
}

func TestMarkOutlivesTheSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		lacking(t, "root")
	}
	o := open(t, New(Config{}))
	mark := func() (got int) {
		_ = o.current.Load().v4.kernel.Load().raw.Control(func(fd uintptr) {
			got, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK)
		})
		return got
	}
	if err := o.SetMark(0x77); err != nil {
		t.Fatal(err)
	}
	if got := mark(); got != 0x77 {
		t.Errorf("mark %#x", got)
	}
	old := o.current.Load().v4.kernel.Load()
	old.Close()
	for o.current.Load().v4.kernel.Load() == old {
		runtime.Gosched()
	}
	if got := mark(); got != 0x77 {
		t.Errorf("mark %#x of the new socket", got)
	}
}

func TestBuffersAreForcedWhereAllowed(t *testing.T) {
	b := openHere(t, Config{ReceiveBuffer: 9 << 20, SendBuffer: 10 << 20})
	receive, send := b.Buffers()
	if os.Geteuid() != 0 {
		lacking(t, "root")
	}
	if receive != 9<<20 || send != 10<<20 {
		t.Errorf("buffers are %d and %d", receive, send)
	}
	b.Close()
	if receive, send = b.Buffers(); receive != 0 || send != 0 {
		t.Errorf("buffers of a closed Bind are %d and %d", receive, send)
	}
	small := openHere(t, Config{ReceiveBuffer: 64 << 10, SendBuffer: 32 << 10})
	defer small.Close()
	if receive, send = small.Buffers(); receive != 64<<10 || send != 32<<10 {
		t.Errorf("small buffers are %d and %d", receive, send)
	}
}
