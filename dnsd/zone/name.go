package zone

import (
	"strings"

	"github.com/miekg/dns"
)

// maxNameLen is the longest name in presentation form without its final dot
// (255 octets on the wire, RFC 1035 section 2.3.4).
const maxNameLen = 253

// fold returns name with the ASCII letters in lower case, which is how names
// compare (RFC 4343). A name that has no capitals is returned as it is,
// without allocating. Escapes (\DDD) hold no letters and stay untouched.
func fold(name string) string {
	for i := range len(name) {
		if 'A' <= name[i] && name[i] <= 'Z' {
			return foldRest(name, i)
		}
	}
	return name
}

func foldRest(name string, first int) string {
	b := []byte(name)
	for i := first; i < len(b); i++ {
		if 'A' <= b[i] && b[i] <= 'Z' {
			b[i] += 'a' - 'A'
		}
	}
	return string(b)
}

// canonical folds a hostname and gives it its final dot. What is wrong with
// the name, if anything, comes back in words. Hostnames are letters, digits,
// hyphens and underscores (RFC 1123 section 2.1, and RFC 8552 for the
// underscore), so a canonical name never needs an escape.
func canonical(name string, wildcard bool) (fqdn, what, hint string) {
	plain := strings.TrimSuffix(name, ".")
	if plain == "" {
		return "", "the name is empty", "write a name such as app.example.com"
	}
	if len(plain) > maxNameLen {
		return "", "the name is longer than 253 characters", "shorten it"
	}
	for i, label := range strings.Split(plain, ".") {
		if label == "*" && i == 0 && wildcard {
			continue
		}
		if what, hint := badLabel(label); what != "" {
			return "", what, hint
		}
	}
	return fold(plain) + ".", "", ""
}

func badLabel(label string) (what, hint string) {
	switch {
	case label == "":
		return "the name has an empty label", "remove the extra dot"
	case len(label) > 63:
		return "a label is longer than 63 characters", "shorten it"
	case label[0] == '-' || label[len(label)-1] == '-':
		return "a label starts or ends with a hyphen", "remove the hyphen"
	case strings.Contains(label, "*"):
		return `"*" is only possible as the whole first label of a hostname`, "write *.example.com, or name the hosts one by one"
	}
	for i := range len(label) {
		switch c := label[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		case c >= 0x80:
			return "the name is not ASCII", "write its xn--… form"
		default:
			return "the name has a character that hostnames cannot have", "use letters, digits and hyphens"
		}
	}
	return "", ""
}

// parent returns name without its first label; the parent of a top-level name
// is "." and that of "." is "". Names that came off the wire may hold escaped
// dots, which part no labels.
func parent(name string) string {
	next, end := dns.NextLabel(name, 0)
	if end {
		if name == "." {
			return ""
		}
		return "."
	}
	return name[next:]
}
