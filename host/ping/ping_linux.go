package ping

import (
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// unprivileged is a datagram socket of ICMP (icmp(7), ping_group_range). The
// kernel chooses the identifier, and gives the socket replies that have it.
type unprivileged struct{ *net.UDPConn }

func openUnprivileged(dst netip.Addr) (socket, error) {
	family, proto := unix.AF_INET6, unix.IPPROTO_ICMPV6
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: dst.As16()}
	if dst.Is4() {
		family, proto = unix.AF_INET, unix.IPPROTO_ICMP
		to = &unix.SockaddrInet4{Addr: dst.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer func() { _ = f.Close() }() // FileConn makes its own
	if err := unix.Connect(fd, to); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	hearErrors(conn.(syscall.Conn), dst)
	return unprivileged{conn.(*net.UDPConn)}, nil
}

func (s unprivileged) ident() (uint16, bool) { return 0, true }

func (s unprivileged) receive(b []byte) (int, netip.Addr, error) {
	n, from, err := s.ReadFromUDPAddrPort(b)
	return n, from.Addr(), err
}

// hearErrors has reads of conn return what ICMP errors say. Without the option
// a socket hears only of those that it takes for final, and host unreachable is
// not among them (ip(7), IP_RECVERR).
func hearErrors(conn syscall.Conn, dst netip.Addr) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { // where it fails, silence says it later
		if dst.Is4() {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		} else {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		}
	})
}
