package netstack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

// pair opens one connection through the lab.
func (l *lab) pair(t testing.TB, to netip.AddrPort) (edge, connector *TCPConn) {
	t.Helper()
	conns := l.acceptTCP(t)
	c := l.dial(t, "tcp", to).(*TCPConn)
	s := <-conns
	t.Cleanup(func() { _ = s.Close() })
	return c, s
}

func TestTCPConnIsNetConn(t *testing.T) {
	for _, to := range []netip.AddrPort{service4, service6} {
		t.Run(to.String(), func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				l := newLab(t)
				a, b := l.pair(t, to)
				return a, b, func() { a.Close(); b.Close() }, nil
			})
		})
	}
}

func TestListenerConnIsNetConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		l := newTwoEdges(t)
		ln, err := l.b.Listen(l.ctx, "tcp", netip.MustParseAddrPort("100.64.0.2:0"))
		if err != nil {
			return nil, nil, nil, err
		}
		at := ln.Addr().(*net.TCPAddr).AddrPort()
		c1, err = l.a.DialContext(l.ctx, "tcp", at)
		if err != nil {
			return nil, nil, nil, err
		}
		c2, err = ln.Accept()
		return c1, c2, func() { c1.Close(); c2.Close(); ln.Close() }, err
	})
}

// stream is what one direction of a conn carried.
type stream struct {
	sum hash.Hash
	n   int
}

// sendRandom writes size bytes in writes of random sizes, then half-closes.
func sendRandom(c *TCPConn, size int, seed uint64) (stream, error) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	out := stream{sum: sha256.New()}
	b := make([]byte, 256<<10)
	for out.n < size {
		p := b[:min(1+rnd.IntN(len(b)), size-out.n)]
		for i := 0; i+8 <= len(p); i += 8 {
			v := rnd.Uint64()
			for k := range 8 {
				p[i+k] = byte(v >> (8 * k))
			}
		}
		n, err := c.Write(p)
		out.sum.Write(p[:n])
		out.n += n
		if err != nil {
			return out, err
		}
	}
	return out, c.CloseWrite()
}

// receiveAll reads to the end of the stream with reads of random sizes.
func receiveAll(c *TCPConn, seed uint64) (stream, error) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	in := stream{sum: sha256.New()}
	b := make([]byte, 128<<10)
	for {
		if rnd.IntN(4) == 0 {
			if err := c.WaitReadable(); err != nil {
				return in, err
			}
		}
		n, err := c.Read(b[:1+rnd.IntN(len(b))])
		in.sum.Write(b[:n])
		in.n += n
		if err == io.EOF {
			return in, nil
		}
		if err != nil {
			return in, err
		}
	}
}

// exchange sends size random bytes both ways at once and compares.
func exchange(t *testing.T, a, b *TCPConn, size int) {
	t.Helper()
	var wg sync.WaitGroup
	var sent, got [2]stream
	var errs [4]error
	wg.Go(func() { sent[0], errs[0] = sendRandom(a, size, 1) })
	wg.Go(func() { sent[1], errs[1] = sendRandom(b, size, 2) })
	wg.Go(func() { got[0], errs[2] = receiveAll(b, 3) })
	wg.Go(func() { got[1], errs[3] = receiveAll(a, 4) })
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	for i := range sent {
		if got[i].n != sent[i].n || !bytes.Equal(got[i].sum.Sum(nil), sent[i].sum.Sum(nil)) {
			t.Errorf("direction %d: received %d bytes of %d, or other ones", i, got[i].n, sent[i].n)
		}
	}
}

func TestStreamIntegrity(t *testing.T) {
	size := 16 << 20
	if raceEnabled {
		size = 2 << 20
	}
	for _, tt := range []struct {
		name string
		to   netip.AddrPort
		loss int // one packet in so many is lost, and one duplicated
	}{
		{"clean v4", service4, 0},
		{"clean v6", service6, 0},
		{"lossy v4", service4, 500},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			size := size
			if tt.loss > 0 {
				size /= 8
				l.edgeEnd.setFilter(lossy(tt.loss, 5))
				l.connectorEnd.setFilter(lossy(tt.loss, 6))
			}
			a, b := l.pair(t, tt.to)
			exchange(t, a, b, size)
		})
	}
}

// lossy loses one packet in n and duplicates another.
func lossy(n int, seed uint64) func([]byte) int {
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, 7))
	return func([]byte) int {
		mu.Lock()
		defer mu.Unlock()
		switch rnd.IntN(n) {
		case 0:
			return 0
		case 1:
			return 2
		}
		return 1
	}
}

