package ingress

import "net/netip"

// census counts the flows of one listener, so that no source, and no flood of
// sources, has more of them than the listener's Spec allows. Its listener's
// mutex guards it.
type census struct {
	flows   int
	sources map[netip.Addr]int // flows of each source; none with 0
}

func newCensus() census { return census{sources: map[netip.Addr]int{}} }

// enter counts a flow of client, or says which bound of spec keeps it out. A
// bound that a reload lowered keeps new flows out and costs nobody the one
// that it has.
func (c *census) enter(client netip.Addr, spec *Spec) (why string) {
	source := sourceOf(client)
	switch {
	case c.flows >= spec.MaxFlows:
		return DropTableFull
	case c.sources[source] >= spec.MaxFlowsPerSource:
		return DropSourceFull
	}
	c.flows++
	c.sources[source]++
	return ""
}

// leave ends what enter counted, once for each flow.
func (c *census) leave(client netip.Addr) {
	source := sourceOf(client)
	c.flows--
	if c.sources[source]--; c.sources[source] <= 0 {
		delete(c.sources, source)
	}
}

// sourceOf is the unit in which sources are counted: who has one IPv6 address
// usually has its /64.
func sourceOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}
