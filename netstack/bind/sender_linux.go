package bind

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sender sends datagrams to one endpoint at a time with sendmmsg(2). It comes
// from a pool. A message of several datagrams of one size, of which the last
// may be shorter, is a run of vectors with a control message that says where
// to cut (UDP_SEGMENT); nothing is copied.
type sender struct {
	headers  [maxBatch]unix.Mmsghdr
	vectors  [maxBatch]unix.Iovec  // one a datagram
	controls [maxBatch / 2]control // of the messages with several datagrams
	bufs     int                   // vectors in use
	at       int                   // the first datagram that is not yet sent or dropped
	count    int                   // messages in use
	next     int                   // the one that begins with it
	used     int                   // the most messages there have been

	to     *Endpoint
	source bool // send from to's own address
	large  bool // some of it is larger than what the internet carries

	// fragments is that of the socket which sends. It belongs to try.
	fragments *sync.RWMutex

	// send is sendmmsg; tests put failures in its place.
	send func(fd uintptr, messages []unix.Mmsghdr) (int, syscall.Errno)

	got      int
	errno    syscall.Errno
	callback func(fd uintptr)
	waiting  func(fd uintptr) bool
}

func newSender() *sender {
	m := &sender{send: sendmmsg}
	m.callback = m.sendNow
	m.waiting = func(fd uintptr) bool {
		m.callback(fd)
		return m.errno != unix.EAGAIN
	}
	return m
}

// largestCommon is the largest datagram that fits a path of 1500 bytes.
const largestCommon = 1500 - 20 - 8

// sendNow sends without waiting. What is larger than the internet carries must
// arrive whole or not at all, or a probe of the path would prove nothing and
// jumbo frames go in pieces; the socket's option says so, for all who send at
// the time.
func (m *sender) sendNow(fd uintptr) {
	if !m.large {
		m.fragments.RLock()
		defer m.fragments.RUnlock()
		m.got, m.errno = m.send(fd, m.headers[m.next:m.count])
		return
	}
	level, option := unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	whole, pieces := unix.IPV6_PMTUDISC_PROBE, unix.IPV6_PMTUDISC_DONT
	if m.to.dst.Addr().Is4() {
		level, option = unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
		whole, pieces = unix.IP_PMTUDISC_PROBE, unix.IP_PMTUDISC_DONT
	}
	m.fragments.Lock()
	defer m.fragments.Unlock()
	_ = unix.SetsockoptInt(int(fd), level, option, whole)
	m.got, m.errno = m.send(fd, m.headers[m.next:m.count])
	_ = unix.SetsockoptInt(int(fd), level, option, pieces)
}

