package tunnel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
)

// innerSourcesPerNIC is how many addresses of the inner block a NIC holds.
// Ports are reserved without regard to the destination, some 49,500 a source,
// so four carry 198,000 flows through one connector.
const innerSourcesPerNIC = 4

// Network is one virtual network of an edge: a stack, and the connectors that
// serve its routes. Its methods may be called concurrently.
type Network struct {
	name   string
	tunnel *Tunnel
	turn   atomic.Uint32 // breaks ties between replicas

	steering atomic.Pointer[steering] // between replicas

	clientSources atomic.Bool // see SetClientSources

	// rest.go: the stack is there while there is something to carry.
	stackMu sync.Mutex                     // held while the stack, and NICs in it, are made and put to rest
	stack   atomic.Pointer[netstack.Stack] // nil: the network is at rest
	dials   int                            // under way
	busy    time.Time                      // when it last was seen to carry something
	ended   bool
	resting atomic.Bool // the stack goes, and the links stay

	mu     sync.Mutex
	peers  []*Peer
	closed bool
	// table maps each route to the connectors that were granted it; it is
	// replaced whole.
	table atomic.Pointer[bart.Table[[]*Peer]]
}

// ConnectorConfig describes a connector to the edge.
type ConnectorConfig struct {
	Name         string
	PublicKey    wgtypes.Key
	PresharedKey wgtypes.Key    // zero: none
	Routes       []netip.Prefix // what it serves
}

// EdgeConfig describes an edge to the connector.
type EdgeConfig struct {
	Name         string
	PublicKey    wgtypes.Key
	PresharedKey wgtypes.Key    // zero: none
	Endpoint     netip.AddrPort // where it listens; may be set later
}

// AddNetwork makes a network; its name must be new.
func (t *Tunnel) AddNetwork(name string) (*Network, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	if _, taken := t.networks[name]; taken {
		return nil, fmt.Errorf("adding network %q: the name is in use already", name)
	}
	n := &Network{name: name, tunnel: t}
	n.clientSources.Store(true)
	n.steering.Store(leastConnections)
	n.table.Store(new(bart.Table[[]*Peer]))
	t.networks[name] = n
	return n, nil
}

// AddEdge adds an edge, at a connector. The edge's stack accepts nothing until
// its forwarders are set; the first handshake begins at once if the endpoint
// is known.
func (t *Tunnel) AddEdge(cfg EdgeConfig) (*Peer, error) {
	st, err := netstack.New(netstack.Config{Promiscuous: true, Shared: t.shared})
	if err != nil {
		return nil, fmt.Errorf("adding edge %q: %w", cfg.Name, err)
	}
	p := &Peer{tunnel: t, name: cfg.Name, initiate: true, stack: st}
	if err := t.newPeer(p, t.newSession(cfg.PublicKey, cfg.PresharedKey), cfg.Endpoint); err != nil {
		st.Close()
		return nil, err
	}
	return p, nil
}

// Name is the network's name.
func (n *Network) Name() string { return n.name }

// AddConnector adds a connector. Its key must be new in the whole tunnel
// (ErrKnownKey), and its routes must not overlap the inner sources.
func (n *Network) AddConnector(cfg ConnectorConfig) (*Peer, error) {
	if err := n.tunnel.checkRoutes(cfg.Routes); err != nil {
		return nil, fmt.Errorf("adding connector %q to network %q: %w", cfg.Name, n.name, err)
	}
	p := &Peer{tunnel: n.tunnel, name: cfg.Name, network: n}
	p.routes.Store(newRouteSet(cfg.Routes))
	s := n.tunnel.newSession(cfg.PublicKey, cfg.PresharedKey)
	if err := n.tunnel.newPeer(p, s, netip.AddrPort{}); err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.peers = append(n.peers, p)
	n.rebuildLocked()
	n.mu.Unlock()
	return p, nil
}

// checkRoutes refuses routes that would take in an inner source or an overlay
// address: the default route excepted, which never covers them (the check of
// each packet sees to it).
func (t *Tunnel) checkRoutes(routes []netip.Prefix) error {
	for _, r := range routes {
		for _, own := range []netip.Prefix{t.checker.sources4, t.checker.sources6, OverlayPrefix} {
			if r.Bits() != 0 && r.Overlaps(own) {
				return fmt.Errorf("route %s overlaps %s, which the edge uses itself", r, own)
			}
		}
	}
	return nil
}

