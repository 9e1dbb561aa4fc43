package tunnel

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// TestSilentRouterIsGreeted: a WireGuard router of another make answers echoes
// but sends nothing on its own but keepalives.
func TestSilentRouterIsGreeted(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	key := newKey(t)
	p, err := n.AddConnector(ConnectorConfig{Name: "router", PublicKey: key.PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	tun, _, err := netstack.CreateNetTUN([]netip.Addr{p.Overlay()}, nil, 1420)
	if err != nil {
		t.Fatal(err)
	}
	router := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(router.Close)
	edgeKey := e.PublicKey()
	if err := router.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=%s/128\npersistent_keepalive_interval=5\n",
		hex.EncodeToString(key[:]), hex.EncodeToString(edgeKey[:]), e.addr(), e.Overlay())); err != nil {
		t.Fatal(err)
	}
	if err := router.Up(); err != nil {
		t.Fatal(err)
	}
	e.await(t, "the router is found alive", p.Alive)
	e.await(t, "a round trip is measured", func() bool { return p.State().RTT > 0 })
}
