package integration

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/origins"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// The private addresses of the site behind the router, in both families.
var (
	routedOrigin4 = netip.MustParseAddr("10.0.0.10")
	routedOrigin6 = netip.MustParseAddr("fd10::10")
)

// routerTables declare the router as any connector is declared, by its key.
const routerTables = `
[[address]]
name = "main"
advertise = ["203.0.113.10"]
[[network]]
name = "tokyo"
[[connector]]
name = "router"
network = "tokyo"
public_key = %q
routes = ["10.0.0.0/24", "fd10::/64"]
[[app]]
name = "web"
hostnames = ["web.example.com"]
listen = ["tcp/8082"]
origin = "tokyo/10.0.0.10:80"
[[app]]
name = "web6"
hostnames = ["web6.example.com"]
listen = ["tcp/8086"]
origin = "tokyo/[fd10::10]:80"
[[app]]
name = "echo"
hostnames = ["echo.example.com"]
listen = ["udp/7007"]
origin = "tokyo/10.0.0.10:7"
[[app]]
name = "echo6"
hostnames = ["echo6.example.com"]
listen = ["udp/7006"]
origin = "tokyo/[fd10::10]:7"
`

// TestRouterAsConnector puts a plain router in a connector's place, with
// nothing of Warren on it: another implementation of WireGuard with a TUN
// interface, configured through wgctrl, an ip6tnl over it, and forwarding. It
// serves apps over TCP and UDP, in IPv4 and in IPv6.
func TestRouterAsConnector(t *testing.T) {
	if tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		require.Missing(t, "the right to make a TUN interface: %v", err)
	} else {
		tun.Close()
	}
	warren := daemon.Find(t)
	d := &deployment{world: newWorld(t), warren: warren}
	d.edgeKey, d.tokyo1Key = warren.GenKey(t), warren.GenKey(t)
	d.edged = warren.StartEdge(t, d.edge, daemon.EdgeConfig{Name: "edge", Key: d.edgeKey, Listen: ":51820",
		Tables: fmt.Sprintf(routerTables, d.tokyo1Key.Public)})
	d.startRouter(t)
	d.waitConnectors(t, 1, 20*time.Second)

	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	for _, addr := range []netip.Addr{routedOrigin4, routedOrigin6} {
		origins.Nginx(t, d.tokyo, origins.NginxConfig{Addr: netip.AddrPortFrom(addr, 80),
			Files: map[string]string{"index.html": "behind a router at " + addr.String(), "big": big}})
		echoDatagrams(t, d.tokyo, netip.AddrPortFrom(addr, 7).String())
	}
	for _, test := range []struct {
		name      string
		web, echo uint16
		origin    netip.Addr
	}{{"4in6", 8082, 7007, routedOrigin4}, {"6in6", 8086, 7006, routedOrigin6}} {
		t.Run(test.name, func(t *testing.T) {
			if got, want := d.run(t, "curl", "curl", "-sS", "--max-time", "20", "http://"+at(test.web).String()+"/"), "behind a router at "+test.origin.String(); got != want {
				t.Errorf("the app served %q, want %q", got, want)
			}
			file := filepath.Join(t.TempDir(), "big")
			d.run(t, "curl", "curl", "-sS", "--max-time", "60", "-o", file, "http://"+at(test.web).String()+"/big")
			if got, err := os.ReadFile(file); err != nil || string(got) != big {
				t.Errorf("the large file came as %d bytes, want %d and the same", len(got), len(big))
			}
			for _, size := range []int{1, 1200, 4000} {
				if err := echoes(t.Context(), d.client, at(test.echo).String(), size); err != nil {
					t.Errorf("a datagram of %d bytes: %v", size, err)
				}
			}
		})
	}
}

