package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// nameWireproxy is the peer that proves naive: see denominators.
const nameWireproxy = "wireproxy"

// startWireproxy is wireproxy at both ends. It can take datagrams into a
// tunnel, but not out of one.
func startWireproxy(k *kit) *running {
	edgeKey, connectorKey := newKey(k.s), newKey(k.s)
	edge := fmt.Sprintf("[Interface]\nAddress = 10.99.0.1/32\nPrivateKey = %s\nListenPort = 51820\nMTU = %d\n\n[Peer]\nPublicKey = %s\nAllowedIPs = 10.99.0.2/32\n",
		edgeKey, k.w.path.mtu-80, connectorKey.PublicKey())
	connector := fmt.Sprintf("[Interface]\nAddress = 10.99.0.2/32\nPrivateKey = %s\nMTU = %d\n\n[Peer]\nPublicKey = %s\nAllowedIPs = 10.99.0.1/32\nEndpoint = %s\nPersistentKeepalive = 1\n",
		connectorKey, k.w.path.mtu-80, edgeKey.PublicKey(), at(edgeWAN, 51820))
	for _, port := range tcpPorts {
		edge += fmt.Sprintf("\n[TCPClientTunnel]\nBindAddress = %s\nTarget = 10.99.0.2:%d\n", at(edgePublic, port), port)
		connector += fmt.Sprintf("\n[TCPServerTunnel]\nListenPort = %d\nTarget = %s\n", port, at(originAddr, port))
	}
	files := []string{k.file("edge.conf", edge), k.file("connector.conf", connector)}
	p := k.program(k.w.edge, "wireproxy", "-s", "-c", files[0])
	waitPort(k.s, k.w.edge, p, portOf(tcpPorts[0])) // who calls too early calls again after 5 s
	return both(p, k.program(k.w.dc, "wireproxy", "-s", "-c", files[1]))
}

func newKey(s *scope) wgtypes.Key {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		s.Fatalf("making a key: %v", err)
	}
	return key
}

// startTailscale is tailscaled with a TUN device at both ends, the origin as a
// route of the connector's, and the edge's ports sent there by the kernel: a
// router with a tunnel, not a proxy. Its control server is Tailscale's own for
// tests.
func startTailscale(k *kit) *running {
	control := k.tailscale(k.w.edge, "control", "tailscale-testcontrol", "-ip", edgePublic.String())
	waitPort(k.s, k.w.edge, control, portOf(9911))
	r := &running{target: edgePublic}
	r.connector = k.tailscaleUp(k.w.dc, "connector", "--advertise-routes="+originAddr.String()+"/32")
	r.edge = k.tailscaleUp(k.w.edge, "edge", "--accept-routes")
	rules := fmt.Sprintf(`table ip bench {
 chain pre {
  type nat hook prerouting priority dstnat
  ip daddr %[1]s tcp dport { %[3]s } dnat to %[2]s
  ip daddr %[1]s udp dport { %[4]s } dnat to %[2]s
 }
 chain post {
  type nat hook postrouting priority srcnat
  oifname "ts0" masquerade
 }
 chain clamp {
  type filter hook forward priority filter
  tcp flags syn tcp option maxseg size set rt mtu
 }
}
`, edgePublic, originAddr, joinPorts(tcpPorts), joinPorts(udpPorts))
	nft := require.Tool(k.s, "nft", "nftables")
	proc.Must(k.s, k.w.edge, proc.Spec{Path: nft, Args: []string{"-f", "-"}, Stdin: rules})
	return r
}

// tailscale starts one of its programs with the rights of the run, which it
// needs for its TUN device.
func (k *kit) tailscale(host *netns.Host, name, program string, args ...string) *proc.Process {
	return proc.Start(k.s, host, proc.Spec{Name: "tailscale " + name, Path: filepath.Join(k.bin, program), Args: args, Dir: k.dir(),
		Env: []string{"HOME=" + k.dir(), "TS_NO_LOGS_NO_SUPPORT=true", "TS_DEBUG_FIREWALL_MODE=nftables"}})
}

// tailscaleUp starts a daemon and joins it to the network.
func (k *kit) tailscaleUp(host *netns.Host, name string, args ...string) []*proc.Process {
	state := filepath.Join(k.dir(), name)
	socket := state + ".sock"
	daemon := k.tailscale(host, name, "tailscaled", "--no-logs-no-support", "--encrypt-state=false", "--statedir="+state,
		"--state="+state+"/state", "--socket="+socket, "--tun=ts0", "--port=41641")
	up := append([]string{"--socket=" + socket, "up", "--login-server=http://" + at(edgePublic, 9911), "--accept-dns=false",
		"--hostname=" + name, "--timeout=20s"}, args...)
	ctx, cancel := context.WithTimeout(k.s.ctx, startLimit)
	defer cancel()
	err := proc.Poll(ctx, func() error { // until the daemon has its socket
		attempt, cancel := context.WithTimeout(ctx, 25*time.Second)
		defer cancel()
		_, err := proc.Run(attempt, host, proc.Spec{Name: "tailscale up", Path: filepath.Join(k.bin, "tailscale"), Args: up})
		return err
	})
	if err != nil {
		k.s.Fatalf("joining tailscale at the %s: %v; the daemon said: %s", name, err, strings.TrimSpace(daemon.Output()))
	}
	return []*proc.Process{daemon}
}

// portOf is a port of the edge.
func portOf(port uint16) netip.AddrPort { return netip.AddrPortFrom(edgePublic, port) }
