package bind

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// listenKernel opens a UDP socket with all its options.
func listenKernel(network string, at netip.AddrPort, o options) (*kernelConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = o.set(int(fd), network) }); e != nil {
			return e
		}
		return err
	}}
	pc, err := config.ListenPacket(context.Background(), network, at.String())
	if err != nil {
		return nil, err
	}
	udp := pc.(*net.UDPConn)
	raw, err := udp.SyscallConn()
	if err != nil {
		udp.Close()
		return nil, err
	}
	k := &kernelConn{UDPConn: udp, raw: raw}
	_ = raw.Control(func(fd uintptr) {
		// A kernel that does not know the option ignores the control message,
		// and would send what is to be cut up in one piece.
		_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		k.segments = err == nil
		k.gathers = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	})
	return k, nil
}

// set puts the options on a socket that is not bound yet. Buffer sizes are
// wishes; the rest has to be, or the tunnel would fail in ways that are hard
// to see.
func (o options) set(fd int, network string) error {
	setBuffer(fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, o.receiveBuffer)
	setBuffer(fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, o.sendBuffer)
	if o.mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(o.mark)); err != nil {
			return os.NewSyscallError("setsockopt SO_MARK", err)
		}
	}
	// PMTU discovery is off: a router may fragment what we send, and no forged
	// ICMP can make datagrams vanish with EMSGSIZE. The tunnel probes for
	// itself. See sendNow for what is larger than 1500 bytes.
	type option struct {
		name              string
		level, opt, value int
	}
	var wanted []option
	if network != "udp6" {
		wanted = append(wanted,
			option{"IP_PKTINFO", unix.IPPROTO_IP, unix.IP_PKTINFO, 1},
			option{"IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT})
	}
	if network != "udp4" {
		only := 0
		if network == "udp6" {
			only = 1
		}
		wanted = append(wanted,
			option{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only},
			option{"IPV6_RECVPKTINFO", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
			option{"IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT})
	}
	for _, w := range wanted {
		if err := unix.SetsockoptInt(fd, w.level, w.opt, w.value); err != nil {
			return os.NewSyscallError("setsockopt "+w.name, err)
		}
	}
	return nil
}

// setBuffer sets a socket buffer, beyond the machine's limit where we may.
func setBuffer(fd, opt, force, size int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, size)
	if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt); err == nil && got/2 >= size {
		return
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size)
}

// buffers returns the socket buffers in bytes. The kernel reports the double,
// the half of which is for its own bookkeeping (socket(7)).
func (k *kernelConn) buffers() (receive, send int) {
	_ = k.raw.Control(func(fd uintptr) {
		receive, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
		send, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
	})
	return receive / 2, send / 2
}

func (k *kernelConn) setMark(mark uint32) error {
	var err error
	if e := k.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}); e != nil {
		return e
	}
	return err
}

// dropped returns how many datagrams the kernel has dropped on this socket
// because its receive buffer was full; 0 once it is closed.
func (k *kernelConn) dropped() uint64 {
	const skMeminfoDrops = 8 // linux/sock_diag.h
	var info [skMeminfoDrops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_ = k.raw.Control(func(fd uintptr) {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			info[skMeminfoDrops] = 0
		}
	})
	return uint64(info[skMeminfoDrops])
}

// pathMTU asks a socket of its own, connected for the purpose: IP_MTU means
// nothing on another one, and PMTU discovery has to be on for it.
func pathMTU(src, dst netip.Addr, mark uint32) (mtu int, err error) {
	const discardPort = 9 // connect sends nothing; any port will do
	family, level, mtuOpt, discover, want := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if dst.Is6() {
		family, level, mtuOpt, discover, want = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return 0, os.NewSyscallError("setsockopt SO_MARK", err)
		}
	}
	if err := unix.SetsockoptInt(fd, level, discover, want); err != nil {
		return 0, os.NewSyscallError("setsockopt IP_MTU_DISCOVER", err)
	}
	if src.IsValid() && !src.IsUnspecified() {
		sa, err := sockaddr(src, 0)
		if err != nil {
			return 0, err
		}
		if err := unix.Bind(fd, sa); err != nil {
			return 0, fmt.Errorf("from %v: %w", src, err)
		}
	}
	sa, err := sockaddr(dst, discardPort)
	if err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return 0, err
	}
	if mtu, err = unix.GetsockoptInt(fd, level, mtuOpt); err != nil {
		return 0, os.NewSyscallError("getsockopt IP_MTU", err)
	}
	return mtu, nil
}

func sockaddr(a netip.Addr, port int) (unix.Sockaddr, error) {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: port, Addr: a.As16()}
	if zone := a.Zone(); zone != "" {
		index, err := zoneIndex(zone)
		if err != nil {
			return nil, fmt.Errorf("using %s: %w", strconv.Quote(a.String()), err)
		}
		sa.ZoneId = index
	}
	return sa, nil
}
