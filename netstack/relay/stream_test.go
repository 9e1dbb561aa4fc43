package relay

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/netstack/memnet"
	"github.com/warrenmesh/warren/netstack/netx"
)

// pump writes size random bytes in random portions and ends its direction.
func pump(w stream, seed uint64, size int, sum hash.Hash) error {
	random := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 100_000)
	for size > 0 {
		n := min(1+random.IntN(len(buf)), size)
		switch random.IntN(4) {
		case 0:
			n = min(n, 8192) // the boundary at which a peer is known to stall
		case 1:
			n = min(n, 64)
		}
		for i := range buf[:n] {
			buf[i] = byte(random.Uint32())
		}
		sum.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		size -= n
	}
	return w.CloseWrite()
}

func TestCopyIsFaithful(t *testing.T) {
	size := 3 << 20
	if raceOn {
		size = 300_000
	}
	var in, out atomic.Uint64
	overMixes(t, Options{AToB: &in, BToA: &out}, func(t *testing.T, r *rig) {
		in.Store(0)
		out.Store(0)
		sent := [2]hash.Hash{sha256.New(), sha256.New()}
		got := [2]hash.Hash{sha256.New(), sha256.New()}
		ends := [2]stream{r.client, r.origin}
		var all sync.WaitGroup
		for i := range ends {
			all.Go(func() {
				if err := pump(ends[i], uint64(i), size+i, sent[i]); err != nil {
					t.Errorf("writing at end %d: %v", i, err)
				}
			})
			all.Go(func() {
				if _, err := io.Copy(got[1-i], ends[i]); err != nil {
					t.Errorf("reading at end %d: %v", i, err)
				}
			})
		}
		all.Wait()
		res := <-r.done
		for i := range ends {
			if string(sent[i].Sum(nil)) != string(got[i].Sum(nil)) {
				t.Errorf("what end %d sent arrived changed", i)
			}
		}
		if res.End != EndOrderly || res.Side != SideNone || res.Err != nil {
			t.Errorf("ended %v, side %v, %v", res.End, res.Side, res.Err)
		}
		if res.AToB != int64(size) || res.BToA != int64(size+1) {
			t.Errorf("counted %d and %d, want %d and %d", res.AToB, res.BToA, size, size+1)
		}
		if in.Load() != uint64(size) || out.Load() != uint64(size+1) {
			t.Errorf("live counters %d and %d", in.Load(), out.Load())
		}
	})
}

func TestHalfCloseLeavesTheOtherDirection(t *testing.T) {
	overMixes(t, Options{}, func(t *testing.T, r *rig) {
		send(t, r.client, "question")
		if err := r.client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expect(t, r.origin, "question")
		expectEnd(t, r.origin)
		for range 3 {
			send(t, r.origin, "answer")
			expect(t, r.client, "answer")
		}
		if err := r.origin.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expectEnd(t, r.client)
		if res := <-r.done; res.End != EndOrderly || res.AToB != 8 || res.BToA != 18 {
			t.Errorf("result %+v", res)
		}
	})
}

func TestAbortIsPassedOn(t *testing.T) {
	for _, side := range []Side{SideA, SideB} {
		t.Run(side.String(), func(t *testing.T) {
			overMixes(t, Options{}, func(t *testing.T, r *rig) {
				from, to := r.client, r.origin
				if side == SideB {
					from, to = r.origin, r.client
				}
				send(t, from, "x")
				expect(t, to, "x")
				netx.Abort(from)
				expectReset(t, to)
				if res := <-r.done; res.End != EndFailed || res.Side != side || res.Err == nil {
					t.Errorf("ended %v, side %v, %v; want the failure of %v", res.End, res.Side, res.Err, side)
				}
			})
		})
	}
}

// A client that hangs up while the origin is slow to answer must be noticed
// although the client has ended its own direction before.
func TestAbortAfterHalfClose(t *testing.T) {
	a, client := tcpPair(t)
	b, origin := tcpPair(t)
	defer origin.Close()
	done := make(chan Result, 1)
	go func() { done <- Copy(context.Background(), a, b, Options{}) }()
	_ = client.CloseWrite()
	expectEnd(t, origin)
	netx.Abort(client)
	if res := <-done; res.End != EndFailed || res.Side != SideA {
		t.Errorf("ended %v, side %v, %v", res.End, res.Side, res.Err)
	}
	// The origin has read the end already, so that only a write can tell it.
	if _, err := origin.Write([]byte("answer")); err == nil {
		t.Error("the origin can still write")
	}
}

// While one direction is blocked in a write, nobody reads from its source:
// the source's abort must be noticed all the same.
// The same where the side that ended is no kernel socket, as behind the tunnel.
func TestAbortAfterHalfCloseOutsideTheKernel(t *testing.T) {
	a, client := tcpPair(t)
	defer client.Close()
	b, origin := memnet.Pipe()
	done := make(chan Result, 1)
	go func() { done <- Copy(context.Background(), a, b, Options{tick: time.Millisecond}) }()
	if err := origin.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, client)
	origin.Abort()
	if res := <-done; res.End != EndFailed || res.Side != SideB {
		t.Errorf("ended %v, side %v, %v", res.End, res.Side, res.Err)
	}
}