// sourceAddrs returns the inner sources that a NIC gets.
func (t *Tunnel) sourceAddrs() []netip.Addr {
	var addrs []netip.Addr
	for _, block := range []netip.Prefix{t.checker.sources4, t.checker.sources6} {
		a := block.Masked().Addr()
		for range innerSourcesPerNIC {
			if a = a.Next(); !block.Contains(a) {
				break
			}
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// SetRoutes changes what a connector may speak for, and aborts its flows to
// destinations that no longer are.
func (p *Peer) SetRoutes(routes []netip.Prefix) error {
	if err := p.tunnel.checkRoutes(routes); err != nil {
		return fmt.Errorf("changing the routes of connector %q: %w", p.name, err)
	}
	set := newRouteSet(routes)
	p.routes.Store(set)
	p.network.mu.Lock()
	p.network.rebuildLocked()
	p.network.mu.Unlock()
	p.abortFlows(func(_, remote netip.AddrPort) bool { return !set.contains(remote.Addr()) })
	return nil
}

// Routes returns what the connector may speak for.
func (p *Peer) Routes() []netip.Prefix { return p.routes.Load().prefixes }

func (n *Network) forget(p *Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, q := range n.peers {
		if q == p {
			n.peers = append(n.peers[:i:i], n.peers[i+1:]...)
			break
		}
	}
	n.rebuildLocked()
}

func (n *Network) rebuildLocked() {
	table := new(bart.Table[[]*Peer])
	for _, p := range n.peers {
		for _, r := range p.Routes() {
			have, _ := table.Get(r)
			table.Insert(r, append(have[:len(have):len(have)], p))
		}
	}
	n.table.Store(table)
}

// Peers returns the network's connectors, in the order they were added.
func (n *Network) Peers() []*Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]*Peer(nil), n.peers...)
}

// Pick chooses the connector for a new flow to dst: among the live ones that
// do not drain and are not held, those of the longest prefix, of these the one
// with the fewest flows, or what SetSteering says. It returns nil where there
// is none.
func (n *Network) Pick(dst netip.Addr) *Peer {
	table := n.table.Load()
	host := netip.PrefixFrom(dst, dst.BitLen())
	for _, replicas := range table.Supernets(host) { // the longest prefix first
		if p := n.choose(replicas); p != nil {
			return p
		}
	}
	return nil
}

// Dial opens a flow to dst through a connector and says through which. Its
// errors wrap those of netx: ErrNoRoute where no live connector serves dst
// (the Peer is nil then), or where the connector dies before the far end has
// answered (another may serve it).
func (n *Network) Dial(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, *Peer, error) {
	return n.DialFor(ctx, network, netip.AddrPort{}, dst)
}

// DialFor is Dial for the flow of a client, whose own address is the inner
// source where that can be; see Peer.source.
func (n *Network) DialFor(ctx context.Context, network string, client, dst netip.AddrPort) (net.Conn, *Peer, error) {
	p := n.Pick(dst.Addr())
	if p == nil {
		return nil, nil, fmt.Errorf("dialling %q in network %q: %w", dst, n.name, netx.ErrNoRoute)
	}
	conn, err := p.dial(ctx, network, client, dst)
	if err != nil {
		return nil, p, fmt.Errorf("dialling %q in network %q through %q: %w", dst, n.name, p.name, err)
	}
	return conn, p, nil
}

// dial opens a flow through p, and gives up when p dies.
func (p *Peer) dial(ctx context.Context, network string, client, dst netip.AddrPort) (net.Conn, error) {
	nic, err := p.enter()
	if err != nil {
		return nil, err
	}
	defer p.leave()
	from := p.source(client, dst)
	here := p.here.Load()
	if here == nil || here.Err() != nil { // it has just come: watch does not know yet
		return nic.DialFrom(ctx, network, from, dst)
	}
	return dialWhile(here, ctx, nic, network, from, dst)
}

// Close removes the network's connectors and its stack; flows are aborted.
func (n *Network) Close() {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.closed = true
	peers := append([]*Peer(nil), n.peers...)
	n.mu.Unlock()
	for _, p := range peers {
		p.Remove()
	}
	n.end()
	n.tunnel.mu.Lock()
	delete(n.tunnel.networks, n.name)
	n.tunnel.mu.Unlock()
}
