package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// releasePort gives back the reservation that Bind made of a dialled flow's
// port: three maps, 1.5 KB, for what the flow index knows already. That the
// endpoint gives it back once more when it ends does nothing, or opens the
// port to a flow between its own Bind and this: the index has given it to one
// towards another peer then.
func (n *NIC) releasePort(local netip.AddrPort) {
	n.stack.gv.ReleasePort(ports.Reservation{
		Networks:     []tcpip.NetworkProtocolNumber{networkProtocol(local.Addr().Is4())},
		Transport:    tcp.ProtocolNumber,
		Addr:         tcpAddress(local.Addr()),
		Port:         local.Port(),
		Flags:        ports.Flags{TupleOnly: true}, // SO_REUSEADDR, as bind sets it
		BindToDevice: n.id,
	})
}
