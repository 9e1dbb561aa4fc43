package tunnel

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
)

var (
	echoA = netip.MustParseAddr("fd77:6172:7265::a")
	echoB = netip.MustParseAddr("fd77:6172:7265::b")
)

func TestEchoRoundTrip(t *testing.T) {
	for _, size := range []int{0, echoMinLen, echoMinLen + 1, 1320, 1440} {
		want := echo{id: echoIDPathMTU, seq: 7, flags: flagDraining, boot: 1 << 63, sent: 12345}
		request := appendEcho(nil, echoA, echoB, want, size)
		if len(request) != max(size, echoMinLen) {
			t.Errorf("request of size %d is %d bytes long", size, len(request))
		}
		got, ok := parseEcho(request, echoA, echoB)
		want.ours = true
		if !ok || got != want {
			t.Errorf("parseEcho(request) = %+v, %v; want %+v", got, ok, want)
		}
		reply := appendReply(nil, request, echoB, echoA)
		got, ok = parseEcho(reply, echoB, echoA)
		want.reply = true
		if !ok || got != want || len(reply) != len(request) {
			t.Errorf("parseEcho(reply of %d bytes) = %+v, %v; want %+v", len(reply), got, ok, want)
		}
	}
}

// TestEchoIsICMPv6 holds the encoding against another implementation.
func TestEchoIsICMPv6(t *testing.T) {
	p := appendEcho(nil, echoA, echoB, echo{id: 5, seq: 9, boot: 3}, 100)
	h, err := ipv6.ParseHeader(p)
	if err != nil || h.NextHeader != 58 || h.PayloadLen != 60 || !h.Src.Equal(echoA.AsSlice()) || !h.Dst.Equal(echoB.AsSlice()) {
		t.Fatalf("IPv6 header %+v, %v", h, err)
	}
	m, err := icmp.ParseMessage(58, p[40:])
	if err != nil || m.Type != ipv6.ICMPTypeEchoRequest {
		t.Fatalf("ICMPv6 message %+v, %v", m, err)
	}
	body := m.Body.(*icmp.Echo)
	if body.ID != 5 || body.Seq != 9 {
		t.Errorf("echo %+v", body)
	}
	want, err := (&icmp.Message{Type: m.Type, Code: m.Code, Body: body}).Marshal(icmp.IPv6PseudoHeader(echoA.AsSlice(), echoB.AsSlice()))
	if err != nil || !bytes.Equal(p[40:], want) {
		t.Errorf("ICMPv6 bytes\n%x, want\n%x (%v)", p[40:], want, err)
	}
}

func TestForeignEchoesAreAnsweredButNotBelieved(t *testing.T) {
	p := appendEcho(nil, echoA, echoB, echo{id: 5, seq: 9, boot: 3}, 0)
	copy(p[echoDataOffset:], "PING")
	finishEcho(p, echoA, echoB)
	e, ok := parseEcho(p, echoA, echoB)
	if !ok || e.ours || e.boot != 0 {
		t.Errorf("parseEcho = %+v, %v; want an echo that is not ours", e, ok)
	}
}

func FuzzParseEcho(f *testing.F) {
	f.Add(appendEcho(nil, echoA, echoB, echo{id: 1, seq: 2, boot: 3}, 0))
	f.Add([]byte{})
	f.Add(make([]byte, echoDataOffset))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := parseEcho(b, echoA, echoB)
		if !ok || e.reply {
			return
		}
		reply := appendReply(nil, b, echoB, echoA)
		r, ok := parseEcho(reply, echoB, echoA)
		if !ok || !r.reply || r.seq != e.seq {
			t.Errorf("the reply to %x does not parse as its reply", b)
		}
	})
}
