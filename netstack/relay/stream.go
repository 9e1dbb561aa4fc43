package relay

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

const (
	// streamBuffer is what one direction moves at a time. Over loopback, 16 KiB
	// carried a third less; 64 and 128 KiB carried no more.
	streamBuffer = 32 << 10

	// blockedCheck is tuning: a side that aborts while the other does not read
	// is noticed within this time. It costs a poll of the source, and only
	// while a write is blocked, or after the end of a source that is no kernel
	// socket.
	blockedCheck = time.Second
)

var streamBuffers = sync.Pool{New: func() any { return new([streamBuffer]byte) }}

// Copy moves bytes between the streams a and b, both ways, until both
// directions have ended, and returns how. It owns a and b from the call on
// and has closed both when it returns.
//
//   - The end of one direction (EOF) is passed on with CloseWrite; the other
//     direction goes on until it ends too. A conn without CloseWrite cannot
//     pass it on: there the flow ends with the first direction.
//   - An error of one side, a reset above all, aborts the other.
//   - An idle timeout and a cancelled ctx abort both.
func Copy(ctx context.Context, a, b net.Conn, o Options) Result {
	s := newSession(a, b, o.Idle)
	stop := context.AfterFunc(ctx, func() { s.cut(EndCanceled, SideNone, context.Cause(ctx)) })
	defer stop()

	check := o.blockedCheck
	if check == 0 {
		check = blockedCheck
	}
	there := newPipe(s, a, b, SideA, SideB, o.AToB, check)
	back := newPipe(s, b, a, SideB, SideA, o.BToA, check)
	var other sync.WaitGroup
	other.Go(func() { back.run(there) })
	there.run(back)
	other.Wait()
	s.close(SideNone)

	r := s.result
	r.AToB, r.BToA = there.moved, back.moved
	return r
}

// pipe is one direction of a stream. One goroutine runs it.
type pipe struct {
	s        *session
	src, dst net.Conn
	from, to Side // the names of src and dst

	in       kernelStream         // src, where it is a kernel socket
	out      kernelStream         // dst, where it is a kernel socket
	wait     netx.ReadWaiter      // src, where it is one and no kernel socket
	reporter netx.FailureReporter // likewise
	count    *atomic.Uint64       // may be nil
	moved    int64

	ended   atomic.Bool // src's end was passed on
	writing atomic.Bool // a write to dst is under way, or src has ended and may still abort
	check   time.Duration
	blocked *time.Timer // looks after src while writing; made when first needed, guarded by s.mu
}

func newPipe(s *session, src, dst net.Conn, from, to Side, count *atomic.Uint64, check time.Duration) *pipe {
	p := &pipe{s: s, src: src, dst: dst, from: from, to: to, count: count, check: check}
	if !p.in.open(src) {
		p.wait, _ = src.(netx.ReadWaiter)
		p.reporter, _ = src.(netx.FailureReporter)
	}
	if p.out.open(dst) {
		p.out.onBlock, p.out.onProgress = p.watchSource, s.moved
	}
	return p
}

// run moves bytes until src ends or the flow does. back is the direction that
// comes the other way.
func (p *pipe) run(back *pipe) {
	for {
		buf, n, err := p.read()
		if n > 0 && !p.write(buf[:n]) {
			streamBuffers.Put(buf)
			return
		}
		if buf != nil {
			streamBuffers.Put(buf)
		}
		if err == io.EOF {
			p.end(back)
			return
		}
		if err != nil {
			p.s.cut(EndFailed, p.from, named("reading", err))
			return
		}
	}
}

// read waits for input without a buffer where src allows it, then returns a
// buffer from the pool and what was read into it. The caller puts the buffer
// back; it is nil where there was no need of one.
func (p *pipe) read() (*[streamBuffer]byte, int, error) {
	if p.in.raw != nil {
		return p.in.read()
	}
	if p.wait != nil {
		if err := p.wait.WaitReadable(); err != nil {
			return nil, 0, err
		}
	}
	buf := streamBuffers.Get().(*[streamBuffer]byte)
	n, err := p.src.Read(buf[:])
	return buf, n, err
}

// write delivers b to dst and reports whether the direction goes on.
func (p *pipe) write(b []byte) bool {
	p.s.moved()
	var n int
	var err error
	if p.out.raw != nil {
		n, err = p.out.write(b)
	} else {
		p.watchSource()
		n, err = p.dst.Write(b)
	}
	p.unwatchSource()
	p.moved += int64(n)
	if p.count != nil {
		p.count.Add(uint64(n))
	}
	if err != nil {
		p.s.cut(EndFailed, p.to, named("writing", err))
		return false
	}
	p.s.moved()
	return true
}

// watchSource starts the look-out for a failure of src: nobody reads from it
// while this direction is blocked in a write to dst, or once src has ended.
func (p *pipe) watchSource() {
	if p.in.raw == nil && p.reporter == nil {
		return
	}
	p.writing.Store(true)
	if p.blocked != nil {
		p.blocked.Reset(p.check)
		return
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.blocked = time.AfterFunc(p.check, p.lookAtSource)
}

func (p *pipe) unwatchSource() {
	if p.blocked != nil {
		p.writing.Store(false)
		p.blocked.Stop()
	}
}

// lookAtSource runs on the timer's goroutine.
func (p *pipe) lookAtSource() {
	var err error
	if p.in.raw != nil {
		err = p.in.failure()
	} else {
		err = p.reporter.Failure()
	}
	if err != nil {
		p.s.cut(EndFailed, p.from, named("reading", err))
		return
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if !p.s.ended && p.writing.Load() {
		p.blocked.Reset(p.check)
	}
}

// end passes the end of src on to dst.
func (p *pipe) end(back *pipe) {
	half, ok := p.dst.(netx.HalfCloser)
	if !ok {
		p.s.close(SideNone)
		return
	}
	if err := half.CloseWrite(); err != nil {
		p.s.cut(EndFailed, p.to, named("closing for writing", err))
		return
	}
	p.ended.Store(true)
	if back.ended.Load() {
		// The other direction ended first and may be watching its source.
		_ = back.src.SetReadDeadline(time.Unix(1, 0))
		return
	}
	// src said its last word but may still abort, and nobody reads from it.
	if p.in.raw == nil {
		p.watchSource() // goes on until the flow has ended
		return
	}
	if err := p.in.waitFailure(); err != nil {
		p.s.cut(EndFailed, p.from, named("reading", err))
	}
}
