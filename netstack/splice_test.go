package netstack

import (
	"errors"
	"net"
	"testing"

	"github.com/warrenmesh/warren/netstack/netx"
)

// awaitNotice returns once c says that a Read would not block.
func awaitNotice(t *testing.T, c *TCPConn, cause func()) {
	t.Helper()
	told := make(chan struct{}, 2)
	notice := c.WhenReadable(func() { told <- struct{}{} })
	defer notice.Stop()
	select {
	case <-told:
		if cause != nil {
			t.Fatal("told of input that is not there")
		}
		return
	default:
	}
	cause()
	<-told
	notice.Stop()
	if len(told) > 0 {
		t.Error("told twice")
	}
}

func TestWhenReadable(t *testing.T) {
	buf := make([]byte, 8)
	t.Run("bytes, then the end", func(t *testing.T) {
		a, b := newLab(t).pair(t, service4)
		defer a.Close()
		awaitNotice(t, a, func() { b.Write([]byte("x")) })
		awaitNotice(t, a, nil) // nobody has read it
		if n, err := a.Read(buf); n != 1 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		awaitNotice(t, a, func() { b.CloseWrite() })
		awaitNotice(t, a, nil)
	})
	t.Run("reset", func(t *testing.T) {
		a, b := newLab(t).pair(t, service4)
		defer a.Close()
		awaitNotice(t, a, b.Abort)
		if _, err := a.Read(buf); err == nil {
			t.Error("a reset reads as nothing")
		}
	})
	t.Run("the NIC goes", func(t *testing.T) {
		a, _ := newLab(t).pair(t, service4)
		awaitNotice(t, a, func() { a.abort(ErrAborted) })
		if _, err := a.Read(buf); !errors.Is(err, ErrAborted) {
			t.Errorf("read %v", err)
		}
		awaitNotice(t, a, nil)
	})
	t.Run("closed", func(t *testing.T) {
		a, _ := newLab(t).pair(t, service4)
		a.Close()
		awaitNotice(t, a, nil)
		if _, err := a.Read(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read %v", err)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		a, b := newLab(t).pair(t, service4)
		defer a.Close()
		var notice netx.Notice = a.WhenReadable(func() { t.Error("told after Stop") })
		notice.Stop()
		b.Write([]byte("x"))
		if err := a.WaitReadable(); err != nil {
			t.Fatal(err)
		}
	})
}
