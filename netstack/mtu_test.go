package netstack

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
)

// fragmentedBefore watches a wire: packets larger than limit, and fragments.
type mtuWatch struct {
	limit     atomic.Int64
	oversized atomic.Int64
	fragments atomic.Int64
	largest   atomic.Int64
}

func (m *mtuWatch) filter(b []byte) int {
	if int64(len(b)) > m.limit.Load() {
		m.oversized.Add(1)
		return 0 // as the path would
	}
	if b[0]>>4 == 4 && binary.BigEndian.Uint16(b[6:])&0x3fff != 0 || b[0]>>4 == 6 && b[6] == protoFragment {
		m.fragments.Add(1)
	}
	for {
		was := m.largest.Load()
		if int64(len(b)) <= was || m.largest.CompareAndSwap(was, int64(len(b))) {
			return 1
		}
	}
}

// Trap 18: the path becomes smaller under a live flow. Without a word to the
// flow its segments are fragmented; after MTUChanged they are cut to fit.
func TestMTULoweredUnderLiveFlow(t *testing.T) {
	for _, to := range []netip.AddrPort{service4, service6} {
		for _, told := range []bool{false, true} {
			name := to.String() + " untold"
			if told {
				name = to.String() + " told"
			}
			t.Run(name, func(t *testing.T) {
				l := newLab(t)
				watch := &mtuWatch{}
				watch.limit.Store(1400)
				l.edgeEnd.setFilter(watch.filter)
				a, b := l.pair(t, to)

				// Lowered in the middle of a stream.
				var half sync.Once
				lower := make(chan struct{})
				l.edgeEnd.setFilter(func(p []byte) int {
					if len(p) > 1300 {
						half.Do(func() { close(lower) })
					}
					return watch.filter(p)
				})
				var wg sync.WaitGroup
				wg.Go(func() {
					<-lower
					l.edgeEnd.SetMTU(1280)
					if told {
						l.nic.MTUChanged()
					}
				})
				exchange(t, a, b, 512<<10)
				wg.Wait()
				if watch.largest.Load() <= 1280 {
					t.Errorf("before, the largest packet was %d: the MTU was not used", watch.largest.Load())
				}

				// From now on the path takes 1280 and nothing more.
				watch.limit.Store(1280)
				watch.oversized.Store(0)
				watch.fragments.Store(0)
				a, b = l.reusePair(t, to, told, watch)
				exchange(t, a, b, 512<<10)
				if n := watch.oversized.Load(); n > 0 {
					t.Errorf("%d packets were larger than the link's MTU", n)
				}
				if n := watch.fragments.Load(); (n == 0) != told {
					t.Errorf("%d fragments, told is %v", n, told)
				}
			})
		}
	}
}

// reusePair opens a flow at an MTU of 1400, uses it, then lowers the MTU.
func (l *lab) reusePair(t *testing.T, to netip.AddrPort, told bool, watch *mtuWatch) (a, b *TCPConn) {
	t.Helper()
	watch.limit.Store(1400)
	l.edgeEnd.SetMTU(1400)
	a, b = l.pair(t, to)
	for range 20 {
		if _, err := a.Write(make([]byte, 1<<10)); err != nil {
			t.Fatal(err)
		}
		if _, err := readFull(b, 1<<10); err != nil {
			t.Fatal(err)
		}
	}
	l.drain()
	watch.limit.Store(1280)
	l.edgeEnd.SetMTU(1280)
	if told {
		l.nic.MTUChanged()
	}
	return a, b
}

// A router in the private network says that the path is smaller: only the
// flow that it quotes is told, and nonsense sizes are not believed.
func TestPacketTooBigMessage(t *testing.T) {
	l := newLab(t)
	sent := &capture{}
	l.edgeEnd.setFilter(sent.filter)
	a, b := l.pair(t, service4)
	watch := &mtuWatch{}
	watch.limit.Store(1400)
	l.edgeEnd.setFilter(watch.filter)
	tooBig := func(mtu uint16) []byte {
		p := unreachablePacket(sent.last()[:28], nil)
		p[21] = icmp4TooBig
		binary.BigEndian.PutUint16(p[26:], mtu)
		binary.BigEndian.PutUint16(p[22:], 0)
		binary.BigEndian.PutUint16(p[22:], ^sum(p[20:]))
		return p
	}
	l.edgeEnd.deliver(tooBig(1000))
	for l.nic.lowering.Load() {
	}
	exchange(t, a, b, 256<<10)
	if n := watch.largest.Load(); n > 1000 {
		t.Errorf("the largest packet was %d, want at most 1000", n)
	}
	a, b = l.pair(t, service4)
	sent.pkts = nil
	l.edgeEnd.setFilter(sent.filter)
	a.Write([]byte("x"))
	if _, err := readFull(b, 1); err != nil {
		t.Fatal(err)
	}
	l.edgeEnd.deliver(tooBig(1))
	for l.nic.lowering.Load() {
	}
	packets := &capture{}
	l.edgeEnd.setFilter(packets.filter)
	exchange(t, a, b, 64<<10)
	if n := len(packets.pkts); n > 400 {
		t.Errorf("%d packets for 64 KiB: the size of 1 was believed", n)
	}
}
