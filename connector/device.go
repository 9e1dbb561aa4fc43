package connector

import (
	"net"
	"net/netip"
	"sync"
	"time"

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
	d.mu.Lock()
	d.onState[cfg.PublicKey] = cfg.OnState
	d.mu.Unlock()
	p, err := d.AddEdge(tunnel.EdgeConfig{Name: cfg.Name, PublicKey: cfg.PublicKey, Endpoint: cfg.Endpoint})
	if err != nil {
		return nil, err
	}
	if err := p.Stack().ForwardTCP(netstack.ForwardTCPConfig{Handler: func(r *netstack.TCPRequest) { cfg.TCP(tcpSYN{r}) }}); err != nil {
		p.Remove()
		return nil, err
	}
	if err := p.Stack().ForwardUDP(netstack.ForwardUDPConfig{Handler: func(r *netstack.UDPRequest) { cfg.UDP(udpFirst{r}) }}); err != nil {
		p.Remove()
		return nil, err
	}
	return devicePeer{p}, nil
}

// devicePeer is a tunnel's peer in the connector's terms.
type devicePeer struct{ p *tunnel.Peer }

func (p devicePeer) SetEndpoint(a netip.AddrPort) error { return p.p.SetEndpoint(a) }
func (p devicePeer) State() State                       { return stateOf(p.p.State()) }

// farewell is how short before its death an edge must have been heard to have
// said farewell: one that falls silent takes more than 2 s to be given up.
const farewell = time.Second

func stateOf(s tunnel.PeerState) State {
	return State{
		Alive:         s.Alive,
		Draining:      s.Draining,
		Left:          !s.Alive && !s.Since.IsZero() && s.Since.Sub(s.Heard) < farewell,
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
