package bind

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// platformBatch is the largest batch that this platform's calls take.
const platformBatch = maxBatch

// Space for control messages, in words so that they are aligned: PKTINFO and a
// segment size (UDP_GRO, UDP_SEGMENT) of either family.
type control [8]uint64

func (c *control) bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c)) }

// wire is an Endpoint as sendmsg(2) takes it: a socket address, and a control
// message with the source address. It is read by the kernel alone.
type wire struct {
	name       unix.RawSockaddrInet6 // or RawSockaddrInet4, which is shorter
	nameLen    uint32
	control    control
	controlLen int
}

func (w *wire) set(dst netip.AddrPort, src netip.Addr, scope uint32) {
	if dst.Addr().Is4() {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&w.name))
		sa.Family, sa.Addr = unix.AF_INET, dst.Addr().As4()
		putPort(&sa.Port, dst.Port())
		w.nameLen = unix.SizeofSockaddrInet4
	} else {
		w.name.Family, w.name.Addr = unix.AF_INET6, dst.Addr().As16()
		if dst.Addr().IsLinkLocalUnicast() {
			w.name.Scope_id = scope
		}
		putPort(&w.name.Port, dst.Port())
		w.nameLen = unix.SizeofSockaddrInet6
	}
	switch {
	case !src.IsValid():
	case src.Is4():
		// The interface is left to the routes: it may be another one than the
		// peer's datagram came in by.
		info := (*unix.Inet4Pktinfo)(w.put(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo))
		info.Spec_dst = src.As4()
	default:
		info := (*unix.Inet6Pktinfo)(w.put(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo))
		info.Addr = src.As16()
		if src.IsLinkLocalUnicast() {
			info.Ifindex = scope
		}
	}
}

// put starts a control message and returns where its data goes.
func (w *wire) put(level, kind int32, size int) unsafe.Pointer {
	b := w.control.bytes()
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	w.controlLen = unix.CmsgSpace(size)
	return unsafe.Pointer(&b[unix.CmsgLen(0)])
}

// putPort and port convert a socket address's port, which is in network order.
func putPort(field *uint16, port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(field))[:], port)
}

func port(field *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(field))[:])
}

// receiver reads batches of datagrams with recvmmsg(2). It is made once for a
// receive function, which uses it from one goroutine. x/net's PacketConn would
// do, but for three allocations a datagram.
type receiver struct {
	headers  []unix.Mmsghdr
	vectors  []unix.Iovec
	names    []unix.RawSockaddrInet6
	controls []control

	// In and out of the callback, which is bound once so that a call makes no
	// closure.
	want, got int
	errno     syscall.Errno
	callback  func(fd uintptr) bool
}

func newReceiver(batch int) *receiver {
	r := &receiver{
		headers:  make([]unix.Mmsghdr, batch),
		vectors:  make([]unix.Iovec, batch),
		names:    make([]unix.RawSockaddrInet6, batch),
		controls: make([]control, batch),
	}
	for i := range r.headers {
		h := &r.headers[i].Hdr
		h.Iov = &r.vectors[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Control = &r.controls[i].bytes()[0]
	}
	r.callback = r.recvmmsg
	return r
}

// read waits until there are datagrams and reads as many as there are, at most
// one a buffer and a batch in all.
func (r *receiver) read(k *kernelConn, bufs [][]byte) (int, error) {
	r.want = min(len(bufs), len(r.headers))
	for i, buf := range bufs[:r.want] {
		r.vectors[i].Base = unsafe.SliceData(buf)
		r.vectors[i].SetLen(len(buf))
		h := &r.headers[i].Hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(int(unsafe.Sizeof(control{})))
	}
	if err := k.raw.Read(r.callback); err != nil {
		return 0, err
	}
	if r.errno != 0 {
		return 0, r.errno
	}
	return r.got, nil
}

func (r *receiver) recvmmsg(fd uintptr) bool {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.headers[0])),
		uintptr(r.want), unix.MSG_DONTWAIT, 0, 0)
	r.got, r.errno = int(n), errno
	return errno != unix.EAGAIN
}

// datagram tells the size of the i-th datagram that was read, where it came
// from, and whether it fitted its buffer.
func (r *receiver) datagram(i int, from *origin) (size int, whole bool) {
	h := &r.headers[i]
	*from = origin{}
	if sa := &r.names[i]; sa.Family == unix.AF_INET6 {
		from.is6, from.remote, from.port, from.scope = true, sa.Addr, port(&sa.Port), sa.Scope_id
	} else {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		from.port = port(&sa4.Port)
		copy(from.remote[:], sa4.Addr[:])
	}
	from.readControl(r.controls[i].bytes()[:h.Hdr.Controllen])
	return int(h.Len), h.Hdr.Flags&unix.MSG_TRUNC == 0
}

// readControl finds the local address that the datagram was sent to. For one
// sent to a broadcast address IPv4 names the interface's own; a multicast
// address is none to answer from.
func (o *origin) readControl(b []byte) {
	for len(b) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			o.hasLocal = info.Spec_dst != [4]byte{}
			copy(o.local[:], info.Spec_dst[:])
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			if info.Addr[0] == 0xff {
				break
			}
			o.local, o.hasLocal = info.Addr, true
			if netip.AddrFrom16(info.Addr).IsLinkLocalUnicast() {
				o.scope = info.Ifindex
			}
		}
		b = rest
	}
}
