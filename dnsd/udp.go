package dnsd

import (
	"net"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// maxQuery is the longest query that is read, over either transport. What
// clients send is far below it, padding (RFC 8467) included.
const maxQuery = 4096

// udpWorkers is how many goroutines read each UDP socket. Each answers what it
// read before it reads again, so no more queries than that are ever in hand;
// under a flood the kernel's queue fills and drops, which is counted. A lookup
// never waits, so more workers than processors would gain nothing.
func udpWorkers() int { return max(2, runtime.GOMAXPROCS(0)) }

// serveUDP reads and answers until the endpoint is retired.
func (s *Server) serveUDP(e *endpoint) {
	var (
		query    = make([]byte, maxQuery)
		buf      = make([]byte, maxQuery)
		wildcard = e.bound.Addr().IsUnspecified()
		oob      []byte
		failures int
	)
	if wildcard {
		oob = make([]byte, 128)
	}
	for !e.ending() {
		n, oobn, _, from, err := e.udp.ReadMsgUDPAddrPort(query, oob)
		if err != nil {
			if e.ending() {
				return
			}
			failures++
			s.drops.udpRead.Add(1)
			e.rest(failures)
			continue
		}
		failures = 0
		reply, why := s.answers.respond(query[:n], buf, overUDP)
		if reply == nil {
			s.drops.count(why)
			continue
		}
		if wildcard {
			_, _, err = e.udp.WriteMsgUDPAddrPort(reply, replySource(oob[:oobn]), from)
		} else {
			_, err = e.udp.WriteToUDPAddrPort(reply, from)
		}
		if err != nil {
			s.drops.udpWrite.Add(1)
		}
	}
}

// replySource makes the control message that sends an answer from the address
// that the query went to.
func replySource(oob []byte) []byte {
	var six ipv6.ControlMessage
	if six.Parse(oob) == nil && six.Dst != nil && six.Dst.To4() == nil {
		reply := ipv6.ControlMessage{Src: six.Dst}
		if six.Dst.IsLinkLocalUnicast() {
			reply.IfIndex = six.IfIndex
		}
		return reply.Marshal()
	}
	var four ipv4.ControlMessage
	if four.Parse(oob) == nil && four.Dst != nil {
		return (&ipv4.ControlMessage{Src: four.Dst}).Marshal()
	}
	return nil
}

// kernelDrops is how many datagrams the kernel threw away because the
// socket's queue was full. 0 where the kernel does not tell.
func kernelDrops(conn *net.UDPConn) uint64 {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var info [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(info))
	raw.Control(func(fd uintptr) {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			clear(info[:])
		}
	})
	return uint64(info[unix.SK_MEMINFO_DROPS])
}

// sourceKey is what a cap for a source counts: an IPv4 address, or the /64
// that one IPv6 site has at the least.
func sourceKey(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}
