package netstack

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A dialled flow holds no reservation of gVisor's, and its end frees none of
// another's.
func TestDialledFlowReservesNoPort(t *testing.T) {
	l := newLab(t)
	a, b := l.pair(t, service4)
	whole := ports.Reservation{
		Networks:  []tcpip.NetworkProtocolNumber{networkProtocol(true)},
		Transport: tcp.ProtocolNumber,
		Addr:      tcpAddress(a.key.local.Addr()),
		Port:      a.key.local.Port(),
	}
	gv := a.nic.stack.gv
	reserve := func() bool {
		_, err := gv.ReservePort(gv.SecureRNG(), whole, nil)
		return err == nil
	}
	if !reserve() {
		t.Fatal("the port is reserved")
	}
	if reserve() {
		t.Fatal("a whole port was reserved twice")
	}
	a.Abort()
	b.Abort()
	if reserve() {
		t.Error("the end of the flow freed another's reservation")
	}
}