func TestAbortIsNoticedWhileAWriteIsBlocked(t *testing.T) {
	o := Options{tick: time.Millisecond}
	overMixes(t, o, func(t *testing.T, r *rig) {
		if r.kindA == "bare" {
			t.Skip("such a conn cannot tell of its failure: the idle timeout bounds the flow")
		}
		fill(t, r.client)
		netx.Abort(r.client)
		res := <-r.done // the origin has not read a byte
		if res.End != EndFailed || res.Side != SideA {
			t.Errorf("ended %v, side %v, %v", res.End, res.Side, res.Err)
		}
		expectReset(t, r.origin)
	})
}

// fill writes until nothing more is taken.
func fill(t *testing.T, c net.Conn) {
	t.Helper()
	buf := make([]byte, 256<<10)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.Write(buf); err != nil {
			if !errors.Is(netx.Classify(err), netx.ErrTimedOut) {
				t.Fatalf("filling: %v", err)
			}
			return
		}
	}
}

func TestCancelAbortsBoth(t *testing.T) {
	killed := errors.New("killed by the operator")
	overMixes(t, Options{}, func(t *testing.T, r *rig) {
		send(t, r.client, "x")
		expect(t, r.origin, "x")
		r.cancel(killed)
		expectReset(t, r.client)
		expectReset(t, r.origin)
		if res := <-r.done; res.End != EndCanceled || res.Side != SideNone || !errors.Is(res.Err, killed) {
			t.Errorf("ended %v, side %v, %v", res.End, res.Side, res.Err)
		}
	})
}

func TestCancelledBefore(t *testing.T) {
	a, client := memnet.Pipe()
	b, origin := memnet.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if res := Copy(ctx, a, b, Options{}); res.End != EndCanceled {
		t.Errorf("ended %v", res.End)
	}
	expectReset(t, client)
	expectReset(t, origin)
}

// The idle timeout counts both directions together, and from the last byte.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, client := memnet.Pipe()
		b, origin := memnet.Pipe()
		defer client.Close()
		defer origin.Close()
		start := time.Now()
		done := make(chan Result, 1)
		go func() { done <- Copy(t.Context(), a, b, Options{Idle: time.Minute}) }()
		for range 5 { // one direction only: the other must not time out
			time.Sleep(50 * time.Second)
			send(t, origin, "tick")
			expect(t, client, "tick")
		}
		res := <-done
		if lived := time.Since(start); lived != 310*time.Second {
			t.Errorf("lived %v, want the last byte plus a minute", lived)
		}
		if res.End != EndIdle || res.Side != SideNone || res.BToA != 20 {
			t.Errorf("result %+v", res)
		}
		expectReset(t, client)
		expectReset(t, origin)
	})
}

// A half-closed flow whose other side died in silence ends too.
func TestIdleAfterHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, client := memnet.Pipe()
		b, origin := memnet.Pipe()
		defer origin.Close()
		_ = client.CloseWrite()
		if res := Copy(t.Context(), a, b, Options{Idle: time.Minute}); res.End != EndIdle {
			t.Errorf("ended %v", res.End)
		}
		expectReset(t, client)
	})
}

// A deadline that a handshake left behind must not end the flow.
func TestOldDeadlinesAreForgotten(t *testing.T) {
	overMixes(t, Options{}, func(t *testing.T, r *rig) {
		send(t, r.client, "x")
		expect(t, r.origin, "x")
		r.cancel(nil)
		<-r.done
	})
	a, client := tcpPair(t)
	b, origin := tcpPair(t)
	_ = a.SetDeadline(time.Unix(1, 0))
	done := make(chan Result, 1)
	go func() { done <- Copy(context.Background(), a, b, Options{}) }()
	send(t, client, "x")
	expect(t, origin, "x")
	client.Close()
	origin.Close()
	if res := <-done; res.End != EndOrderly {
		t.Errorf("ended %v, %v", res.End, res.Err)
	}
}

// A write to a side that has closed is that side's failure, and what it did
// not take is not counted.
func TestWriteFailure(t *testing.T) {
	a, client := memnet.Pipe()
	b, origin := memnet.Pipe()
	defer client.Close()
	done := make(chan Result, 1)
	go func() { done <- Copy(context.Background(), a, b, Options{}) }()
	_ = origin.Close()
	expectEnd(t, client)
	send(t, client, "too late")
	res := <-done
	if res.End != EndFailed || res.Side != SideB || !errors.Is(res.Err, syscall.EPIPE) || res.AToB != 0 {
		t.Errorf("result %+v", res)
	}
	expectReset(t, client)
}

// whole is a conn that cannot close one direction alone.
type whole struct{ net.Conn }

func TestConnWithoutHalfClose(t *testing.T) {
	a, client := memnet.Pipe()
	b, origin := net.Pipe()
	done := make(chan Result, 1)
	go func() { done <- Copy(context.Background(), a, whole{b}, Options{}) }()
	_ = client.CloseWrite()
	expectEnd(t, client)
	if _, err := origin.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other side read %v", err)
	}
	if res := <-done; res.End != EndOrderly {
		t.Errorf("ended %v, %v", res.End, res.Err)
	}
}
