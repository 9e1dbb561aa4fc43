package load

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"
)

// FuzzDatagram changes a datagram in one place and shortens it: only the very
// bytes that were written pass.
func FuzzDatagram(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint64(3), uint16(64), uint16(0), byte(0), uint16(0))
	f.Add(uint64(1), uint64(2), uint64(3), uint16(1200), uint16(1199), byte(1), uint16(0))
	f.Add(uint64(9), uint64(8), uint64(7), uint16(33), uint16(20), byte(0x80), uint16(1))
	f.Fuzz(func(t *testing.T, flow, sequence, sent uint64, size, at uint16, change byte, cut uint16) {
		n := minDatagram + int(size)%(maxDatagram-minDatagram+1)
		want := header{flow, sequence, sent}
		b := make([]byte, n)
		want.write(b)
		b[int(at)%n] ^= change
		b = b[:n-min(n, int(cut))]
		got, err := readDatagram(b, flow, n)
		if whole := change == 0 && cut == 0 || int(at)%n >= len(b) && cut == 0; whole {
			if err != nil || got != want {
				t.Errorf("%+v became %+v: %v", want, got, err)
			}
			return
		}
		var d *Difference
		if !errors.As(err, &d) {
			t.Errorf("byte %d changed by %#x, %d bytes cut of %d: %v", int(at)%n, change, cut, n, err)
		}
	})
}

// FuzzSeen holds the window of sequence numbers against a map.
func FuzzSeen(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 0, 0, 255, 255, 255, 127, 1, 0})
	f.Add([]byte{5, 0, 3, 0, 255, 63, 254, 63, 1, 0, 5, 0, 255, 255, 0, 192})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var s seen
		known := map[uint64]bool{}
		var base, top uint64
		for ; len(steps) >= 2; steps = steps[2:] {
			// the two high bits move the base forward, far or farther
			step := uint64(binary.LittleEndian.Uint16(steps))
			base += []uint64{0, 1, 1000, 100_000}[step>>14]
			sequence := base + step&0x3fff
			fresh := s.mark(sequence)
			old := sequence+seenSpan < max(top, sequence+1)
			if want := old || !known[sequence]; fresh != want {
				t.Fatalf("sequence %d with the top at %d: new is %v, want %v", sequence, top, fresh, want)
			}
			known[sequence] = true
			top = max(top, sequence+1)
		}
	})
}

// TestBatches sends batches between two sockets and back without allocating.
func TestBatches(t *testing.T) {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	here, _ := client.SyscallConn()
	there, _ := server.SyscallConn()
	const n, size = 8, 100
	out, in, at := newBatch(n, size, false), newBatch(n, size+1, false), newBatch(n, size+1, true)
	pass := func() {
		for i := range n {
			header{1, uint64(i), 2}.write(out.buffer(i))
		}
		if err := out.send(here, n); err != nil {
			t.Fatal(err)
		}
		for done := 0; done < n; {
			k, err := at.receive(there)
			if err != nil {
				t.Fatal(err)
			}
			for i := range k {
				datagram, _ := at.received(i)
				at.setLen(i, len(datagram))
			}
			if err := at.send(there, k); err != nil {
				t.Fatal(err)
			}
			for i := range k {
				at.setLen(i, size+1)
			}
			done += k
		}
		for done := 0; done < n; {
			k, err := in.receive(here)
			if err != nil {
				t.Fatal(err)
			}
			for i := range k {
				datagram, whole := in.received(i)
				if h, err := readDatagram(datagram, 1, size); err != nil || !whole || h.sequence != uint64(done+i) {
					t.Fatalf("datagram %d is %+v: %v", done+i, h, err)
				}
			}
			done += k
		}
	}
	if allocs := testing.AllocsPerRun(50, pass); allocs != 0 {
		t.Errorf("%v allocations for %d datagrams", allocs, n)
	}
}
