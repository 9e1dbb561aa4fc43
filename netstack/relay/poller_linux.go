package relay

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Poller waits for the input of kernel sockets whose streams are at rest: one
// goroutine for all of them. Go's own poller can wake a goroutine only, and
// the stack of one that waits is larger than all else that Warren itself holds
// for an idle flow.
//
// A flow that is busy has nothing to do with it. Make one with NewPoller, and
// Close it when the flows that it was given to have ended.
type Poller struct {
	crowds crowds

	mu      sync.Mutex
	epoll   *os.File // nil until it is needed, and where there is none to be had
	waiting map[int32]*pipe
	closed  bool
	done    chan struct{} // closed when the goroutine has ended
}

// NewPoller makes a Poller. It costs nothing before the first flow is at rest.
func NewPoller() *Poller { return &Poller{} }

// Close ends the Poller's goroutine and waits for it.
func (po *Poller) Close() {
	po.mu.Lock()
	file := po.epoll
	po.closed, po.epoll = true, nil
	po.mu.Unlock()
	if file != nil {
		_ = file.Close()
		<-po.done
	}
}

// add has p woken when src has input, an end or a failure, or, for a watched
// one, a failure. It returns false where that cannot be. The caller holds
// p.s.mu.
func (po *Poller) add(p *pipe, src *net.TCPConn, as int32) bool {
	raw, err := src.SyscallConn()
	if err != nil {
		return false
	}
	added := false
	err = raw.Control(func(fd uintptr) { added = po.register(p, int32(fd), as) == nil })
	return err == nil && added
}

// register runs while fd is known to be open.
func (po *Poller) register(p *pipe, fd int32, as int32) error {
	po.mu.Lock()
	defer po.mu.Unlock()
	if err := po.openLocked(); err != nil {
		return err
	}
	// Once, until it is registered again: p.remove is not far behind.
	event := unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: fd}
	if as == parked {
		event.Events |= unix.EPOLLIN | unix.EPOLLRDHUP
	}
	po.waiting[fd], p.fd = p, fd
	if err := po.control(unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		delete(po.waiting, fd)
		p.fd = -1
		return err
	}
	return nil
}

func (po *Poller) control(op int, fd int32, event *unix.EpollEvent) (err error) {
	raw, err := po.epoll.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(epoll uintptr) { err = unix.EpollCtl(int(epoll), op, int(fd), event) })
	return errors.Join(cerr, err)
}

func (po *Poller) openLocked() error {
	if po.epoll != nil {
		return nil
	}
	if po.closed {
		return net.ErrClosed
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	// An epoll is itself a file that can be waited for: so no thread of the
	// runtime's is blocked in it.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	po.epoll = os.NewFile(uintptr(fd), "epoll")
	po.waiting = make(map[int32]*pipe)
	po.done = make(chan struct{})
	raw, err := po.epoll.SyscallConn()
	if err != nil {
		return err
	}
	go po.run(raw)
	return nil
}

// run wakes directions until the Poller is closed.
func (po *Poller) run(raw syscall.RawConn) {
	defer close(po.done)
	var events [128]unix.EpollEvent
	_ = raw.Read(func(epoll uintptr) bool {
		for {
			n, err := unix.EpollWait(int(epoll), events[:], 0)
			if err != nil && err != unix.EINTR {
				return true
			}
			for _, e := range events[:max(n, 0)] {
				po.mu.Lock()
				p := po.waiting[e.Fd]
				delete(po.waiting, e.Fd)
				po.mu.Unlock()
				if p != nil {
					p.wake()
				}
			}
			if err == nil && n < len(events) {
				return false
			}
		}
	})
}

// remove takes p, whose socket may be closed by now, out. The caller holds
// p.s.mu.
func (po *Poller) remove(p *pipe) {
	po.mu.Lock()
	defer po.mu.Unlock()
	if po.waiting[p.fd] == p {
		delete(po.waiting, p.fd)
	}
	src, ok := p.src.(*net.TCPConn)
	if !ok || po.epoll == nil {
		return
	}
	raw, err := src.SyscallConn()
	if err != nil {
		return
	}
	// Fails where the socket is closed: the kernel has taken it out then.
	_ = raw.Control(func(fd uintptr) { _ = po.control(unix.EPOLL_CTL_DEL, int32(fd), nil) })
}
