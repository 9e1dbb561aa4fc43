package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/edge/observe"
	"github.com/warrenmesh/warren/host"
)

// CheckHost checks what only this machine can tell: that its addresses and
// ports can be had (and who holds them), that files are there and closed to
// others. It opens each socket for a moment and writes nothing. The error is a
// strict.Problems.
//
// An edge that runs with this config holds its own ports, and is named as
// their holder.
func CheckHost(cfg *Config) error {
	return (&hostCheck{cfg: cfg, doc: cfg.doc.Fork(), try: tryBind, holder: host.Holder}).run()
}

// hostCheck is one check of one machine.
type hostCheck struct {
	cfg    *Config
	doc    *strict.Doc
	try    func(network string, addr netip.AddrPort) error
	holder func(network string, addr netip.AddrPort) string

	missing []netip.Addr // addresses of an [[address]] that this machine lacks
}

func (h *hostCheck) run() error {
	h.addresses()
	for _, s := range h.cfg.sockets() {
		h.socket(s)
	}
	h.stateDir()
	h.key()
	h.adminSocket()
	h.flowLog()
	h.webhooks()
	h.cfg.readMonitors(h.doc)
	return h.doc.Err()
}

// tryBind opens a socket and closes it again. An address without a host is
// every address of both families, of which the machine may lack one.
func tryBind(network string, addr netip.AddrPort) error {
	if !addr.Addr().IsValid() {
		err4 := tryBind(network, netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port()))
		err6 := tryBind(network, netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port()))
		if errors.Is(err6, unix.EAFNOSUPPORT) || errors.Is(err6, unix.EADDRNOTAVAIL) {
			err6 = nil
		}
		return errors.Join(err4, err6)
	}
	family := "6"
	if addr.Addr().Is4() {
		family = "4"
	}
	var lc net.ListenConfig
	if network == "tcp" {
		l, err := lc.Listen(context.Background(), "tcp"+family, addr.String())
		if err != nil {
			return err
		}
		return l.Close()
	}
	c, err := lc.ListenPacket(context.Background(), "udp"+family, addr.String())
	if err != nil {
		return err
	}
	return c.Close()
}

// addresses looks for those of each [[address]] on the machine.
func (h *hostCheck) addresses() {
	for i, a := range h.cfg.Addresses {
		for j, bind := range a.Bind {
			if !errors.Is(h.try("udp", netip.AddrPortFrom(bind, 0)), unix.EADDRNOTAVAIL) {
				continue
			}
			h.missing = append(h.missing, bind)
			path, hint := fmt.Sprintf("address[%d].bind[%d]", i, j), "bind one that it has"
			if !h.doc.Has(path) {
				path, hint = fmt.Sprintf("address[%d].advertise[%d]", i, j), "if it is behind NAT, set bind to the machine's own address"
			}
			h.doc.Add(path, "this machine does not have the address", hint+h.own(bind))
		}
	}
}

// own lists the machine's addresses of the family of a.
func (h *hostCheck) own(a netip.Addr) string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	var list []string
	for _, addr := range addrs {
		p, err := netip.ParsePrefix(addr.String())
		if err == nil && p.Addr().Is4() == a.Is4() && !p.Addr().IsLinkLocalUnicast() && len(list) < 8 {
			list = append(list, p.Addr().String())
		}
	}
	if len(list) == 0 {
		return ""
	}
	return ": " + strings.Join(list, ", ")
}