// sendmmsg does not wait, and so does not tell Go's scheduler: that believes
// after 20 µs that a call waits, gives the processor to another thread and has
// the caller queue for one when it returns.
func sendmmsg(fd uintptr, messages []unix.Mmsghdr) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(unsafe.SliceData(messages))),
		uintptr(len(messages)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// fill takes bufs, at most maxBatch, for e. Datagrams of alone bytes and more
// are messages of their own.
func (m *sender) fill(bufs [][]byte, e *Endpoint, alone int) {
	m.large = false
	for i, buf := range bufs {
		m.vectors[i].Base = unsafe.SliceData(buf)
		m.vectors[i].SetLen(len(buf))
		m.large = m.large || len(buf) > largestCommon
	}
	m.bufs, m.at, m.to = len(bufs), 0, e
	m.source = e.wire.controlLen > 0 && !e.cleared.Load()
	m.group(0, alone)
}

// group makes messages of what is left: the first singles datagrams, and those
// of alone bytes and more, are one each.
func (m *sender) group(singles, alone int) {
	m.count, m.next = 0, 0
	controls := 0
	singles += m.at
	for i := m.at; i < m.bufs; {
		n := 1
		size := int(m.vectors[i].Len)
		if i >= singles && size < alone {
			n = run(m.vectors[i:m.bufs])
		}
		h := &m.headers[m.count].Hdr
		h.Iov = &m.vectors[i]
		h.SetIovlen(n)
		h.Name = (*byte)(unsafe.Pointer(&m.to.wire.name))
		h.Namelen = m.to.wire.nameLen
		h.Control = nil
		h.SetControllen(0)
		switch {
		case n > 1:
			c, have := &m.controls[controls], 0
			controls++
			if m.source {
				*c, have = m.to.wire.control, m.to.wire.controlLen
			}
			h.Control = &c.bytes()[0]
			h.SetControllen(c.addSegment(have, size))
		case m.source:
			h.Control = &m.to.wire.control.bytes()[0]
			h.SetControllen(m.to.wire.controlLen)
		}
		m.count++
		i += n
	}
	m.used = max(m.used, m.count)
}

// run returns how many datagrams at the head of vectors make one message: of
// equal size, and one that is shorter. An empty datagram has no place in it.
func run(vectors []unix.Iovec) int {
	size := vectors[0].Len
	if size == 0 {
		return 1
	}
	total := size
	limit := min(len(vectors), maxSegments)
	for n := 1; n < limit; n++ {
		next := vectors[n].Len
		if next > size || next == 0 || total+next > maxMessage {
			return n
		}
		if total += next; next < size {
			return n + 1
		}
	}
	return limit
}

// release forgets the buffers, which are someone else's from now on.
func (m *sender) release() {
	clear(m.headers[:m.used])
	clear(m.vectors[:m.bufs])
	m.bufs, m.at, m.count, m.next, m.used, m.to, m.fragments = 0, 0, 0, 0, 0, nil, nil
}

// left is how many datagrams are neither sent nor dropped.
func (m *sender) left() int { return m.bufs - m.at }

// first tells how many datagrams the first message that is left holds, and the
// size of the first of them.
func (m *sender) first() (datagrams, size int) {
	return int(m.headers[m.next].Hdr.Iovlen), int(m.vectors[m.at].Len)
}

// skip drops the first message that is left, or all that is left, and returns
// how many datagrams that were.
func (m *sender) skip(all bool) int {
	n := m.left()
	if !all {
		n, _ = m.first()
	}
	m.at += n
	m.next++
	return n
}

func (m *sender) hasSource() bool { return m.source }

// clearSource lets the kernel choose the source of what is left.
func (m *sender) clearSource(alone int) {
	m.source = false
	m.group(0, alone)
}

// try sends what is left as far as it goes without waiting, and returns how
// many datagrams and bytes it sent. n is 0 exactly where err, which is about
// the first message left, is not nil. It goes through Control and not Write, so
// that senders on several goroutines need not queue for Go's write lock, and no
// deadline of a waiting one concerns them.
func (m *sender) try(k *kernelConn) (n, bytes int, err error) {
	m.fragments = &k.fragments
	if err := k.raw.Control(m.callback); err != nil {
		return 0, 0, err
	}
	return m.outcome()
}

// tryWaiting is try that waits for room until k's write deadline.
func (m *sender) tryWaiting(k *kernelConn) (n, bytes int, err error) {
	m.fragments = &k.fragments
	if err := k.raw.Write(m.waiting); err != nil {
		return 0, 0, err
	}
	return m.outcome()
}

func (m *sender) outcome() (n, bytes int, err error) {
	if m.errno != 0 {
		return 0, 0, m.errno
	}
	for i := m.next; i < m.next+m.got; i++ {
		n += int(m.headers[i].Hdr.Iovlen)
		bytes += int(m.headers[i].Len)
	}
	m.next += m.got
	m.at += n
	return n, bytes, nil
}

// addSegment appends the control message that says where to cut, after the at
// bytes of control messages that there are. It returns the length of all.
func (c *control) addSegment(at, size int) int {
	b := c.bytes()[at:]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&b[unix.CmsgLen(0)])) = uint16(size)
	return at + unix.CmsgSpace(2)
}