// Writes of exactly 8192 bytes to a fast reader stalled a peer of ours.
func TestBoundaryWritesDoNotStall(t *testing.T) {
	l := newLab(t)
	a, b := l.pair(t, service4)
	const writes = 512
	done := make(chan error, 1)
	go func() {
		n, err := io.Copy(io.Discard, b)
		if err == nil && n != writes*8192 {
			err = io.ErrUnexpectedEOF
		}
		done <- err
	}()
	block := make([]byte, 8192)
	// A write that stalls waits for the peer's window to open, which nothing
	// but a probe would make it do: the deadline ends the test then.
	if err := a.SetWriteDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range writes {
		if _, err := a.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestHalfCloseBothWays(t *testing.T) {
	for _, first := range []string{"edge", "connector"} {
		t.Run(first+" first", func(t *testing.T) {
			l := newLab(t)
			a, b := l.pair(t, service4)
			if first == "connector" {
				a, b = b, a
			}
			if err := a.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("reading after the peer's half-close: %v, want EOF", err)
			}
			if _, err := a.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("writing after CloseWrite: %v, want a broken pipe", err)
			}
			if _, err := b.Write([]byte("still here")); err != nil {
				t.Fatal(err)
			}
			if err := b.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(a); string(got) != "still here" || err != nil {
				t.Fatalf("read %q, %v", got, err)
			}
			if err := a.CloseWrite(); err != nil {
				t.Errorf("a second CloseWrite: %v", err)
			}
		})
	}
}

func TestAbortReadsAsReset(t *testing.T) {
	l := newLab(t)
	a, b := l.pair(t, service4)
	read := make(chan error, 1)
	go func() {
		_, err := b.Read(make([]byte, 1))
		read <- err
	}()
	a.Abort()
	if err := <-read; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer reads %v, want a reset", err)
	}
	// gVisor tells it once; everyone after must hear the same.
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer's second read: %v, want a reset", err)
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer's write: %v, want a reset", err)
	}
	if err := b.CloseWrite(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer's half-close: %v, want a reset", err)
	}
	if err := b.WaitReadable(); err != nil {
		t.Errorf("WaitReadable after a reset: %v, want nil: Read reports it", err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading after Abort: %v, want net.ErrClosed", err)
	}
	a.Abort()
	if err := a.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close after Abort: %v", err)
	}
}

// A reset must not look like an orderly end to the reader because the writer
// was told first.
func TestResetSeenByWriterFirst(t *testing.T) {
	l := newLab(t)
	a, b := l.pair(t, service4)
	a.Abort()
	if err := b.WaitReadable(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("write: %v, want a reset", err)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read: %v, want a reset, not the end of the stream", err)
	}
}

// The relay asks a conn that it does not read: a reset must show, an orderly
// end and the owner's own Close must not.
func TestFailureShowsWithoutReading(t *testing.T) {
	l := newLab(t)
	a, b := l.pair(t, service4)
	if err := b.Failure(); err != nil {
		t.Errorf("Failure of a live conn: %v", err)
	}
	a.Abort()
	if err := b.WaitReadable(); err != nil {
		t.Fatal(err)
	}
	if err := b.Failure(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Failure after a reset: %v", err)
	}
	if err := a.Failure(); err != nil {
		t.Errorf("Failure after one's own Abort: %v", err)
	}
	c, d := l.pair(t, service4)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read after CloseWrite: %v", err)
	}
	if err := d.Failure(); err != nil {
		t.Errorf("Failure after an orderly end: %v", err)
	}
}

func TestCloseWakesBlocked(t *testing.T) {
	var once sync.Once
	l := newLab(t)
	a, _ := l.pair(t, service4)
	sending := make(chan struct{})
	l.edgeEnd.setFilter(func(b []byte) int {
		if len(b) > 1000 {
			once.Do(func() { close(sending) })
		}
		return 1
	})
	errs := make(chan error, 3)
	go func() { _, err := a.Read(make([]byte, 1)); errs <- err }()
	go func() { errs <- a.WaitReadable() }()
	go func() {
		var err error
		for err == nil { // the peer does not read: it blocks in the end
			_, err = a.Write(make([]byte, 1<<20))
		}
		errs <- err
	}()
	<-sending
	a.Close()
	for range 3 {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	}
}

func TestWaitReadable(t *testing.T) {
	l := newLab(t)
	a, b := l.pair(t, service4)

	b.SetReadDeadline(time.Now().Add(-time.Second))
	if err := b.WaitReadable(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("with a deadline that has passed: %v", err)
	}
	b.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if err := b.WaitReadable(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("with a deadline that passes: %v", err)
	}
	b.SetReadDeadline(time.Time{})

	waited := make(chan error, 1)
	go func() { waited <- b.WaitReadable() }()
	a.Write([]byte("data"))
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := b.Read(buf); string(buf[:n]) != "data" || err != nil {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	a.CloseWrite()
	if err := b.WaitReadable(); err != nil {
		t.Fatalf("at the end of the stream: %v", err)
	}
	if _, err := b.Read(buf); err != io.EOF {
		t.Fatalf("read %v, want EOF", err)
	}
}

// Reading and writing a steady stream must not allocate in this package.
func TestReadWriteAllocations(t *testing.T) {
	l := newLab(t)
	a, b := l.pair(t, service4)
	buf := make([]byte, 64)
	per := testing.AllocsPerRun(200, func() {
		if err := b.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, buf); err != nil {
			t.Fatal(err)
		}
	})
	// gVisor's own segments and packets, and the test's wire, make some 12.
	if per > 20 {
		t.Errorf("%v allocations a round trip", per)
	}
}

func readFull(c net.Conn, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(c, b)
	return b, err
}
