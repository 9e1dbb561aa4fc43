package edge

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/edge/enroll"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// networks are the virtual networks of the tunnel and the peers in it: the
// connectors that the config in force declares, which a reload changes, and
// what the registry of enrolments puts there (peers.go). Flows look networks
// up at any time.
type networks struct {
	tunnel *tunnel.Tunnel
	denied func(wgtypes.Key) bool            // whose declared connector stays out
	moved  func(connector string, gone bool) // hears of changes that the tunnel does not tell

	mu       sync.RWMutex
	byName   map[string]*tunnel.Network
	peers    map[string]*tunnel.Peer // connectors by name
	enrolled map[string]bool         // those of them that the registry put there
	guests   map[wgtypes.Key]*tunnel.Guest

	own atomic.Pointer[map[netip.Addr]struct{}] // addresses of this machine, by the config in force
}

func (n *networks) init(t *tunnel.Tunnel, denied func(wgtypes.Key) bool, moved func(connector string, gone bool)) {
	n.tunnel, n.denied, n.moved = t, denied, moved
	n.byName = make(map[string]*tunnel.Network)
	n.peers = make(map[string]*tunnel.Peer)
	n.enrolled = make(map[string]bool)
	n.guests = make(map[wgtypes.Key]*tunnel.Guest)
}

func (n *networks) get(name string) *tunnel.Network {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.byName[name]
}

// network returns the network of that name, or nil.
func (e *Edge) network(name string) *tunnel.Network { return e.nets.get(name) }

// connectors returns the connectors, sorted by network and name.
func (n *networks) connectors() []*tunnel.Peer {
	n.mu.RLock()
	peers := slices.Collect(maps.Values(n.peers))
	n.mu.RUnlock()
	slices.SortFunc(peers, func(a, b *tunnel.Peer) int {
		if c := strings.Compare(a.NetworkName(), b.NetworkName()); c != 0 {
			return c
		}
		return strings.Compare(a.Name(), b.Name())
	})
	return peers
}

// netChange is a change of the networks that is prepared: what is new exists
// already, what goes is still there.
type netChange struct {
	nets    *networks
	next    *config.Config
	added   []*tunnel.Network
	joined  []*tunnel.Peer
	changes []string
}

// prepare adds the networks of next that are new, and the connectors whose
// name and key are new. On failure nothing has changed.
func (n *networks) prepare(next *config.Config) (*netChange, error) {
	c := &netChange{nets: n, next: next}
	for _, spec := range next.Connectors { // also of those that commit replaces, when it is too late
		if spec.PublicKey.Key == n.tunnel.PublicKey() {
			return nil, fmt.Errorf("adding connector %q: its public_key is this edge's own: write what the connector prints at its start", spec.Name)
		}
	}
	for _, spec := range next.Networks {
		if n.get(spec.Name) != nil {
			continue
		}
		added, err := n.tunnel.AddNetwork(spec.Name)
		if err != nil {
			c.rollback()
			return nil, err
		}
		c.added = append(c.added, added)
		n.set(spec.Name, added)
		c.changes = append(c.changes, fmt.Sprintf("network %q added", spec.Name))
	}
	for _, spec := range next.Connectors {
		if n.denied(spec.PublicKey.Key) || n.peer(spec.Name) != nil || n.keyInUse(spec.PublicKey.Key) {
			continue // it stays out, or commit changes or replaces it
		}
		if err := c.join(spec); err != nil {
			c.rollback()
			return nil, err
		}
	}
	return c, nil
}

func (c *netChange) join(spec config.Connector) error {
	p, err := c.nets.join(enroll.Member{Name: spec.Name, Network: spec.Network, PublicKey: spec.PublicKey.Key, Routes: spec.Routes}, false)
	if err != nil {
		return err
	}
	c.joined = append(c.joined, p)
	c.changes = append(c.changes, fmt.Sprintf("connector %q added", spec.Name))
	return nil
}

// rollback takes away what prepare added.
func (c *netChange) rollback() {
	for _, p := range c.joined {
		c.nets.remove(p)
	}
	for _, n := range c.added {
		c.nets.drop(n)
	}
}

