//go:build !linux

package relay

import (
	"errors"
	"net"
	"net/netip"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Socket moves many datagrams a system call through a kernel UDP socket, where
// the system has such calls: here it has none.
type Socket struct{}

// NewSocket fails.
func NewSocket(*net.UDPConn) (*Socket, error) { return nil, errors.ErrUnsupported }

// GrowBuffers asks for room in c's queues, bytes; 0 leaves a queue as it is.
func GrowBuffers(c *net.UDPConn, receive, send int) {
	if receive > 0 {
		_ = c.SetReadBuffer(receive)
	}
	if send > 0 {
		_ = c.SetWriteBuffer(send)
	}
}

func (s *Socket) next() (*netx.Batch, error) { return nil, errors.ErrUnsupported }

// Receive is never called.
func (s *Socket) Receive(*Received) error { return errors.ErrUnsupported }

// WriteBatch is never called.
func (s *Socket) WriteBatch([][]byte) (int, error) { return 0, errors.ErrUnsupported }

// SendTo is never called.
func (s *Socket) SendTo([][]byte, netip.AddrPort, []byte) (int, error) {
	return 0, errors.ErrUnsupported
}
