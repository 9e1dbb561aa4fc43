package dnsd

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// receiveBuffer is what each UDP socket asks of the kernel, in bytes: a burst
// of some thousand queries waits there instead of being dropped. The kernel
// grants no more than net.core.rmem_max.
const receiveBuffer = 1 << 20

// portAttempts is how often a port is sought that UDP and TCP both have free.
const portAttempts = 16

// endpoint is one address: its two sockets, and the goroutines that serve
// them. The server owns it; retire or abandon ends it.
type endpoint struct {
	bound netip.AddrPort
	udp   *net.UDPConn
	tcp   *net.TCPListener

	retired sync.Once
	quit    chan struct{} // closed by retire
	closed  chan struct{} // closed when both sockets are
}

// open binds both sockets of an address and serves neither.
func open(addr netip.AddrPort) (*endpoint, error) {
	var err error
	for range portAttempts {
		var e *endpoint
		if e, err = openOnce(addr); err == nil {
			return e, nil
		}
		if addr.Port() != 0 {
			break
		}
	}
	return nil, err
}

func openOnce(addr netip.AddrPort) (*endpoint, error) {
	family := "6" // sets IPV6_V6ONLY, so that [::] leaves IPv4 to 0.0.0.0
	if addr.Addr().Is4() {
		family = "4"
	}
	ctx := context.Background() // binding does not wait
	l, err := new(net.ListenConfig).Listen(ctx, "tcp"+family, addr.String())
	if err != nil {
		return nil, listenError("tcp", addr, err)
	}
	tcp := l.(*net.TCPListener)
	bound := netip.AddrPortFrom(addr.Addr(), tcp.Addr().(*net.TCPAddr).AddrPort().Port())
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { setUDPOptions(int(fd), addr.Addr()) })
	}}
	p, err := config.ListenPacket(ctx, "udp"+family, bound.String())
	if err != nil {
		tcp.Close()
		return nil, listenError("udp", bound, err)
	}
	udp := p.(*net.UDPConn)
	udp.SetReadBuffer(receiveBuffer) // what the kernel grants is good enough
	return &endpoint{bound: bound, udp: udp, tcp: tcp, quit: make(chan struct{}), closed: make(chan struct{})}, nil
}

// setUDPOptions sets what a kernel may lack without harm, so it returns no
// error.
func setUDPOptions(fd int, addr netip.Addr) {
	// Answers fit every path (1232 bytes), so the path MTU that ICMP reports,
	// forged or not, must not make the kernel fragment them (RFC 9715).
	if addr.Is4() {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
	} else {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT)
	}
	if !addr.IsUnspecified() {
		return
	}
	// On the wildcard the answer must leave from the address that was asked.
	if addr.Is4() {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	} else {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
}

// serve starts the goroutines of an endpoint.
func (s *Server) serve(e *endpoint) {
	var readers sync.WaitGroup
	for range s.workers {
		readers.Go(func() { s.serveUDP(e) })
	}
	readers.Go(func() { s.serveTCP(e) })
	s.tasks.Go(func() {
		readers.Wait()
		s.drops.kernel.Add(kernelDrops(e.udp))
		e.abandon()
		close(e.closed)
	})
}

// retire makes the goroutines end once they have answered what they have
// read. It does not wait; closed says when the sockets are free.
func (e *endpoint) retire() {
	e.retired.Do(func() {
		close(e.quit)
		e.tcp.Close()
		now := time.Now()
		e.udp.SetReadDeadline(now)
		e.udp.SetWriteDeadline(now.Add(time.Second))
	})
}

// abandon closes the sockets of an endpoint that nothing serves.
func (e *endpoint) abandon() {
	e.tcp.Close()
	e.udp.Close()
}

// ending reports whether retire was called.
func (e *endpoint) ending() bool {
	select {
	case <-e.quit:
		return true
	default:
		return false
	}
}

// rest waits before a socket that failed is tried again, so that a lasting
// failure (no file descriptors) is no busy loop.
func (e *endpoint) rest(failures int) {
	t := time.NewTimer(min(time.Duration(failures)*10*time.Millisecond, time.Second))
	defer t.Stop()
	select {
	case <-t.C:
	case <-e.quit:
	}
}

// listenError says what to do about a socket that could not be opened.
func listenError(network string, addr netip.AddrPort, err error) error {
	errno, _ := unwrapErrno(err)
	hint := ""
	switch errno {
	case unix.EADDRINUSE:
		hint = inUseHint(network, addr)
	case unix.EADDRNOTAVAIL:
		hint = "the address is not on this machine: behind a NAT, give the machine's own address as bind"
	case unix.EACCES, unix.EPERM:
		hint = fmt.Sprintf("port %d needs CAP_NET_BIND_SERVICE: grant it, or listen on a port above 1023", addr.Port())
	}
	if hint == "" {
		return fmt.Errorf("listening for DNS on %q: %w", network+"/"+addr.String(), err)
	}
	return fmt.Errorf("listening for DNS on %q: %w: %s", network+"/"+addr.String(), errno, hint)
}
