package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
)

// Policies of SetSteering, between the connectors that may carry a new flow.
const (
	// LeastConnections takes the one with the fewest flows, of those that
	// answer echoes. It is the default.
	LeastConnections = "least_connections"
	// Failover takes the first in a given order.
	Failover = "failover"
)

// steering is how a network chooses between replicas. It is immutable.
type steering struct {
	policy string
	rank   map[string]int // place in the order of Failover, by name
}

var leastConnections = &steering{policy: LeastConnections}

// SetSteering changes how new flows, and pings, choose between connectors that
// serve the same prefix: LeastConnections (also where policy is empty), or
// Failover, which takes the first live connector in order that does not drain
// and is not held; those whose name is not in order come behind it, by name. A
// name may be one that has yet to come. Flows that are there stay where they
// are; new ones go back to the first once it lives again.
func (n *Network) SetSteering(policy string, order []string) error {
	s := &steering{policy: policy}
	switch policy {
	case "", LeastConnections:
		if len(order) > 0 {
			return fmt.Errorf("setting the steering of network %q: an order is for %q alone", n.name, Failover)
		}
		s = leastConnections
	case Failover:
		s.rank = make(map[string]int, len(order))
		for i, name := range order {
			if _, twice := s.rank[name]; twice {
				return fmt.Errorf("setting the steering of network %q: %q is in the order twice", n.name, name)
			}
			s.rank[name] = i
		}
	default:
		return fmt.Errorf("setting the steering of network %q: %q is no policy: write %q or %q", n.name, policy, LeastConnections, Failover)
	}
	n.steering.Store(s)
	return nil
}

// Steering returns what SetSteering has set.
func (n *Network) Steering() (policy string, order []string) {
	s := n.steering.Load()
	for name := range s.rank {
		order = append(order, name)
	}
	slices.SortFunc(order, func(a, b string) int { return s.rank[a] - s.rank[b] })
	return s.policy, order
}

// place is where p stands in the order; without an order all stand together.
func (s *steering) place(p *Peer) int {
	if s.policy != Failover {
		return 0
	}
	if i, ok := s.rank[p.name]; ok {
		return i
	}
	return len(s.rank)
}

// prefers reports whether a new flow should rather go through p than through
// q, which stands where p does and may have it as well.
func (s *steering) prefers(p, q *Peer) bool {
	if s.policy == Failover {
		return p.name < q.name
	}
	return p.better(q)
}

// choose takes one of the replicas of a prefix for a new flow; nil where none
// may have it. It begins at another each time, which breaks ties.
func (n *Network) choose(replicas []*Peer) *Peer {
	var best *Peer
	bestPlace := 0
	s := n.steering.Load()
	start := int(n.turn.Add(1) % uint32(max(1, len(replicas))))
	for i := range replicas {
		p := replicas[(start+i)%len(replicas)]
		if !p.takes() {
			continue
		}
		place := s.place(p)
		if best == nil || place < bestPlace || place == bestPlace && s.prefers(p, best) {
			best, bestPlace = p, place
		}
	}
	return best
}

// takes reports whether p may be given a new flow.
func (p *Peer) takes() bool { return !p.Draining() && !p.held.Load() && p.open.Load() }

// servedBeside reports whether a connector other than p may be given a new flow
// to dst.
func (n *Network) servedBeside(p *Peer, dst netip.Addr) bool {
	for _, replicas := range n.table.Load().Supernets(netip.PrefixFrom(dst, dst.BitLen())) {
		for _, q := range replicas {
			if q != p && q.takes() {
				return true
			}
		}
	}
	return false
}

// abortReplaceable ends those flows of p, which has died, whose clients find
// another connector in its place when they come again. The others wait for p,
// until abandonAfter: nobody else would have them.
func (p *Peer) abortReplaceable() {
	// Under the lock of the NIC's index: no counting of flows in here.
	p.abortFlows(func(_, remote netip.AddrPort) bool { return p.network.servedBeside(p, remote.Addr()) })
}

// better reports whether p has less to carry than q. It prefers peers that
// answer: one that has missed an echo may be dying, and a flow given to it would
// wait to find out.
func (p *Peer) better(q *Peer) bool {
	if ps, qs := p.suspect.Load(), q.suspect.Load(); ps != qs {
		return qs
	}
	return p.Flows() < q.Flows()
}
