package connector

import (
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
)

// routes are the prefixes that an edge lets this connector serve. Nil: any.
type routes struct {
	table bart.Lite
	list  []netip.Prefix
}

func newRoutes(list []netip.Prefix) *routes {
	r := &routes{list: list}
	for _, p := range list {
		r.table.Insert(p)
	}
	return r
}

// hold tells whether a is in one of the routes.
func (r *routes) hold(a netip.Addr) bool { return r == nil || r.table.Contains(a.Unmap()) }

// String is the first few routes.
func (r *routes) String() string {
	const shown = 8
	switch {
	case r == nil:
		return "any"
	case len(r.list) == 0:
		return "none"
	case len(r.list) > shown:
		return fmt.Sprintf("%v and %d more", r.list[:shown], len(r.list)-shown)
	}
	return fmt.Sprint(r.list)
}
