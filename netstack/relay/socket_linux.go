package relay

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Socket moves many datagrams a system call through a kernel UDP socket:
// recvmmsg, sendmmsg, and UDP_SEGMENT for datagrams of one size, which then
// walk through the kernel as one.
//
// One goroutine at a time may receive; any may send. The socket remains the
// caller's: it closes it, and that ends what waits here.
type Socket struct {
	raw syscall.RawConn

	// segment is the largest datagram that was not refused in a run.
	segment atomic.Int32

	// Of the one that receives: what one call brought.
	tryRead func(fd uintptr) bool
	in      *intake
	err     error
}

var (
	_ source           = (*Socket)(nil)
	_ netx.BatchWriter = (*Socket)(nil)
)

// NewSocket returns a Socket for c. It fails where the system has no such
// calls.
func NewSocket(c *net.UDPConn) (*Socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &Socket{raw: raw}
	s.segment.Store(maxMessage)
	s.tryRead = s.readNow
	return s, nil
}

// GrowBuffers asks for room in c's queues, bytes: as much as it says where the
// process may pass the machine's limits (CAP_NET_ADMIN), else as much as they
// allow. 0 leaves a queue as it is.
func GrowBuffers(c *net.UDPConn, receive, send int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for _, o := range []struct{ forced, asked, size int }{
			{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receive},
			{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, send},
		} {
			if o.size > 0 && unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o.forced, o.size) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o.asked, o.size)
			}
		}
	})
}

// mmsghdr is struct mmsghdr (recvmmsg(2)).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// An intake is where datagrams are received into. Small ones lie side by side
// in slots. What does not fit its slot goes on in a lane, behind room for its
// beginning, so that it can be put together there; lanes are memory that the
// kernel gives only once it is written to.
const (
	slotSize = 2 << 10
	laneSize = 64 << 10
)

type intake struct {
	memory   []byte // mapped: BatchSize slots, then BatchSize lanes
	messages [netx.BatchSize]mmsghdr
	vectors  [netx.BatchSize][2]unix.Iovec
	names    [netx.BatchSize][unix.SizeofSockaddrInet6]byte
	control  [netx.BatchSize][ControlSpace]byte
	n        int
}

func (in *intake) slot(i int) []byte { return in.memory[i*slotSize:][:slotSize:slotSize] }
func (in *intake) lane(i int) []byte {
	return in.memory[netx.BatchSize*slotSize+i*laneSize:][:laneSize:laneSize]
}

// intakes are those that nobody uses, at most keptIntakes of them.
var intakes struct {
	mu   sync.Mutex
	free []*intake
}

// keptIntakes is how many are kept: as many as there may be readers at work
// at a time, on a machine of four processors.
const keptIntakes = 4

func newIntake() (*intake, error) {
	intakes.mu.Lock()
	if n := len(intakes.free); n > 0 {
		in := intakes.free[n-1]
		intakes.free = intakes.free[:n-1]
		intakes.mu.Unlock()
		return in, nil
	}
	intakes.mu.Unlock()
	memory, err := unix.Mmap(-1, 0, netx.BatchSize*(slotSize+laneSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	// A page of 2 MiB would be most of it at once.
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE)
	in := &intake{memory: memory}
	for i := range in.messages {
		slot, rest := in.slot(i), in.lane(i)[slotSize:]
		in.vectors[i][0].Base, in.vectors[i][1].Base = &slot[0], &rest[0]
		in.vectors[i][0].SetLen(len(slot))
		in.vectors[i][1].SetLen(len(rest))
		h := &in.messages[i].hdr
		h.Iov, h.Name, h.Control = &in.vectors[i][0], &in.names[i][0], &in.control[i][0]
		h.SetIovlen(2)
	}
	return in, nil
}

// DecRef implements netx.Lender: the datagrams are not used any more.
func (in *intake) DecRef() {
	intakes.mu.Lock()
	if len(intakes.free) < keptIntakes {
		intakes.free = append(intakes.free, in)
		intakes.mu.Unlock()
		return
	}
	intakes.mu.Unlock()
	_ = unix.Munmap(in.memory)
}

// datagram returns what message i brought.
func (in *intake) datagram(i int) []byte {
	n := int(in.messages[i].len)
	if n <= slotSize {
		return in.slot(i)[:n]
	}
	lane := in.lane(i)
	copy(lane, in.slot(i))
	return lane[:n]
}

// receive waits for datagrams without holding memory for them, and returns an
// intake that has some.
func (s *Socket) receive() (*intake, error) {
	s.in, s.err = nil, nil
	err := s.raw.Read(s.tryRead)
	in := s.in
	s.in = nil
	if err == nil {
		err = s.err
	}
	return in, err
}

func (s *Socket) readNow(fd uintptr) bool {
	in, err := newIntake()
	if err != nil {
		s.err = err
		return true
	}
	for i := range in.messages {
		h := &in.messages[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(ControlSpace)
	}
	for {
		// It does not wait: see rawRead.
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in.messages[0])), netx.BatchSize, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			in.n = int(n)
			s.in = in
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			in.DecRef()
			return false
		}
		in.DecRef()
		s.err = os.NewSyscallError("recvmmsg", errno)
		return true
	}
}

