package connector

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
)

// maxURLs is how many addresses of an edge are kept of those that it tells.
const maxURLs = 8

// grant is what an edge lets this connector do and wants of it: a wire.Grant,
// read and checked.
type grant struct {
	revision       uint64 // 0: none was received in this run
	name, network  string
	routes         *routes
	maxTCP, maxUDP int
	urls           []EdgeURL // where the edge listens; nil: it does not tell
	drain, rotate  bool
	work           bool // there is some besides flows
}

// readGrant reads what the edge with that key answered. The error says what
// makes no sense; nothing of such an answer is used.
func readGrant(a wire.SyncAnswer, edge wgtypes.Key) (grant, error) {
	g := grant{
		revision: a.Revision,
		name:     plain(a.Grant.Name, wire.MaxName),
		network:  plain(a.Grant.Network, wire.MaxName),
		maxTCP:   a.Grant.MaxTCPFlows,
		maxUDP:   a.Grant.MaxUDPFlows,
		urls:     toldURLs(a.Grant.Edges, edge),
		drain:    a.Grant.Drain,
		rotate:   a.Grant.Rotate,
		work:     a.Grant.Work,
	}
	if g.revision == 0 {
		return grant{}, errors.New("reading a grant: it has no revision")
	}
	if n := len(a.Grant.Routes); n > wire.MaxRoutes {
		return grant{}, fmt.Errorf("reading a grant: %d routes are more than %d", n, wire.MaxRoutes)
	}
	list := make([]netip.Prefix, 0, len(a.Grant.Routes))
	for i, p := range a.Grant.Routes {
		if !p.IsValid() || p.Addr().Is4In6() {
			return grant{}, fmt.Errorf("reading a grant: route %d is no prefix", i)
		}
		list = append(list, p.Masked())
	}
	g.routes = newRoutes(list)
	for _, n := range []*int{&g.maxTCP, &g.maxUDP} {
		switch {
		case *n < 0:
			return grant{}, fmt.Errorf("reading a grant: %d flows cannot be", *n)
		case *n == 0: // our own limits alone
			*n = math.MaxInt
		}
	}
	return g, nil
}

// toldURLs are the addresses that edges holds of the one with that key. Other
// edges are joined by tokens and by the operator's hand, not by hearsay; and
// an address that this release cannot read does not spoil the others.
func toldURLs(edges []wire.Edge, key wgtypes.Key) (urls []EdgeURL) {
	for _, e := range edges {
		if e.PublicKey.Key != key {
			continue
		}
		for _, text := range e.URLs {
			u, err := ParseEdgeURL(text)
			if err == nil && len(urls) < maxURLs && !slices.Contains(urls, u) {
				urls = append(urls, u)
			}
		}
	}
	return urls
}

// routes are the prefixes that an edge lets this connector serve. Nil: any.
type routes struct {
	table bart.Lite
	list  []netip.Prefix
}

func newRoutes(list []netip.Prefix) *routes {
	r := &routes{list: list}
	for _, p := range list {
		r.table.Insert(p)
	}
	return r
}

// hold tells whether a is in one of the routes.
func (r *routes) hold(a netip.Addr) bool { return r == nil || r.table.Contains(a.Unmap()) }

// String is the first few routes.
func (r *routes) String() string {
	const shown = 8
	switch {
	case r == nil:
		return "any"
	case len(r.list) == 0:
		return "none"
	case len(r.list) > shown:
		return fmt.Sprintf("%v and %d more", r.list[:shown], len(r.list)-shown)
	}
	return fmt.Sprint(r.list)
}

// same tells whether other lets the same be, whatever its revision. Routes are
// compared as the edge orders them.
func (g grant) same(other grant) bool {
	return g.name == other.name && g.network == other.network &&
		g.maxTCP == other.maxTCP && g.maxUDP == other.maxUDP && g.drain == other.drain &&
		other.routes != nil && slices.Equal(g.routes.list, other.routes.list) && slices.Equal(g.urls, other.urls)
}

// apply makes g what the edge lets be, from this moment on: flows that it does
// not cover are cut, the others do not notice.
//
// Before the first grant of a run there are no routes: the guard's word alone
// holds then, and that of the edge, which sends nothing for others. It is the
// time of one exchange through the tunnel.
func (e *edge) apply(g grant) {
	if !g.drain {
		e.quiet.Store(false)
	}
	e.mu.Lock()
	before := e.grant
	e.grant = g
	e.mu.Unlock()
	if g.same(before) {
		return
	}
	e.flows.limit(g.maxTCP, g.maxUDP)
	cut := e.flows.restrict(g.routes)
	e.log.Info("granted", "name", g.name, "network", g.network, "routes", g.routes, "cut_flows", cut)
	e.moved(g.urls)
	switch {
	case g.drain && !before.drain:
		e.flows.drain()
		e.log.Warn("draining", "reason", "the edge's operator wants this connector to leave", "flows", e.flows.total())
	case !g.drain && before.drain:
		e.flows.resume()
		e.log.Info("draining no more", "reason", "the edge's operator ended the drain")
	}
	e.notify()
}

// granted returns the last grant.
func (e *edge) granted() grant {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.grant
}

// moved notes where the edge says that it listens, for the next resolution.
func (e *edge) moved(told []EdgeURL) {
	e.mu.Lock()
	same := len(told) == 0 || slices.Equal(told, e.told)
	if !same {
		e.told = told
	}
	e.mu.Unlock()
	if same {
		return
	}
	e.remember(func(m *state.Edge) { m.URLs = texts(told) })
}

// urls are where to look for the edge: where it said last, and where the run
// began; the other way round where its operator wrote that down.
func (e *edge) urls() []EdgeURL {
	e.mu.Lock()
	defer e.mu.Unlock()
	first, then := e.told, e.spec.URLs
	if e.declared {
		first, then = then, first
	}
	urls := slices.Clone(first)
	for _, u := range then {
		if !slices.Contains(urls, u) {
			urls = append(urls, u)
		}
	}
	return urls
}

func texts(urls []EdgeURL) (out []string) {
	for _, u := range urls {
		out = append(out, u.String())
	}
	return out
}
