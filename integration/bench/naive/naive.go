// Package naive is the yardstick of the benchmark: a proxy over userspace
// WireGuard as it is usually written, from upstream's tun/netstack, upstream's
// default Bind and io.Copy at both ends. wireproxy and newt are that.
//
// Edge and Connector each run until their context ends, in a process each.
//
// The package must never be made faster than what people run: it is what
// Warren's figures are divided by.
package naive

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Inner addresses of the two ends.
var (
	edgeInner      = netip.MustParseAddr("10.99.0.1")
	connectorInner = netip.MustParseAddr("10.99.0.2")
)

// wireGuardPort is where the edge listens.
const wireGuardPort = 51820

// overhead is what WireGuard adds to a packet over IPv6 (40 + 8 + 32 bytes),
// which wg-quick and wireproxy reserve whatever the outer protocol is.
const overhead = 80

// Spec is one end. It travels as JSON.
type Spec struct {
	PrivateKey wgtypes.Key
	PeerKey    wgtypes.Key
	MTU        int            // of the path
	Edge       netip.AddrPort // connector: where the edge's WireGuard is
	Public     netip.Addr     // edge: where clients come
	Origin     netip.Addr     // connector: what it serves
	TCP, UDP   []uint16       // ports, the same on every stretch
}

// WireGuard is the edge's WireGuard address on a host.
func WireGuard(host netip.Addr) netip.AddrPort { return netip.AddrPortFrom(host, wireGuardPort) }

// NewKeys makes the keys of two ends.
func NewKeys() (edge, connector wgtypes.Key, err error) {
	if edge, err = wgtypes.GeneratePrivateKey(); err != nil {
		return
	}
	connector, err = wgtypes.GeneratePrivateKey()
	return
}

// join makes a device on a netstack of its own. more is UAPI of the peer.
func join(s Spec, inner, peer netip.Addr, more string) (*device.Device, *netstack.Net, error) {
	tun, stack, err := netstack.CreateNetTUN([]netip.Addr{inner}, nil, s.MTU-overhead)
	if err != nil {
		return nil, nil, fmt.Errorf("making a netstack: %w", err)
	}
	dev := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	err = dev.IpcSet(fmt.Sprintf("private_key=%s\n%spublic_key=%s\nallowed_ip=%s/32\n%s",
		hex.EncodeToString(s.PrivateKey[:]), listen(s), hex.EncodeToString(s.PeerKey[:]), peer, more))
	if err == nil {
		err = dev.Up()
	}
	if err != nil {
		dev.Close()
		return nil, nil, fmt.Errorf("configuring WireGuard: %w", err)
	}
	return dev, stack, nil
}

func listen(s Spec) string {
	if s.Edge.IsValid() {
		return ""
	}
	return fmt.Sprintf("listen_port=%d\n", wireGuardPort)
}

// Edge takes clients and carries each through the tunnel to the connector.
// ready is called once it listens.
func Edge(ctx context.Context, s Spec, ready func()) error {
	dev, stack, err := join(s, edgeInner, connectorInner, "")
	if err != nil {
		return err
	}
	defer dev.Close()
	p := newProxy(ctx)
	defer p.close()
	for _, port := range s.TCP {
		to := netip.AddrPortFrom(connectorInner, port)
		if err := p.tcp(kernel{}, netip.AddrPortFrom(s.Public, port), tunnel{stack}, to); err != nil {
			return err
		}
	}
	for _, port := range s.UDP {
		to := netip.AddrPortFrom(connectorInner, port)
		if err := p.udp(kernel{}, netip.AddrPortFrom(s.Public, port), tunnel{stack}, to); err != nil {
			return err
		}
	}
	ready()
	<-ctx.Done()
	return nil
}

// Connector calls the edge and carries what comes through the tunnel to the
// origin.
func Connector(ctx context.Context, s Spec, ready func()) error {
	dev, stack, err := join(s, connectorInner, edgeInner,
		fmt.Sprintf("endpoint=%s\npersistent_keepalive_interval=1\n", s.Edge))
	if err != nil {
		return err
	}
	defer dev.Close()
	p := newProxy(ctx)
	defer p.close()
	for _, port := range s.TCP {
		if err := p.tcp(tunnel{stack}, netip.AddrPortFrom(connectorInner, port), kernel{}, netip.AddrPortFrom(s.Origin, port)); err != nil {
			return err
		}
	}
	for _, port := range s.UDP {
		if err := p.udp(tunnel{stack}, netip.AddrPortFrom(connectorInner, port), kernel{}, netip.AddrPortFrom(s.Origin, port)); err != nil {
			return err
		}
	}
	ready()
	<-ctx.Done()
	return nil
}
