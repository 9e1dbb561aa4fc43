package connector

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Reach asks the network what WireGuard does not tell: it is silent to a
// stranger, and its socket hears no ICMP.
type Reach interface {
	// Route returns why this machine cannot send to addr at all, or nil.
	Route(addr netip.AddrPort) error
	// Probe sends one datagram to addr and returns errPortClosed when the
	// machine there says so, what the network says otherwise, or nil for
	// silence.
	Probe(ctx context.Context, addr netip.AddrPort) error
}

// errPortClosed: the machine answered, and nothing listens at the port.
var errPortClosed = errors.New("port unreachable")

// probeWait is how long an ICMP error has to come back.
const probeWait = 500 * time.Millisecond

// kernelReach asks with connected UDP sockets, which hear ICMP errors.
type kernelReach struct{}

func (kernelReach) Route(addr netip.AddrPort) error {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return cause(err)
	}
	return conn.Close()
}

func (kernelReach) Probe(ctx context.Context, addr netip.AddrPort) error {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return cause(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadDeadline(time.Now().Add(probeWait)); err != nil {
		return cause(err)
	}
	// Of reading alone: a write does not wait. Set last, so that nothing undoes it.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// WireGuard drops a datagram of no known type without an answer
	// (wireguard.com/protocol: a type is 1 to 4).
	if _, err := conn.Write([]byte{0}); err != nil {
		return cause(err)
	}
	_, err = conn.Read(make([]byte, 1))
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return errPortClosed
	case err == nil, errors.As(err, &timeout) && timeout.Timeout():
		return nil
	}
	return cause(err)
}

// cause takes the addresses off a socket's error; the log line has them.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
