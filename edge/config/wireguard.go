package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/configs/strict"
)

// WireGuard is the [wireguard] table: the one UDP port of all networks.
type WireGuard struct {
	// Listen is the UDP address. Without a host it is every address of both
	// families. Port 0 is any free port. Default: ":51820".
	Listen Socket `toml:"listen" default:":51820"`
	// Advertise is what connectors dial: "host:port", with or without
	// "udp://". Default: none.
	Advertise []Dial `toml:"advertise"`
	// PrivateKeyFile holds this edge's private key in base64, mode 0600. A
	// relative path is looked up in $CREDENTIALS_DIRECTORY where that is set,
	// else beside the file that names it. Default: state_dir/edge.key, made on
	// the first run.
	PrivateKeyFile string `toml:"private_key_file"`
	// KeyGenerated tells that PrivateKeyFile is the default, which is made
	// where it does not exist. One that was named must exist.
	KeyGenerated bool
	// InnerSources is the IPv4 block that private hosts see as the source,
	// behind the connector. No route may overlap it. Default: 100.127.0.0/24;
	// a /8 to a /30.
	InnerSources netip.Prefix `toml:"inner_sources" default:"100.127.0.0/24"`

	UAPI strict.Unsupported `toml:"uapi" hint:"warren status shows the peers"`
}

// Dial is a host and UDP port that connectors dial.
type Dial string

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Dial) UnmarshalText(text []byte) error {
	const form = `write it like "fra1.example.net:51820"`
	t := string(text)
	if scheme, rest, ok := strings.Cut(t, "://"); ok {
		if scheme != "udp" {
			return strict.Reject(fmt.Sprintf("scheme %q is not supported by this version", scheme), "use udp://, or none")
		}
		t = rest
	}
	host, port, err := net.SplitHostPort(t)
	if err != nil {
		return strict.Reject("not a host and port", form)
	}
	n, err := parsePort(port)
	switch {
	case err != nil:
		return err
	case n == 0:
		return strict.Reject("port out of range", "use 1 to 65535")
	case host == "" || strings.ContainsAny(host, "/ \t"):
		return strict.Reject("not a host and port", form)
	}
	if a, err := netip.ParseAddr(host); err == nil && (a.IsUnspecified() || a.IsMulticast()) {
		return strict.Reject("not an address that can be dialled", form)
	}
	*d = Dial(net.JoinHostPort(host, port))
	return nil
}

// Validate implements strict.Validator.
func (w *WireGuard) Validate(doc *strict.Doc, path string) {
	p := w.InnerSources
	if !p.IsValid() || doc.Bad(path+".inner_sources") {
		if doc.Has(path+".inner_sources") && !doc.Bad(path+".inner_sources") {
			doc.Add(path+".inner_sources", "empty", "leave it out for 100.127.0.0/24")
		}
		return
	}
	switch {
	case !p.Addr().Is4():
		doc.Add(path+".inner_sources", "not an IPv4 block", "write it like 100.127.0.0/24")
	case p.Bits() < 8 || p.Bits() > 30:
		doc.Add(path+".inner_sources", "block of an odd size", "use a /8 to a /30")
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Contains(netip.IPv4Unspecified()):
		doc.Add(path+".inner_sources", "block with a meaning of its own", "write it like 100.127.0.0/24")
	}
}

func (l *loader) buildWireGuard() {
	w := l.file.WireGuard
	w.KeyGenerated = w.PrivateKeyFile == ""
	if w.KeyGenerated {
		w.PrivateKeyFile = filepath.Join(l.cfg.Edge.StateDir, "edge.key")
	} else {
		w.PrivateKeyFile = l.resolveSecret("wireguard.private_key_file", w.PrivateKeyFile)
	}
	l.cfg.WireGuard = w
}

// Key is a WireGuard public key in base64, as `warren pubkey` prints it.
type Key struct{ wgtypes.Key }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Key) UnmarshalText(text []byte) error {
	key, err := strict.ParseKey(string(text))
	k.Key = key
	return err
}
