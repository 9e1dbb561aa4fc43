package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/warrenmesh/warren/netstack/netx"
)

// datagramBuffer holds the largest UDP payload there is (65,507 bytes over
// IPv4, 65,527 over IPv6) with a byte to spare.
const datagramBuffer = 64 << 10

var datagramBuffers = sync.Pool{New: func() any { return new([datagramBuffer]byte) }}

// Datagrams moves datagrams between a and b, both ways, each as one datagram,
// until one side closes, fails or answers that nobody listens there
// (netx.ErrRefused), nothing moved for o.Idle, or ctx is cancelled. It owns a
// and b from the call on and has closed both when it returns.
//
// A datagram that the other side cannot take (its Write fails with EMSGSIZE,
// ENOBUFS or EAGAIN) is dropped and told to o.OnDrop; the flow goes on.
func Datagrams(ctx context.Context, a, b net.Conn, o Options) Result {
	s := newSession(a, b, o.Idle)
	if o.Meter != nil {
		s.meter = true
		o.Meter.s.Store(s)
	}
	stop := context.AfterFunc(ctx, func() { s.cut(EndCanceled, SideNone, context.Cause(ctx)) })
	defer stop()

	there := newCarrier(s, a, b, SideA, SideB, o.AToB, o.OnDrop)
	back := newCarrier(s, b, a, SideB, SideA, o.BToA, o.OnDrop)
	var other sync.WaitGroup
	other.Go(back.run)
	there.run()
	other.Wait()

	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.result
	r.AToB, r.BToA = there.moved, back.moved
	return r
}

// carrier is one direction of a datagram flow. One goroutine runs it.
type carrier struct {
	s        *session
	src, dst net.Conn
	from, to Side // the names of src and dst

	raw   syscall.RawConn // src, where it is a kernel socket
	wait  netx.ReadWaiter // src, where it is one and no kernel socket
	count *atomic.Uint64  // may be nil
	drop  func(why string)
	moved int64

	// What one call of readNow read; made fields so that the call needs no
	// closure of its own.
	tryRead func(fd uintptr) bool
	buf     *[datagramBuffer]byte
	n       int
	err     error
}

func newCarrier(s *session, src, dst net.Conn, from, to Side, count *atomic.Uint64, drop func(string)) *carrier {
	c := &carrier{s: s, src: src, dst: dst, from: from, to: to, count: count, drop: drop}
	if u, ok := src.(*net.UDPConn); ok {
		if raw, err := u.SyscallConn(); err == nil {
			c.raw, c.tryRead = raw, c.readNow
			return c
		}
	}
	c.wait, _ = src.(netx.ReadWaiter)
	return c
}

// run carries datagrams until the flow is over.
func (c *carrier) run() {
	for {
		buf, n, err := c.read()
		if err != nil {
			if buf != nil {
				datagramBuffers.Put(buf)
			}
			c.stop(c.from, "reading", err)
			return
		}
		err = c.deliver(buf[:n])
		datagramBuffers.Put(buf)
		if err != nil {
			c.stop(c.to, "writing", err)
			return
		}
	}
}

// read waits for a datagram without a buffer where src allows it, and returns
// it in a buffer from the pool.
func (c *carrier) read() (*[datagramBuffer]byte, int, error) {
	if c.raw != nil {
		c.buf, c.n, c.err = nil, 0, nil
		err := c.raw.Read(c.tryRead)
		buf := c.buf
		c.buf = nil
		if err == nil && c.err != nil {
			err = os.NewSyscallError("read", c.err)
		}
		return buf, c.n, err
	}
	if c.wait != nil {
		if err := c.wait.WaitReadable(); err != nil {
			return nil, 0, err
		}
	}
	buf := datagramBuffers.Get().(*[datagramBuffer]byte)
	n, err := c.src.Read(buf[:])
	return buf, n, err
}

func (c *carrier) readNow(fd uintptr) bool {
	buf := datagramBuffers.Get().(*[datagramBuffer]byte)
	for {
		n, err := syscall.Read(int(fd), buf[:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			datagramBuffers.Put(buf)
			return false
		}
		c.buf, c.n, c.err = buf, max(n, 0), err
		return true
	}
}

// deliver writes one datagram to dst. It returns an error only where the flow
// is over.
func (c *carrier) deliver(b []byte) error {
	c.s.moved()
	n, err := c.dst.Write(b)
	switch {
	case err == nil:
		c.moved += int64(n)
		if c.count != nil {
			c.count.Add(uint64(n))
		}
		return nil
	case errors.Is(err, syscall.EMSGSIZE):
		c.dropped(DropTooBig)
		return nil
	case errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.EAGAIN):
		c.dropped(DropNoBuffer)
		return nil
	}
	return err
}

func (c *carrier) dropped(why string) {
	if c.drop != nil {
		c.drop(why)
	}
}

// stop ends the flow because of side.
func (c *carrier) stop(side Side, doing string, err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		c.s.close(side)
		return
	}
	c.s.cut(EndFailed, side, named(doing, err))
}
