//go:build linux

package bind

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sized makes datagrams of the given sizes that differ from each other.
func sized(sizes ...int) [][]byte {
	var out [][]byte
	for i, n := range sizes {
		out = append(out, bytes.Repeat([]byte{byte(i), byte(i >> 8), byte(n)}, n/3+1)[:n])
	}
	return out
}

func repeat(size, n int) (sizes []int) { return slices.Repeat([]int{size}, n) }

// groups returns how many datagrams each message of m holds.
func (m *sender) groups() (n []int) {
	for i := m.next; i < m.count; i++ {
		n = append(n, int(m.headers[i].Hdr.Iovlen))
	}
	return n
}

func TestMessagesAreRunsOfOneSizeAndAShorterTail(t *testing.T) {
	e, _ := parseEndpoint("127.0.0.1:9")
	for _, tt := range []struct {
		name  string
		sizes []int
		alone int
		want  []int
	}{
		{"none", nil, 1 << 20, nil},
		{"one", []int{100}, 1 << 20, []int{1}},
		{"equal", repeat(100, 5), 1 << 20, []int{5}},
		{"a shorter one ends it", []int{100, 100, 99, 100, 100}, 1 << 20, []int{3, 2}},
		{"a longer one begins another", []int{99, 100, 100}, 1 << 20, []int{1, 2}},
		{"falling sizes pair up", []int{5, 4, 3, 2, 1}, 1 << 20, []int{2, 2, 1}},
		{"an empty one is alone", []int{0, 0, 5, 0, 5}, 1 << 20, []int{1, 1, 1, 1, 1}},
		{"64 segments", repeat(10, 100), 1 << 20, []int{64, 36}},
		{"60,000 bytes", repeat(1452, 128), 1 << 20, []int{41, 41, 41, 5}},
		{"a tail has to fit too", []int{30000, 30000, 1}, 1 << 20, []int{2, 1}},
		{"jumbo", repeat(9000, 8), 1 << 20, []int{6, 2}},
		{"too large for two", repeat(30001, 3), 1 << 20, []int{1, 1, 1}},
		{"the largest", repeat(65507, 2), 1 << 20, []int{1, 1}},
		{"from a size on alone", []int{50, 50, 100, 100, 50, 50, 50}, 100, []int{2, 1, 1, 3}},
		{"all alone", repeat(50, 3), 0, []int{1, 1, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newSender()
			m.fill(sized(tt.sizes...), e, tt.alone)
			if got := m.groups(); !slices.Equal(got, tt.want) {
				t.Errorf("messages of %v, want %v", got, tt.want)
			}
		})
	}
}

// cut is the oracle: what a network makes of the sender's messages.
func cut(t testing.TB, messages []unix.Mmsghdr) (datagrams [][]byte, source []bool) {
	t.Helper()
	for i := range messages {
		h := &messages[i].Hdr
		var data []byte
		for _, v := range unsafeVectors(h) {
			data = append(data, unsafeBytes(v)...)
		}
		segment, from := len(data), false
		for b := unsafeControl(h); len(b) > 0; {
			head, body, rest, err := unix.ParseOneSocketControlMessage(b)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case head.Level == unix.IPPROTO_UDP && head.Type == unix.UDP_SEGMENT:
				segment = int(body[0]) | int(body[1])<<8
			case head.Type == unix.IP_PKTINFO || head.Type == unix.IPV6_PKTINFO:
				from = true
			}
			b = rest
		}
		if n := (len(data) + max(segment, 1) - 1) / max(segment, 1); n > maxSegments || n > 1 && len(data) > maxMessage {
			t.Errorf("a message of %d bytes in %d segments", len(data), n)
		}
		if len(data) == 0 {
			datagrams, source = append(datagrams, nil), append(source, from)
		}
		for chunk := range slices.Chunk(data, max(segment, 1)) {
			datagrams, source = append(datagrams, chunk), append(source, from)
		}
	}
	return datagrams, source
}