// socket tries to bind one.
func (h *hostCheck) socket(s claim) {
	if slices.Contains(h.missing, s.addr.Addr()) {
		return
	}
	what := s.network + "/" + show(s.addr)
	switch err := h.try(s.network, s.addr); {
	case err == nil:
	case errors.Is(err, unix.EADDRINUSE):
		at := s.addr
		if !at.Addr().IsValid() {
			at = netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())
		}
		h.doc.Add(s.path, fmt.Sprintf("%s is in use by %s", what, h.holder(s.network, at)), "stop that, or choose another port or address")
	case errors.Is(err, unix.EADDRNOTAVAIL):
		h.doc.Add(s.path, fmt.Sprintf("this machine does not have the address of %s", what), "use one that it has"+h.own(s.addr.Addr()))
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		h.doc.Add(s.path, fmt.Sprintf("no permission to listen on %s", what),
			"ports below 1024 need root or CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)")
	case errors.Is(err, unix.EAFNOSUPPORT):
		h.doc.Add(s.path, fmt.Sprintf("this machine has no IPv6 for %s", what), "leave the address out")
	default:
		h.doc.Add(s.path, fmt.Sprintf("cannot listen on %s: %v", what, err), "")
	}
}

// stateDir wants a directory that this user can write in, or can make.
func (h *hostCheck) stateDir() {
	if err := host.CheckDir(h.cfg.Edge.StateDir); err != nil {
		h.doc.AddHidden("edge.state_dir", err.Error(), "")
	}
}

// existing returns the closest directory around path that exists.
func existing(path string) string {
	var st unix.Stat_t
	for {
		up := filepath.Dir(path)
		if up == path || unix.Stat(up, &st) == nil {
			return up
		}
		path = up
	}
}

// key wants a private key that only the edge's user can read, and that is
// nobody else's.
func (h *hostCheck) key() {
	const at = "wireguard.private_key_file"
	w := h.cfg.WireGuard
	key, err := host.ReadKey(w.PrivateKeyFile)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if !w.KeyGenerated {
				h.doc.AddHidden(at, fmt.Sprintf("there is no file %q", w.PrivateKeyFile), fmt.Sprintf("make one: (umask 077; warren genkey > %s)", w.PrivateKeyFile))
			}
			return
		}
		h.doc.AddHidden(at, err.Error(), "")
		return
	}
	public := key.PublicKey()
	for i, c := range h.cfg.Connectors {
		if c.PublicKey.Key == public {
			h.doc.AddHidden(fmt.Sprintf("connector[%d].public_key", i), "this is the edge's own key", "write what the connector prints at its start")
		}
	}
}

// adminSocket wants a place for the socket where no other edge listens. Its
// directory is made where it is missing.
func (h *hostCheck) adminSocket() {
	const at = "admin.socket"
	path := h.cfg.Admin.Socket
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		h.doc.AddHidden(at, fmt.Sprintf("a running edge answers on %q", path), "stop it, or give this one its own socket")
		return
	}
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		h.doc.AddHidden(at, fmt.Sprintf("%q is there and no socket", path), "remove it, or choose another path")
		return
	}
	h.writableDir(at, existing(path))
}

// flowLog wants a file that can be appended to, or a directory for it.
func (h *hostCheck) flowLog() {
	const at = "log.flows"
	path := h.cfg.Log.Flows
	if path == "-" || path == observe.LogOff {
		return
	}
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		h.doc.AddHidden(at, fmt.Sprintf("%q is a directory", path), "name a file in it")
	case err == nil && unix.Access(path, unix.W_OK) != nil:
		h.doc.AddHidden(at, fmt.Sprintf("this user cannot write to %q", path), "give it to the edge's user")
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		h.doc.AddHidden(at, fmt.Sprintf("cannot open %q: %v", path, err), "choose another path")
	case filepath.Dir(path) == filepath.Clean(h.cfg.Edge.StateDir): // made at the start
	case unix.Stat(filepath.Dir(path), &st) != nil:
		h.doc.AddHidden(at, fmt.Sprintf("there is no directory %q", filepath.Dir(path)), "make it and give it to the edge's user")
	default:
		h.writableDir(at, filepath.Dir(path))
	}
}

// writableDir wants a directory in which this user can make files.
func (h *hostCheck) writableDir(key, dir string) {
	if unix.Access(dir, unix.W_OK|unix.X_OK) != nil {
		h.doc.AddHidden(key, fmt.Sprintf("this user cannot write in %q", dir), "give it to the edge's user")
	}
}
