package load

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// faultyProxy relays TCP to a target; what it does to a connection is up to
// the test. It ends with the test.
type faultyProxy struct {
	target netip.AddrPort
	// down and up copy one direction, connection `n` of them (from 0). nil
	// copies faithfully.
	down, up func(n int, dst *net.TCPConn, src io.Reader)
	// refuse says which connections are reset at once.
	refuse func(n int) bool
}

func (p faultyProxy) start(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); cancel(); wg.Wait() })
	wg.Go(func() {
		for n := 0; ; n++ {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() { p.relay(ctx, n, conn) })
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func (p faultyProxy) relay(ctx context.Context, n int, conn *net.TCPConn) {
	defer cut(conn)
	if p.refuse != nil && p.refuse(n) {
		return
	}
	origin, err := (&net.Dialer{}).DialTCP(ctx, "tcp", netip.AddrPort{}, p.target)
	if err != nil {
		return
	}
	defer cut(origin)
	defer context.AfterFunc(ctx, func() { cut(conn); cut(origin) })()
	var wg sync.WaitGroup
	copyAll := func(f func(int, *net.TCPConn, io.Reader), dst, src *net.TCPConn) {
		if f == nil {
			f = faithful
		}
		f(n, dst, src)
		dst.CloseWrite()
		discard(src, make([]byte, 4096)) // a reset of one side must not wait for the other
	}
	wg.Go(func() { copyAll(p.up, origin, conn) })
	wg.Go(func() { copyAll(p.down, conn, origin) })
	wg.Wait()
}

func faithful(_ int, dst *net.TCPConn, src io.Reader) {
	if _, err := io.Copy(dst, src); err != nil {
		cut(dst)
	}
}

// after copies n bytes faithfully before something happens.
func after(n int64, then func(dst *net.TCPConn, src io.Reader)) func(int, *net.TCPConn, io.Reader) {
	return func(_ int, dst *net.TCPConn, src io.Reader) {
		if _, err := io.CopyN(dst, src, n); err == nil {
			then(dst, src)
		}
	}
}

// mangle applies a fault of TestReceiveFindsEveryFault to three blocks, then
// goes on faithfully.
func mangle(size int, fault func(a, b, c, other []byte) []byte) func(*net.TCPConn, io.Reader) {
	return func(dst *net.TCPConn, src io.Reader) {
		blocks := make([]byte, 3*size)
		if _, err := io.ReadFull(src, blocks); err != nil {
			return
		}
		dst.Write(fault(blocks[:size:size], blocks[size:2*size:2*size], blocks[2*size:], make([]byte, size)))
		faithful(0, dst, src)
	}
}

// TestBulkFindsFaults runs bulk through a proxy that corrupts it.
func TestBulkFindsFaults(t *testing.T) {
	host := startOrigin(t)
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := after(20_001, mangle(4096, fault))
			for _, direction := range []string{Up, Down} {
				proxy := faultyProxy{target: netip.AddrPortFrom(host, PortBulk), up: bad}
				if direction == Down {
					proxy.up, proxy.down = nil, bad
				}
				s := short(KindBulk, host, PortBulk)
				s.Target, s.Direction, s.Streams, s.Duration = proxy.start(t), direction, 2, 300*time.Millisecond
				r := run(t, s, func(r Report) bool { return r.Corrupt == 2 })
				if r.Failures != 2 || r.Ops != 0 || !strings.Contains(r.Example, "byte ") {
					t.Errorf("%s: %+v", direction, r)
				}
			}
		})
	}
}

// TestBulkThatEndsEarly: a stream that is cut is a failure, and no more.
func TestBulkThatEndsEarly(t *testing.T) {
	host := startOrigin(t)
	for direction, reason := range map[string]string{Up: "sending: ", Down: "receiving: closed early"} {
		end := after(20_000, func(*net.TCPConn, io.Reader) {})
		proxy := faultyProxy{target: netip.AddrPortFrom(host, PortBulk), up: end}
		if direction == Down {
			proxy.up, proxy.down = nil, end
		}
		s := short(KindBulk, host, PortBulk)
		s.Target, s.Direction = proxy.start(t), direction
		r := run(t, s, func(r Report) bool { return r.Failures == 1 })
		if r.Corrupt != 0 || r.Ops != 0 || !hasReason(r, reason) {
			t.Errorf("%s: %+v", direction, r)
		}
	}
}

func hasReason(r Report, start string) bool {
	for why := range r.Reasons {
		if strings.HasPrefix(why, start) {
			return true
		}
	}
	return false
}

// frozen is how long a proxy holds its breath, well within the window.
const frozen = 60 * time.Millisecond