// FuzzGroup groups datagrams of any sizes, and checks that what is cut up
// again is what was to be sent.
func FuzzGroup(f *testing.F) {
	f.Add([]byte{1, 1, 1, 1}, uint16(0), uint8(0), false)
	f.Add(bytes.Repeat([]byte{200}, 128), uint16(1000), uint8(3), true)
	f.Fuzz(func(t *testing.T, units []byte, alone uint16, singles uint8, source bool) {
		var sizes []int
		for _, u := range units[:min(len(units), maxBatch)] {
			sizes = append(sizes, int(u)*int(u)>>4)
		}
		bufs := sized(sizes...)
		src := netip.Addr{}
		if source {
			src = netip.MustParseAddr("2001:db8::1")
		}
		m := newSender()
		m.fill(bufs, newEndpoint(netip.MustParseAddrPort("[2001:db8::2]:9"), src, 0), int(alone))
		if len(bufs) > 0 {
			m.group(int(singles), int(alone))
		}
		got, from := cut(t, m.headers[m.next:m.count])
		if len(got) != len(bufs) || m.left() != len(bufs) {
			t.Fatalf("%d datagrams, want %d", len(got), len(bufs))
		}
		for i := range bufs {
			if !bytes.Equal(got[i], bufs[i]) || from[i] != source {
				t.Fatalf("datagram %d has %d bytes, want %d; source %v", i, len(got[i]), len(bufs[i]), from[i])
			}
		}
		m.release()
		if m.headers != [maxBatch]unix.Mmsghdr{} || m.vectors != [maxBatch]unix.Iovec{} {
			t.Error("buffers are kept after release")
		}
	})
}

// refusing is a kernel that refuses messages.
type refusing struct {
	mu     sync.Mutex
	refuse func(datagrams, size int, source bool) syscall.Errno
	calls  int
}

// refusingBind opens a Bind to send to o with, of which every message is put
// before refuse first; what passes goes to the kernel.
func refusingBind(t *testing.T, log *slog.Logger, refuse func(datagrams, size int, source bool) syscall.Errno) (*Bind, *refusing) {
	r := &refusing{refuse: refuse}
	b := New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Log: log})
	b.senders.New = func() any {
		m := newSender()
		m.send = func(fd uintptr, messages []unix.Mmsghdr) (int, syscall.Errno) {
			r.mu.Lock()
			r.calls++
			r.mu.Unlock()
			for i := range messages {
				h := &messages[i].Hdr
				source := h.Controllen > 0 && unsafeControl(h)[8] == unix.IPPROTO_IP
				if errno := r.refuse(int(h.Iovlen), int(unsafeVectors(h)[0].Len), source); errno != 0 {
					if i == 0 {
						return -1, errno
					}
					messages = messages[:i]
					break
				}
			}
			return sendmmsg(fd, messages)
		}
		return m
	}
	if _, _, err := b.Open(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b, r
}

func TestMessageThatIsRefusedGoesOneByOne(t *testing.T) {
	sizes := slices.Concat(repeat(1000, 100), repeat(300, 20), repeat(1000, 30))
	several := func(errno syscall.Errno, from int) func(int, int, bool) syscall.Errno {
		return func(n, size int, _ bool) syscall.Errno {
			if n > 1 && size >= from {
				return errno
			}
			return 0
		}
	}
	for _, tt := range []struct {
		name     string
		refuse   func(n, size int, source bool) syscall.Errno
		refused  uint64 // messages
		grouped  bool   // small datagrams still are
		logLines int
	}{
		{"EIO", several(syscall.EIO, 0), 1, false, 1},
		{"EOPNOTSUPP", several(syscall.EOPNOTSUPP, 0), 1, false, 1},
		{"EINVAL of the large ones", several(syscall.EINVAL, 1000), 1, true, 1},
		{"EMSGSIZE of the large ones", several(syscall.EMSGSIZE, 1000), 1, true, 1},
		{"EINVAL of all", several(syscall.EINVAL, 0), 2, false, 1},
		{"ENOBUFS blames nobody", several(syscall.ENOBUFS, 1000), 0, true, 0},
		{"ENOMEM blames nobody", several(syscall.ENOMEM, 1000), 0, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log lockedBuffer
			o := open(t, New(Config{}))
			b, _ := refusingBind(t, slog.New(slog.NewTextHandler(&log, nil)), tt.refuse)
			e := o.at(t, "127.0.0.1")
			bufs := sized(sizes...)
			for round := range 3 {
				if err := b.Send(bufs, e); err != nil {
					t.Fatal(err)
				}
				for i, want := range bufs {
					if d := o.next(t); d.data != string(want) {
						t.Fatalf("round %d: datagram %d has %d bytes, want %d", round, i, len(d.data), len(want))
					}
				}
			}
			s := b.Stats()
			if s.TxRefused != tt.refused || s.TxDatagrams != uint64(3*len(sizes)) || len(drops(b)) != 0 {
				t.Errorf("%+v, dropped %v", s, drops(b))
			}
			if grouped := s.TxMessages < s.TxDatagrams; grouped != tt.grouped {
				t.Errorf("%d datagrams in %d messages", s.TxDatagrams, s.TxMessages)
			}
			if got := strings.Count(log.String(), "\n"); got != tt.logLines {
				t.Errorf("%d lines logged:\n%s", got, log.String())
			}
		})
	}
}

