package load

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// dialer opens the client's connections, from each source in turn.
type dialer struct {
	net.Dialer
	target  netip.AddrPort
	address string // target, for DialContext
	sources []netip.Addr
	turn    atomic.Uint64
}

func newDialer(s Spec) *dialer {
	d := &dialer{target: s.Target, address: s.Target.String(), sources: s.Sources}
	d.Timeout = s.Timeout
	d.KeepAlive = -1 // four system calls a connection that a benchmark does not need
	if len(d.sources) > 0 {
		d.Control = bindWithoutPort
	}
	return d
}

// bindWithoutPort lets the kernel choose the port when it knows the target, so
// that a port that is taken towards another target does not count.
func bindWithoutPort(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	if err != nil {
		return err
	}
	return failed
}

// source is the address of the next connection.
func (d *dialer) source() netip.AddrPort {
	return netip.AddrPortFrom(d.sources[d.turn.Add(1)%uint64(len(d.sources))], 0)
}

// tcp connects. Without sources it must not bind at all: Dialer.DialTCP would
// bind to the zero address, which takes a port from all connections of the
// machine, and with most of them in TIME_WAIT searches for a millisecond.
func (d *dialer) tcp(ctx context.Context) (*net.TCPConn, error) {
	if len(d.sources) > 0 {
		return d.DialTCP(ctx, "tcp", d.source(), d.target)
	}
	conn, err := d.DialContext(ctx, "tcp", d.address)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// udp opens a socket that speaks to the target alone.
func (d *dialer) udp(ctx context.Context) (*net.UDPConn, error) {
	if len(d.sources) > 0 {
		return d.DialUDP(ctx, "udp", d.source(), d.target)
	}
	conn, err := d.DialContext(ctx, "udp", d.address)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// cut closes a connection at once, whatever is under way in it: what a tunnel
// still holds of a load that is over must not run into the next one.
func cut(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}
