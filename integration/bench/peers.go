package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// peer is another product: what it needs, and how it is started as its own
// documentation says. Its programs lie in the directory of -peers, readable by
// everybody.
type peer struct {
	name     string
	programs []string // in -peers
	tools    []string // of the machine
	udp      bool
	start    func(k *kit) *running
}

// builtinPeers are the products whose start is known here.
func builtinPeers() []peer {
	return []peer{
		{name: nameFRP, programs: []string{"frps", "frpc"}, udp: true, start: startFRP},
		{name: "chisel", programs: []string{"chisel"}, udp: true, start: startChisel},
		{name: nameWireproxy, programs: []string{"wireproxy"}, start: startWireproxy},
		{name: "rathole", programs: []string{"rathole"}, tools: []string{"openssl"}, udp: true, start: startRathole},
		{name: "tailscale", programs: []string{"tailscaled", "tailscale", "tailscale-testcontrol"},
			tools: []string{"nft"}, udp: true, start: startTailscale},
	}
}

// nameNewt has no start here: its other half is a product of its own, so it
// takes part by a recipe (see recipes) or not at all.
const nameNewt = "newt"

// peers returns a contender for each product, those that lack something too.
func peers(dir string) (all []contender) {
	for _, p := range builtinPeers() {
		all = append(all, p.contender(dir))
	}
	scripted := recipes(dir)
	if !slices.ContainsFunc(scripted, func(c contender) bool { return c.name == nameNewt }) {
		all = append(all, contender{name: nameNewt, missing: "no recipes/newt.edge and recipes/newt.connector in -peers: it needs a control server"})
	}
	return append(all, scripted...)
}

func (p peer) contender(dir string) contender {
	c := contender{name: p.name, udp: p.udp, start: func(s *scope, w *world) *running {
		return p.start(&kit{s: s, w: w, bin: dir})
	}}
	if dir == "" {
		c.missing = "no -peers"
		return c
	}
	for _, program := range p.programs {
		if _, err := filepath.EvalSymlinks(filepath.Join(dir, program)); err != nil {
			c.missing = cmp.Or(c.missing, fmt.Sprintf("no program %q in -peers", program))
		}
	}
	for _, tool := range p.tools {
		if _, ok := require.Find(tool); !ok {
			c.missing = cmp.Or(c.missing, fmt.Sprintf("no program %q on this machine", tool))
		}
	}
	return c
}

// recipes are peers that -peers itself says how to start: two programs,
// recipes/NAME.edge and recipes/NAME.connector, that run until SIGTERM, as
// root, each on its host, and learn from the environment what to show where.
func recipes(dir string) (all []contender) {
	if dir == "" {
		return nil
	}
	files, _ := filepath.Glob(filepath.Join(dir, "recipes", "*.edge"))
	for _, edge := range files {
		connector := strings.TrimSuffix(edge, ".edge") + ".connector"
		name := strings.TrimSuffix(filepath.Base(edge), ".edge")
		all = append(all, contender{name: name, udp: true, start: func(s *scope, w *world) *running {
			k := &kit{s: s, w: w}
			env := []string{
				"BENCH_EDGE=" + edgePublic.String(), "BENCH_ORIGIN=" + originAddr.String(),
				"BENCH_TCP=" + joinPorts(tcpPorts), "BENCH_UDP=" + joinPorts(udpPorts),
				"BENCH_DIR=" + k.dir(),
			}
			r := &running{target: edgePublic}
			r.edge = []*proc.Process{proc.Start(s, w.edge, proc.Spec{Name: name + " edge", Path: edge, Env: env})}
			r.connector = []*proc.Process{proc.Start(s, w.dc, proc.Spec{Name: name + " connector", Path: connector, Env: env})}
			return r
		}})
	}
	return all
}

func joinPorts(ports []uint16) string {
	var text []string
	for _, port := range ports {
		text = append(text, fmt.Sprint(port))
	}
	return strings.Join(text, ",")
}

// kit is what the start of a peer works with.
type kit struct {
	s    *scope
	w    *world
	bin  string // the directory of the peers' programs
	home string // of this start; see dir
}

// dir is a directory for the start's files.
func (k *kit) dir() string {
	if k.home == "" {
		k.home = netns.Directory(k.s, "peer")
	}
	return k.home
}

// file writes a file and returns its path.
func (k *kit) file(name, text string) string {
	path := filepath.Join(k.dir(), name)
	writeConfig(k.s, path, text)
	return path
}

// program starts a peer's program on a host, as nobody special.
func (k *kit) program(host *netns.Host, name string, args ...string) *proc.Process {
	attr, _, _ := netns.Ordinary()
	return proc.Start(k.s, host, proc.Spec{Name: name, Path: filepath.Join(k.bin, name), Args: args, Dir: k.dir(),
		Env: []string{"HOME=" + k.dir(), "RUST_LOG=warn", "http_proxy=", "https_proxy="}, Attr: attr})
}

// both is a peer that runs one process at each end.
func both(edge, connector *proc.Process) *running {
	return &running{target: edgePublic, edge: []*proc.Process{edge}, connector: []*proc.Process{connector}}
}

// eachPort writes a piece of text for every port that is shown.
func eachPort(piece func(b *strings.Builder, protocol string, port uint16)) string {
	var b strings.Builder
	for _, port := range tcpPorts {
		piece(&b, "tcp", port)
	}
	for _, port := range udpPorts {
		piece(&b, "udp", port)
	}
	return b.String()
}

// at is a port of an address, as text.
func at(addr netip.Addr, port uint16) string { return netip.AddrPortFrom(addr, port).String() }
