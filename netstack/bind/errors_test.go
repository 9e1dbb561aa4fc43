package bind

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestReceiveErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{syscall.ECONNREFUSED, true},
		{syscall.ENETDOWN, true},
		{syscall.ENOBUFS, true},
		{os.NewSyscallError("recvmmsg", syscall.EINTR), true},
		{syscall.ECONNABORTED, false}, // ss -K
		{syscall.EBADF, false},
		{net.ErrClosed, false},
	} {
		if got := passing(tt.err); got != tt.want {
			t.Errorf("%v: passing is %v", tt.err, got)
		}
	}
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		err    error
		source bool
		want   verdict
	}{
		{syscall.EMSGSIZE, true, verdict{dropOne, whyTooLarge, false}},
		{syscall.ENOBUFS, false, verdict{dropOne, whyNoBuffers, false}},
		{syscall.EPERM, false, verdict{dropRest, whyFirewall, true}},
		{syscall.EINVAL, true, verdict{do: dropSource}},
		{syscall.EINVAL, false, verdict{dropRest, whyInvalid, true}},
		{syscall.ENETUNREACH, true, verdict{do: dropSource}},
		{syscall.ENETUNREACH, false, verdict{dropRest, whyUnreachable, true}},
		{syscall.ENETDOWN, false, verdict{dropRest, whyUnreachable, true}},
		{syscall.ECONNREFUSED, false, verdict{tryAgain, whySendOther, false}},
		{syscall.EINTR, false, verdict{tryAgain, whySendOther, false}},
		{syscall.EIO, false, verdict{dropRest, whySendOther, true}},
		{os.ErrDeadlineExceeded, false, verdict{dropRest, whyBufferFull, false}},
		{&net.OpError{Op: "raw-write", Err: net.ErrClosed}, false, verdict{dropRest, whyClosed, true}},
		{errors.New("else"), false, verdict{dropRest, whySendOther, true}},
	} {
		if got := judge(tt.err, tt.source); got != tt.want {
			t.Errorf("%v, source %v: %+v, want %+v", tt.err, tt.source, got, tt.want)
		}
	}
}

// failingConn fails every call of Control after the first few.
type failingConn struct {
	syscall.RawConn
	good int
	err  error
}

func (f *failingConn) Control(callback func(fd uintptr)) error {
	if f.good--; f.good < 0 {
		return f.err
	}
	return f.RawConn.Control(callback)
}

func TestWhatWasSentInPartIsNoError(t *testing.T) {
	for _, tt := range []struct {
		name  string
		good  int
		err   error
		fails bool
	}{
		{"two chunks of three", 2, syscall.EIO, false},
		{"nothing", 0, syscall.EIO, true},
		{"nothing, for the socket is on its way back", 0, net.ErrClosed, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
			if _, _, err := b.Open(0); err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			s := b.current.Load().v4
			k := s.kernel.Load()
			s.kernel.Store(&kernelConn{UDPConn: k.UDPConn, raw: &failingConn{k.raw, tt.good, tt.err}, segments: k.segments})
			e, _ := parseEndpoint("127.0.0.1:9")
			err := b.Send(make([][]byte, 3*maxBatch), e)
			if (err != nil) != tt.fails || tt.fails && !errors.Is(err, tt.err) {
				t.Errorf("error %v", err)
			}
			dropped := uint64(0)
			b.Drops(func(_, _ string, n uint64) { dropped += n })
			if want := uint64(tt.good * maxBatch); b.Stats().TxDatagrams != want || dropped != 3*maxBatch-want {
				t.Errorf("%+v, dropped %d", b.Stats(), dropped)
			}
		})
	}
}

// TestDropsOfASocketThatDiesAreKept has a socket replaced that still is open,
// as after ss -K, so that its count can be read.
func TestDropsOfASocketThatDiesAreKept(t *testing.T) {
	a := open(t, New(Config{}))
	b := New(Config{ReceiveBuffer: 8 << 10, Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	_, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	e, _ := parseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	for range 100 {
		send(t, a.Bind, e, strings.Repeat("x", 1000))
	}
	count := func() (n uint64) {
		b.Drops(func(_, why string, count uint64) {
			if why == whyKernel {
				n = count
			}
		})
		return n
	}
	before := count()
	s := b.current.Load().v4
	if err := b.reopen(s, s.kernel.Load(), syscall.ECONNABORTED); err != nil {
		t.Fatal(err)
	}
	if after := count(); before == 0 || after != before {
		t.Errorf("%d drops before, %d after", before, after)
	}
}
