package relay

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/netstack/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stream is what the tests ask of both ends of a pair.
type stream interface {
	net.Conn
	CloseWrite() error
}

// pairs makes the two ends of a stream, one kind a row: every test of Copy
// runs over every mix of them.
var pairs = []struct {
	name string
	make func(t testing.TB) (near, far stream)
}{
	{"kernel", tcpPair},
	{"memory", func(testing.TB) (stream, stream) { return memnet.Pipe() }},
	{"bare", func(testing.TB) (stream, stream) {
		a, b := memnet.Pipe()
		return bare{a}, b
	}},
}

// bare is a stream that can neither wait without a buffer nor tell of its
// failure: it hides what else a memnet.Conn does.
type bare struct{ stream }

func (b bare) Abort() { b.stream.(*memnet.Conn).Abort() }

func tcpPair(t testing.TB) (stream, stream) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return near.(*net.TCPConn), far.(*net.TCPConn)
}

// rig is a running Copy with the far ends of its two conns.
type rig struct {
	kindA          string
	client, origin stream
	cancel         context.CancelCauseFunc
	done           chan Result
	over           chan struct{} // closed after done got the result
}

// overMixes runs test over every mix of two kinds of stream: once as it is,
// and once with directions that park whenever they may.
func overMixes(t *testing.T, o Options, test func(t *testing.T, r *rig)) {
	overMixesOf(t, "", o, test)
	poller := NewPoller()
	defer poller.Close()
	o.Poller, o.tick = poller, time.Millisecond
	overMixesOf(t, "-parked", o, test)
}

func overMixesOf(t *testing.T, suffix string, o Options, test func(t *testing.T, r *rig)) {
	for _, kindA := range pairs {
		for _, kindB := range pairs {
			t.Run(kindA.name+"-"+kindB.name+suffix, func(t *testing.T) {
				a, client := kindA.make(t)
				b, origin := kindB.make(t)
				defer client.Close()
				defer origin.Close()
				ctx, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				r := &rig{kindA: kindA.name, client: client, origin: origin, cancel: cancel, done: make(chan Result, 1), over: make(chan struct{})}
				go func() {
					r.done <- Copy(ctx, a, b, o)
					close(r.over)
				}()
				defer func() {
					cancel(nil)
					<-r.over
				}()
				test(t, r)
			})
		}
	}
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatalf("writing %q: %v", s, err)
	}
}

func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != want {
		t.Fatalf("read %q, %v; want %q", buf, err, want)
	}
}

func expectEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want the end of the stream", n, err)
	}
}

// expectReset reads to the end, which must be no orderly one.
func expectReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); err == nil {
		t.Fatal("the stream ended in order, want a reset")
	}
}