// next implements source.
func (s *Socket) next() (*netx.Batch, error) {
	in, err := s.receive()
	if err != nil {
		return nil, err
	}
	b := batches.Get().(*netx.Batch)
	for i := range in.n {
		b.Add(in.datagram(i), in.lends(i))
	}
	return b, nil
}

// lends is in for the first datagram: an intake is lent whole.
func (in *intake) lends(i int) netx.Lender {
	if i == 0 {
		return in
	}
	return nil
}

// Receive waits for datagrams and adds them to r, which must be empty, and to
// be released. It is for a socket that is not connected.
func (s *Socket) Receive(r *Received) error {
	in, err := s.receive()
	if err != nil {
		return err
	}
	for i := range in.n {
		r.Add(in.datagram(i), in.lends(i))
		r.from[i] = addrOf(in.names[i][:in.messages[i].hdr.Namelen])
		r.control[i] = in.control[i][:in.messages[i].hdr.Controllen]
	}
	return nil
}

// addrOf reads a sockaddr; what it does not know is the zero value.
func addrOf(b []byte) netip.AddrPort {
	if len(b) < unix.SizeofSockaddrInet4 {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	case unix.AF_INET6:
		if len(b) < unix.SizeofSockaddrInet6 {
			break
		}
		a := netip.AddrFrom16([16]byte(b[8:24]))
		if zone := binary.NativeEndian.Uint32(b[24:]); zone != 0 && a.IsLinkLocalUnicast() {
			a = a.WithZone(strconv.FormatUint(uint64(zone), 10))
		}
		return netip.AddrPortFrom(a, port)
	}
	return netip.AddrPort{}
}

