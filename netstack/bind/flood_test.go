package bind

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// naiveGuard is the oracle: a bucket of tokens a source, of any number.
type naiveGuard map[source]*struct {
	tokens float64
	at     time.Time
}

func (g naiveGuard) allow(s source, now time.Time) bool {
	const most = float64(floodBurst / floodInterval)
	b := g[s]
	if b == nil {
		b = &struct {
			tokens float64
			at     time.Time
		}{most, now}
		g[s] = b
	}
	b.tokens = min(b.tokens+float64(now.Sub(b.at))/float64(floodInterval), most)
	b.at = now
	if b.tokens <= 1e-9 {
		return false
	}
	b.tokens--
	return true
}

func TestFloodGuardAgainstBuckets(t *testing.T) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 1))
		guard, naive, now := newFloodGuard(), naiveGuard{}, time.Unix(1000, 0)
		allowed, refused := 0, 0
		for range 200 {
			now = now.Add(time.Duration(r.IntN(200)) * 10 * floodInterval)
			s := source{uint64(r.IntN(3)), r.IntN(2) == 0}
			for range r.IntN(8000) {
				got, want := guard.allow(s, now), naive.allow(s, now)
				if got != want {
					t.Fatalf("seed %d: allowed %v, want %v, after %d and %d", seed, got, want, allowed, refused)
				}
				if got {
					allowed++
				} else {
					refused++
				}
				if r.IntN(4) == 0 {
					now = now.Add(floodInterval)
				}
			}
		}
		if allowed == 0 || refused == 0 {
			t.Errorf("seed %d: %d allowed, %d refused", seed, allowed, refused)
		}
	}
}

// TestFloodGuardIsBounded under forged sources, and locks nobody out.
func TestFloodGuardIsBounded(t *testing.T) {
	f, now := newFloodGuard(), time.Unix(1000, 0)
	for i := range uint64(10 * floodSources) {
		if !f.allow(source{i, true}, now) {
			t.Fatalf("source %d is refused its first message", i)
		}
		if n := len(f.young) + len(f.old); n > 2*floodSources {
			t.Fatalf("%d sources are kept", n)
		}
	}
}

// TestFloodGuardRemembersWhoFloods while others come and go.
func TestFloodGuardRemembersWhoFloods(t *testing.T) {
	f, now := newFloodGuard(), time.Unix(1000, 0)
	flooder := source{1 << 40, true}
	for f.allow(flooder, now) {
	}
	for i := range uint64(10 * floodSources) {
		f.allow(source{i, true}, now)
		if f.allow(flooder, now) {
			t.Fatalf("it is forgotten after %d others", i)
		}
	}
}

// TestCrowdBehindOneAddressIsNoFlood: a thousand connectors that begin at once
// and call each second for as long as it takes, and answer as often.
func TestCrowdBehindOneAddressIsNoFlood(t *testing.T) {
	f, now := newFloodGuard(), time.Unix(1000, 0)
	s := source{1, false}
	for range 2000 { // joiners, twice at once
		if !f.allow(s, now) {
			t.Fatal("refused at first")
		}
	}
	for range 300 {
		for range 1000 {
			now = now.Add(time.Second / 1000)
			if !f.allow(s, now) {
				t.Fatal("refused later")
			}
		}
	}
}

func TestSourceIsAnAddressOrA64(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1:1", "192.0.2.1:2", true},
		{"192.0.2.1:1", "192.0.2.2:1", false},
		{"[2001:db8::1]:1", "[2001:db8::ffff:0:0:2]:2", true},
		{"[2001:db8::1]:1", "[2001:db8:0:1::1]:1", false},
		{"0.0.0.1:1", "[::1]:1", false},
	} {
		a, b := newEndpoint(netip.MustParseAddrPort(tt.a), netip.Addr{}, 0), newEndpoint(netip.MustParseAddrPort(tt.b), netip.Addr{}, 0)
		if got := a.source() == b.source(); got != tt.same {
			t.Errorf("%s and %s: the same is %v", tt.a, tt.b, got)
		}
	}
}

// TestFloodIsDroppedAndCounted at the socket: handshake messages of all three
// kinds beyond the share, and nothing else.
func TestFloodIsDroppedAndCounted(t *testing.T) {
	a, b := open(t, New(Config{})), New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	e, _ := parseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	message := func(kind byte, size int) string { return string([]byte{kind, 0, 0, 0}) + strings.Repeat("x", size-4) }
	burst := []string{
		message(1, device.MessageInitiationSize), message(2, device.MessageResponseSize), message(3, device.MessageCookieReplySize),
		message(4, device.MessageInitiationSize), message(1, device.MessageInitiationSize+1),
	}
	bufs, sizes, eps := make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16-1)
	}
	const rounds = 4000
	handshakes, others := 0, 0
	for range rounds {
		send(t, a.Bind, e, burst...)
		for left := len(burst); left > 0; {
			n, err := fns[0](bufs, sizes, eps)
			if err != nil {
				t.Fatal(err)
			}
			for i, ep := range eps[:n] {
				if ep != nil {
					left--
				}
				switch {
				case isHandshake(bufs[i][:sizes[i]]):
					handshakes++
				case sizes[i] > 0:
					others++
				}
			}
		}
	}
	dropped := drops(b)
	if others != 2*rounds || handshakes+int(dropped[whyFlood]) != 3*rounds || len(dropped) != 1 {
		t.Errorf("%d handshake messages and %d others, dropped %v", handshakes, others, dropped)
	}
	if handshakes < int(floodBurst/floodInterval) {
		t.Errorf("%d handshake messages, fewer than a burst", handshakes)
	}
}

func TestFloodGuardDoesNotAllocate(t *testing.T) {
	f, now, i := newFloodGuard(), time.Unix(1000, 0), uint64(0)
	for range 4 * floodSources { // until the maps have their size
		i++
		f.allow(source{i, true}, now)
	}
	if n := testing.AllocsPerRun(1000, func() { i++; f.allow(source{i, true}, now) }); n != 0 {
		t.Errorf("%v allocations a message", n)
	}
}

// BenchmarkFloodGuard is what a message of a flood costs here, from one source
// and from forged ones.
func BenchmarkFloodGuard(b *testing.B) {
	for name, mask := range map[string]uint64{"one": 0, "forged": 1<<32 - 1} {
		b.Run(name, func(b *testing.B) {
			f := newFloodGuard()
			for i := range uint64(b.N) {
				f.allow(source{i & mask, true}, time.Now())
			}
		})
	}
}
