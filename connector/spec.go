package connector

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/host"
)

// Defaults and limits of a Spec.
const (
	DefaultMaxTCPFlows = 65536
	DefaultMaxUDPFlows = 16384
	DefaultUDPIdle     = 210 * time.Second
	DefaultGrace       = 30 * time.Second

	// MaxFlows is the most that MaxTCPFlows and MaxUDPFlows may be. A flow
	// needs a descriptor of the machine, and this is past what one has.
	MaxFlows = 1 << 20
	// MinUDPIdle keeps a session open over one lost and repeated query.
	MinUDPIdle = time.Second
	// MaxUDPIdle and MaxGrace are a day.
	MaxUDPIdle = 24 * time.Hour
	MaxGrace   = 24 * time.Hour
)

// Spec is everything a connector is told: connector.toml, typed. The zero
// value lacks a key and an edge, and Validate says so.
type Spec struct {
	// Name is what log lines call this connector. Default: the host's name,
	// filled in by the config.
	Name string
	// StateDir holds what the connector remembers: its key where PrivateKeyFile
	// is empty, and the edges at which it has enrolled. The config fills in the
	// default ($STATE_DIRECTORY, then XDG).
	StateDir string
	// PrivateKeyFile holds the WireGuard private key, in base64. It must
	// exist and must not be readable by others. Default: StateDir/connector.key,
	// made on the first run with mode 0600.
	PrivateKeyFile string
	// Edges are the declared ones: they know this connector's key from their
	// own configuration. They and those at which it has enrolled are served at
	// the same time, each over its own tunnel peer.
	Edges []EdgeSpec
	// Token enrols the connector at those of the token's edges at which it has
	// not enrolled yet. The zero value: no token. It is never logged.
	Token wire.Token
	// Listen is the UDP address that WireGuard sends from. Default: any free
	// port of any address; a connector needs no open port.
	Listen netip.AddrPort
	// Origin says how the private side is dialled, aliases included.
	Origin origin.Spec
	// Guard is the private side's own say about what may be dialled.
	Guard guard.Spec
	// MaxTCPFlows is the most TCP flows at one time, over all edges; beyond
	// it new ones are answered with host unreachable. Default 65,536.
	MaxTCPFlows int
	// MaxUDPFlows is the same for UDP. Default 16,384.
	MaxUDPFlows int
	// UDPIdle ends a UDP flow without a datagram either way. Default 210 s.
	UDPIdle time.Duration
	// Grace is how long a drain waits for live flows. Default 30 s; negative
	// waits for none.
	Grace time.Duration
	// MetricsListen is the TCP address of /metrics, /healthz and /readyz, a
	// host:port. Default: off.
	MetricsListen string
	// Profiles serves /debug/pprof on MetricsListen as well, which must be a
	// loopback address then.
	Profiles bool
}

// keyFile is where the private key is read from.
func (s Spec) keyFile() string {
	if s.PrivateKeyFile != "" {
		return s.PrivateKeyFile
	}
	return filepath.Join(s.StateDir, state.KeyName)
}

// EdgeSpec is one edge that the connector joins: an [[edge]] table.
type EdgeSpec struct {
	// PublicKey is the edge's WireGuard public key.
	PublicKey wgtypes.Key
	// URLs are where its WireGuard listens, at least one; they are tried in
	// turn. The first is the edge's name in logs and metrics. See ParseEdgeURL.
	URLs []EdgeURL
}

// String is the edge's first URL.
func (e EdgeSpec) String() string {
	if len(e.URLs) == 0 {
		return ""
	}
	return e.URLs[0].String()
}

// EdgeURL is the place of an edge's WireGuard port.
type EdgeURL struct {
	// Host is a DNS name or an address without brackets.
	Host string
	// Port is the UDP port, 1 to 65535.
	Port uint16
}

