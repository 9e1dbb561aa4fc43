package bind

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// memTun is a tun.Device in memory: what goes into out is encrypted, what was
// decrypted goes to deliver.
type memTun struct {
	out     chan []byte
	deliver func(packet []byte)
	events  chan tun.Event
	closed  chan struct{}
	once    sync.Once
}

func newMemTun(deliver func([]byte)) *memTun {
	m := &memTun{out: make(chan []byte, 1024), deliver: deliver, events: make(chan tun.Event, 1), closed: make(chan struct{})}
	m.events <- tun.EventUp
	return m
}

func (m *memTun) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-m.closed:
		return 0, os.ErrClosed
	case p := <-m.out:
		sizes[0] = copy(bufs[0][offset:], p)
	}
	for n := 1; n < len(bufs); n++ {
		select {
		case p := <-m.out:
			sizes[n] = copy(bufs[n][offset:], p)
		default:
			return n, nil
		}
	}
	return len(bufs), nil
}

func (m *memTun) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		m.deliver(b[offset:])
	}
	return len(bufs), nil
}

func (m *memTun) File() *os.File           { return nil }
func (m *memTun) MTU() (int, error)        { return 1420, nil }
func (m *memTun) Name() (string, error)    { return "mem", nil }
func (m *memTun) Events() <-chan tun.Event { return m.events }
func (m *memTun) BatchSize() int           { return conn.IdealBatchSize }

func (m *memTun) Close() error {
	m.once.Do(func() {
		close(m.closed)
		close(m.events)
	})
	return nil
}

// side is one WireGuard device over one Bind.
type side struct {
	bind conn.Bind
	tun  *memTun
	dev  *device.Device
	addr string
	key  wgtypes.Key
}

func newSide(t testing.TB, addr string, b conn.Bind, deliver func([]byte)) *side {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	s := &side{bind: b, tun: newMemTun(deliver), addr: addr, key: key}
	s.dev = device.NewDevice(s.tun, b, &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	t.Cleanup(s.dev.Close)
	s.set(t, "private_key=%s\n", hex.EncodeToString(key[:]))
	if err := s.dev.Up(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *side) set(t testing.TB, format string, args ...any) {
	t.Helper()
	if err := s.dev.IpcSet(fmt.Sprintf(format, args...)); err != nil {
		t.Fatal(err)
	}
}

// peer makes other a peer of s, found at endpoint unless that is empty.
func (s *side) peer(t testing.TB, other *side, endpoint string) {
	t.Helper()
	pub := other.key.PublicKey()
	s.set(t, "public_key=%s\nallowed_ip=%s/32\n", hex.EncodeToString(pub[:]), other.addr)
	if endpoint != "" {
		s.set(t, "public_key=%s\nendpoint=%s\n", hex.EncodeToString(pub[:]), endpoint)
	}
}

// port returns the port that s listens on.
func (s *side) port(t testing.TB) int {
	t.Helper()
	config, err := s.dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	var port int
	for line := range strings.Lines(config) {
		if _, err := fmt.Sscanf(line, "listen_port=%d", &port); err == nil {
			return port
		}
	}
	t.Fatal("the device has no port")
	return 0
}

// packet is an IPv4 packet with a number in it.
func packet(src, dst string, n uint32, size int) []byte {
	p := make([]byte, max(size, 24))
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	binary.BigEndian.PutUint32(p[20:], n)
	return p
}

// TestDevicePair runs two WireGuard devices over two Binds and has them talk
// while they rebind, while sockets die, and while a source address is unusable.
func TestDevicePair(t *testing.T) {
	const a4, b4 = "10.9.0.1", "10.9.0.2"
	for _, tt := range []struct{ name, to string }{{"IPv4", "127.0.0.2"}, {"IPv6", "::1"}} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.to == "::1" {
				needIPv6(t)
			}
			got := make(chan uint32, 1024)
			var edge, connector *side
			connectorBind, edgeBind := New(Config{}), &recordingBind{Bind: New(Config{})}
			connector = newSide(t, a4, connectorBind, func(p []byte) { got <- binary.BigEndian.Uint32(p[20:]) })
			edge = newSide(t, b4, edgeBind, func(p []byte) { // sends each packet back
				back := slices.Clone(p)
				copy(back[12:16], p[16:20])
				copy(back[16:20], p[12:16])
				edge.tun.out <- back
			})
			edge.peer(t, connector, "")
			connector.peer(t, edge, netip.AddrPortFrom(netip.MustParseAddr(tt.to), uint16(edge.port(t))).String())
			number := uint32(0)
			// talk sends packets until one of them has come back.
			talk := func(when string) {
				t.Helper()
				number += 1000
				first, deadline := number, time.After(wait)
				for {
					connector.tun.out <- packet(a4, b4, number, 100)
					number++
					select {
					case n := <-got:
						if n >= first {
							return
						}
					case <-time.After(100 * time.Millisecond): // of retransmission
					case <-deadline:
						t.Fatalf("%s: nothing comes back", when)
					}
				}
			}
			talk("at first")
			if src := edgeBind.last.Load().SrcIP(); src != netip.MustParseAddr(tt.to) {
				t.Errorf("the edge answers from %v, want %v", src, tt.to)
			}
			for _, s := range []*side{edge, connector, edge} {
				port := s.port(t)
				if err := s.dev.BindUpdate(); err != nil {
					t.Fatal(err)
				}
				if again := s.port(t); again != port {
					t.Errorf("rebinding moved the port from %d to %d", port, again)
				}
				talk("after rebinding")
			}
			for _, b := range []*Bind{edgeBind.Bind, connectorBind} {
				for _, s := range b.current.Load().sockets() {
					s.kernel.Load().Close()
				}
				talk("after its sockets died")
			}
			if edgeBind.Stats().Reopened == 0 || connectorBind.Stats().Reopened == 0 {
				t.Error("no socket was reopened")
			}
		})
	}
}

