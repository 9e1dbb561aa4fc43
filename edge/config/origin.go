package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/warrenmesh/warren/configs/strict"
)

// Public is the network of endpoints that the edge dials itself.
const Public = "@public"

// Host is a DNS name and a port, "db.internal:5432". The name is in lower case
// and without a final dot.
type Host struct {
	Name string
	Port uint16
}

// String writes the form of the file.
func (h Host) String() string { return fmt.Sprintf("%s:%d", h.Name, h.Port) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Host) UnmarshalText(text []byte) error {
	const form = `write it like "db.internal:5432"`
	t := string(text)
	if ap, err := netip.ParseAddrPort(t); err == nil {
		return strict.Reject("an IP address, not a name", fmt.Sprintf("write address = %q", ap))
	}
	if a, err := netip.ParseAddr(t); err == nil {
		return strict.Reject("an IP address, not a name", fmt.Sprintf("write address = %q", netip.AddrPortFrom(a, 443)))
	}
	if strings.Contains(t, "://") {
		return strict.Reject("a URL, not a host and port", form)
	}
	host, port, ok := cutPort(t)
	if !ok {
		return strict.Reject("the port is missing", form)
	}
	name, err := parseName(host)
	if err != nil {
		return err
	}
	n, err := parsePort(port)
	switch {
	case err != nil:
		return err
	case n == 0:
		return strict.Reject("port 0 cannot be dialled", "write the port that the service listens on")
	}
	*h = Host{Name: name, Port: n}
	return nil
}

// cutPort parts text at its last colon, which has to stand behind any "]".
func cutPort(text string) (host, port string, ok bool) {
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 || colon < strings.LastIndexByte(text, ']') {
		return text, "", false
	}
	return text[:colon], text[colon+1:], true
}

// The bounds of a DNS name, RFC 1035 section 2.3.4, as it is written without
// its final dot.
const (
	maxHost  = 253
	maxLabel = 63
)

// parseName reads a DNS name that has addresses. "_" is no letter of a host
// name (RFC 1123 section 2.1), but the names of containers have it.
func parseName(text string) (string, error) {
	const hint = `use letters, digits, "-" and "_" between dots, as in "db.internal"`
	name := strings.ToLower(strings.TrimSuffix(text, "."))
	switch {
	case name == "":
		return "", strict.Reject("the name is empty", hint)
	case len(name) > maxHost:
		return "", strict.Reject(fmt.Sprintf("name of %d bytes", len(name)), fmt.Sprintf("a DNS name has %d at most", maxHost))
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		switch {
		case label == "":
			return "", strict.Reject("the name has an empty label", "remove the extra dot")
		case len(label) > maxLabel:
			return "", strict.Reject(fmt.Sprintf("label of %d bytes", len(label)), fmt.Sprintf("use %d at most between dots", maxLabel))
		case label[0] == '-' || label[len(label)-1] == '-':
			return "", strict.Reject("a label begins or ends with a hyphen", hint)
		}
		for i := range len(label) {
			switch c := label[i]; {
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			case c >= 0x80:
				return "", strict.Reject("a letter outside ASCII in a DNS name", `write the name in its "xn--" form`)
			default:
				return "", strict.Reject("bad character in a DNS name", hint)
			}
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "", strict.Reject("neither an IP address nor a DNS name, whose last label has a letter", hint)
	}
	return name, nil
}

// Origin is the short form of where an app's traffic goes: one host of one
// network, "tokyo/10.0.0.10:80" or "tokyo/db.internal:5432", or a range as in
// "tokyo/10.0.0.10:9000-9100" for a listener with a range of the same size.
// In network "@public" the edge dials it itself.
type Origin struct {
	Network string
	Addr    netip.Addr // invalid where Host is set
	// Host is a DNS name that the network's connectors resolve; the edge, for
	// "@public".
	Host        string
	First, Last uint16
}

// Size is the number of ports.
func (o Origin) Size() int { return int(o.Last) - int(o.First) + 1 }

// String writes the form of the file.
func (o Origin) String() string {
	s := o.Network + "/"
	if o.Host != "" {
		s += Host{o.Host, o.First}.String()
	} else {
		s += o.At(0).String()
	}
	if o.First != o.Last {
		s += "-" + strconv.Itoa(int(o.Last))
	}
	return s
}

// At returns the address for the listener's port with that offset in its
// range. Where Host is set, it has the port alone.
func (o Origin) At(offset uint16) netip.AddrPort {
	return netip.AddrPortFrom(o.Addr, o.First+offset)
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Origin) UnmarshalText(text []byte) error {
	const form = `write it like "berlin/10.0.0.10:80", "berlin/[2001:db8::1]:80" or "berlin/db.internal:5432"`
	network, rest, ok := strings.Cut(string(text), "/")
	switch {
	case !ok:
		return strict.Reject("the network is missing", form)
	case network == "":
		return strict.Reject("the network is empty", form)
	case strings.HasPrefix(network, "@") && network != Public:
		return strict.Reject(fmt.Sprintf("there is no network %q", network), fmt.Sprintf("name a [[network]], or %q, which the edge dials itself", Public))
	}
	host, port, ok := cutPort(rest)
	if !ok {
		return strict.Reject("the port is missing", form)
	}
	addr, name, err := parseOriginHost(host)
	if err != nil {
		return err
	}
	first, last, err := parsePorts(port)
	switch {
	case err != nil:
		return err
	case first == 0:
		return strict.Reject("port out of range", "use 1 to 65535")
	case addr.IsValid() && (addr.IsUnspecified() || addr.IsMulticast()):
		return strict.Reject("not the address of one host", form)
	}
	*o = Origin{Network: network, Addr: addr, Host: name, First: first, Last: last}
	return nil
}

// parseOriginHost reads an address, an IPv6 one in brackets, or a name.
func parseOriginHost(text string) (addr netip.Addr, name string, err error) {
	inner, bracketed := strings.CutPrefix(text, "[")
	if bracketed {
		inner = strings.TrimSuffix(inner, "]")
	}
	if addr, err = strict.ParseAddr(inner); err == nil {
		if bracketed != addr.Is6() {
			err = strict.Reject("not an address and port", `an IPv6 address stands in brackets, as in "berlin/[2001:db8::1]:80"; no other does`)
		}
		return addr, "", err
	}
	if bracketed || strings.Contains(text, ":") || addr.IsValid() {
		return netip.Addr{}, "", err
	}
	name, err = parseName(text)
	return netip.Addr{}, name, err
}