// TestStall: the longest gap is found, in a stream and in requests.
func TestStall(t *testing.T) {
	host := startOrigin(t)
	freeze := after(10_000, func(dst *net.TCPConn, src io.Reader) {
		time.Sleep(frozen)
		faithful(0, dst, src)
	})
	for _, s := range []Spec{
		{Kind: KindBulk, Direction: Down, Target: netip.AddrPortFrom(host, PortBulk), Duration: 200 * time.Millisecond},
		{Kind: KindBulk, Direction: Up, Target: netip.AddrPortFrom(host, PortBulk), Duration: 200 * time.Millisecond},
		{Kind: KindRR, Size: 9000, Target: netip.AddrPortFrom(host, PortEcho), Duration: 200 * time.Millisecond},
	} {
		proxy := faultyProxy{target: s.Target, down: freeze}
		if s.Direction == Up {
			proxy.down, proxy.up = nil, freeze
		}
		s.Target = proxy.start(t)
		// the breath may have been held a little before the window began
		r := run(t, s, func(r Report) bool { return r.Stall > frozen/2 })
		if r.Ops == 0 || r.Failures != 0 {
			t.Errorf("%s: %+v", s.Kind, r)
		}
	}
}

// TestRequestsFindFaults: a worker counts what breaks, connects again and
// goes on.
func TestRequestsFindFaults(t *testing.T) {
	host := startOrigin(t)
	for name, test := range map[string]struct {
		proxy   faultyProxy
		corrupt bool
		reason  string
	}{
		"a flipped bit": {faultyProxy{down: after(64*20, mangle(8, faults["a flipped bit"]))}, true, "a request: corrupt"},
		"swapped":       {faultyProxy{up: after(64*20, mangle(8, faults["two swapped blocks"]))}, true, "a request: corrupt"},
		"cut":           {faultyProxy{down: after(64*20, func(*net.TCPConn, io.Reader) {})}, false, "a request: closed early"},
		"reset":         {faultyProxy{down: after(64*20, func(dst *net.TCPConn, _ io.Reader) { cut(dst) })}, false, "a request: connection reset"},
	} {
		t.Run(name, func(t *testing.T) {
			s := short(KindRR, host, PortEcho)
			test.proxy.target = s.Target
			s.Target, s.Streams = test.proxy.start(t), 2
			r := run(t, s, func(r Report) bool { return r.Failures >= 2 && r.Ops >= 20 })
			if (r.Corrupt > 0) != test.corrupt || !hasReason(r, test.reason) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestConnectFindsFaults: connections that fail are counted by what failed.
func TestConnectFindsFaults(t *testing.T) {
	host := startOrigin(t)
	third := func(n int) bool { return n%3 == 2 }
	for name, test := range map[string]struct {
		closer  string
		proxy   faultyProxy
		corrupt bool
		reason  string
	}{
		"some are reset": {ByClient, faultyProxy{refuse: third}, false, "receiving: "},
		"some answers are wrong": {ByClient, faultyProxy{down: func(n int, dst *net.TCPConn, src io.Reader) {
			if third(n) {
				io.CopyN(io.Discard, src, 1)
				dst.Write([]byte{0})
			}
			faithful(n, dst, src)
		}}, true, "receiving: corrupt"},
		"some say too much": {ByOrigin, faultyProxy{down: func(n int, dst *net.TCPConn, src io.Reader) {
			faithful(n, dst, src)
			if third(n) {
				dst.Write([]byte{1})
			}
		}}, true, "closing: corrupt"},
	} {
		t.Run(name, func(t *testing.T) {
			s := short(KindConnect, host, PortConnect)
			if s.Closer = test.closer; s.Closer == ByOrigin {
				s.Target = netip.AddrPortFrom(host, PortGreet)
			}
			test.proxy.target = s.Target
			s.Target, s.Streams = test.proxy.start(t), 3
			r := run(t, s, func(r Report) bool { return r.Ops > 0 && r.Failures > 0 })
			if (r.Corrupt > 0) != test.corrupt || !hasReason(r, test.reason) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestConnectCountsResets: an exchange that ends with a reset is done, but not
// in order.
func TestConnectCountsResets(t *testing.T) {
	host := startOrigin(t)
	s := short(KindConnect, host, PortGreet)
	s.Closer = ByOrigin
	proxy := faultyProxy{target: s.Target, down: func(_ int, dst *net.TCPConn, src io.Reader) {
		io.Copy(dst, src)
		cut(dst)
	}}
	s.Target = proxy.start(t)
	if r := run(t, s, anything); r.Resets == 0 || r.Failures != 0 {
		t.Errorf("%+v", r)
	}
}

// TestIdleFindsTheDead: of connections that the proxy has cut meanwhile.
func TestIdleFindsTheDead(t *testing.T) {
	host := startOrigin(t)
	release := make(chan struct{})
	proxy := faultyProxy{target: netip.AddrPortFrom(host, PortIdle), down: func(n int, dst *net.TCPConn, src io.Reader) {
		io.CopyN(dst, src, 1)
		<-release
		if n >= 3 {
			faithful(n, dst, src)
		}
	}}
	s := short(KindIdle, host, PortIdle)
	s.Target, s.Streams, s.Began = proxy.start(t), 10, func() { close(release) }
	r, err := Run(t.Context(), s)
	if err != nil || r.Ops != 7 || r.Failures != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}
