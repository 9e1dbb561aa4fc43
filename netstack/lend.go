package netstack

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// lentTries is how many ports of a lent address a dial tries, before it takes
// one of the NIC's own sources: the one that was asked for, then any.
const lentTries = 8

// lentRest is how long a port of a lent address is not used again towards the
// same peer. A SYN that comes right behind the RST or the last ACK of the flow
// before is taken for a part of it there, and answered with a RST or not at
// all. The NIC's own ports come round long after.
const lentRest = 2 * time.Second

// DialFrom is DialContext for a flow that is to come from an address which is
// not the NIC's own: that of the client whom the flow serves, so that the far
// end's log names it. The NIC answers to it only while a flow has it, and only
// packets of such flows may be delivered: ask Lends.
//
// Where from cannot serve (it is zero, of another family, or the NIC's own, its
// ports are taken, network is "udp"), one of the NIC's sources does.
func (n *NIC) DialFrom(ctx context.Context, network string, from, address netip.AddrPort) (net.Conn, error) {
	remote := netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
	conn, err := n.dial(ctx, network, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), remote)
	if err != nil {
		return nil, fmt.Errorf("dialling %s %q: %w", network, remote, err)
	}
	return conn, nil
}

// Lends reports whether the NIC has a TCP flow between remote and local, an
// address that DialFrom has lent it.
func (n *NIC) Lends(local, remote netip.AddrPort) bool {
	c, ok := n.index.find(flowKey{proto: protoTCP, local: local, remote: remote}).(*TCPConn)
	return ok && c.lent
}

// claim enters c into the index, as a flow from that address if it can.
func (c *TCPConn) claim(from, remote netip.AddrPort) error {
	n := c.nic
	if from.Addr().BitLen() == remote.Addr().BitLen() && n.lend(from.Addr()) {
		c.lent = true // before anybody finds it in the index
		if n.index.claimFrom(protoTCP, from, remote, c, &c.key) {
			return nil
		}
		c.lent = false
		n.giveBack(from.Addr())
	}
	if err := n.index.claim(protoTCP, remote, c, &c.key); err != nil {
		return err
	}
	n.assign(c.key.local.Addr())
	return nil
}

// forget takes c out of the index, and gives back what was lent to it.
func (c *TCPConn) forget() {
	if c.nic.index.remove(c.key, c) && c.lent {
		c.nic.index.rested.add(c.key, time.Now())
		c.nic.giveBack(c.key.local.Addr())
	}
}

// claimFrom is claim for one address, with the port where it is free. It
// reports false where it found none.
func (x *flowIndex) claimFrom(proto uint8, from, remote netip.AddrPort, ep endpoint, at *flowKey) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return false
	}
	key, now := flowKey{proto: proto, local: from, remote: remote}, time.Now()
	for range lentTries {
		if _, taken := x.flows[key]; !taken && key.local.Port() != 0 && !x.rested.has(key, now) {
			x.enterLocked(key, ep)
			*at = key
			return true
		}
		key.local = netip.AddrPortFrom(from.Addr(), uint16(firstPort+rand.Uint32N(x.ports)))
	}
	return false
}

// lend makes addr one of the NIC's own for one flow more. It reports false
// where the address is the NIC's in any case.
func (n *NIC) lend(addr netip.Addr) bool {
	if n.stack.cfg.Promiscuous || n.index.hasSource(addr) {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, own := n.assigned[addr]; own {
		return false
	}
	n.lent[addr]++
	if n.lent[addr] == 1 {
		n.addAddress(addr)
	}
	return true
}

// giveBack ends what lend began.
func (n *NIC) giveBack(addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lent[addr]--; n.lent[addr] > 0 {
		return
	}
	delete(n.lent, addr)
	n.stack.gv.RemoveAddress(n.id, tcpAddress(addr))
}

// addAddress has gVisor take packets to addr.
func (n *NIC) addAddress(addr netip.Addr) {
	n.stack.gv.AddProtocolAddress(n.id, tcpip.ProtocolAddress{
		Protocol:          networkProtocol(addr.Is4()),
		AddressWithPrefix: tcpAddress(addr).WithPrefix(),
	}, stack.AddressProperties{PEB: stack.CanBePrimaryEndpoint})
}

// hasSource reports whether addr is one of the NIC's own. Sources never change.
func (x *flowIndex) hasSource(addr netip.Addr) bool {
	for _, a := range x.sources[family(addr)] {
		if a == addr {
			return true
		}
	}
	return false
}

// restedKeys are the flows from lent addresses that ended lately.
type restedKeys struct {
	mu    sync.Mutex
	keys  map[flowKey]time.Time // until when they rest
	queue []flowKey             // in the order that they ended
}

func (r *restedKeys) add(key flowKey, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweepLocked(now)
	if r.keys == nil {
		r.keys = make(map[flowKey]time.Time)
	}
	r.keys[key] = now.Add(lentRest)
	r.queue = append(r.queue, key)
}

func (r *restedKeys) has(key flowKey, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweepLocked(now)
	_, rests := r.keys[key]
	return rests
}

// sweepLocked forgets those that have rested, and all memory with the last.
func (r *restedKeys) sweepLocked(now time.Time) {
	n := 0
	for n < len(r.queue) && !r.keys[r.queue[n]].After(now) {
		delete(r.keys, r.queue[n])
		n++
	}
	if r.queue = r.queue[n:]; len(r.queue) == 0 {
		r.queue, r.keys = nil, nil
	}
}
