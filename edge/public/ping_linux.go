package public

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443 section 4) messages.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

const echoHeader = 8 // type, code, checksum, identifier, sequence number

// Ping sends one echo to addr, which Check must pass, and waits for the reply,
// for the Spec's timeout at most. It uses the kernel's ping sockets, which
// need no privilege but a group within net.ipv4.ping_group_range (for both
// families); without, the error wraps ErrPingUnsupported. Errors are as
// DialContext's.
func (d *Dialer) Ping(ctx context.Context, addr netip.Addr) error {
	addr = addr.Unmap()
	what := fmt.Sprintf("pinging %q", addr)
	if err := d.Check(addr); err != nil {
		return &Error{What: what, Class: netx.ErrUnreachable, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, d.spec.Timeout)
	defer cancel()
	conn, err := openPing(addr)
	if err != nil {
		return &Error{What: what, Class: classify(ctx, err), Err: reason(err)}
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if err := echo(conn, addr); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return &Error{What: what, Class: classify(ctx, err), Err: reason(err)}
	}
	return nil
}

// echo sends a request and reads until its reply. The kernel sets checksum and
// identifier, and hands this socket nothing but replies to that identifier.
func echo(conn net.Conn, addr netip.Addr) error {
	request, reply := byte(echoRequest4), byte(echoReply4)
	if addr.Is6() {
		request, reply = echoRequest6, echoReply6
	}
	message := make([]byte, echoHeader+16)
	message[0] = request
	binary.BigEndian.PutUint16(message[6:], 1)
	_, _ = rand.Read(message[echoHeader:]) // never fails
	if _, err := conn.Write(message); err != nil {
		return err
	}
	in := make([]byte, 256)
	for {
		n, err := conn.Read(in)
		if err != nil {
			return err
		}
		if n == len(message) && in[0] == reply && bytes.Equal(in[6:n], message[6:]) {
			return nil
		}
	}
}

// openPing opens a ping socket that is connected to addr.
func openPing(addr netip.Addr) (net.Conn, error) {
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	var to unix.Sockaddr = &unix.SockaddrInet4{}
	if addr.Is4() {
		to = &unix.SockaddrInet4{Addr: addr.As4()}
	} else {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		to = &unix.SockaddrInet6{Addr: addr.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("%w: %w", ErrPingUnsupported, err)
	}
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer func() { _ = f.Close() }() // the conn has its own
	if err := unix.Connect(fd, to); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(f)
}