// putAddr writes a sockaddr and returns its length. A zone is an interface's
// number.
func putAddr(b *[unix.SizeofSockaddrInet6]byte, to netip.AddrPort) uint32 {
	*b = [unix.SizeofSockaddrInet6]byte{}
	binary.BigEndian.PutUint16(b[2:], to.Port())
	if a := to.Addr(); a.Is4() {
		binary.NativeEndian.PutUint16(b[:], unix.AF_INET)
		as4 := a.As4()
		copy(b[4:], as4[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(b[:], unix.AF_INET6)
	as16 := to.Addr().As16()
	copy(b[8:], as16[:])
	if zone, err := strconv.ParseUint(to.Addr().Zone(), 10, 32); err == nil {
		binary.NativeEndian.PutUint32(b[24:], uint32(zone))
	}
	return unix.SizeofSockaddrInet6
}

// WriteBatch implements netx.BatchWriter, for a socket that is connected.
func (s *Socket) WriteBatch(datagrams [][]byte) (int, error) {
	return s.SendTo(datagrams, netip.AddrPort{}, nil)
}

// SendTo sends each of datagrams to one address (the zero value: that which the
// socket is connected to), with control messages of at most ControlSpace bytes.
// It waits for room in the socket, and answers as netx.BatchWriter says.
func (s *Socket) SendTo(datagrams [][]byte, to netip.AddrPort, control []byte) (int, error) {
	out := outboxes.Get().(*outgoing)
	defer out.release()
	sent := 0
	segment := int(s.segment.Load())
	for sent < len(datagrams) {
		out.fill(datagrams[sent:], segment, to, control)
		err := s.raw.Write(out.try)
		if err == nil && out.err != 0 {
			err = os.NewSyscallError("sendmmsg", out.err)
		}
		failed := sent + out.ends[out.sent]
		sent = failed
		if err == nil {
			continue
		}
		// A run may be refused for what its datagrams would not be: by a device
		// that is too narrow for one of them, or cannot cut (udp(7)).
		if out.refusedRun() {
			segment = min(segment, len(datagrams[failed])) - 1
			// What is narrow on the way to one client says nothing of others.
			if !to.IsValid() || out.err == unix.EIO {
				s.segment.Store(int32(segment))
			}
			continue
		}
		return sent, err
	}
	return sent, nil
}

// outgoing is the arguments of one sendmmsg, and what became of it.
type outgoing struct {
	messages [netx.BatchSize]mmsghdr
	vectors  [netx.BatchSize]unix.Iovec
	control  [netx.BatchSize][ControlSpace + 24]byte
	name     [unix.SizeofSockaddrInet6]byte
	ends     [netx.BatchSize + 1]int // datagrams in the messages before
	n        int

	try  func(fd uintptr) bool
	sent int // messages
	err  syscall.Errno
}

var outboxes = sync.Pool{New: func() any {
	out := new(outgoing)
	out.try = out.sendNow
	return out
}}

func (out *outgoing) release() {
	clear(out.vectors[:])
	outboxes.Put(out)
}

// refusedRun reports whether what failed may have, because it was a run.
func (out *outgoing) refusedRun() bool {
	switch out.err {
	case unix.EINVAL, unix.EIO, unix.EMSGSIZE:
		return out.ends[out.sent+1]-out.ends[out.sent] > 1
	}
	return false
}

// fill makes messages of the first datagrams, at most BatchSize.
func (out *outgoing) fill(datagrams [][]byte, segment int, to netip.AddrPort, control []byte) {
	datagrams = datagrams[:min(len(datagrams), netx.BatchSize)]
	var namelen uint32
	if to.IsValid() {
		namelen = putAddr(&out.name, to)
	}
	out.n, out.sent, out.err = 0, 0, 0
	for at := 0; at < len(datagrams); out.n++ {
		run := runOf(datagrams[at:], segment)
		for i, d := range datagrams[at : at+run] {
			v := &out.vectors[at+i]
			v.Base = unsafe.SliceData(d)
			v.SetLen(len(d))
		}
		h := &out.messages[out.n].hdr
		*h = unix.Msghdr{Iov: &out.vectors[at]}
		h.SetIovlen(run)
		if namelen > 0 {
			h.Name, h.Namelen = &out.name[0], namelen
		}
		oob := out.control[out.n][:copy(out.control[out.n][:ControlSpace], control)]
		if run > 1 {
			oob = appendSegment(oob, len(datagrams[at]))
		}
		if len(oob) > 0 {
			h.Control = &oob[0]
			h.SetControllen(len(oob))
		}
		at += run
		out.ends[out.n+1] = at
	}
}

// appendSegment appends the control message that says how long each datagram
// of a message is.
func appendSegment(b []byte, size int) []byte {
	at := len(b)
	b = b[:at+unix.CmsgSpace(2)]
	clear(b[at:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[at+unix.CmsgLen(0):], uint16(size))
	return b
}

func (out *outgoing) sendNow(fd uintptr) bool {
	for out.sent < out.n {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&out.messages[out.sent])), uintptr(out.n-out.sent), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			out.sent += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			out.err = errno
			return true
		}
	}
	return true
}
