// Package zone answers questions about DNS zones from memory. Build turns
// what the operator declared (zones, their nameservers, hostnames and their
// addresses) into an immutable Snapshot, or into the whole list of what is
// wrong with it; Snapshot.Lookup is a pure function of a name and a type.
//
//	snapshot, problems := zone.Build(zone.Source{Revision: 7, Zones: zones, Hosts: hosts})
//	answer := snapshot.Lookup("db.apps.example.com.", dns.TypeA)
//
// A Snapshot may be read by any number of goroutines and never changes; a
// reload builds the next one whole. The package opens no socket, reads no
// clock, and knows nothing of messages, EDNS or transports: those are dnsd's.
// It must never answer from anything but its snapshot.
package zone

import (
	"fmt"
	"net/netip"
	"time"
)

// The defaults of TTLs. Addresses and negative answers are short-lived, so
// that a change of the edge's addresses is seen soon; the delegation itself
// hardly changes.
const (
	DefaultHostTTL       = 30 * time.Second
	DefaultNegativeTTL   = 30 * time.Second
	DefaultNameserverTTL = time.Hour
)

// The timers of every SOA (RFC 1035 section 3.3.13; the values are those of
// RIPE-203 for small zones). Only secondaries read them.
const (
	soaRefresh = 3600    // seconds
	soaRetry   = 600     // seconds
	soaExpire  = 1209600 // seconds: two weeks
)

// maxTTL is the largest TTL there is (RFC 2181 section 8).
const maxTTL = (1<<31 - 1) * time.Second

// Source is all that a Snapshot is made of.
type Source struct {
	// Revision counts the states of the source. It is the serial of every
	// zone that names none.
	Revision uint64
	Zones    []Zone
	// Hosts find their zone by name: the longest zone that holds them.
	Hosts []Host
}

// Zone is one zone that the server is authoritative for.
type Zone struct {
	// Name of the apex, such as "apps.example.com". Upper and lower case are
	// the same, a final dot is optional, the root is refused.
	Name string
	// Nameservers of the zone, at least one; the first is the SOA's MNAME.
	Nameservers []Nameserver
	// Mailbox is the SOA's RNAME, written as a name. Default: hostmaster and
	// the zone's name.
	Mailbox string
	// Serial of the SOA. Zero means the low 32 bits of Source.Revision.
	Serial uint32
	// TTLs of the zone's records; a zero means the default.
	TTLs TTLs
}

// Nameserver is one NS record.
type Nameserver struct {
	Name string
	// Addrs are what the nameserver is reached at. One that lies inside a zone
	// of the Source needs them: its A and AAAA records are made from them.
	// Those of a nameserver elsewhere are not used.
	Addrs []netip.Addr
}

// TTLs are the lifetimes of a zone's records in caches, in whole seconds.
type TTLs struct {
	Host       time.Duration // A and AAAA of hosts
	Negative   time.Duration // the SOA's MINIMUM: NXDOMAIN and NODATA (RFC 2308)
	Nameserver time.Duration // NS, SOA, and the nameservers' own A and AAAA
}

// Host is one hostname and what it resolves to.
type Host struct {
	// Name in full, or a single label where the Source has exactly one zone.
	// The first label may be "*" (RFC 4592).
	Name string
	// Addrs of the host. Without any the name exists and every question about
	// it gets NODATA. The same host may be given twice with the same addresses.
	Addrs []netip.Addr
}

// Problem is one thing that is wrong with a Source.
type Problem struct {
	// Path names the offender by its place in the Source, such as
	// "zones[0].nameservers[1].name".
	Path string
	// Value as it was given.
	Value string
	// What is wrong, and what to do about it.
	What, Hint string
}

// Error puts the problem in one line.
func (p Problem) Error() string {
	return fmt.Sprintf("%s = %q: %s: %s", p.Path, p.Value, p.What, p.Hint)
}