// ParseEdgeURL reads "fra1.example.net:51820", "203.0.113.10:51820",
// "[2001:db8::10]:51820", each with "udp://" before it or not. The port is
// required; no other scheme is known yet.
func ParseEdgeURL(s string) (EdgeURL, error) {
	rest := s
	if scheme, after, ok := strings.Cut(s, "://"); ok {
		if scheme != "udp" {
			return EdgeURL{}, fmt.Errorf("parsing edge url %q: the scheme %q is not known: write udp://host:port", s, scheme)
		}
		// A path or a query would be ignored by whoever reads on.
		if u, err := url.Parse(s); err == nil && (u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil) {
			return EdgeURL{}, fmt.Errorf("parsing edge url %q: want nothing but a host and a port: write udp://%s", s, u.Host)
		}
		rest = after
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return EdgeURL{}, fmt.Errorf("parsing edge url %q: want a host and a port, such as fra1.example.net:51820", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '0' {
		return EdgeURL{}, fmt.Errorf("parsing edge url %q: want a port from 1 to 65535", s)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsUnspecified() || a.IsMulticast() {
			return EdgeURL{}, fmt.Errorf("parsing edge url %q: %s is no address that an edge can have", s, a)
		}
	} else if err := origin.CheckHostname(host); err != nil {
		return EdgeURL{}, fmt.Errorf("parsing edge url %q: %w", s, err)
	}
	return EdgeURL{Host: host, Port: uint16(n)}, nil
}

// String is host:port, as ParseEdgeURL reads it.
func (u EdgeURL) String() string {
	return net.JoinHostPort(u.Host, strconv.Itoa(int(u.Port)))
}

// UnmarshalText is ParseEdgeURL for decoders.
func (u *EdgeURL) UnmarshalText(text []byte) error {
	parsed, err := ParseEdgeURL(string(text))
	if err != nil {
		return err
	}
	*u = parsed
	return nil
}

// MarshalText is String for encoders.
func (u EdgeURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// Validate calls report once for each problem, with the key path in
// connector.toml ("edge[0].url"), the value as written, and what to do about
// it. It is static: it looks at no file and resolves no name; Check does.
func (s Spec) Validate(report func(path, value, hint string)) {
	switch {
	case s.StateDir != "":
	case s.PrivateKeyFile == "":
		report("connector.state_dir", "", "a directory for the connector's key, or connector.private_key_file, is needed")
	case s.hasToken():
		report("connector.state_dir", "", "a directory to remember the enrolment in is needed")
	}
	s.validateEdges(report)
	s.Origin.Validate(report)
	s.Guard.Validate(func(path, value, hint string) { report("guard."+path, value, hint) })

	flows := func(path string, n int) {
		if n < 0 || n > MaxFlows {
			report(path, strconv.Itoa(n), fmt.Sprintf("want 1 to %d", MaxFlows))
		}
	}
	flows("limits.max_tcp_flows", s.MaxTCPFlows)
	flows("limits.max_udp_flows", s.MaxUDPFlows)
	if s.UDPIdle != 0 && (s.UDPIdle < MinUDPIdle || s.UDPIdle > MaxUDPIdle) {
		report("limits.udp_idle", s.UDPIdle.String(), fmt.Sprintf("want %v to %v", MinUDPIdle, MaxUDPIdle))
	}
	if s.Grace > MaxGrace {
		report("connector.drain", s.Grace.String(), fmt.Sprintf("want at most %v", MaxGrace))
	}
	if s.MetricsListen != "" {
		_, port, err := net.SplitHostPort(s.MetricsListen)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			report("metrics.listen", s.MetricsListen, "want an address and a port, such as 127.0.0.1:9192")
		}
	}
	if s.Profiles {
		if err := host.CheckProfiles(s.MetricsListen); err != nil {
			report("metrics.pprof", "true", err.Error())
		}
	}
}

func (s Spec) validateEdges(report func(path, value, hint string)) {
	if len(s.Edges) == 0 && !s.hasToken() && s.StateDir == "" { // the state may know some
		report("edge", "", "an [[edge]] table with the edge's public_key and url is needed")
	}
	seen := make(map[wgtypes.Key]int, len(s.Edges))
	urls := make(map[EdgeURL]int, len(s.Edges))
	for i, e := range s.Edges {
		path := fmt.Sprintf("edge[%d]", i)
		if e.PublicKey == (wgtypes.Key{}) {
			report(path+".public_key", "", "the edge's public key is needed: `warren status` prints it there")
		} else if first, dup := seen[e.PublicKey]; dup {
			report(path+".public_key", e.PublicKey.String(), fmt.Sprintf("edge[%d] has the same key: keep one of them", first))
		} else {
			seen[e.PublicKey] = i
		}
		if len(e.URLs) == 0 {
			report(path+".url", "", "where the edge's WireGuard listens is needed, such as fra1.example.net:51820")
		}
		for _, u := range e.URLs {
			if _, err := ParseEdgeURL(u.String()); err != nil {
				report(path+".url", u.String(), err.Error())
			} else if first, dup := urls[u]; dup && first != i {
				report(path+".url", u.String(), fmt.Sprintf("edge[%d] has the same url: keep one of them", first))
			} else {
				urls[u] = i
			}
		}
	}
}

// hasToken tells whether there is a token.
func (s Spec) hasToken() bool { return len(s.Token.Edges) > 0 }

// withDefaults fills what was left out.
func (s Spec) withDefaults() Spec {
	if s.MaxTCPFlows == 0 {
		s.MaxTCPFlows = DefaultMaxTCPFlows
	}
	if s.MaxUDPFlows == 0 {
		s.MaxUDPFlows = DefaultMaxUDPFlows
	}
	if s.UDPIdle == 0 {
		s.UDPIdle = DefaultUDPIdle
	}
	if s.Grace == 0 {
		s.Grace = DefaultGrace
	}
	return s
}
