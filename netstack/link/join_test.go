package link

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// readAll reads e until it is empty, at most room segments a call, and returns
// what came.
func readAll(t *testing.T, e *Endpoint, room func() int) [][]byte {
	t.Helper()
	var all [][]byte
	bufs, sizes := buffers(128, 2048)
	for e.Len() > 0 {
		n := e.Read(bufs[:room()], sizes, 16)
		if n == 0 {
			t.Fatal("nothing was read while something waits")
		}
		for i := range n {
			all = append(all, slices.Clone(bufs[i][16:16+sizes[i]]))
		}
	}
	return all
}

// TestJoin: what a flow's packets hold leaves in full segments, as far as one
// follows the other.
func TestJoin(t *testing.T) {
	const ack, psh, fin = header.TCPFlagAck, header.TCPFlagPsh, header.TCPFlagFin
	run := func(sizes ...int) (all []segment) {
		at := uint32(0xffff0000) // which wraps
		for i, n := range sizes {
			all = append(all, segment{ttl: 64, seq: at, ack: uint32(i), window: uint16(100 + i), flags: ack | psh, options: make([]byte, 12), payload: make([]byte, n)})
			at += uint32(n)
		}
		return all
	}
	change := func(i int, f func(*segment), all []segment) []segment { f(&all[i]); return all }
	for _, tc := range []struct {
		name string
		in   []segment
		own  bool
		want []int // payloads
	}{
		{"a write of 3,000 bytes in three packets", run(1500, 1400, 100), false, []int{1320, 1320, 360}},
		{"small ones, of two packets at most", run(700, 700, 700, 700), false, []int{1320, 780, 700}},
		{"nothing behind it", run(1500), false, []int{1320, 180}},
		{"full already", run(1320, 1320), false, []int{1320, 1320}},
		{"to one of ours", run(1500, 1400, 100), true, []int{1348, 1348, 304}},
		{"a gap", change(1, func(s *segment) { s.seq++ }, run(1000, 1000)), false, []int{1000, 1000}},
		{"sent again", change(1, func(s *segment) { s.seq -= 1000 }, run(1000, 1000)), false, []int{1000, 1000}},
		{"another flow", change(1, func(s *segment) { s.ports[1]++ }, run(1000, 1000)), false, []int{1000, 1000}},
		{"another TTL", change(1, func(s *segment) { s.ttl-- }, run(1000, 1000)), false, []int{1000, 1000}},
		{"another TOS", change(1, func(s *segment) { s.tos = 4 }, run(1000, 1000)), false, []int{1000, 1000}},
		{"other options", change(1, func(s *segment) { s.options[0] = 1 }, run(1000, 1000)), false, []int{1320, 680}},
		{"more options", change(1, func(s *segment) { s.options = make([]byte, 24) }, run(1340, 1336)), true, []int{1340, 1336}},
		{"fewer options", change(1, func(s *segment) { s.options = nil }, run(1000, 1000)), false, []int{1000, 1000}},
		{"FIN", change(1, func(s *segment) { s.flags |= fin }, run(1000, 1000)), false, []int{1000, 1000}},
		{"behind FIN", change(0, func(s *segment) { s.flags |= fin }, run(1000, 1000)), false, []int{1000, 1000}},
		{"an acknowledgement between", change(1, func(s *segment) { s.payload = nil }, run(1000, 0, 1000)), false, []int{1000, 0, 1000}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := openEndpoint(t, Config{})
			e.SetOwn(tc.own)
			rng := rand.New(rand.NewPCG(1, 1))
			for _, s := range tc.in {
				write(t, e, s.packet(rng, 1320))
			}
			var got []int
			for _, b := range readAll(t, e, func() int { return 128 }) {
				_, headers, _ := parseTCP(b)
				got = append(got, len(b)-headers)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("payloads of %v, want %v", got, tc.want)
			}
		})
	}
}

// TestJoinedWithoutRoom: packets of which the second has more options would make
// a segment more together than Read has room for.
func TestJoinedWithoutRoom(t *testing.T) {
	e := openEndpoint(t, Config{})
	e.SetOwn(true)
	rng := rand.New(rand.NewPCG(1, 1))
	write(t, e, segment{flags: header.TCPFlagAck, options: make([]byte, 12), payload: make([]byte, 1340)}.packet(rng, 1320))
	write(t, e, segment{flags: header.TCPFlagAck, seq: 1340, options: make([]byte, 24), payload: make([]byte, 1336)}.packet(rng, 1320))
	write(t, e, packet(header.UDPProtocolNumber, 0, []byte("one more")))
	bufs, sizes := buffers(3, 2048)
	if n := e.Read(bufs, sizes, 0); n != 3 || e.Len() != 0 {
		t.Errorf("%d packets, and %d wait", n, e.Len())
	}
}

// TestPacketsReadInPart: two packets of which a segment waits are both counted
// where they go, and held by nobody afterwards.
func TestPacketsReadInPart(t *testing.T) {
	e := openEndpoint(t, Config{})
	rng := rand.New(rand.NewPCG(1, 1))
	write(t, e, segment{flags: header.TCPFlagAck, payload: make([]byte, 1500)}.packet(rng, 1000))
	write(t, e, segment{flags: header.TCPFlagAck, seq: 1500, payload: make([]byte, 5000)}.packet(rng, 1000))
	bufs, sizes := buffers(3, 2048)
	bufs[1] = bufs[1][:100] // for the segment of both
	if n := e.Read(bufs, sizes, 0); n != 1 || sizes[0] != 1040 {
		t.Errorf("%d segments, the first of %d bytes", n, sizes[0])
	}
	if n := e.drops.Count(WhyOversize); n != 2 {
		t.Errorf("%d dropped, want both", n)
	}
	if e.Len() != 0 || e.split.pkt != nil || e.split.tail != nil {
		t.Error("something waits")
	}
}

