package netstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"

	"github.com/warrenmesh/warren/netstack/drops"
	"github.com/warrenmesh/warren/netstack/netx"
)

// IP protocol numbers (IANA).
const (
	protoICMPv4   = 1
	protoTCP      = 6
	protoUDP      = 17
	protoFragment = 44 // IPv6 fragment header
	protoICMPv6   = 58
)

// whyHostFlows counts flows, not packets.
const whyHostFlows = "flows_of_host" // a host has as many flows as it may

// flowKey names a flow on one NIC: local is our side, whoever began it.
type flowKey struct {
	proto         uint8
	local, remote netip.AddrPort
}

// endpoint is what the index knows of a flow. Both methods may be called on
// any goroutine, and never with the index locked.
type endpoint interface {
	// abort ends the flow, telling the peer where the protocol can; cause is
	// what its reads and writes report from now on.
	abort(cause error)
	// unreachable passes on an ICMP error about the flow; err is one of
	// netx.ErrRefused, ErrUnreachable, ErrTimedOut.
	unreachable(err error)
	// pathMTU lowers the size of the flow's segments to fit packets of mtu
	// bytes.
	pathMTU(mtu int)
}

// flowIndex holds the flows of one NIC. It chooses the local ports of dialled
// flows, finds the flow that an ICMP error is about, and lets the NIC end
// them all before it goes. A closed conn stays in it until its last bytes
// have reached the peer.
type flowIndex struct {
	mu      sync.Mutex
	closed  bool
	flows   map[flowKey]endpoint
	sources [2][]netip.Addr // v4, v6
	next    [2]uint32       // position in (source, port) space, by family
	ports   uint32          // how many of each source are used

	drops   *drops.Counter
	rested  restedKeys
	perHost int                // bound of accepted flows by remote address; 0: none
	hosts   map[netip.Addr]int // all flows by remote address; nil without a bound
}

func (x *flowIndex) init(sources []netip.Addr, perHost int) {
	x.flows = make(map[flowKey]endpoint)
	x.ports = lastPort - firstPort + 1
	if x.perHost = perHost; perHost > 0 {
		x.hosts = make(map[netip.Addr]int)
	}
	for _, a := range sources {
		f := family(a)
		x.sources[f] = append(x.sources[f], a)
	}
	for f := range x.next {
		// A random start, so that a restarted edge does not reuse at once the
		// ports that the other end still remembers.
		x.next[f] = rand.Uint32N(lastPort - firstPort + 1)
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// add enters ep, which gVisor has registered already: a flow that still
// stands there is over, and only has not been taken out yet. It reports false
// once the index is closed, and where the remote address has too many flows.
func (x *flowIndex) add(key flowKey, ep endpoint) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return false
	}
	if x.hosts != nil && x.hosts[key.remote.Addr()] >= x.perHost {
		x.drops.Add(whyHostFlows, 1)
		return false
	}
	x.enterLocked(key, ep)
	return true
}

func (x *flowIndex) enterLocked(key flowKey, ep endpoint) {
	if _, over := x.flows[key]; x.hosts != nil && !over {
		x.hosts[key.remote.Addr()]++
	}
	x.flows[key] = ep
}

// claim enters ep under a local address and port that no flow to remote has,
// and writes the key to *at, which nobody reads before ep is in the index.
// Ports are taken in turn, all of one source before the next: a port returns
// only after every other one was used, so the far end has forgotten its last
// flow, and a network with little traffic shows one source.
func (x *flowIndex) claim(proto uint8, remote netip.AddrPort, ep endpoint, at *flowKey) error {
	f := family(remote.Addr())
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return fmt.Errorf("the NIC was removed: %w", netx.ErrNoRoute)
	}
	sources := x.sources[f]
	if len(sources) == 0 {
		return errors.New("the NIC has no source address of that family")
	}
	key, ports := flowKey{proto: proto, remote: remote}, x.ports
	for range uint32(len(sources)) * ports {
		i := x.next[f]
		x.next[f] = (i + 1) % (uint32(len(sources)) * ports)
		i %= uint32(len(sources)) * ports
		key.local = netip.AddrPortFrom(sources[i/ports], uint16(firstPort+i%ports))
		if _, taken := x.flows[key]; !taken {
			x.enterLocked(key, ep)
			*at = key
			return nil
		}
	}
	return fmt.Errorf("all %d ports of %d source addresses are in use towards it: %w",
		ports, len(sources), syscall.EADDRNOTAVAIL)
}

// remove takes ep out, unless the key has another flow by now, and reports
// whether it did.
func (x *flowIndex) remove(key flowKey, ep endpoint) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.flows[key] != ep {
		return false
	}
	delete(x.flows, key)
	if host := key.remote.Addr(); x.hosts != nil {
		if x.hosts[host]--; x.hosts[host] == 0 {
			delete(x.hosts, host)
		}
	}
	return true
}

func (x *flowIndex) find(key flowKey) endpoint {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.flows[key]
}

func (x *flowIndex) len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.flows)
}

// matching returns the flows that match says yes to; nil matches all.
func (x *flowIndex) matching(match func(local, remote netip.AddrPort) bool) []endpoint {
	x.mu.Lock()
	defer x.mu.Unlock()
	var found []endpoint
	for key, ep := range x.flows {
		if match == nil || match(key.local, key.remote) {
			found = append(found, ep)
		}
	}
	return found
}

// close refuses new flows and returns those that are left.
func (x *flowIndex) close() []endpoint {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	return x.matching(nil)
}
