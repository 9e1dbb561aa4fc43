package memnet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how much a stream holds that was written and not read.
const window = 64 << 10

// Conn is one end of a stream. It is a net.Conn, and a netx.HalfCloser,
// Aborter, ReadWaiter and FailureReporter.
type Conn struct {
	in, out       *half
	local, remote netip.AddrPort
}

// Pipe returns the two ends of a stream that no listener accepted.
func Pipe() (a, b *Conn) {
	return pair(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"))
}

func pair(a, b netip.AddrPort) (atA, atB *Conn) {
	ab, ba := newHalf(), newHalf()
	return &Conn{in: ba, out: ab, local: a, remote: b}, &Conn{in: ab, out: ba, local: b, remote: a}
}

// Read returns what the other end wrote, io.EOF after its CloseWrite or
// Close, and ECONNRESET after its Abort.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	return n, c.named("read", err)
}

// Write blocks while the other end has a full window to read.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b)
	return n, c.named("write", err)
}

// WaitReadable returns nil once Read would not block.
func (c *Conn) WaitReadable() error { return c.named("read", c.in.waitReadable()) }

// CloseWrite ends this direction; the other end reads io.EOF.
func (c *Conn) CloseWrite() error { return c.named("close", c.out.end()) }

// Close ends both directions. What was written before can still be read; what
// the other end writes from now on fails with EPIPE.
func (c *Conn) Close() error {
	c.out.closeWriter()
	c.in.closeReader()
	return nil
}

// Abort ends both directions with a reset: the other end's calls fail with
// ECONNRESET, and what it has not read is gone. After Close it does nothing.
func (c *Conn) Abort() {
	c.out.abort(true)
	c.in.abort(false)
}

// Failure returns the reset that the other end sent, or nil.
func (c *Conn) Failure() error { return c.named("read", c.in.failure()) }

// LocalAddr returns this end's *net.TCPAddr.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the other end's *net.TCPAddr.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline bounds Read and WaitReadable, also those under way.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.readBy.setLocked(t, &c.in.mu, &c.in.changed)
	return nil
}

// SetWriteDeadline bounds Write, also one under way.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.writeBy.setLocked(t, &c.out.mu, &c.out.changed)
	return nil
}

func (c *Conn) named(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// half is one direction of a stream.
type half struct {
	mu      sync.Mutex
	changed sync.Cond
	data    []byte // written and not read
	ended   bool   // no more will be written: end of stream after data
	written bool   // the writer has closed its conn altogether
	gone    bool   // the reader has closed
	reset   bool   // aborted by either end
	readBy  deadline
	writeBy deadline
}

func newHalf() *half {
	h := &half{}
	h.changed.L = &h.mu
	return h
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.waitReadableLocked(len(b) == 0); err != nil {
		return 0, err
	}
	switch {
	case h.reset:
		return 0, syscall.ECONNRESET
	case len(b) == 0:
		return 0, nil
	case len(h.data) == 0:
		return 0, io.EOF
	}
	n := copy(b, h.data)
	h.data = h.data[n:]
	if len(h.data) == 0 {
		h.data = nil
	}
	h.changed.Broadcast()
	return n, nil
}

func (h *half) waitReadable() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waitReadableLocked(false)
}

func (h *half) waitReadableLocked(atOnce bool) error {
	for {
		switch {
		case h.gone:
			return net.ErrClosed
		case h.readBy.passed():
			return os.ErrDeadlineExceeded
		case atOnce, h.reset, h.ended, len(h.data) > 0:
			return nil
		}
		h.changed.Wait()
	}
}

func (h *half) write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	done := 0
	for {
		switch {
		case done > 0 && done == len(b):
			return done, nil
		case h.written:
			return done, net.ErrClosed
		case h.reset:
			return done, syscall.ECONNRESET
		case h.ended, h.gone:
			return done, syscall.EPIPE
		case h.writeBy.passed():
			return done, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		}
		n := min(len(b)-done, window-len(h.data))
		if n == 0 {
			h.changed.Wait()
			continue
		}
		h.data = append(h.data, b[done:done+n]...)
		done += n
		h.changed.Broadcast()
	}
}

func (h *half) end() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.written:
		return net.ErrClosed
	case h.reset:
		return syscall.ENOTCONN
	}
	h.ended = true
	h.changed.Broadcast()
	return nil
}

func (h *half) closeWriter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended, h.written = true, true
	h.writeBy.stop()
	h.changed.Broadcast()
}

func (h *half) closeReader() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone, h.data = true, nil
	h.readBy.stop()
	h.changed.Broadcast()
}

// abort resets the direction; byWriter says which of its ends did. After that
// end's close it does nothing.
func (h *half) abort(byWriter bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if byWriter && h.written || !byWriter && h.gone {
		return
	}
	h.reset, h.data = true, nil
	if byWriter {
		h.written = true
		h.writeBy.stop()
	} else {
		h.gone = true
		h.readBy.stop()
	}
	h.changed.Broadcast()
}

func (h *half) failure() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reset && !h.gone {
		return syscall.ECONNRESET
	}
	return nil
}

// deadline wakes the waiters of a condition when its time comes.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

// setLocked is called with mu held, which is the lock of changed.
func (d *deadline) setLocked(t time.Time, mu *sync.Mutex, changed *sync.Cond) {
	d.stop()
	d.at = t
	if left := time.Until(t); !t.IsZero() && left > 0 {
		d.timer = time.AfterFunc(left, func() {
			mu.Lock()
			defer mu.Unlock()
			changed.Broadcast()
		})
	}
	changed.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }
