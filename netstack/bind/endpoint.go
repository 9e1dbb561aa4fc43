package bind

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// Endpoint is where a peer is: its address and port, and the local address
// that it spoke to, from which the answers leave. Apart from ClearSrc it does
// not change, so one Endpoint serves every datagram of a peer.
type Endpoint struct {
	dst     netip.AddrPort // never IPv4-mapped
	src     netip.Addr     // not valid for an Endpoint that was parsed
	cleared atomic.Bool    // src counts no more
	wire    wire           // dst and src as the kernel wants them

	// refused is 0, or the size from which datagrams cannot be segments of a
	// message, in its low 16 bits, and above them the second of Unix time
	// until which that is believed.
	refused atomic.Uint64
}

// refusal is how long it is believed that a path refuses segments. Routes and
// MTUs change under a daemon that runs for months; trying again costs one
// system call that fails.
const refusal = 10 * time.Minute

// refuse notes that datagrams of size bytes and more are not to be grouped.
func (e *Endpoint) refuse(size int, now time.Time) {
	e.refused.Store(uint64(now.Add(refusal).Unix())<<16 | uint64(size))
}

// alone returns the size from which datagrams are not to be grouped.
func (e *Endpoint) alone(now func() time.Time) int {
	v := e.refused.Load()
	if v == 0 || uint64(now().Unix()) >= v>>16 {
		return math.MaxInt
	}
	return int(v & (1<<16 - 1))
}

var _ conn.Endpoint = (*Endpoint)(nil)

func parseEndpoint(s string) (*Endpoint, error) {
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, fmt.Errorf("parsing endpoint %q: want address:port, such as 192.0.2.1:51820 or [2001:db8::1]:51820: %w", s, err)
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if at.Port() == 0 || at.Addr().IsUnspecified() {
		return nil, fmt.Errorf("parsing endpoint %q: nothing can be sent to port 0 or to the unspecified address", s)
	}
	scope := uint32(0)
	if zone := at.Addr().Zone(); zone != "" {
		if scope, err = zoneIndex(zone); err != nil {
			return nil, fmt.Errorf("parsing endpoint %q: %w", s, err)
		}
	}
	return newEndpoint(at, netip.Addr{}, scope), nil
}

// zoneIndex turns an IPv6 zone, an interface's name or number, to its number.
func zoneIndex(zone string) (uint32, error) {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("looking up interface %q: %w", zone, err)
	}
	return uint32(ifi.Index), nil
}

// newEndpoint makes an Endpoint; scope is the interface that link-local
// addresses belong to.
func newEndpoint(dst netip.AddrPort, src netip.Addr, scope uint32) *Endpoint {
	e := &Endpoint{dst: dst, src: src}
	e.wire.set(dst, src, scope)
	return e
}

// AddrPort returns the peer's address and port.
func (e *Endpoint) AddrPort() netip.AddrPort { return e.dst }

// ClearSrc makes the kernel choose the source address from now on, by its
// routes. The device calls it when answers fail to come.
func (e *Endpoint) ClearSrc() { e.cleared.Store(true) }

// SrcIP returns the local address that datagrams to the peer leave from; not
// valid where the kernel chooses.
func (e *Endpoint) SrcIP() netip.Addr {
	if e.cleared.Load() {
		return netip.Addr{}
	}
	return e.src
}

// SrcToString returns SrcIP in text, "" where the kernel chooses.
func (e *Endpoint) SrcToString() string {
	if src := e.SrcIP(); src.IsValid() {
		return src.String()
	}
	return ""
}

// DstIP returns the peer's address.
func (e *Endpoint) DstIP() netip.Addr { return e.dst.Addr() }

// DstToString returns the peer's address and port in text.
func (e *Endpoint) DstToString() string { return e.dst.String() }

// DstToBytes returns the peer's address and port in bytes. WireGuard's cookies
// are made of them.
func (e *Endpoint) DstToBytes() []byte {
	b, _ := e.dst.MarshalBinary() // never fails
	return b
}

// origin is where a datagram came from and where it went to, in a form that
// compares fast. IPv4 addresses use 4 bytes.
type origin struct {
	remote, local [16]byte
	scope         uint32
	port          uint16
	is6, hasLocal bool
}

func (o *origin) endpoint() *Endpoint {
	var remote, local netip.Addr
	if o.is6 {
		remote = netip.AddrFrom16(o.remote)
		if remote.IsLinkLocalUnicast() && o.scope != 0 {
			remote = remote.WithZone(strconv.FormatUint(uint64(o.scope), 10))
		}
		local = netip.AddrFrom16(o.local)
	} else {
		remote, local = netip.AddrFrom4([4]byte(o.remote[:4])), netip.AddrFrom4([4]byte(o.local[:4]))
	}
	if !o.hasLocal {
		local = netip.Addr{}
	}
	return newEndpoint(netip.AddrPortFrom(remote, o.port), local, o.scope)
}

// cacheSize is how many endpoints a generation of an endpointCache holds. A
// flood from forged sources turns the cache over; it costs what it cost
// without one, an allocation a datagram.
const cacheSize = 2048

// endpointCache keeps an Endpoint for each origin, so that receiving
// allocates none. It holds at most twice cacheSize, in two generations: what
// is used moves to the young one, and the old one is emptied when the young
// one is full. It belongs to one receive function and has no lock.
type endpointCache struct {
	last       origin // of lastFound: datagrams come in runs
	lastFound  *Endpoint
	young, old map[origin]*Endpoint
}

func newEndpointCache() *endpointCache {
	return &endpointCache{young: map[origin]*Endpoint{}, old: map[origin]*Endpoint{}}
}

// get returns the Endpoint of o. One whose source was cleared is replaced by
// a new one: the datagram at hand says that its local address is good, but
// says so unauthenticated, and must not change what a peer already holds.
func (c *endpointCache) get(o *origin) *Endpoint {
	if c.lastFound != nil && c.last == *o && !c.lastFound.cleared.Load() {
		return c.lastFound
	}
	e := c.young[*o]
	if e == nil {
		if e = c.old[*o]; e != nil {
			c.put(o, e)
		}
	}
	if e == nil || e.cleared.Load() {
		e = o.endpoint()
		c.put(o, e)
	}
	c.last, c.lastFound = *o, e
	return e
}

func (c *endpointCache) put(o *origin, e *Endpoint) {
	if _, there := c.young[*o]; !there && len(c.young) >= cacheSize {
		c.young, c.old = c.old, c.young
		clear(c.young)
	}
	c.young[*o] = e
}
