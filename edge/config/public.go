package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/warrenmesh/warren/edge/public"
)

// publicTable is [public]: how this edge dials the endpoints of "@public".
type publicTable struct {
	// Allow are prefixes that are dialled though they are not public: private
	// ones, loopback, the edge's own addresses. The address of a cloud's
	// metadata service needs its own /32 or /128. Default: none.
	Allow []netip.Prefix `toml:"allow"`
	// Timeout is how long one connect may take. Default: 5s; 1ms to 7s, which
	// is what a flow is given.
	Timeout time.Duration `toml:"timeout" default:"5s" range:"1ms..7s"`
	// KeepAlive is the time between the probes of an idle connection. Default:
	// 30s; 1s to 2h.
	KeepAlive time.Duration `toml:"keepalive" default:"30s" range:"1s..2h"`
	// MaxDials is how many connects may wait for an answer at a time, a quarter
	// of them to one endpoint; more fail at once. Default: 1024; 1 to 1000000.
	MaxDials int `toml:"max_dials" default:"1024" range:"1..1000000"`
}

// buildPublic makes the spec of the dialer. The edge's own addresses are those
// of each [[address]]; the machine may have more.
func (l *loader) buildPublic() {
	t := l.file.Public
	spec := public.Spec{Allow: t.Allow, Timeout: t.Timeout, KeepAlive: t.KeepAlive, MaxDials: t.MaxDials}
	for _, a := range l.cfg.Addresses {
		for _, list := range [][]netip.Addr{a.Advertise, a.Bind} {
			for _, addr := range list {
				if addr.IsValid() && !addr.IsUnspecified() && !slices.Contains(spec.Own, addr) {
					spec.Own = append(spec.Own, addr)
				}
			}
		}
	}
	spec.Validate(l.report("public"))
	l.cfg.Public = spec
	l.public = judge(spec)
}

// judge makes a Dialer that judges addresses as one of spec does, and is never
// dialled with: its other values may be out of range still.
func judge(spec public.Spec) *public.Dialer {
	return public.New(public.Spec{Allow: spec.Allow, Own: spec.Own})
}

// checkPublic wants an address of the file to be one that the edge may dial.
func (l *loader) checkPublic(path string, addr netip.Addr) {
	err := l.public.Check(addr)
	if err == nil || l.doc.Bad("public") {
		return
	}
	why := strings.TrimPrefix(err.Error(), public.ErrNotPublic.Error()+": ")
	why, hint, _ := strings.Cut(why, ": ")
	if l.doc.Has("public") {
		why += ", and not allowed at " + l.doc.Where("public.allow")
	}
	l.doc.Add(path, fmt.Sprintf("no endpoint of %q: %s", Public, why), hint)
}
