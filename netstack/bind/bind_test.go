package bind

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTwoBindsTalkInBothFamilies(t *testing.T) {
	needIPv6(t)
	a, b := open(t, New(Config{})), open(t, New(Config{}))
	for _, addr := range []string{"127.0.0.1", "::1"} {
		t.Run(addr, func(t *testing.T) {
			send(t, a.Bind, b.at(t, addr), "hello")
			d := b.next(t)
			want := netip.AddrPortFrom(netip.MustParseAddr(addr), a.port)
			if d.data != "hello" || d.ep.AddrPort() != want {
				t.Fatalf("got %q from %v, want it from %v", d.data, d.ep.AddrPort(), want)
			}
			if d.ep.SrcIP() != want.Addr() || d.ep.SrcToString() != addr || d.ep.DstIP() != want.Addr() || d.ep.DstToString() != want.String() {
				t.Errorf("endpoint %v from %v", d.ep.DstToString(), d.ep.SrcToString())
			}
			send(t, b.Bind, d.ep, "answer")
			if d := a.next(t); d.data != "answer" || d.ep.AddrPort() != netip.AddrPortFrom(want.Addr(), b.port) {
				t.Errorf("got %q from %v", d.data, d.ep.AddrPort())
			}
		})
	}
}

func TestSendOfAnyNumberArrivesInOrderAndWhole(t *testing.T) {
	for _, n := range []int{0, 1, 2, 127, 128, 129, 700} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			a, b := open(t, New(Config{})), open(t, New(Config{Batch: 7}))
			var bufs [][]byte
			for i := range n {
				bufs = append(bufs, bytes.Repeat([]byte{byte(i)}, i))
			}
			if err := a.Send(bufs, b.at(t, "127.0.0.1")); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if d := b.next(t); d.data != string(bufs[i]) {
					t.Fatalf("datagram %d has %d bytes", i, len(d.data))
				}
			}
			if s := a.Stats(); s.TxDatagrams != uint64(n) || s.TxBytes != uint64(n*(n-1)/2) {
				t.Errorf("counted %+v", s)
			}
			if s := b.Stats(); s.RxDatagrams != uint64(n) || s.RxBytes != uint64(n*(n-1)/2) {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

func TestSizeOfBatchIsKept(t *testing.T) {
	a, b := open(t, New(Config{})), New(Config{Batch: 3, Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	e, _ := parseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	send(t, a.Bind, e, "0", "1", "2", "3", "4")
	bufs, sizes, eps := make([][]byte, 3), make([]int, 3), make([]conn.Endpoint, 3)
	for i := range bufs {
		bufs[i] = make([]byte, 10)
	}
	for _, want := range []int{3, 2} {
		if n, err := fns[0](bufs, sizes, eps); n != want || err != nil {
			t.Errorf("got %d datagrams, %v, want %d", n, err, want)
		}
	}
	if got := b.BatchSize(); got != 3 {
		t.Errorf("BatchSize is %d", got)
	}
}

func TestDatagramLargerThanTheBufferIsDroppedAndCounted(t *testing.T) {
	a, b := open(t, New(Config{})), New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	e, _ := parseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	send(t, a.Bind, e, "0123456789", "01")
	sizes, eps := make([]int, 2), make([]conn.Endpoint, 2)
	n, err := fns[0]([][]byte{make([]byte, 5), make([]byte, 5)}, sizes, eps)
	if n != 2 || err != nil || sizes[0] != 0 || sizes[1] != 2 {
		t.Errorf("n %d sizes %v %v", n, sizes, err)
	}
	if got := b.counts.drops[len(whys)-1].Load(); got != 1 {
		t.Errorf("%d counted as truncated", got)
	}
}

// TestUnwantedHandshakesAreDroppedAndCounted: the first messages alone, and
// only where Answer says so.
func TestUnwantedHandshakesAreDroppedAndCounted(t *testing.T) {
	wanted := false
	a, b := open(t, New(Config{})), New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Answer: func() bool { return wanted }})
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	e, _ := parseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	initiation := "\x01\x00\x00\x00" + strings.Repeat("x", device.MessageInitiationSize-4)
	messages := []string{initiation, initiation[1:], initiation + "x", "\x02" + initiation[1:], "\x01"}
	for _, want := range [][]int{{0, 147, 149, 148, 1}, {148, 147, 149, 148, 1}} {
		send(t, a.Bind, e, messages...)
		for i := 0; i < len(want); {
			bufs, sizes, eps := make([][]byte, 5), make([]int, 5), make([]conn.Endpoint, 5)
			for i := range bufs {
				bufs[i] = make([]byte, 1500)
			}
			n, err := fns[0](bufs, sizes, eps)
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range sizes[:n] {
				if size != want[i] {
					t.Errorf("message %d handed over with %d bytes, want %d", i, size, want[i])
				}
				i++
			}
		}
		wanted = true
	}
	b.Drops(func(where, why string, n uint64) {
		if why != whyUnwanted || n != 1 {
			t.Errorf("%d dropped at %s for %s", n, where, why)
		}
	})
}

func TestAnswersLeaveFromTheAddressThatWasSpokenTo(t *testing.T) {
	b := open(t, New(Config{}))
	for _, addr := range []string{"127.0.0.1", "127.0.0.2", "127.8.9.10", "127.0.0.2"} {
		t.Run(addr, func(t *testing.T) {
			// One socket for all: the same peer changes to whom it speaks.
			client, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), b.port)))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if _, err := client.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			d := b.next(t)
			if d.ep.SrcIP() != netip.MustParseAddr(addr) {
				t.Errorf("source is %v", d.ep.SrcIP())
			}
			send(t, b.Bind, d.ep, "pong")
			// A connected socket takes nothing from another address.
			if got := read(t, client); got != "pong" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func read(t testing.TB, c net.Conn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestOneSocketThatSpeaksToTwoAddressesIsTwoEndpoints(t *testing.T) {
	b := open(t, New(Config{}))
	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	seen := map[string]*Endpoint{}
	for _, addr := range []string{"127.0.0.3", "127.0.0.4", "127.0.0.3", "127.0.0.4"} {
		if _, err := client.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(netip.MustParseAddr(addr), b.port)); err != nil {
			t.Fatal(err)
		}
		d := b.next(t)
		if d.ep.SrcToString() != addr {
			t.Fatalf("source %q, want %q", d.ep.SrcToString(), addr)
		}
		if old := seen[addr]; old != nil && old != d.ep {
			t.Error("a second endpoint for the same origin")
		}
		seen[addr] = d.ep
	}
}

func TestClearSrcLetsTheKernelChooseUntilThePeerSpeaksAgain(t *testing.T) {
	b := open(t, New(Config{}))
	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ping := func() *Endpoint {
		if _, err := client.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.5"), b.port)); err != nil {
			t.Fatal(err)
		}
		return b.next(t).ep
	}
	from := func(e *Endpoint) string {
		send(t, b.Bind, e, "y")
		if err := client.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		_, from, err := client.ReadFromUDPAddrPort(make([]byte, 10))
		if err != nil {
			t.Fatal(err)
		}
		return from.Addr().Unmap().String()
	}
	held := ping()
	if got := from(held); got != "127.0.0.5" {
		t.Fatalf("answer from %s", got)
	}
	held.ClearSrc()
	if got := from(held); got != "127.0.0.1" || held.SrcIP().IsValid() || held.SrcToString() != "" {
		t.Errorf("answer after ClearSrc from %s, source %v", got, held.SrcIP())
	}
	fresh := ping()
	if got := from(fresh); got != "127.0.0.5" {
		t.Errorf("answer to the next datagram from %s", got)
	}
	if got := from(held); got != "127.0.0.1" {
		t.Errorf("an unauthenticated datagram brought back the source of a held endpoint: %s", got)
	}
}

