package connector

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Tunnel is the WireGuard device that all of a connector's edges share. After
// Close its methods do nothing, and no handler is called any more.
type Tunnel interface {
	// Join adds an edge and starts to call it. It fails where the edge's key
	// cannot be a peer.
	Join(JoinConfig) (Peer, error)
	// Dial opens a TCP connection to a port of an edge's overlay address, the
	// one service that it has there for us. It fails, and a connection ends,
	// when that edge dies, is removed, or the tunnel closed.
	Dial(ctx context.Context, overlay netip.AddrPort) (net.Conn, error)
	// SetPrivateKey changes this end's key. Every edge is called anew; flows
	// go on where the edge knows the new key. Connections of Dial end.
	SetPrivateKey(key wgtypes.Key) error
	// SetDraining tells every edge that no new flow is wanted.
	SetDraining(bool)
	// Drops yields what the tunnel threw away, by place and reason.
	Drops(yield func(where, why string, n uint64))
	// Close says farewell to the edges and aborts every flow.
	Close()
}

// TunnelConfig is what a Tunnel is made of.
type TunnelConfig struct {
	PrivateKey wgtypes.Key
	Listen     netip.AddrPort // the zero value: any free port
	Log        *slog.Logger
}

// JoinConfig is one edge to join.
type JoinConfig struct {
	Name      string
	PublicKey wgtypes.Key
	// PresharedKey is the second factor of a bootstrap peer. Zero: none.
	PresharedKey wgtypes.Key
	Endpoint     netip.AddrPort
	// OnState is called after each change, in order, and does not block.
	OnState func(State)
	// TCP is called with each new connection, UDP with each new UDP flow, on
	// a goroutine that is the flow's own. A call should end soon after the
	// request's Context does; Close waits for it. Nil: none is taken.
	TCP func(TCPRequest)
	UDP func(UDPRequest)
	// Ping is called with each echo request, on a goroutine of its own: nil
	// answers it, an error tells the edge what it is among netx's. A call
	// should end soon after ctx does, which is when the edge is removed or the
	// tunnel closed; Close waits for it. Nil: nobody is reachable.
	Ping func(ctx context.Context, src, dst netip.Addr) error
}

// Peer is one edge that was joined.
type Peer interface {
	// SetEndpoint makes the tunnel call the edge at another address.
	SetEndpoint(netip.AddrPort) error
	// State is the state of the moment.
	State() State
	// Overlay is the edge's overlay address.
	Overlay() netip.Addr
	// Remove aborts the edge's flows and connections and forgets it. It must
	// not be called from OnState.
	Remove()
}

// State is what the tunnel knows of an edge.
type State struct {
	// Alive: authenticated packets came within the last 3 s.
	Alive bool
	// Draining: the edge said that it ends soon.
	Draining bool
	// Left: the edge said farewell; it is not Alive.
	Left bool
	// RTT is the last round trip of an echo; zero before the first.
	RTT time.Duration
	// LastHandshake is zero when none was ever made.
	LastHandshake time.Time
	// Endpoint is where the edge is called.
	Endpoint netip.AddrPort
	// RxBytes and TxBytes are what crossed the wire, encrypted.
	RxBytes, TxBytes uint64
	// PathMTU is the largest inner packet that fits; zero while unknown.
	PathMTU int
	// Flows that the tunnel carries for the edge. One that was closed counts
	// until its last bytes have reached the edge.
	Flows int
}

// TCPRequest is a connection that an edge wants. Either Accept or Reject must
// be called, once.
type TCPRequest interface {
	// Context ends when the edge is removed or the tunnel closed.
	Context() context.Context
	Source() netip.AddrPort
	Destination() netip.AddrPort
	// Accept completes the handshake. The conn is the caller's.
	Accept() (net.Conn, error)
	// Reject answers with what err is among netx's errors: RST for a refusal,
	// ICMP for the others.
	Reject(err error)
}

// UDPRequest is a UDP flow that an edge begins. Either Accept or Reject must
// be called, once; datagrams that come before are kept.
type UDPRequest interface {
	// Context ends when the edge is removed or the tunnel closed.
	Context() context.Context
	Source() netip.AddrPort
	Destination() netip.AddrPort
	// Accept returns the flow's conn, what has come so far queued on it.
	Accept() (UDPConn, error)
	// Reject answers the first datagram with an ICMP error.
	Reject(err error)
}

// UDPConn is a UDP flow's inner side: a datagram conn that can tell the edge
// that the origin is not there.
type UDPConn interface {
	net.Conn
	// Unreachable sends the ICMP error that err is among netx's errors, for
	// the flow's first packet. It works after Close, too.
	Unreachable(err error)
}
