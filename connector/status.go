package connector

import "golang.zx2c4.com/wireguard/wgctrl/wgtypes"

// Status is what a Connector is doing.
type Status struct {
	PublicKey          wgtypes.Key // zero before Run
	Draining           bool
	TCPFlows, UDPFlows int
	Edges              []EdgeStatus
}

// EdgeStatus is one edge in a Status.
type EdgeStatus struct {
	URL   string // the first one
	State State
	// Name and Network are what the edge calls this connector and what it
	// serves there; empty where the edge never said.
	Name, Network string
	// Revision of the edge's grant; 0: none came in this run.
	Revision uint64
	// Controlled: the edge answers this connector's reports.
	Controlled bool
	// Gone says why the edge is served no more; empty: it is.
	Gone string
}

// Status returns what the Connector is doing now.
func (c *Connector) Status() Status {
	c.mu.Lock()
	s := Status{}
	if c.key != (wgtypes.Key{}) {
		s.PublicKey = c.key.PublicKey()
	}
	c.mu.Unlock()
	s.Draining = c.flows.isDraining()
	s.TCPFlows, s.UDPFlows = c.flows.count("tcp"), c.flows.count("udp")
	for _, e := range c.list() {
		s.Edges = append(s.Edges, e.status())
	}
	return s
}

func (e *edge) status() EdgeStatus {
	s := EdgeStatus{URL: e.name(), State: e.state()}
	s.Controlled, _, _ = e.ctl.status()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.member != nil {
		s.Name, s.Network = e.member.Name, e.member.Network
	}
	if e.grant.revision != 0 {
		s.Name, s.Network, s.Revision = e.grant.name, e.grant.network, e.grant.revision
	}
	if e.gone != nil {
		s.Gone = e.gone.Error()
	}
	return s
}

// Ready tells whether an edge is joined and new flows are taken.
func (s Status) Ready() bool {
	if s.Draining {
		return false
	}
	for _, e := range s.Edges {
		if e.State.Alive {
			return true
		}
	}
	return false
}
