package origin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/warrenmesh/warren/connector/guard"
)

// Defaults of a Spec.
const (
	// DefaultTimeout is the time to connect to an origin. It is below the 7 s
	// that the edge waits, so that the edge hears a verdict and not silence.
	DefaultTimeout = 5 * time.Second
	// DefaultKeepAlive is the time between TCP keep-alive probes to an idle
	// origin.
	DefaultKeepAlive = 30 * time.Second
)

// Spec says how the private side is dialled. The zero value has no alias and
// the default times.
type Spec struct {
	// Aliases are the private addresses that are served from elsewhere: the
	// [[alias]] tables of connector.toml.
	Aliases []Alias
	// Timeout bounds a dial, name resolution included. Default 5 s; the edge
	// gives up after 7 s, so more than that is refused.
	Timeout time.Duration
	// KeepAlive is the interval of TCP keep-alive probes to origins. Default
	// 30 s; negative turns them off.
	KeepAlive time.Duration
}

// MaxTimeout is the longest Spec.Timeout: what the edge waits for a connect.
const MaxTimeout = 7 * time.Second

// Alias serves the private address From by dialling To.
type Alias struct {
	// From is what the edge asks for: "tcp/10.0.0.10:5432".
	From Service
	// To is what is dialled instead: "postgres.default.svc:5432".
	To Target
}

// Service is a protocol, an address and a port.
type Service struct {
	// Proto is "tcp" or "udp".
	Proto string
	// Addr is never an IPv4-mapped IPv6 address.
	Addr netip.AddrPort
}

// Target is what an alias dials: a name or an address, and a port.
type Target struct {
	// Host is a DNS name, or an address without brackets.
	Host string
	Port uint16
}

// Validate calls report once for each problem, with the key path ("alias[1].from"),
// the value as written, and what to do about it.
func (s Spec) Validate(report func(path, value, hint string)) {
	seen := make(map[Service]int, len(s.Aliases))
	for i, a := range s.Aliases {
		from := fmt.Sprintf("alias[%d].from", i)
		if _, err := ParseService(a.From.String()); err != nil {
			report(from, a.From.String(), err.Error())
		} else if why := guard.AlwaysDenied(a.From.Addr.Addr()); why != "" {
			report(from, a.From.String(), why+": no edge may ask for it; choose an address inside the connector's routes")
		}
		if first, dup := seen[a.From]; dup {
			report(from, a.From.String(), fmt.Sprintf("alias[%d] has the same address: keep one of them", first))
		} else {
			seen[a.From] = i
		}
		if _, err := ParseTarget(a.To.String()); err != nil {
			report(fmt.Sprintf("alias[%d].to", i), a.To.String(), err.Error())
		}
	}
	if s.Timeout < 0 || s.Timeout > MaxTimeout {
		report("timeout", s.Timeout.String(), fmt.Sprintf("want more than 0 and at most %v, which is what the edge waits", MaxTimeout))
	}
}

// withDefaults fills what was left out.
func (s Spec) withDefaults() Spec {
	if s.Timeout == 0 {
		s.Timeout = DefaultTimeout
	}
	if s.KeepAlive == 0 {
		s.KeepAlive = DefaultKeepAlive
	}
	return s
}

// ParseService reads "tcp/10.0.0.10:5432" or "udp/[2001:db8::1]:53".
func ParseService(s string) (Service, error) {
	proto, rest, ok := strings.Cut(s, "/")
	if !ok || (proto != "tcp" && proto != "udp") {
		return Service{}, fmt.Errorf("parsing service %q: want it to start with \"tcp/\" or \"udp/\"", s)
	}
	addr, err := netip.ParseAddrPort(rest)
	if err != nil {
		return Service{}, fmt.Errorf("parsing service %q: want an address and a port, such as %s/10.0.0.10:5432", s, proto)
	}
	if addr.Port() == 0 {
		return Service{}, fmt.Errorf("parsing service %q: want a port from 1 to 65535", s)
	}
	if addr.Addr().Is4In6() || addr.Addr().Zone() != "" {
		return Service{}, fmt.Errorf("parsing service %q: write the address without a zone and not as an IPv4-mapped one", s)
	}
	return Service{Proto: proto, Addr: addr}, nil
}

// String writes the service as ParseService reads it.
func (s Service) String() string { return s.Proto + "/" + s.Addr.String() }

// UnmarshalText is ParseService for decoders.
func (s *Service) UnmarshalText(text []byte) error {
	parsed, err := ParseService(string(text))
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// MarshalText is String for encoders.
func (s Service) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseTarget reads "name:port", "192.0.2.1:port" or "[2001:db8::1]:port".
// The port is a number and required.
func ParseTarget(s string) (Target, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Target{}, fmt.Errorf("parsing target %q: want a name or an address, and a port, such as db.internal:5432", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '0' {
		return Target{}, fmt.Errorf("parsing target %q: want a port from 1 to 65535", s)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if err := CheckHostname(host); err != nil {
			return Target{}, fmt.Errorf("parsing target %q: %w", s, err)
		}
	}
	return Target{Host: host, Port: uint16(n)}, nil
}

// CheckHostname says what is wrong with a name that is to be resolved. It
// allows what resolvers do (underscores, a final dot), in letters of ASCII.
func CheckHostname(name string) error {
	trimmed := strings.TrimSuffix(name, ".")
	if trimmed == "" {
		return errors.New("the host name is empty")
	}
	if len(trimmed) > 253 { // RFC 1035 section 2.3.4, in text
		return errors.New("the host name is longer than 253 characters")
	}
	numeric := true
	for _, label := range strings.Split(trimmed, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("%q is no host name: each label has 1 to 63 characters", name)
		}
		for _, c := range []byte(label) {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
				numeric = false
			case '0' <= c && c <= '9':
			default:
				return fmt.Errorf("%q is no host name: %q is not allowed in one", name, c)
			}
		}
	}
	if numeric {
		return fmt.Errorf("%q is neither an address nor a host name", name)
	}
	return nil
}

// Addr returns the target's address where it names one.
func (t Target) Addr() (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(t.Host)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), t.Port), true
}

// String writes the target as ParseTarget reads it.
func (t Target) String() string {
	return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
}

// UnmarshalText is ParseTarget for decoders.
func (t *Target) UnmarshalText(text []byte) error {
	parsed, err := ParseTarget(string(text))
	if err != nil {
		return err
	}
	*t = parsed
	return nil
}

// MarshalText is String for encoders.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }
