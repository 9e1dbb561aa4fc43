package tunnel

import (
	"net/netip"

	"github.com/warrenmesh/warren/netstack/shim"
)

// lender knows the flows of one connector that come from their client's own
// address.
type lender interface {
	lends(local, remote netip.AddrPort) bool
}

// lent reports whether a packet is of such a flow. Isolation rests on both
// addresses and both ports: a client's address is nobody's in itself. So a
// fragment is none, whose ports one cannot see.
func lent(in shim.Inner, flows lender) bool {
	if flows == nil || in.Fragmented() {
		return false
	}
	if in.Proto == protoTCP {
		src, dst, ok := in.Ports()
		return ok && flows.lends(netip.AddrPortFrom(in.Dst, dst), netip.AddrPortFrom(in.Src, src))
	}
	if !shim.IsICMPError(in) {
		return false
	}
	quoted, why := shim.Quoted(in)
	if why != shim.OK || quoted.Proto != protoTCP || quoted.Src != in.Dst {
		return false
	}
	src, dst, ok := quoted.Ports()
	return ok && flows.lends(netip.AddrPortFrom(quoted.Src, src), netip.AddrPortFrom(quoted.Dst, dst))
}

// lends implements lender, for flows through the peer's own NIC.
func (p *Peer) lends(local, remote netip.AddrPort) bool {
	nic := p.nic.Load()
	return nic != nil && nic.Lends(local, remote)
}

// source is what a client's flow to dst comes from: the client's own address,
// so that the connector's log names it and ports are as many as clients have,
// or nothing, for one of the inner sources. A client's address serves
//
//   - where the other end is ours: it has introduced itself in an echo. The
//     answers of a router of another make would leave by its default route.
//   - where it is of dst's family and can be one host's: global unicast.
//   - where it is neither in the network's routes, since a host there may have
//     it, nor one that the tunnel uses itself.
func (p *Peer) source(client, dst netip.AddrPort) netip.AddrPort {
	n, a := p.network, client.Addr().Unmap()
	switch {
	case n == nil || !n.clientSources.Load() || p.boot.Load() == 0,
		!a.IsGlobalUnicast() || a.Zone() != "" || a.BitLen() != dst.Addr().Unmap().BitLen(),
		OverlayPrefix.Contains(a) || p.tunnel.checker.ours(a),
		n.table.Load().Contains(a):
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, client.Port())
}

// SetClientSources says whether flows may come from their client's own address
// (the default), or come from the inner sources alone. It is for new flows.
func (n *Network) SetClientSources(on bool) { n.clientSources.Store(on) }
