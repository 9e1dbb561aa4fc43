//go:build !linux

package bind

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// Where there is no recvmmsg and sendmmsg the Bind moves one datagram a call,
// and the kernel chooses the source of answers. It is enough to develop on.

const platformBatch = 1

// wire is the Endpoint's own address there.
type wire struct{ dst netip.AddrPort }

func (w *wire) set(dst netip.AddrPort, _ netip.Addr, _ uint32) { w.dst = dst }

func listenKernel(network string, at netip.AddrPort, o options) (*kernelConn, error) {
	if o.mark != 0 {
		return nil, errors.ErrUnsupported
	}
	udp, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	_ = udp.SetReadBuffer(o.receiveBuffer)
	_ = udp.SetWriteBuffer(o.sendBuffer)
	raw, err := udp.SyscallConn()
	if err != nil {
		udp.Close()
		return nil, err
	}
	return &kernelConn{UDPConn: udp, raw: raw}, nil
}

func (k *kernelConn) buffers() (receive, send int) {
	_ = k.raw.Control(func(fd uintptr) {
		receive, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF)
		send, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF)
	})
	return receive, send
}

func (k *kernelConn) setMark(mark uint32) error {
	if mark != 0 {
		return errors.ErrUnsupported
	}
	return nil
}

func (k *kernelConn) dropped() uint64 { return 0 }

func pathMTU(_, _ netip.Addr, _ uint32) (int, error) { return 0, errors.ErrUnsupported }

// receiver reads one datagram.
type receiver struct {
	size int
	from netip.AddrPort
}

func newReceiver(int) *receiver { return &receiver{} }

func (r *receiver) read(k *kernelConn, bufs [][]byte, _ shape, _ []byte) (int, error) {
	var err error
	r.size, r.from, err = k.ReadFromUDPAddrPort(bufs[0])
	return 1, err
}

func (r *receiver) message(_ int, from *origin) (size, segment int, whole bool) {
	*from = origin{port: r.from.Port()}
	if addr := r.from.Addr().Unmap(); addr.Is4() {
		v4 := addr.As4()
		copy(from.remote[:], v4[:])
	} else {
		from.is6, from.remote = true, addr.As16()
		from.scope, _ = zoneIndex(addr.Zone())
	}
	return r.size, r.size, true
}

// sender sends its datagrams one by one.
type sender struct {
	got  int // messages of the last call
	bufs [][]byte
	dst  netip.AddrPort
}

func newSender() *sender { return &sender{} }

func (m *sender) fill(bufs [][]byte, e *Endpoint, _ int) { m.bufs, m.dst = bufs, e.wire.dst }
func (m *sender) release()                               { m.bufs = nil }
func (m *sender) left() int                              { return len(m.bufs) }
func (m *sender) hasSource() bool                        { return false }
func (m *sender) group(_, _ int)                         {}
func (m *sender) clearSource(int)                        {}
func (m *sender) first() (datagrams, size int)           { return 1, len(m.bufs[0]) }

func (m *sender) skip(all bool) int {
	n := 1
	if all {
		n = len(m.bufs)
	}
	m.bufs = m.bufs[n:]
	return n
}

// try leaves all waiting to tryWaiting, which has a deadline.
func (m *sender) try(*kernelConn) (n, bytes int, err error) { return 0, 0, syscall.EAGAIN }

func (m *sender) tryWaiting(k *kernelConn) (n, bytes int, err error) {
	bytes, err = k.WriteToUDPAddrPort(m.bufs[0], m.dst)
	if err != nil {
		return 0, 0, err
	}
	m.skip(false)
	m.got = 1
	return 1, bytes, nil
}
