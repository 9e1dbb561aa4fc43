package link

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// taker takes datagrams whose last byte is not zero, and writes down what it
// is given and when its readers are woken.
type taker struct {
	stack.NetworkDispatcher
	log   []byte
	wakes int
}

func (d *taker) DeliverDatagram(b []byte) (bool, interface{ Wake() }) {
	last := b[len(b)-1]
	if last == 0 {
		return false, nil
	}
	d.log = append(d.log, last)
	return true, d
}

func (d *taker) Wake() { d.wakes++; d.log = append(d.log, 'w') }

func (d *taker) DeliverNetworkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {
	d.log = append(d.log, 'p')
}

// Datagrams go to a dispatcher that takes them, what it leaves goes the
// ordinary way, in order, and readers are woken behind the batch, or at once
// where they are too many to keep.
func TestDatagramsAreOffered(t *testing.T) {
	datagram := func(last byte) []byte {
		b := make([]byte, 29)
		b[0], b[9], b[28] = 0x45, 17, last
		return b
	}
	e := openEndpoint(t, Config{})
	d := &taker{}
	e.Attach(d)
	e.Deliver([][]byte{datagram('1'), datagram(0), datagram('2')})
	if got := string(d.log); got != "1p2ww" {
		t.Errorf("%q happened, want %q", got, "1p2ww")
	}
	d.wakes = 0
	many := make([][]byte, maxWakers+8)
	for i := range many {
		many[i] = datagram('x')
	}
	e.Deliver(many)
	if d.wakes != len(many) {
		t.Errorf("%d woken of %d", d.wakes, len(many))
	}
}