func TestSourceThatLeftTheMachineIsGivenUp(t *testing.T) {
	a, b := open(t, New(Config{})), open(t, New(Config{}))
	for _, tt := range []struct{ to, gone string }{{"127.0.0.1", "192.0.2.99"}, {"::1", "2001:db8::99"}} {
		t.Run(tt.to, func(t *testing.T) {
			if tt.to == "::1" {
				needIPv6(t)
			}
			e := newEndpoint(netip.AddrPortFrom(netip.MustParseAddr(tt.to), b.port), netip.MustParseAddr(tt.gone), 0)
			send(t, a.Bind, e, "1", "2", "3")
			for _, want := range []string{"1", "2", "3"} {
				if d := b.next(t); d.data != want {
					t.Errorf("got %q, want %q", d.data, want)
				}
			}
			if e.SrcIP().IsValid() {
				t.Errorf("the endpoint still has source %v", e.SrcIP())
			}
			if len(a.drops()) != 0 {
				t.Errorf("dropped %v", a.drops())
			}
		})
	}
}

func TestTooLargeIsDroppedAloneAndCounted(t *testing.T) {
	a, b := open(t, New(Config{})), open(t, New(Config{}))
	largest := strings.Repeat("x", 65507)
	send(t, a.Bind, b.at(t, "127.0.0.1"), "first", largest+"x", "second", largest+"x", largest)
	for _, want := range []string{"first", "second", largest} {
		if d := b.next(t); d.data != want {
			t.Fatalf("got %d bytes, want %d", len(d.data), len(want))
		}
	}
	if got := a.drops(); got[whyTooLarge] != 2 || len(got) != 1 {
		t.Errorf("dropped %v", got)
	}
}