// startRouter makes tokyo1 a router with a tunnel to the edge.
func (d *deployment) startRouter(t *testing.T) {
	t.Helper()
	const device = "warren-router" // also the name of a socket in /run, which hosts share
	own, edge := overlayOf(t, d.tokyo1Key.Public), overlayOf(t, d.edgeKey.Public)
	router := d.tokyo1
	wireguard := proc.Start(t, router, proc.Spec{Path: require.Tool(t, "wireguard-go", "wireguard-go"), Args: []string{"-f", device}})
	if err := pollFor(t, 20*time.Second, func() error {
		select {
		case <-wireguard.Done():
			return proc.Fatal(fmt.Errorf("it ended: %s", wireguard.Output()))
		default:
		}
		return router.Do(func() error { return d.configureRouter(device, edge) })
	}); err != nil {
		t.Fatalf("configuring wireguard-go: %v", err)
	}
	router.IP(
		"address add "+own.String()+"/128 dev "+device+" nodad",
		"link set "+device+" up",
		"route add "+edge.String()+"/128 dev "+device)
	tunnelTo(t, router, "inner", own, edge)
	router.Forward()
	router.IP(
		"address add fd10::2/64 dev lan nodad",
		"route add "+tunnel.DefaultInnerSources.String()+" dev inner",
		"route add "+tunnel.InnerSources6.String()+" dev inner")
	d.tokyo.IP(
		"address add fd10::10/64 dev lan nodad",
		"route add "+tunnel.DefaultInnerSources.String()+" via 10.0.0.2",
		"route add "+tunnel.InnerSources6.String()+" via fd10::2")
}

// configureRouter gives wireguard-go its key and its one peer, as wg(8) would.
func (d *deployment) configureRouter(device string, edge netip.Addr) error {
	private, err := wgtypes.ParseKey(d.tokyo1Key.Private)
	if err != nil {
		return err
	}
	public, err := wgtypes.ParseKey(d.edgeKey.Public)
	if err != nil {
		return err
	}
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer client.Close()
	keepalive := 5 * time.Second
	return client.ConfigureDevice(device, wgtypes.Config{
		PrivateKey: &private, ReplacePeers: true,
		Peers: []wgtypes.PeerConfig{{
			PublicKey: public, ReplaceAllowedIPs: true, PersistentKeepaliveInterval: &keepalive,
			Endpoint:   net.UDPAddrFromAddrPort(at(51820)),
			AllowedIPs: []net.IPNet{{IP: edge.AsSlice(), Mask: net.CIDRMask(128, 128)}},
		}},
	})
}

// tunnelTo makes an interface that wraps packets of both families into IPv6
// without any option (RFC 2473): the kernel's where it has one.
func tunnelTo(t *testing.T, host *netns.Host, name string, local, remote netip.Addr) {
	t.Helper()
	var out []byte
	ip := require.Tool(t, "ip", "iproute2")
	err := host.Do(func() (err error) {
		out, err = exec.Command(ip, "link", "add", name, "type", "ip6tnl", "mode", "any", "encaplimit", "none",
			"local", local.String(), "remote", remote.String()).CombinedOutput()
		return err
	})
	if err == nil {
		t.Log("the router's ip6tnl is the kernel's")
	} else {
		t.Logf("this kernel has no ip6tnl (%s): the test's own takes its place", strings.TrimSpace(string(out)))
		if err := startIP6Tunnel(t, host, name, local, remote); err != nil {
			t.Fatalf("making an ip6tnl on host %q: %v", host.Name(), err)
		}
	}
	host.IP("link set "+name+" mtu 1380", "link set "+name+" up")
}

func overlayOf(t *testing.T, public string) netip.Addr {
	t.Helper()
	key, err := wgtypes.ParseKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return tunnel.OverlayAddr(key)
}

// echoDatagrams sends datagrams back until the test ends.
func echoDatagrams(t *testing.T, host *netns.Host, address string) {
	t.Helper()
	pc, err := host.ListenPacket(t.Context(), "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
}

// echoes sends a datagram of random bytes until it comes back as it was.
func echoes(ctx context.Context, host *netns.Host, address string, size int) error {
	conn, err := host.Dial(ctx, "udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	sent, got := make([]byte, size), make([]byte, 1<<16)
	plan{Seed: uint64(size)}.bytesOf(0).Read(sent)
	// The first that is too long for the tunnel teaches its sender the path's MTU.
	for range 20 {
		if _, err = conn.Write(sent); err != nil {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		if n, err = conn.Read(got); err == nil {
			if string(got[:n]) != string(sent) {
				return errCorrupt
			}
			return nil
		}
	}
	return err
}
