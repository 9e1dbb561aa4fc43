package relay

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/netstack/netx"
)

// kernelStream reads and writes a kernel TCP socket through its descriptor,
// so that a buffer is taken only for the moment of the system call and a
// write can tell that it is blocked. It makes the calls that net.TCPConn
// would make, no more, past the scheduler (rawRead). A kernelStream is used by one goroutine for reading
// or by one for writing, never by one for each.
//
// Only a *net.TCPConn itself qualifies: a type that embeds one may hold bytes
// that it has read ahead.
type kernelStream struct {
	raw syscall.RawConn // nil: the conn is no kernel socket

	onProgress func() // called when a write got on after waiting

	// The calls' arguments and results, and the callbacks, made once: a
	// closure for each call would be an allocation for each call.
	buf     *[streamBuffer]byte
	out     []byte
	n       int
	err     error
	waiting bool
	tryRead func(fd uintptr) bool
	tryOut  func(fd uintptr) bool
}

func (k *kernelStream) open(c net.Conn) bool {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false // closed already; the ordinary calls will say so
	}
	k.raw = raw
	if k.tryRead == nil {
		k.tryRead, k.tryOut = k.readNow, k.writeNow
	}
	return true
}

// read waits for input and returns it in a buffer from the pool, or io.EOF.
func (k *kernelStream) read() (*[streamBuffer]byte, int, error) {
	k.buf, k.n, k.err = nil, 0, nil
	err := k.raw.Read(k.tryRead)
	buf := k.buf
	k.buf = nil
	if err == nil && k.err != nil {
		err = os.NewSyscallError("read", k.err)
	}
	if err == nil && k.n == 0 {
		err = io.EOF
	}
	return buf, k.n, err
}

func (k *kernelStream) readNow(fd uintptr) bool {
	buf := streamBuffers.Get().(*[streamBuffer]byte)
	for {
		n, err := rawRead(fd, buf[:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			streamBuffers.Put(buf)
			return false
		}
		k.buf, k.n, k.err = buf, max(n, 0), err
		return true
	}
}

// write writes all of b, or returns how much it wrote and why no more.
func (k *kernelStream) write(b []byte) (int, error) {
	k.out, k.n, k.err, k.waiting = b, 0, nil, false
	err := k.raw.Write(k.tryOut)
	k.out = nil
	if err == nil && k.err != nil {
		err = os.NewSyscallError("write", k.err)
	}
	return k.n, err
}

func (k *kernelStream) writeNow(fd uintptr) bool {
	for k.n < len(k.out) {
		n, err := rawWrite(fd, k.out[k.n:])
		if n > 0 {
			k.n += n
			if k.waiting {
				k.onProgress()
			}
		}
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			k.waiting = true
			return false
		case err != nil:
			k.err = err
			return true
		}
	}
	return true
}

// failure returns the error that ended the socket from outside, nil while
// there is none. It takes no input and does not wait; any goroutine may call
// it.
func (k *kernelStream) failure() error {
	var failed error
	if err := k.raw.Control(func(fd uintptr) { failed = socketError(int(fd)) }); err != nil {
		return nil // closed by ourselves
	}
	return failed
}

// Failure returns the error that ended the stream c from outside, nil while
// there is none, or where c cannot tell. It takes no input and does not wait:
// who holds a conn that nobody reads yet may ask.
func Failure(c net.Conn) error {
	var k kernelStream
	if k.open(c) {
		return k.failure()
	}
	if r, ok := c.(netx.FailureReporter); ok {
		return r.Failure()
	}
	return nil
}

// waitFailure waits until the socket fails and returns the error, or nil once
// its read deadline has passed or it is closed.
func (k *kernelStream) waitFailure() error {
	var failed error
	_ = k.raw.Read(func(fd uintptr) bool {
		failed = socketError(int(fd))
		return failed != nil
	})
	return failed
}

// socketError looks with poll first, which consumes nothing: input that came
// before a reset hides it from a read.
func socketError(fd int) error {
	fds := [1]unix.PollFd{{Fd: int32(fd)}}
	if n, err := unix.Poll(fds[:], 0); err != nil || n == 0 || fds[0].Revents&unix.POLLERR == 0 {
		return nil
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil || errno == 0 {
		// Somebody else took the error: it was one nevertheless.
		return os.NewSyscallError("poll", syscall.ECONNRESET)
	}
	return os.NewSyscallError("poll", syscall.Errno(errno))
}
