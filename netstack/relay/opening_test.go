package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// loopback is two ends of a connection over loopback.
func loopback(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

// origin is the far end of an Opening's try: it reads want, and does then.
func origin(t *testing.T, want string, then func(*net.TCPConn)) net.Conn {
	t.Helper()
	near, far := loopback(t)
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		got := make([]byte, len(want))
		_ = far.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadFull(far, got); err != nil || string(got) != want {
			t.Errorf("the far side was told %q, %v; want %q", got, err, want)
		}
		then(far)
	}()
	return near
}

func reset(c *net.TCPConn)  { _ = c.SetLinger(0); c.Close() }
func finish(c *net.TCPConn) { c.Close() }

func answer(text string) func(*net.TCPConn) {
	return func(c *net.TCPConn) { _, _ = c.Write([]byte(text)) }
}

func TestOpeningIsSaidAgain(t *testing.T) {
	client, edge := loopback(t)
	var in, out atomic.Uint64
	op := NewOpening(edge, Options{AToB: &in, BToA: &out})
	if _, err := client.Write([]byte("hello, ")); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for name, fails := range map[string]func(*net.TCPConn){"reset": reset, "closed": finish} {
		if again, r := op.Try(ctx, origin(t, "hello, ", fails)); !again || r.Err == nil || r.Side != SideB {
			t.Fatalf("%s: again %v, %+v", name, again, r)
		}
	}
	if _, err := client.Write([]byte("world")); err != nil {
		t.Fatal(err)
	}
	far := origin(t, "hello, world", answer("hi"))
	if again, r := op.Try(ctx, far); again || r.Err != nil {
		t.Fatalf("again %v, %+v", again, r)
	}
	got := make([]byte, 2)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "hi" {
		t.Fatalf("the client heard %q, %v", got, err)
	}
	if in.Load() != 12 || out.Load() != 2 {
		t.Errorf("counted %d and %d bytes, want 12 and 2", in.Load(), out.Load())
	}
	// What follows is the relay's, with nothing lost in between.
	done := make(chan Result, 1)
	Start(ctx, edge, far, Options{AToB: &in, BToA: &out}, func(r Result) { done <- r })
	client.Close()
	far.Close()
	<-done
}

func TestOpeningOfServerThatSpeaksFirst(t *testing.T) {
	client, edge := loopback(t)
	if again, r := NewOpening(edge, Options{}).Try(context.Background(), origin(t, "", answer("220 ready"))); again || r.Err != nil {
		t.Fatalf("again %v, %+v", again, r)
	}
	got := make([]byte, 9)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "220 ready" {
		t.Fatalf("the client heard %q, %v", got, err)
	}
}

func TestOpeningEnds(t *testing.T) {
	ctx := context.Background()
	long := bytes.Repeat([]byte("x"), MaxOpening)
	t.Run("more than is kept is said once", func(t *testing.T) {
		client, edge := loopback(t)
		if _, err := client.Write(long); err != nil {
			t.Fatal(err)
		}
		if again, r := NewOpening(edge, Options{}).Try(ctx, origin(t, string(long), func(*net.TCPConn) {})); again || r.Err != nil {
			t.Errorf("again %v, %+v; want a relay without a second try", again, r)
		}
	})
	t.Run("a reset after an answer is the relay's to tell", func(t *testing.T) {
		client, edge := loopback(t)
		_, _ = client.Write([]byte("q"))
		heard := make(chan struct{})
		far := origin(t, "q", func(c *net.TCPConn) { _, _ = c.Write([]byte("a")); <-heard; reset(c) })
		again, r := NewOpening(edge, Options{}).Try(ctx, far)
		close(heard)
		if again {
			t.Errorf("again after an answer, %+v", r)
		}
	})
	t.Run("both end in order", func(t *testing.T) {
		client, edge := loopback(t)
		_, _ = client.Write([]byte("log line"))
		_ = client.CloseWrite()
		far := origin(t, "log line", func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c); c.Close() })
		if again, r := NewOpening(edge, Options{}).Try(ctx, far); again || r.Err != nil {
			t.Errorf("again %v, %+v; want the answer of nothing", again, r)
		}
	})
	t.Run("the client's end is said again", func(t *testing.T) {
		client, edge := loopback(t)
		_, _ = client.Write([]byte("q"))
		_ = client.CloseWrite()
		op := NewOpening(edge, Options{})
		// It resets before it can see the client's end.
		if again, r := op.Try(ctx, origin(t, "q", reset)); !again || r.Err == nil {
			t.Fatalf("again %v, %+v", again, r)
		}
		far := origin(t, "q", func(c *net.TCPConn) {
			if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("the second far side read %d, %v; want the end", n, err)
			}
			_, _ = c.Write([]byte("a"))
		})
		if again, r := op.Try(ctx, far); again || r.Err != nil {
			t.Errorf("again %v, %+v", again, r)
		}
	})
	t.Run("the client aborts", func(t *testing.T) {
		client, edge := loopback(t)
		near, _ := loopback(t)
		time.AfterFunc(10*time.Millisecond, func() { reset(client) })
		again, r := NewOpening(edge, Options{}).Try(ctx, near)
		if again || r.Side != SideA || !errors.Is(r.Err, syscall.ECONNRESET) {
			t.Errorf("again %v, %+v; want the client's reset", again, r)
		}
	})
	t.Run("the context ends", func(t *testing.T) {
		_, edge := loopback(t)
		near, _ := loopback(t)
		cause := errors.New("killed")
		ctx, cancel := context.WithCancelCause(ctx)
		time.AfterFunc(10*time.Millisecond, func() { cancel(cause) })
		if again, r := NewOpening(edge, Options{}).Try(ctx, near); again || r.End != EndCanceled || !errors.Is(r.Err, cause) {
			t.Errorf("again %v, %+v; want %v", again, r, cause)
		}
	})
	t.Run("its time is over", func(t *testing.T) {
		_, edge := loopback(t)
		near, _ := loopback(t)
		op := NewOpening(edge, Options{})
		op.until = time.Now().Add(10 * time.Millisecond)
		if again, r := op.Try(ctx, near); again || r.Err != nil {
			t.Errorf("again %v, %+v; want a relay without a second try", again, r)
		}
	})
}

var _ netx.HalfCloser = (*net.TCPConn)(nil)
