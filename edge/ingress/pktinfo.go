package ingress

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// packetInfo reads and writes the control message that says which of the
// machine's addresses a datagram went to, and that a reply leaves from it:
// IP_PKTINFO (ip(7)), IPV6_PKTINFO (RFC 3542, section 6).
type packetInfo struct {
	v6 bool
}

// packetInfoSpace is room for the one control message that was asked for.
const packetInfoSpace = 64

const (
	pktinfo4 = unix.SizeofInet4Pktinfo // interface, local address, header's destination
	pktinfo6 = unix.SizeofInet6Pktinfo // address, interface
)

// askPacketInfo turns the control messages on.
func askPacketInfo(c *net.UDPConn, family string) (*packetInfo, error) {
	p := &packetInfo{v6: family == "udp6"}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if p.v6 {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	if err == nil && failed != nil {
		err = os.NewSyscallError("setsockopt", failed)
	}
	return p, err
}

// destination returns the local address that a datagram went to, zero where
// oob does not say.
func (p *packetInfo) destination(oob []byte) netip.Addr {
	for len(oob) >= unix.SizeofCmsghdr {
		size := int(binary.NativeEndian.Uint64(oob))
		level := int32(binary.NativeEndian.Uint32(oob[8:]))
		kind := int32(binary.NativeEndian.Uint32(oob[12:]))
		if size < unix.SizeofCmsghdr || size > len(oob) {
			return netip.Addr{}
		}
		data := oob[unix.SizeofCmsghdr:size]
		switch {
		case !p.v6 && level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO && len(data) >= pktinfo4:
			return netip.AddrFrom4([4]byte(data[4:8]))
		case p.v6 && level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= pktinfo6:
			return netip.AddrFrom16([16]byte(data[:16]))
		}
		oob = oob[min(unix.CmsgSpace(size-unix.SizeofCmsghdr), len(oob)):]
	}
	return netip.Addr{}
}

// from returns the control message that makes a datagram leave from local.
func (p *packetInfo) from(local netip.Addr) []byte {
	level, kind, size := unix.IPPROTO_IP, unix.IP_PKTINFO, pktinfo4
	if p.v6 {
		level, kind, size = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, pktinfo6
	}
	b := make([]byte, unix.CmsgSpace(size))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(size)))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(kind))
	data := b[unix.SizeofCmsghdr:]
	if p.v6 {
		copy(data, local.AsSlice())
	} else {
		copy(data[4:8], local.AsSlice())
	}
	return b
}
