package netstack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/link"
)

// heldEnd is a link that has places, and of which the test says whether it has
// room: while full holds a packet it has none.
type heldEnd struct {
	*wireEnd
	full *link.Endpoint
}

func (h heldEnd) Place(local, remote netip.AddrPort, wake func()) *link.Place {
	return h.full.Place(local, remote, wake)
}

// TestWriteWaitsForThePlace: a write waits before it gives anything to gVisor,
// and whatever ends a write ends that too.
func TestWriteWaitsForThePlace(t *testing.T) {
	block := make([]byte, 64<<10)
	for _, tc := range []struct {
		name string
		end  func(l *lab, full *link.Endpoint, c, peer *TCPConn)
		want error
	}{
		{"room", func(_ *lab, full *link.Endpoint, _, _ *TCPConn) {
			full.Read([][]byte{make([]byte, 2048)}, make([]int, 1), 0)
		}, nil},
		{"the link is gone", func(_ *lab, full *link.Endpoint, _, _ *TCPConn) { full.Close() }, nil},
		{"deadline", func(_ *lab, _ *link.Endpoint, c, _ *TCPConn) { _ = c.SetWriteDeadline(time.Now()) }, os.ErrDeadlineExceeded},
		{"closed", func(_ *lab, _ *link.Endpoint, c, _ *TCPConn) { _ = c.Close() }, net.ErrClosed},
		{"reset", func(_ *lab, _ *link.Endpoint, _, peer *TCPConn) { peer.Abort() }, syscall.ECONNRESET},
		{"route withdrawn", func(l *lab, _ *link.Endpoint, _, _ *TCPConn) {
			l.nic.AbortFlows(func(netip.AddrPort, netip.AddrPort) bool { return true })
		}, ErrAborted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			full := link.New(link.Config{MTU: 1400, MaxBytes: 1000})
			full.SetOpen(true)
			defer full.Close()
			l := newLab(t)
			x, y := newWire(1400)
			l.nic = addNIC(t, l.edge, NICConfig{Link: heldEnd{x, full}, Sources: []netip.Addr{source4}})
			l.connector = newStack(t, Config{Promiscuous: true})
			l.cnic = addNIC(t, l.connector, NICConfig{Link: y})
			accepted := l.acceptTCP(t)
			c := l.dial(t, "tcp", service4).(*TCPConn)
			peer := <-accepted
			defer peer.Abort()

			var list stack.PacketBufferList
			list.PushBack(stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(make([]byte, 1200))}))
			_, _ = full.WritePackets(list)
			list.DecRef()
			if _, err := c.Write(block[:1000]); err != nil { // a little never waits
				t.Fatal(err)
			}
			if _, err := peer.Read(block); err != nil {
				t.Fatal(err)
			}
			wrote := make(chan error, 1)
			go func() {
				_, err := c.Write(block)
				wrote <- err
			}()
			_ = peer.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if n, err := peer.Read(block); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%d bytes came, %v, without room", n, err)
			}
			tc.end(l, full, c, peer)
			if err := <-wrote; !errors.Is(err, tc.want) {
				t.Errorf("the write: %v; want %v", err, tc.want)
			}
		})
	}
}