// commit changes routes, replaces connectors whose key or network changed,
// and removes what the config no longer names; their flows are aborted. A
// replacement that fails is in the error; the rest is done all the same.
func (c *netChange) commit() (changes []string, failed []error) {
	wanted := make(map[string]config.Connector, len(c.next.Connectors))
	for _, spec := range c.next.Connectors {
		if c.nets.denied(spec.PublicKey.Key) {
			failed = append(failed, fmt.Errorf("adding connector %q: its key was revoked: remove it from the config, or give it a new key", spec.Name))
			continue
		}
		wanted[spec.Name] = spec
	}
	for _, p := range c.nets.connectors() {
		if c.nets.isEnrolled(p.Name()) {
			continue
		}
		spec, stays := wanted[p.Name()]
		if stays && spec.PublicKey.Key == p.PublicKey() && spec.Network == p.NetworkName() {
			if !slices.Equal(spec.Routes, p.Routes()) {
				if err := c.nets.SetRoutes(spec.Name, spec.Routes); err != nil {
					failed = append(failed, err)
				}
				c.changes = append(c.changes, fmt.Sprintf("connector %q: routes changed", p.Name()))
			}
			continue
		}
		c.nets.remove(p)
		if !stays {
			c.changes = append(c.changes, fmt.Sprintf("connector %q removed", p.Name()))
		}
	}
	for _, spec := range c.next.Connectors {
		if _, stays := wanted[spec.Name]; stays && c.nets.peer(spec.Name) == nil {
			if err := c.join(spec); err != nil {
				failed = append(failed, err)
			}
		}
	}
	for _, n := range c.nets.unnamed(c.next.Networks) {
		c.nets.drop(n)
		c.changes = append(c.changes, fmt.Sprintf("network %q removed", n.Name()))
	}
	c.nets.sources(c.next)
	return c.changes, failed
}

// sources takes in what the config says of the addresses that flows come from.
func (n *networks) sources(next *config.Config) {
	own := make(map[netip.Addr]struct{})
	for _, a := range next.Addresses {
		for _, addr := range slices.Concat(a.Advertise, a.Bind) {
			own[addr.Unmap()] = struct{}{}
		}
	}
	n.own.Store(&own)
	for _, spec := range next.Networks {
		if network := n.get(spec.Name); network != nil {
			network.SetClientSources(spec.ClientSource)
			_ = network.SetSteering(spec.Steering, spec.Replicas) // the config's own check is as strict
		}
	}
}

// isOwn reports whether a is an address of this machine.
func (n *networks) isOwn(a netip.Addr) bool {
	own := n.own.Load()
	if own == nil {
		return false
	}
	_, ok := (*own)[a]
	return ok
}

func (n *networks) set(name string, network *tunnel.Network) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.byName[name] = network
}

func (n *networks) peer(name string) *tunnel.Peer {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.peers[name]
}

func (n *networks) keyInUse(key wgtypes.Key) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, p := range n.peers {
		if p.PublicKey() == key {
			return true
		}
	}
	return false
}

func (n *networks) isEnrolled(name string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.enrolled[name]
}

// join puts a connector into its network; enrolled tells whether the registry
// does that, or a reload.
func (n *networks) join(m enroll.Member, enrolled bool) (*tunnel.Peer, error) {
	network := n.get(m.Network)
	if network == nil {
		return nil, fmt.Errorf("adding connector %q: there is no network %q", m.Name, m.Network)
	}
	if n.peer(m.Name) != nil {
		return nil, fmt.Errorf("adding connector %q: the name is taken", m.Name)
	}
	p, err := network.AddConnector(tunnel.ConnectorConfig{Name: m.Name, PublicKey: m.PublicKey, Routes: m.Routes})
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peers[m.Name] = p
	if enrolled {
		n.enrolled[m.Name] = true
	}
	return p, nil
}

// remove ends a connector and its flows.
func (n *networks) remove(p *tunnel.Peer) {
	n.take(p.Name())
	p.Remove()
}

// take takes a connector out of the names, and returns it; nil: there is none.
func (n *networks) take(name string) *tunnel.Peer {
	n.mu.Lock()
	p := n.peers[name]
	delete(n.peers, name)
	delete(n.enrolled, name)
	n.mu.Unlock()
	n.moved(name, true)
	return p
}

// drop ends a network and its connectors, enrolled ones too.
func (n *networks) drop(network *tunnel.Network) {
	n.mu.Lock()
	delete(n.byName, network.Name())
	n.mu.Unlock()
	for _, p := range network.Peers() {
		n.take(p.Name())
	}
	network.Close()
}

// unnamed returns the networks that specs do not name.
func (n *networks) unnamed(specs []config.Network) []*tunnel.Network {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var gone []*tunnel.Network
	for name, network := range n.byName {
		if !slices.ContainsFunc(specs, func(s config.Network) bool { return s.Name == name }) {
			gone = append(gone, network)
		}
	}
	return gone
}

// routesOf returns the routes of a network's connectors, each once, sorted.
func routesOf(peers []*tunnel.Peer) []netip.Prefix {
	var routes []netip.Prefix
	for _, p := range peers {
		routes = append(routes, p.Routes()...)
	}
	slices.SortFunc(routes, netip.Prefix.Compare)
	return slices.Compact(routes)
}
