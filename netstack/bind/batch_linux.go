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

// received is space for the control messages of a datagram: PKTINFO of both
// families, which an IPv4 datagram on an IPv6 socket brings, and UDP_GRO.
type received [12]uint64

func (c *received) bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c)) }

// receiver reads batches of messages with recvmmsg(2). It is made once for a
// receive function, which uses it from one goroutine. x/net's PacketConn would
// do, but for three allocations a datagram.
type receiver struct {
	headers  []unix.Mmsghdr
	vectors  []unix.Iovec
	names    []unix.RawSockaddrInet6
	controls []received

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
		controls: make([]received, batch),
	}
	for i := range r.headers {
		h := &r.headers[i].Hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Control = &r.controls[i].bytes()[0]
	}
	r.callback = r.recvmmsg
	return r
}

// read waits until there are messages and reads as many as there are, at most
// one a lane. They go to the buffers, or to spare where a lane has none.
func (r *receiver) read(k *kernelConn, bufs [][]byte, sh shape, spare []byte) (int, error) {
	r.want = min(sh.lanes, len(r.headers))
	for lane := range r.want {
		first := lane * sh.length
		for j := range sh.length {
			part := sh.vector(bufs, lane, j)
			r.vectors[first+j].Base = unsafe.SliceData(part)
			r.vectors[first+j].SetLen(len(part))
		}
		if sh.length == 0 {
			r.vectors[first].Base = unsafe.SliceData(spare)
			r.vectors[first].SetLen(len(spare))
		}
		h := &r.headers[lane].Hdr
		h.Iov = &r.vectors[first]
		h.SetIovlen(max(sh.length, 1))
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(int(unsafe.Sizeof(received{})))
	}
	if err := k.raw.Read(r.callback); err != nil {
		return 0, err
	}
	if r.errno != 0 {
		return 0, r.errno
	}
	return r.got, nil
}

// recvmmsg does not wait: see sendmmsg.
func (r *receiver) recvmmsg(fd uintptr) bool {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.headers[0])),
		uintptr(r.want), unix.MSG_DONTWAIT, 0, 0)
	r.got, r.errno = int(n), errno
	return errno != unix.EAGAIN
}

// message tells the size of the i-th message that was read and of its
// datagrams, where it came from, and whether it fitted its buffers.
func (r *receiver) message(i int, from *origin) (size, segment int, whole bool) {
	h := &r.headers[i]
	*from = origin{}
	if sa := &r.names[i]; sa.Family == unix.AF_INET6 {
		from.port, from.scope = port(&sa.Port), sa.Scope_id
		if v4, ok := mapped(sa.Addr); ok {
			copy(from.remote[:], v4)
		} else {
			from.is6, from.remote = true, sa.Addr
		}
	} else {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		from.port = port(&sa4.Port)
		copy(from.remote[:], sa4.Addr[:])
	}
	size = int(h.Len)
	if segment = from.readControl(r.controls[i].bytes()[:h.Hdr.Controllen]); segment <= 0 || segment > size {
		segment = size
	}
	return size, segment, h.Hdr.Flags&unix.MSG_TRUNC == 0
}

// mapped returns the IPv4 address that an IPv6 socket writes as an IPv6 one.
func mapped(a [16]byte) (v4 []byte, ok bool) {
	const prefix = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff"
	return a[12:], string(a[:12]) == prefix
}

// readControl finds the local address that the datagram was sent to, and the
// size of the datagrams where there are several. For one sent to a broadcast
// address IPv4 names the interface's own; a multicast address is none to
// answer from.
func (o *origin) readControl(b []byte) (segment int) {
	for len(b) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return segment
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			o.hasLocal = info.Spec_dst != [4]byte{}
			copy(o.local[:], info.Spec_dst[:])
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			if _, ok := mapped(info.Addr); ok || info.Addr[0] == 0xff {
				break
			}
			o.local, o.hasLocal = info.Addr, true
			if netip.AddrFrom16(info.Addr).IsLinkLocalUnicast() {
				o.scope = info.Ifindex
			}
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(*(*int32)(unsafe.Pointer(&data[0])))
		}
		b = rest
	}
	return segment
}
