package enroll

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// maxName is the most bytes of a connector's name, as of all names in
// edge.toml: that of a DNS label.
const maxName = 63

// checkName refuses what edge.toml would not take as a name.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("a name of %d bytes is too long: use %d at most", len(name), maxName)
	}
	for i := range len(name) {
		if c := name[i]; !alphanumeric(c) && (i == 0 || !strings.ContainsRune("-_.", rune(c))) {
			return fmt.Errorf(`the name %q cannot be: use letters, digits, "-", "_" and ".", beginning with a letter or a digit`, name)
		}
	}
	return nil
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// nameOf makes a name of what a machine calls itself; empty if nothing is
// left.
func nameOf(hostname string) string {
	name := strings.Map(func(c rune) rune {
		if c < 0x80 && (alphanumeric(byte(c)) || strings.ContainsRune("-_.", c)) {
			return c
		}
		return '-'
	}, hostname[:min(len(hostname), maxName)])
	return strings.Trim(name, "-_.")
}

// taken reports whether a connector has that name, or edge.toml gives it to
// one. The caller holds changing.
func (r *Registry) taken(name string) bool {
	return r.connectors[name] != nil || r.reserved.names[name]
}

// reserved are the names and keys that edge.toml declares, the present one and
// the candidate.
type reserved struct {
	names map[string]bool
	keys  map[wgtypes.Key]bool
}

func reserve(specs ...*Spec) reserved {
	all := reserved{make(map[string]bool), make(map[wgtypes.Key]bool)}
	for _, spec := range specs {
		for _, d := range spec.Declared {
			all.names[d.Name], all.keys[d.PublicKey] = true, true
		}
	}
	return all
}

// choose finds the name for a joiner: the token's, else the one that it asks
// for, else its hostname; where that is taken, with -2, -3 and so on. One that
// is held by an absent connector of the same ephemeral token is free: gone is
// that connector. The caller holds changing.
func (r *Registry) choose(t *token, req wire.EnrollRequest, now time.Time) (name string, gone *connector) {
	base := cmp.Or(t.rec.Name, req.Name, nameOf(req.Hostname), "connector")
	name = base
	for i := 2; r.taken(name); i++ {
		if c := r.connectors[name]; c != nil && r.replaceable(c, t, now) {
			return name, c
		}
		suffix := fmt.Sprintf("-%d", i)
		name = base[:min(len(base), maxName-len(suffix))] + suffix
	}
	return name, nil
}
