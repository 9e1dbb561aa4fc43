package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/warrenmesh/warren/netstack/netx"
)

// datagramBuffer holds the largest UDP payload there is (65,507 bytes over
// IPv4, 65,527 over IPv6) with a byte to spare.
const datagramBuffer = 64 << 10

// loan is a buffer for one datagram of a conn that lends none of its own.
type loan [datagramBuffer]byte

var loans = sync.Pool{New: func() any { return new(loan) }}

// DecRef implements netx.Lender.
func (l *loan) DecRef() { loans.Put(l) }

// batches are empty.
var batches = sync.Pool{New: func() any { return new(netx.Batch) }}

// Datagrams moves datagrams between a and b, both ways, each as one datagram,
// until one side closes, fails or answers that nobody listens there
// (netx.ErrRefused), nothing moved for o.Idle, or ctx is cancelled. It owns a
// and b from the call on and has closed both when it returns.
//
// Several datagrams go in one step where the conns allow it: kernel sockets, and
// those that are a netx.BatchReader or a netx.BatchWriter.
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

	read  source           // src
	write netx.BatchWriter // dst, or what stands for it
	count *atomic.Uint64   // may be nil
	drop  func(why string)
	moved int64
}

func newCarrier(s *session, src, dst net.Conn, from, to Side, count *atomic.Uint64, drop func(string)) *carrier {
	c := &carrier{s: s, src: src, dst: dst, from: from, to: to, count: count, drop: drop}
	if socket := socketOf(src); socket != nil {
		c.read = socket
	} else {
		c.read = newConnSource(src)
	}
	if socket := socketOf(dst); socket != nil {
		c.write = socket
	} else if c.write, _ = dst.(netx.BatchWriter); c.write == nil {
		c.write = oneWriter{dst}
	}
	return c
}

// socketOf returns c's Socket, nil where c is no kernel socket, or the system
// has no such calls.
func socketOf(c net.Conn) *Socket {
	u, ok := c.(*net.UDPConn)
	if !ok {
		return nil
	}
	socket, err := NewSocket(u)
	if err != nil {
		return nil
	}
	return socket
}

// source is where a carrier's datagrams come from. next waits for some, holding
// no memory where it can, and returns them in one of batches.
type source interface {
	next() (*netx.Batch, error)
}

// connSource is a conn that is no kernel socket.
type connSource struct {
	wait netx.ReadWaiter // nil: reading waits
	read netx.BatchReader
}

func newConnSource(c net.Conn) connSource {
	var src connSource
	src.wait, _ = c.(netx.ReadWaiter)
	if src.read, _ = c.(netx.BatchReader); src.read == nil {
		src.read = oneReader{c}
	}
	return src
}

func (src connSource) next() (*netx.Batch, error) {
	if src.wait != nil {
		if err := src.wait.WaitReadable(); err != nil {
			return nil, err
		}
	}
	b := batches.Get().(*netx.Batch)
	if err := src.read.ReadBatch(b); err != nil {
		batches.Put(b)
		return nil, err
	}
	return b, nil
}

// oneReader is a conn that returns a datagram a call.
type oneReader struct{ net.Conn }

func (r oneReader) ReadBatch(b *netx.Batch) error {
	l := loans.Get().(*loan)
	n, err := r.Read(l[:])
	if err != nil {
		loans.Put(l)
		return err
	}
	b.Add(l[:n], l)
	return nil
}

// oneWriter is a conn that takes a datagram a call.
type oneWriter struct{ net.Conn }

func (w oneWriter) WriteBatch(datagrams [][]byte) (int, error) {
	for i, d := range datagrams {
		if _, err := w.Write(d); err != nil {
			return i, err
		}
	}
	return len(datagrams), nil
}

// run carries datagrams until the flow is over.
func (c *carrier) run() {
	for {
		b, err := c.read.next()
		if err != nil {
			c.stop(c.from, "reading", err)
			return
		}
		err = c.deliver(b.Datagrams())
		b.Release()
		batches.Put(b)
		if err != nil {
			c.stop(c.to, "writing", err)
			return
		}
	}
}

// deliver writes datagrams to dst. It returns an error only where the flow is
// over.
func (c *carrier) deliver(datagrams [][]byte) error {
	c.s.moved()
	for len(datagrams) > 0 {
		n, err := c.write.WriteBatch(datagrams)
		c.delivered(datagrams[:n])
		datagrams = datagrams[n:]
		switch {
		case err == nil:
			continue
		case errors.Is(err, syscall.EMSGSIZE):
			c.dropped(DropTooBig)
		case errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.EAGAIN):
			c.dropped(DropNoBuffer)
		default:
			return err
		}
		datagrams = datagrams[1:]
	}
	return nil
}

// delivered counts datagrams that dst took.
func (c *carrier) delivered(datagrams [][]byte) {
	total := 0
	for _, d := range datagrams {
		total += len(d)
	}
	c.moved += int64(total)
	if c.count != nil {
		c.count.Add(uint64(total))
	}
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