// event is one byte that a flow carries, or a packet without any.
type event struct {
	seq   uint32
	data  int    // -1: none
	about string // what the header says with it, "" for a byte within a segment
}

// FuzzJoin: however packets of several flows are written, cut and joined, each
// flow carries the same bytes in the same order, the last word of a header is
// that of the packet of the segment's last byte, and each segment is sound and
// fits.
func FuzzJoin(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, uint16(1340-seed*100), uint8(seed*16), seed%2 == 0)
	}
	deferrer := NewDeferrer(1)
	f.Cleanup(deferrer.Close)
	f.Fuzz(func(t *testing.T, seed uint64, mss uint16, room uint8, own bool) {
		rng := rand.New(rand.NewPCG(seed, 4))
		e := New(Config{MTU: 1400, Deferrer: deferrer})
		defer e.Close()
		e.SetOpen(true)
		e.SetOwn(own)
		flows := make([]segment, 1+rng.IntN(3))
		for i := range flows {
			flows[i] = segment{v6: rng.IntN(2) == 0, ttl: 64, ports: [2]uint16{uint16(i), 1}, seq: rng.Uint32(), window: 9,
				flags: header.TCPFlagAck, options: make([]byte, 12*rng.IntN(2))}
		}
		want, got := map[string][]event{}, map[string][]event{}
		var in [][]byte
		datagrams := 0
		for range rng.IntN(40) {
			s := &flows[rng.IntN(len(flows))]
			one := *s
			if rng.IntN(4) == 0 { // as with SACK
				one.options = make([]byte, 4*rng.IntN(11))
			}
			one.payload = make([]byte, []int{0, 1, 324, rng.IntN(1500), rng.IntN(6000), rng.IntN(65374)}[rng.IntN(6)%(5+rng.IntN(2))])
			for i := range one.payload {
				one.payload[i] = byte(rng.Uint32())
			}
			one.flags |= []header.TCPFlags{0, header.TCPFlagPsh, header.TCPFlagPsh, header.TCPFlagPsh, header.TCPFlagFin, 0x40, header.TCPFlagUrg}[rng.IntN(7)]
			switch rng.IntN(10) {
			case 0: // sent again
			case 1:
				s.seq += 5
				fallthrough
			default:
				s.seq += uint32(len(one.payload))
			}
			s.ack += uint32(rng.IntN(2))
			in = append(in, one.bytes())
			write(t, e, one.packet(rng, int(mss)))
			for range rng.IntN(2) * rng.IntN(3) {
				write(t, e, packet(header.UDPProtocolNumber, 0, []byte("a datagram")))
				datagrams++
			}
		}
		for _, b := range in {
			record(want, b, true)
		}
		out := readAll(t, e, func() int {
			if rng.IntN(4) == 0 {
				e.SetOwn(own && rng.IntN(2) == 0)
				e.SetMTU(uint32(1280 + 60*rng.IntN(3)))
			}
			return 1 + rng.IntN(int(room)%128+1)
		})
		out = slices.DeleteFunc(out, func(b []byte) bool {
			if isTCP(b) {
				return false
			}
			datagrams--
			return true
		})
		if datagrams != 0 {
			t.Errorf("%d datagrams are missing", datagrams)
		}
		for _, b := range out {
			if _, headers, ok := parseTCP(b); !ok || !own && !sound(b) || len(b) > max(1400, headers+1) || !own && mss > 0 && len(b)-headers > int(mss) {
				t.Fatalf("a segment of %d bytes is not whole, not sound or too large: %.80x", len(b), b)
			}
			record(got, b, false)
		}
		for flow, w := range want {
			if d := difference(w, got[flow]); d != "" {
				t.Fatalf("flow %x carries something else: %s", flow, d)
			}
		}
		e.Drops(func(why string, n uint64) { t.Errorf("%d dropped: %s", n, why) })
	})
}

// difference tells where two flows part, "" where they do not.
func difference(want, got []event) string {
	for i := range min(len(want), len(got)) {
		w, g := want[i], got[i]
		if w.seq != g.seq || w.data != g.data || g.about != "" && w.about != g.about {
			return fmt.Sprintf("event %d of %d is %+v, want %+v", i, len(want), g, w)
		}
	}
	if len(want) != len(got) {
		return fmt.Sprintf("%d events, want %d", len(got), len(want))
	}
	return ""
}

// record writes down what a TCP packet carries, with its flow's. every says that
// each byte knows the header, and not the last alone.
func record(flows map[string][]event, b []byte, every bool) {
	ip, headers, _ := parseTCP(b)
	both, _ := addresses(b, ip)
	flow, t, payload := string(both)+string(b[ip:ip+tcpSeq]), b[ip:headers], b[headers:]
	seq, window := binary.BigEndian.Uint32(t[tcpSeq:]), binary.BigEndian.Uint16(t[tcpWindow:])
	if every {
		window-- // see narrow
	}
	about := fmt.Sprintf("ack %x options %x window %d flags %x", t[tcpAck:tcpOffset], t[header.TCPMinimumSize:], window, t[tcpFlags]&0x40)
	last := fmt.Sprintf("%s fin %d", about, t[tcpFlags]&flagFIN)
	if about += " fin 0"; !every {
		about = ""
	}
	for i, c := range payload {
		flows[flow] = append(flows[flow], event{seq + uint32(i), int(c), about})
	}
	if n := len(flows[flow]); len(payload) > 0 {
		flows[flow][n-1].about = last
	} else {
		flows[flow] = append(flows[flow], event{seq, -1, last})
	}
}
