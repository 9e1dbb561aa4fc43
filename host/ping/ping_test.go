package ping

import (
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSocket says of itself what ident does.
type fakeSocket struct {
	socket
	id      uint16
	checked bool
}

func (s fakeSocket) ident() (uint16, bool) { return s.id, s.checked }

func TestReplies(t *testing.T) {
	for _, dst := range []string{"10.0.0.10", "fd00::10"} {
		for _, checked := range []bool{false, true} {
			p := newPing(netip.MustParseAddr(dst), fakeSocket{id: 7, checked: checked})
			good := icmp.Message{Type: ipv6.ICMPTypeEchoReply, Body: &icmp.Echo{ID: 7, Seq: int(p.seq), Data: p.data[:]}}
			if p.dst.Is4() {
				good.Type = ipv4.ICMPTypeEchoReply
			}
			marshal := func(change func(m *icmp.Message, e *icmp.Echo)) []byte {
				m, e := good, *good.Body.(*icmp.Echo)
				e.Data = append([]byte(nil), e.Data...)
				m.Body = &e
				change(&m, &e)
				b, err := m.Marshal(nil)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			whole := marshal(func(*icmp.Message, *icmp.Echo) {})
			if !p.answeredBy(whole, p.dst) {
				t.Errorf("%s: its reply is none", dst)
			}
			for n := range whole {
				if p.answeredBy(whole[:n], p.dst) {
					t.Errorf("%s: %d of %d bytes are a reply", dst, n, len(whole))
				}
			}
			for name, b := range map[string][]byte{
				"sequence number": marshal(func(_ *icmp.Message, e *icmp.Echo) { e.Seq ^= 1 }),
				"data":            marshal(func(_ *icmp.Message, e *icmp.Echo) { e.Data[55]++ }),
				"length":          marshal(func(_ *icmp.Message, e *icmp.Echo) { e.Data = append(e.Data, 0) }),
				"code":            marshal(func(m *icmp.Message, _ *icmp.Echo) { m.Code = 1 }),
				"request":         request(t, p),
			} {
				if p.answeredBy(b, p.dst) {
					t.Errorf("%s: with another %s it is a reply", dst, name)
				}
			}
			if p.answeredBy(marshal(func(_ *icmp.Message, e *icmp.Echo) { e.ID++ }), p.dst) != checked {
				t.Errorf("%s: another identifier where the kernel checks it: %v", dst, checked)
			}
			if p.answeredBy(whole, p.dst.Next()) {
				t.Errorf("%s: its neighbour answers for it", dst)
			}
		}
	}
}

func request(t *testing.T, p *ping) []byte {
	t.Helper()
	b, err := p.request()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzReply(f *testing.F) {
	p4 := newPing(netip.MustParseAddr("10.0.0.10"), fakeSocket{id: 7})
	p6 := newPing(netip.MustParseAddr("fd00::10"), fakeSocket{id: 7})
	for _, p := range []*ping{p4, p6} {
		b, err := p.request()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		b[0]++ // ICMPv6's reply
		f.Add(b)
		b[0] = 0 // ICMP's
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range []*ping{p4, p6} {
			if p.answeredBy(b, p.dst) && (len(b) != 8+dataLen || string(b[8:]) != string(p.data[:])) {
				t.Errorf("%d bytes without its data are a reply", len(b))
			}
		}
	})
}

// Errors of opening are told apart from those of a socket that is there.
func TestForbidden(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{os.NewSyscallError("socket", syscall.EACCES), true},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EPERM)}, true},
		{os.NewSyscallError("socket", syscall.EPROTONOSUPPORT), true},
		{errUnsupported, true},
		{os.NewSyscallError("socket", syscall.EMFILE), false},
		{os.NewSyscallError("connect", syscall.EACCES), false},
		{syscall.EPERM, false},
	} {
		if got := forbidden(tc.err); got != tc.want {
			t.Errorf("forbidden(%v) = %v", tc.err, got)
		}
	}
}
