package tunnel

import (
	"fmt"
	"time"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/link"
	"github.com/warrenmesh/warren/netstack/netx"
)

// A network at rest has no stack: gVisor's, with one NIC, is 26 KB of heap and
// stacks and a goroutine for each processor, and most networks of a large edge
// carry nothing at a given moment. The first dial makes it. What comes
// meanwhile is dropped and counted at the link ("detached"): a stack would
// refuse it too, which has no address of its own before the first dial.
const (
	// restAfter is how long a network has no flow before its stack goes:
	// longer than the monitors' intervals, which keep a network awake.
	restAfter = time.Minute
	// restEvery is how often watch looks for networks to be put to rest, and
	// restAtOnce how many it puts there a look: each takes it some 100 µs.
	restEvery  = 5 * time.Second
	restAtOnce = 64
)

// restingLink lets a NIC go without its link.
type restingLink struct {
	*link.Endpoint
	network *Network
}

// Close implements stack.LinkEndpoint. Nobody waits for room in the link of a
// network that goes to rest: it has no flow.
func (l restingLink) Close() {
	if !l.network.resting.Load() {
		l.Endpoint.Close()
	}
}

// enter returns the peer's NIC, which it makes where the network was at rest,
// and keeps the network awake until leave.
func (p *Peer) enter() (*netstack.NIC, error) {
	n := p.network
	n.stackMu.Lock()
	defer n.stackMu.Unlock()
	if p.detached || n.ended {
		return nil, fmt.Errorf("the connector was removed: %w", netx.ErrNoRoute)
	}
	nic := p.nic.Load()
	if nic == nil {
		var err error
		if nic, err = p.wakeLocked(); err != nil {
			return nil, err
		}
	}
	n.dials++
	return nic, nil
}

// leave ends what enter or withdraw began.
func (p *Peer) leave() {
	n := p.network
	n.stackMu.Lock()
	defer n.stackMu.Unlock()
	n.dials--
	n.busy = time.Now()
}

func (p *Peer) wakeLocked() (*netstack.NIC, error) {
	n := p.network
	st := n.stack.Load()
	if st == nil {
		var err error
		if st, err = netstack.New(netstack.Config{Shared: n.tunnel.shared}); err != nil {
			return nil, fmt.Errorf("waking network %q: %w", n.name, err)
		}
		n.stack.Store(st)
		n.busy = time.Now()
	}
	nic, err := st.AddNIC(netstack.NICConfig{Name: p.name, Link: restingLink{p.link, n}, Sources: n.tunnel.sourceAddrs()})
	if err != nil {
		return nil, fmt.Errorf("adding a NIC for %q: %w", p.name, err)
	}
	p.nic.Store(nic)
	return nic, nil
}

// abortFlows ends the flows that match says yes to.
func (p *Peer) abortFlows(match flowMatch) {
	if nic := p.nic.Load(); nic != nil {
		nic.AbortFlows(match)
	}
}

// withdraw keeps the peer from having a NIC made, and the network as it is
// until leave.
func (p *Peer) withdraw() {
	n := p.network
	n.stackMu.Lock()
	defer n.stackMu.Unlock()
	p.detached = true
	n.dials++
}

// rest takes the network's stack away where it has carried nothing for
// restAfter, and reports whether it did.
func (n *Network) rest(now time.Time) bool {
	n.stackMu.Lock()
	defer n.stackMu.Unlock()
	st := n.stack.Load()
	if st == nil || n.ended {
		return false
	}
	peers := n.Peers()
	if n.dials > 0 || carryAny(peers) {
		n.busy = now
	}
	if now.Sub(n.busy) < restAfter {
		return false
	}
	n.resting.Store(true)
	st.Close()
	n.resting.Store(false)
	for _, p := range peers {
		p.nic.Store(nil)
	}
	n.dropStack(st)
	return true
}

func carryAny(peers []*Peer) bool {
	for _, p := range peers {
		if p.Flows() > 0 || p.link.Len() > 0 {
			return true
		}
	}
	return false
}

// end closes the network's stack for good.
func (n *Network) end() {
	n.stackMu.Lock()
	n.ended = true
	n.stackMu.Unlock()
	if st := n.stack.Load(); st != nil {
		st.Close()
		n.dropStack(st)
	}
}

// dropStack takes over what st, which is closed, has counted.
func (n *Network) dropStack(st *netstack.Stack) {
	n.tunnel.goneMu.Lock()
	defer n.tunnel.goneMu.Unlock()
	st.Drops(func(_, why string, count uint64) { n.tunnel.goneStacks.Add(why, count) })
	n.stack.Store(nil)
}

// restNetworks puts networks to rest that have carried nothing for a while.
func (t *Tunnel) restNetworks(now time.Time) {
	rested := 0
	for _, n := range t.allNetworks() {
		if rested < restAtOnce && n.rest(now) {
			rested++
		}
	}
}

func (t *Tunnel) allNetworks() []*Network {
	t.mu.Lock()
	defer t.mu.Unlock()
	networks := make([]*Network, 0, len(t.networks))
	for _, n := range t.networks {
		networks = append(networks, n)
	}
	return networks
}
