package shim

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
)

var (
	overlayEdge      = netip.MustParseAddr("fd77:6172:7265::1")
	overlayConnector = netip.MustParseAddr("fd77:6172:7265::2")
)

// outer returns a packet with an outer header for next that declares length
// bytes and holds payload.
func outer(next byte, length int, payload []byte) []byte {
	b := make([]byte, HeaderLen, HeaderLen+len(payload))
	Put(b, overlayEdge, overlayConnector, 1, true)
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	b[6] = next
	return append(b, payload...)
}

func TestPutWritesTheHeaderOfRFC2473(t *testing.T) {
	b := bytes.Repeat([]byte{0xff}, HeaderLen+4)
	Put(b, overlayEdge, overlayConnector, 0x0102, true)
	want := []byte{
		0x60, 0, 0, 0, 0x01, 0x02, 4, 64,
		0xfd, 0x77, 0x61, 0x72, 0x72, 0x65, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
		0xfd, 0x77, 0x61, 0x72, 0x72, 0x65, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
		0xff, 0xff, 0xff, 0xff, // what follows is left alone
	}
	if !bytes.Equal(b, want) {
		t.Errorf("got  %x\nwant %x", b, want)
	}
	Put(b, overlayEdge, overlayConnector, 1, false)
	if b[6] != 41 {
		t.Errorf("next header for IPv6 is %d, want 41", b[6])
	}
}

func TestPutOfAnImpossibleLengthIsRefusedAtTheFarEnd(t *testing.T) {
	for _, n := range []int{-1, 0, 65536, 65536 + 20} {
		b := make([]byte, HeaderLen+20)
		b[HeaderLen] = 0x45
		Put(b, overlayEdge, overlayConnector, n, true)
		if _, why := Parse(b); why != OuterEmpty {
			t.Errorf("length %d: why %q, want %q", n, why, OuterEmpty)
		}
	}
}

func TestParse(t *testing.T) {
	v4 := []byte{0x45, 1, 2, 3}
	v6 := []byte{0x60, 1, 2, 3}
	padded := append(outer(4, 4, v4), make([]byte, 12)...)
	for _, tt := range []struct {
		name    string
		b       []byte
		why     Why
		inner   []byte
		payload []byte
	}{
		{"nothing at all", nil, OuterShort, nil, nil},
		{"a byte short of a header", outer(4, 4, v4)[:HeaderLen-1], OuterShort, nil, nil},
		{"an IPv4 packet without a shim", append([]byte{0x45}, make([]byte, 60)...), OuterVersion, nil, nil},
		{"IPv4 inside", outer(4, 4, v4), OK, v4, nil},
		{"IPv6 inside", outer(41, 4, v6), OK, v6, nil},
		{"next header 4 over IPv6", outer(4, 4, v6), InnerVersion, nil, nil},
		{"next header 41 over IPv4", outer(41, 4, v4), InnerVersion, nil, nil},
		{"inner version 0", outer(4, 4, make([]byte, 4)), InnerVersion, nil, nil},
		{"length 0", outer(4, 0, v4), OuterEmpty, nil, nil},
		{"length 0 and nothing there", outer(4, 0, nil), OuterEmpty, nil, nil},
		{"length one too large", outer(4, 5, v4), OuterTruncated, nil, nil},
		{"65,496, which wraps to an empty packet in 16 bits", outer(4, 65496, v4), OuterTruncated, nil, nil},
		{"65,496 as wireguard-go hands it over", outer(4, 65496, v4)[:0], OuterShort, nil, nil},
		{"65,535", outer(4, 65535, v4), OuterTruncated, nil, nil},
		{"padding is cut off", padded, OK, v4, nil},
		{"length smaller than what is there", outer(4, 2, v4), OK, v4[:2], nil},
		{"plain ICMPv6", outer(58, 4, v4), OK, nil, v4},
		{"plain UDP", outer(17, 4, v4), OK, nil, v4},
		{"plain TCP", outer(6, 4, v4), OK, nil, v4},
		{"hop-by-hop options", outer(0, 4, v4), OuterExtension, nil, nil},
		{"routing header", outer(43, 4, v4), OuterExtension, nil, nil},
		{"fragment header", outer(44, 4, v4), OuterExtension, nil, nil},
		{"encapsulation limit of ip6tnl", outer(60, 4, v4), OuterExtension, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, why := Parse(tt.b)
			if why != tt.why {
				t.Fatalf("why %q, want %q", why, tt.why)
			}
			if why != OK {
				return
			}
			if p.Src != overlayEdge || p.Dst != overlayConnector {
				t.Errorf("addresses %v → %v", p.Src, p.Dst)
			}
			if !bytes.Equal(p.Inner, tt.inner) || !bytes.Equal(p.Payload, tt.payload) {
				t.Errorf("inner %x payload %x, want %x and %x", p.Inner, p.Payload, tt.inner, tt.payload)
			}
			if p.Shimmed() != (tt.inner != nil) {
				t.Errorf("Shimmed is %v", p.Shimmed())
			}
			if p.NextHeader != tt.b[6] {
				t.Errorf("next header %d, want %d", p.NextHeader, tt.b[6])
			}
		})
	}
}

func TestParseSlicesCannotGrowIntoTheRest(t *testing.T) {
	b := append(outer(4, 4, []byte{0x45, 1, 2, 3}), 9, 9, 9)
	p, why := Parse(b)
	if why != OK {
		t.Fatal(why)
	}
	if cap(p.Inner) != 4 {
		t.Errorf("inner has capacity %d, want 4: an append would write into foreign bytes", cap(p.Inner))
	}
}

func TestWhysAreDistinctAndComplete(t *testing.T) {
	seen := map[Why]bool{OK: true}
	for _, w := range Whys() {
		if seen[w] {
			t.Errorf("%q twice or empty", w)
		}
		seen[w] = true
	}
	source, err := os.ReadFile("why.go")
	if err != nil {
		t.Fatal(err)
	}
	if declared := bytes.Count(source, []byte(` Why = "`)); declared != len(seen) {
		t.Errorf("%d reasons are declared and %d listed", declared, len(seen))
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	inner := tcp4("10.0.0.1", "100.127.0.7", 12)
	b := make([]byte, HeaderLen+len(inner))
	copy(b[HeaderLen:], inner)
	icmp := icmp4("10.0.0.1", "100.127.0.7", 3, tcp4("100.127.0.7", "10.0.0.1", 0))
	var sink int
	allocs := testing.AllocsPerRun(200, func() {
		Put(b, overlayEdge, overlayConnector, len(inner), true)
		p, why := Parse(b)
		if why != OK {
			t.Fatal(why)
		}
		in, why := ParseInner(p.Inner)
		if why != OK {
			t.Fatal(why)
		}
		e, _ := ParseInner(icmp)
		q, why := Quoted(e)
		if why != OK {
			t.Fatal(why)
		}
		sink += len(in.Payload) + len(q.Payload)
	})
	if allocs != 0 {
		t.Errorf("%v allocations a packet, want 0", allocs)
	}
	_ = sink
}

func BenchmarkParse(b *testing.B) {
	inner := tcp4("10.0.0.1", "100.127.0.7", 1340)
	packet := make([]byte, HeaderLen+len(inner))
	copy(packet[HeaderLen:], inner)
	b.ReportAllocs()
	for b.Loop() {
		Put(packet, overlayEdge, overlayConnector, len(inner), true)
		p, _ := Parse(packet)
		if _, why := ParseInner(p.Inner); why != OK {
			b.Fatal(why)
		}
	}
}