// TestSegmentationIsNotBlamedForASource: EINVAL may come of either; the source
// is given up, and the messages stay whole.
func TestSegmentationIsNotBlamedForASource(t *testing.T) {
	o := open(t, New(Config{}))
	b, _ := refusingBind(t, nil, func(_, _ int, source bool) syscall.Errno {
		if source {
			return syscall.EINVAL
		}
		return 0
	})
	e := newEndpoint(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), o.port), netip.MustParseAddr("127.0.0.1"), 0)
	bufs := sized(repeat(500, 40)...)
	if err := b.Send(bufs, e); err != nil {
		t.Fatal(err)
	}
	for i, want := range bufs {
		if d := o.next(t); d.data != string(want) {
			t.Fatalf("datagram %d has %d bytes", i, len(d.data))
		}
	}
	if s := b.Stats(); s.TxRefused != 0 || s.TxMessages != 1 || e.SrcIP().IsValid() {
		t.Errorf("%+v, source %v", s, e.SrcIP())
	}
}

// TestDropsCountDatagramsOfAMessage: what cannot be sent at all is counted by
// the datagram, however it was grouped.
func TestDropsCountDatagramsOfAMessage(t *testing.T) {
	for _, tt := range []struct {
		errno syscall.Errno
		why   string
		fails bool
	}{
		{syscall.EPERM, whyFirewall, true},
		{syscall.EIO, whySendOther, true},
		{syscall.EINVAL, whyInvalid, true},
		{syscall.EMSGSIZE, whyTooLarge, false},
		{syscall.ENOBUFS, whyNoBuffers, false},
		{syscall.EINTR, whySendOther, false},
	} {
		t.Run(tt.errno.Error(), func(t *testing.T) {
			b, r := refusingBind(t, nil, func(int, int, bool) syscall.Errno { return tt.errno })
			e, _ := parseEndpoint("127.0.0.1:9")
			err := b.Send(sized(repeat(500, 300)...), e)
			if (err != nil) != tt.fails || tt.fails && !errors.Is(err, tt.errno) {
				t.Errorf("error %v", err)
			}
			if got := drops(b); got[tt.why] != 300 || len(got) != 1 || b.Stats().TxDatagrams != 0 {
				t.Errorf("dropped %v", got)
			}
			if b.Stats().TxRefused != 0 {
				t.Error("segmentation is blamed")
			}
			if r.calls > 1000 {
				t.Errorf("%d calls", r.calls)
			}
		})
	}
}

func TestRefusalIsBelievedForAWhile(t *testing.T) {
	e, _ := parseEndpoint("127.0.0.1:9")
	now := time.Unix(1_000_000, 0)
	clock := func() time.Time { return now }
	all := e.alone(clock)
	if all <= 1<<16 {
		t.Errorf("datagrams of %d bytes are alone before anything was refused", all)
	}
	e.refuse(1400, now)
	if got := e.alone(clock); got != 1400 {
		t.Errorf("alone from %d on, want 1400", got)
	}
	now = now.Add(refusal)
	if got := e.alone(clock); got != all {
		t.Errorf("alone from %d on after the while", got)
	}
}

// TestOldKernels: one side or both know nothing of several datagrams in one
// message.
func TestOldKernels(t *testing.T) {
	old := func(cuts, gathers bool) *Bind {
		b := New(Config{})
		b.listen = func(network string, at netip.AddrPort, o options) (*kernelConn, error) {
			k, err := listenKernel(network, at, o)
			if err != nil {
				return nil, err
			}
			k.segments, k.gathers = cuts, gathers
			if !gathers {
				_ = k.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 0) })
			}
			return k, err
		}
		return b
	}
	bufs := sized(slices.Concat(repeat(500, 100), repeat(100, 3), repeat(500, 30))...)
	for _, tt := range []struct {
		name           string
		cuts, gathers  bool
		sent, received uint64 // messages of each round
	}{
		{"neither cuts nor gathers", false, false, 133, 133},
		{"does not cut", false, true, 133, 133},
		{"does not gather", true, false, 5, 133},
		{"does both", true, true, 5, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, o := open(t, old(tt.cuts, true)), open(t, old(true, tt.gathers))
			for range 3 {
				if err := a.Send(bufs, o.at(t, "127.0.0.1")); err != nil {
					t.Fatal(err)
				}
				for i, want := range bufs {
					if d := o.next(t); d.data != string(want) {
						t.Fatalf("datagram %d has %d bytes", i, len(d.data))
					}
				}
			}
			tx, rx := a.Stats(), o.Stats()
			if tx.TxMessages != 3*tt.sent || tx.TxRefused != 0 || rx.RxMessages != 3*tt.received || rx.RxDatagrams != uint64(3*len(bufs)) {
				t.Errorf("sender %+v, receiver %+v", tx, rx)
			}
		})
	}
}