func TestOnSentIsToldOfEverySendOnce(t *testing.T) {
	var told []int
	b := New(Config{OnSent: func(bufs [][]byte) { told = append(told, len(bufs)) }, Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	bufs := func(n int) [][]byte { return make([][]byte, n) }
	e4, _ := parseEndpoint("127.0.0.1:9")
	e6, _ := parseEndpoint("[::1]:9")
	for _, tt := range []struct {
		name string
		n    int
		ep   conn.Endpoint
		open bool
		want error
	}{
		{"while closed", 1, e4, false, net.ErrClosed},
		{"sent", 2, e4, true, nil},
		{"several chunks", 300, e4, true, nil},
		{"foreign endpoint", 3, &conn.StdNetEndpoint{}, true, conn.ErrWrongEndpointType},
		{"other family", 4, e6, true, syscall.EAFNOSUPPORT},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.open {
				if _, _, err := b.Open(0); err != nil {
					t.Fatal(err)
				}
				defer b.Close()
			}
			told = nil
			if err := b.Send(bufs(tt.n), tt.ep); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if len(told) != 1 || told[0] != tt.n {
				t.Errorf("told of %v, want once of %d", told, tt.n)
			}
		})
	}
	sum := uint64(0)
	b.Drops(func(_, _ string, n uint64) { sum += n })
	if sum != 1+3+4 {
		t.Errorf("%d drops counted, want 8", sum)
	}
}

func TestKernelsOwnDropsAreCounted(t *testing.T) {
	a := open(t, New(Config{}))
	b := New(Config{ReceiveBuffer: 8 << 10, Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	e, _ := parseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	const sent = 500
	for range sent {
		send(t, a.Bind, e, strings.Repeat("x", 1000))
	}
	kernel := func() (n uint64) {
		b.Drops(func(_, why string, count uint64) {
			if why == whyKernel {
				n = count
			}
		})
		return n
	}
	dropped := kernel()
	bufs, sizes, eps := make([][]byte, 64), make([]int, 64), make([]conn.Endpoint, 64)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	got := 0
	for uint64(got)+dropped < sent {
		n, err := fns[0](bufs, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	if dropped == 0 || got == 0 || uint64(got)+dropped != sent {
		t.Errorf("sent %d, received %d, dropped %d", sent, got, dropped)
	}
	b.Close()
	if after := kernel(); after != dropped {
		t.Errorf("%d drops once closed, were %d", after, dropped)
	}
}
