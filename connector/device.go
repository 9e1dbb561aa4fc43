package connector

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// device is the real Tunnel: netstack/tunnel in the connector's terms.
type device struct {
	*tunnel.Tunnel

	mu      sync.Mutex
	onState map[wgtypes.Key]func(State)
}

// openTunnel opens the WireGuard device of a connector.
func openTunnel(cfg TunnelConfig) (Tunnel, error) {
	d := &device{onState: make(map[wgtypes.Key]func(State))}
	t, err := tunnel.New(tunnel.Config{
		PrivateKey: cfg.PrivateKey,
		Listen:     cfg.Listen,
		OnPeer:     d.changed,
		Log:        cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	d.Tunnel = t
	return d, nil
}

// changed passes on the news of a peer.
func (d *device) changed(p *tunnel.Peer, s tunnel.PeerState) {
	d.mu.Lock()
	tell := d.onState[p.PublicKey()]
	d.mu.Unlock()
	if tell != nil {
		tell(stateOf(s))
	}
}

// Join implements Tunnel. The forwarders are set before the edge can have
// answered the first handshake.
func (d *device) Join(cfg JoinConfig) (Peer, error) {
	if !d.remember(cfg) {
		return nil, tunnel.ErrKnownKey
	}
	p, err := d.AddEdge(tunnel.EdgeConfig{Name: cfg.Name, PublicKey: cfg.PublicKey, PresharedKey: cfg.PresharedKey, Endpoint: cfg.Endpoint})
	if err != nil {
		d.forget(cfg.PublicKey)
		return nil, err
	}
	if err := d.forward(p, cfg); err != nil {
		d.forget(cfg.PublicKey)
		p.Remove()
		return nil, err
	}
	return devicePeer{p, d}, nil
}

// forward hands what the edge asks for to cfg's handlers.
func (d *device) forward(p *tunnel.Peer, cfg JoinConfig) error {
	if cfg.TCP != nil {
		handle := func(r *netstack.TCPRequest) { cfg.TCP(tcpSYN{r}) }
		if err := p.Stack().ForwardTCP(netstack.ForwardTCPConfig{Handler: handle}); err != nil {
			return err
		}
	}
	if cfg.UDP != nil {
		handle := func(r *netstack.UDPRequest) { cfg.UDP(udpFirst{r}) }
		if err := p.Stack().ForwardUDP(netstack.ForwardUDPConfig{Handler: handle}); err != nil {
			return err
		}
	}
	if cfg.Ping != nil {
		handle := func(ctx context.Context, src, dst netip.Addr, _ int) error { return cfg.Ping(ctx, src, dst) }
		if err := p.Stack().ForwardPing(netstack.ForwardPingConfig{Handler: handle}); err != nil {
			return err
		}
	}
	return nil
}

// remember notes who wants the news of an edge; false where the edge is joined
// already.
func (d *device) remember(cfg JoinConfig) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.onState[cfg.PublicKey]; known {
		return false
	}
	d.onState[cfg.PublicKey] = cfg.OnState
	return true
}

func (d *device) forget(key wgtypes.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.onState, key)
}

// Dial implements Tunnel.
func (d *device) Dial(ctx context.Context, overlay netip.AddrPort) (net.Conn, error) {
	return d.DialOverlay(ctx, overlay)
}

// devicePeer is a tunnel's peer in the connector's terms.
type devicePeer struct {
	p *tunnel.Peer
	d *device
}

func (p devicePeer) SetEndpoint(a netip.AddrPort) error { return p.p.SetEndpoint(a) }
func (p devicePeer) State() State                       { return stateOf(p.p.State()) }
func (p devicePeer) Overlay() netip.Addr                { return p.p.Overlay() }

func (p devicePeer) Remove() {
	p.p.Remove()
	p.d.forget(p.p.PublicKey())
}

func stateOf(s tunnel.PeerState) State {
	return State{
		Alive:         s.Alive,
		Draining:      s.Draining,
		Left:          s.Left,
		RTT:           s.RTT,
		LastHandshake: s.LastHandshake,
		Endpoint:      netip.AddrPortFrom(s.Endpoint.Addr().Unmap(), s.Endpoint.Port()),
		RxBytes:       s.RxBytes,
		TxBytes:       s.TxBytes,
		PathMTU:       s.PathMTU,
		Flows:         s.Flows,
	}
}

// tcpSYN and udpFirst widen the conns that Accept returns to interfaces.
type tcpSYN struct{ *netstack.TCPRequest }

func (r tcpSYN) Accept() (net.Conn, error) {
	c, err := r.TCPRequest.Accept()
	if err != nil {
		return nil, err // not a conn that holds a nil
	}
	return c, nil
}

type udpFirst struct{ *netstack.UDPRequest }

func (r udpFirst) Accept() (UDPConn, error) {
	c, err := r.UDPRequest.Accept()
	if err != nil {
		return nil, err
	}
	return c, nil
}
