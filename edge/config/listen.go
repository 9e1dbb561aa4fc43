package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/warrenmesh/warren/configs/strict"
)

// Socket is where one socket listens: ":51820" (every address of both
// families), "192.0.2.1:51820" or "[2001:db8::1]:51820". Port 0 is any free
// port.
type Socket struct{ netip.AddrPort }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Socket) UnmarshalText(text []byte) error {
	t := string(text)
	if rest, ok := strings.CutPrefix(t, ":"); ok {
		port, err := parsePort(rest)
		if err != nil {
			return err
		}
		s.AddrPort = netip.AddrPortFrom(netip.Addr{}, port)
		return nil
	}
	ap, err := strict.ParseAddrPort(t)
	s.AddrPort = ap
	return err
}

// Ports is one entry of an app's listen: "tcp/5432", or "tcp/8000-8100" for a
// range, both ends included.
type Ports struct {
	Network     string // "tcp" or "udp"
	First, Last uint16
}

// Size is the number of ports.
func (p Ports) Size() int { return int(p.Last) - int(p.First) + 1 }

// String writes the form of the file.
func (p Ports) String() string {
	if p.First == p.Last {
		return fmt.Sprintf("%s/%d", p.Network, p.First)
	}
	return fmt.Sprintf("%s/%d-%d", p.Network, p.First, p.Last)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Ports) UnmarshalText(text []byte) error {
	network, ports, ok := strings.Cut(string(text), "/")
	if !ok {
		if _, err := strconv.Atoi(network); err == nil {
			return strict.Reject("the protocol is missing", fmt.Sprintf(`write "tcp/%s" or "udp/%s"`, network, network))
		}
		return strict.Reject("not a listener", `write it like "tcp/5432", "udp/53" or "tcp/8000-8100"`)
	}
	if network != "tcp" && network != "udp" {
		hint := strict.Suggest(network, []string{"tcp", "udp"})
		if !strings.HasPrefix(hint, "did") {
			hint = "use tcp or udp"
		}
		return strict.Reject(fmt.Sprintf("%q is no protocol that can be listened on", network), hint)
	}
	first, last, err := parsePorts(ports)
	if err != nil {
		return err
	}
	*p = Ports{Network: network, First: first, Last: last}
	return nil
}

// parsePorts reads "80" or "8000-8100". Port 0 only stands alone.
func parsePorts(text string) (first, last uint16, err error) {
	from, to, isRange := strings.Cut(text, "-")
	if first, err = parsePort(from); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return first, first, nil
	}
	if last, err = parsePort(to); err != nil {
		return 0, 0, err
	}
	switch {
	case first == 0:
		return 0, 0, strict.Reject("port out of range", "use 1 to 65535")
	case last < first:
		return 0, 0, strict.Reject("the range ends before it begins", fmt.Sprintf("write %d-%d", last, first))
	}
	return first, last, nil
}

func parsePort(text string) (uint16, error) {
	if strings.Trim(text, "0123456789") != "" || text == "" {
		return 0, strict.Reject(fmt.Sprintf("%q is no port", text), "write a number, 1 to 65535")
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, strict.Reject("port out of range", "use 1 to 65535")
	}
	return uint16(n), nil
}
