package link

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// placeOf returns the place of flowPacket's flow of that port, and a count of how
// often it was woken.
func placeOf(e *Endpoint, port uint16) (*Place, *int) {
	woken := new(int)
	local, remote := netip.AddrFrom4(src4.As4()), netip.AddrFrom4(dst4.As4())
	return e.Place(netip.AddrPortFrom(local, port), netip.AddrPortFrom(remote, 1), func() { *woken++ }), woken
}

// drain reads until n packets or fewer wait.
func drain(e *Endpoint, n int) {
	for e.Len() > n {
		ports(e, 1)
	}
}

// TestPlaceHoldsDataBack: over the mark the stack's own packets have room, and
// those who hold data wait and have their turns by age, up to the mark again.
func TestPlaceHoldsDataBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	e := openEndpoint(t, Config{})
	for i := range 40 { // 2.4 MB: none of these waits
		write(t, e, flowPacket(rng, uint16(100+i%4), uint32(i), 60000))
	}
	const size = 500 << 10
	var all []*Place
	var woken []*int
	for i := range 4 {
		p, w := placeOf(e, uint16(1+i))
		for range 2 { // asking again changes nothing
			if p.Ask(size) {
				t.Fatalf("place %d may write to a queue of 2.4 MB", i)
			}
		}
		all, woken = append(all, p), append(woken, w)
	}
	turns := func() (n []int) {
		for _, w := range woken {
			n = append(n, *w)
		}
		return n
	}
	all[1].Done() // it gives up
	drain(e, 18)
	if n := turns(); !slices.Equal(n, []int{0, 0, 0, 0}) {
		t.Errorf("turns over the mark: %v", n)
	}
	drain(e, 17) // below 1 MiB by one packet
	if n := turns(); !slices.Equal(n, []int{1, 0, 0, 0}) {
		t.Errorf("turns just below the mark: %v; want one, which is beyond it", n)
	}
	if !all[0].Ask(size) || all[2].Ask(size) {
		t.Error("who was woken may not write, or another may")
	}
	drain(e, 0)
	if n := turns(); !slices.Equal(n, []int{1, 0, 1, 1}) {
		t.Errorf("turns of an empty queue: %v; want 1.5 MB", n)
	}
	late, _ := placeOf(e, 9)
	if late.Ask(size) {
		t.Error("a further one has a turn while 1.5 MB are about to come")
	}
	for _, p := range append(all, late) {
		p.Done()
		p.Done()
	}
	if e.granted != 0 || e.places != (places{}) {
		t.Errorf("at the end %d bytes are granted, and %+v wait", e.granted, e.places)
	}
}

// TestPlaceOfLittle: a request does not wait, unless its flow has one there.
func TestPlaceOfLittle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	e := openEndpoint(t, Config{})
	for i := range 20 {
		write(t, e, flowPacket(rng, 100, uint32(i), 60000))
	}
	p, _ := placeOf(e, 7)
	if !p.Ask(credit) || p.Ask(credit+1) {
		t.Error("a new flow may not write its credit, or more than it")
	}
	if !p.Ask(1) {
		t.Error("one that waits with much may not write little")
	}
	p.Done()
	write(t, e, flowPacket(rng, 7, 0, 10)) // from the same addresses and ports
	if p.Ask(1) {
		t.Error("a flow that has a packet in the queue did not wait")
	}
	p.Done()
}

// TestPlacesEnd: nobody waits for a queue that will not be read.
func TestPlacesEnd(t *testing.T) {
	for name, end := range map[string]func(e *Endpoint){
		"session lost": func(e *Endpoint) { e.SetOpen(false) },
		"closed":       (*Endpoint).Close,
	} {
		t.Run(name, func(t *testing.T) {
			e := openEndpoint(t, Config{})
			for i := range 20 {
				write(t, e, flowPacket(rand.New(rand.NewPCG(1, 1)), 100, uint32(i), 60000))
			}
			p, woken := placeOf(e, 1)
			if p.Ask(1 << 20) {
				t.Fatal("it may write")
			}
			end(e)
			if *woken != 1 || !p.Ask(1<<20) {
				t.Errorf("woken %d times; want 1, and that it may write", *woken)
			}
			p.Done()
			if !p.Ask(1 << 20) {
				t.Error("it waits for what is not read")
			}
		})
	}
}

// TestTCPKey: a Place names the flow of its conn's packets, in both families.
func TestTCPKey(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		s := segment{v6: v6, ports: [2]uint16{5000, 443}, flags: header.TCPFlagAck, payload: make([]byte, 10)}
		b := s.bytes()
		from, to := b[12:16], b[16:20]
		if v6 {
			from, to = b[8:24], b[24:40]
		}
		local, _ := netip.AddrFromSlice(from)
		remote, _ := netip.AddrFromSlice(to)
		if tcpKey(netip.AddrPortFrom(local, 5000), netip.AddrPortFrom(remote, 443)) != turnKey(rawPacket(b)) {
			t.Errorf("IPv6 %v: the keys differ", v6)
		}
	}
}

// TestPingOverTheMark: what TCP has sent keeps no ping out, but a second one of
// the same two hosts.
func TestPingOverTheMark(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	e := openEndpoint(t, Config{})
	for i := range 40 {
		write(t, e, flowPacket(rng, 100, uint32(i), 60000))
	}
	for range 2 {
		write(t, e, packet(header.ICMPv4ProtocolNumber, 0, []byte("ping")))
	}
	write(t, e, packet(header.ICMPv4ProtocolNumber, 0, make([]byte, 2*credit)))
	if e.Len() != 41 || e.drops.Count(WhyQueueFull) != 2 {
		t.Errorf("%d wait and %d dropped, want 41 and 2", e.Len(), e.drops.Count(WhyQueueFull))
	}
}