// recordingBind remembers the endpoint that was sent to last.
type recordingBind struct {
	*Bind
	last atomic.Pointer[Endpoint]
}

func (r *recordingBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	r.last.Store(ep.(*Endpoint))
	return r.Bind.Send(bufs, ep)
}

// BenchmarkDevicePair moves packets of 1,400 bytes one way through two devices
// in one process, over loopback. It is where DefaultBatch comes from; run it
// with -benchmem for the allocations of the whole path.
func BenchmarkDevicePair(b *testing.B) {
	binds := map[string]func(sent func([][]byte)) conn.Bind{
		"std": func(func([][]byte)) conn.Bind { return conn.NewStdNetBind() },
	}
	for _, batch := range []int{8, 32, 64, 96, 128} {
		binds[fmt.Sprintf("batch%d", batch)] = func(func([][]byte)) conn.Bind { return New(Config{Batch: batch}) }
	}
	for _, name := range []string{"std", "batch8", "batch32", "batch64", "batch96", "batch128"} {
		b.Run(name, func(b *testing.B) { benchmarkPair(b, binds[name](nil), binds[name](nil)) })
	}
}

func benchmarkPair(b *testing.B, from, to conn.Bind) {
	const a4, b4 = "10.9.0.1", "10.9.0.2"
	var received atomic.Int64
	credit := make(chan struct{}, 512) // packets under way
	source := newSide(b, a4, from, func([]byte) {})
	sink := newSide(b, b4, to, func([]byte) {
		received.Add(1)
		select {
		case <-credit:
		default:
		}
	})
	sink.peer(b, source, "")
	source.peer(b, sink, fmt.Sprintf("127.0.0.1:%d", sink.port(b)))
	p := packet(a4, b4, 0, 1400)
	for received.Load() == 0 { // the handshake
		source.tun.out <- p
		time.Sleep(time.Millisecond)
	}
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	lost, before := time.NewTimer(time.Second), cpuTime(b)
	b.ReportAllocs()
	b.SetBytes(1400)
	b.ResetTimer()
	for range b.N {
		lost.Reset(50 * time.Millisecond)
		select {
		case credit <- struct{}{}:
		case <-lost.C:
		}
		source.tun.out <- p
	}
	b.StopTimer()
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(mem.HeapInuse)/2/(1<<20), "MB-heap/device")
}

// cpuTime is what this process has used of all processors: on a machine that
// does other things too, it says more than the clock.
func cpuTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