// TestSegmentsLargerThanTheInterface sends them through a real kernel: they
// leave in fragments, one by one, and smaller ones still go together.
func TestSegmentsLargerThanTheInterface(t *testing.T) {
	needIPv6(t)
	for _, to := range []string{"192.0.2.2:9", "[2001:db8::2]:9"} {
		inNamespace(t, func(ip func(...string)) {
			ip("link", "add", "v0", "mtu", "1400", "type", "veth", "peer", "name", "v1")
			ip("link", "set", "v1", "up")
			ip("link", "set", "v0", "up")
			ip("addr", "add", "192.0.2.1/24", "dev", "v0")
			ip("addr", "add", "2001:db8::1/64", "dev", "v0", "nodad")
			ip("neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "v0")
			ip("neigh", "add", "2001:db8::2", "lladdr", "02:00:00:00:00:01", "dev", "v0")
			b := openHere(t, Config{})
			defer b.Close()
			e, _ := parseEndpoint(to)
			for range 2 {
				if err := b.Send(sized(slices.Concat(repeat(1000, 40), repeat(1452, 40))...), e); err != nil {
					t.Error(err)
				}
			}
			if s := b.Stats(); s.TxDatagrams != 160 || s.TxMessages != 82 || s.TxRefused != 1 || len(drops(b)) != 0 {
				t.Errorf("%s: %+v, dropped %v", to, s, drops(b))
			}
		})
	}
}

// TestSocketDiesUnderSegments: what is sent while a socket is away is dropped
// and counted, and afterwards messages are whole again.
func TestSocketDiesUnderSegments(t *testing.T) {
	a, o := open(t, New(Config{})), open(t, New(Config{}))
	to := o.at(t, "127.0.0.1")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // what arrives is of no interest
		defer close(done)
		for {
			select {
			case <-o.got:
			case <-stop:
				return
			}
		}
	}()
	bufs := sized(repeat(100, 50)...)
	sent := 0
	for died := range 5 {
		a.current.Load().v4.kernel.Load().Close()
		for a.Stats().Reopened < uint64(died+1) {
			if err := a.Send(bufs, to); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	before := a.Stats()
	if err := a.Send(bufs, to); err != nil {
		t.Fatal(err)
	}
	after := a.Stats()
	dropped := a.drops()[whyReopening]
	if after.TxDatagrams+dropped != uint64((sent+1)*len(bufs)) || len(a.drops()) > 1 {
		t.Errorf("%d sends of %d: %+v, dropped %v", sent+1, len(bufs), after, a.drops())
	}
	if after.TxMessages != before.TxMessages+1 {
		t.Errorf("%d messages for 50 datagrams", after.TxMessages-before.TxMessages)
	}
	close(stop)
	<-done
}

// TestRandomSizesArriveInOrderAndWhole in both families at once.
func TestRandomSizesArriveInOrderAndWhole(t *testing.T) {
	needIPv6(t)
	a, o := open(t, New(Config{})), open(t, New(Config{}))
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		for _, addr := range []string{"127.0.0.1", "::1"} {
			var sizes []int
			for total := 0; len(sizes) < 300 && total < 300_000; {
				size := []int{r.IntN(20), 32, 1000, 1452, r.IntN(3000), r.IntN(65507)}[min(r.IntN(8), 5)]
				for range 1 + r.IntN(1+r.IntN(80)) {
					if total += size; total < 300_000 {
						sizes = append(sizes, size)
					}
				}
			}
			bufs := sized(sizes...)
			if err := a.Send(bufs, o.at(t, addr)); err != nil {
				t.Fatal(err)
			}
			for i, want := range bufs {
				if d := o.next(t); d.data != string(want) {
					t.Fatalf("seed %d, %s: datagram %d of %d has %d bytes, want %d", seed, addr, i, len(bufs), len(d.data), len(want))
				}
			}
		}
	}
}
