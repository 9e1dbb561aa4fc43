package load

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batch is a set of datagrams that one system call receives (recvmmsg) or
// sends (sendmmsg). x/net's ReadBatch would do, but for the allocations it
// makes for each datagram, and what the generator spends is missing from the
// contender. One goroutine uses a batch.
type batch struct {
	size    int
	memory  []byte // a buffer of size bytes for each datagram
	headers []unix.Mmsghdr
	vectors []unix.Iovec
	names   []unix.RawSockaddrInet6 // of either family; none on connected sockets

	// In and out of the callbacks, which are bound once so that no call
	// allocates a closure.
	first, end  int
	got         int
	errno       syscall.Errno
	onReadable  func(fd uintptr) bool
	onWriteable func(fd uintptr) bool
}

// newBatch makes room for n datagrams of at most size bytes; named ones
// carry the address that they came from, and go back there.
func newBatch(n, size int, named bool) *batch {
	b := &batch{size: size, memory: make([]byte, n*size), headers: make([]unix.Mmsghdr, n), vectors: make([]unix.Iovec, n)}
	if named {
		b.names = make([]unix.RawSockaddrInet6, n)
	}
	for i := range b.headers {
		b.vectors[i].Base = &b.memory[i*size]
		b.vectors[i].SetLen(size)
		h := &b.headers[i].Hdr
		h.Iov = &b.vectors[i]
		h.SetIovlen(1)
		if named {
			h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		}
	}
	b.onReadable, b.onWriteable = b.recvmmsg, b.sendmmsg
	return b
}

// buffer is the whole room of the i-th datagram.
func (b *batch) buffer(i int) []byte { return b.memory[i*b.size : (i+1)*b.size] }

// received is the i-th datagram that came in, and whether it fitted.
func (b *batch) received(i int) ([]byte, bool) {
	h := &b.headers[i]
	return b.buffer(i)[:h.Len], h.Hdr.Flags&unix.MSG_TRUNC == 0
}

// receive waits until there are datagrams and takes as many as there are and
// as fit.
func (b *batch) receive(raw syscall.RawConn) (int, error) {
	if b.names != nil {
		for i := range b.headers {
			b.headers[i].Hdr.Namelen = unix.SizeofSockaddrInet6
		}
	}
	if err := raw.Read(b.onReadable); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, b.errno
	}
	return b.got, nil
}

func (b *batch) recvmmsg(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.headers[0])),
			uintptr(len(b.headers)), unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		b.got, b.errno = int(n), errno
		return errno != unix.EAGAIN
	}
}

// setLen says how long the i-th datagram is that goes out.
func (b *batch) setLen(i, n int) { b.vectors[i].SetLen(n) }

// send sends the first n datagrams, waiting where the socket has no room. One
// that the kernel refuses is left out, and the last such refusal returned: on
// a connected socket that may speak of an earlier datagram.
func (b *batch) send(raw syscall.RawConn, n int) (refused error) {
	b.first, b.end = 0, n
	for b.first < n {
		if err := raw.Write(b.onWriteable); err != nil {
			return err
		}
		if b.errno != 0 {
			refused = b.errno
			b.first++
		}
	}
	return refused
}

func (b *batch) sendmmsg(fd uintptr) bool {
	for b.first < b.end {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.headers[b.first])),
			uintptr(b.end-b.first), unix.MSG_DONTWAIT, 0, 0)
		b.errno = 0
		switch errno {
		case 0:
			b.first += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			b.errno = errno
			return true
		}
	}
	return true
}

// socketBuffer is asked for on both sides of udp, so that a datagram is lost
// on the way and not at the generator.
const socketBuffer = 4 << 20

// enlarge gives a socket large buffers, beyond the machine's limit where that
// is permitted.
func enlarge(raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		for _, option := range [][2]int{{unix.SO_RCVBUF, unix.SO_RCVBUFFORCE}, {unix.SO_SNDBUF, unix.SO_SNDBUFFORCE}} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option[1], socketBuffer) != nil {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option[0], socketBuffer)
			}
		}
	})
}
