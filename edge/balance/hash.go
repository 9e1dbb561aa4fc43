package balance

import (
	"encoding/binary"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
)

// The ring of consistent hashing. Each endpoint has points on it in proportion
// to its own weight and to nothing else, so that one that goes, or comes back,
// moves only its own clients.
const (
	ringPoints    = 1024    // of one weight: shares vary by 1/√1024, 3 %
	maxRingPoints = 1 << 18 // beyond, all endpoints have half as many, or a quarter …
	ringSlack     = 4       // … and those of before, within so many times that
	positionBits  = 40
	rankBits      = 8
	memberBits    = 16
)

// ring is points in ascending order, each position | rank | member, and for
// each of 2^bits equal parts of the circle, of some four points, the first one.
// The rank says from which step of a slow start on a point counts.
type ring struct {
	points []uint64
	index  []uint32
	bits   uint
	each   int // points of one weight
}

// newRing places the members. Where half as many points for all, or twice as
// many, would do as well as they had on old, which may be nil, it leaves that
// as it is: the change would move half of the clients.
func newRing(members []Member, old *ring) *ring {
	each, total := ringPoints, 0
	for _, m := range members {
		total += m.Weight
	}
	for each > 1 && total*each > maxRingPoints {
		each /= 2
	}
	if old != nil && old.each <= ringSlack*each && each <= ringSlack*old.each && total*old.each <= ringSlack*maxRingPoints {
		each = old.each
	}
	points := make([]uint64, 0, total*each)
	for i, m := range members {
		h := fnv.New64a()
		_, _ = h.Write([]byte(m.Endpoint.String()))
		base := h.Sum64()
		for j := range m.Weight * each {
			x := mix(base + uint64(j)*0x9e3779b97f4a7c15)
			points = append(points, x>>memberBits<<memberBits|uint64(i))
		}
	}
	slices.Sort(points)
	r := indexed(points)
	r.each = each
	return r
}

func indexed(points []uint64) *ring {
	r := &ring{points: points, bits: 1}
	for 4<<r.bits < len(points) {
		r.bits++
	}
	r.index = make([]uint32, 1<<r.bits)
	at := 0
	for part := range r.index {
		for at < len(points) && points[at]>>(64-r.bits) < uint64(part) {
			at++
		}
		r.index[part] = uint32(at)
	}
	return r
}

// only returns the ring of the points whose rank is below the limit of their
// member. r itself where that is all of it.
func (r *ring) only(limits []uint16) *ring {
	whole := true
	kept := 0
	for _, x := range r.points {
		if rank(x) < limits[memberOf(x)] {
			kept++
		} else {
			whole = false
		}
	}
	if whole {
		return r
	}
	points := make([]uint64, 0, kept)
	for _, x := range r.points {
		if rank(x) < limits[memberOf(x)] {
			points = append(points, x)
		}
	}
	return indexed(points)
}

func rank(point uint64) uint16  { return uint16(point >> memberBits & (1<<rankBits - 1)) }
func memberOf(point uint64) int { return int(point & (1<<memberBits - 1)) }

// from returns the index of the first point at or after h, around the circle.
func (r *ring) from(h uint64) int {
	h = h >> (64 - positionBits) << (64 - positionBits)
	i := int(r.index[h>>(64-r.bits)])
	for i < len(r.points) && r.points[i] < h {
		i++
	}
	if i == len(r.points) {
		return 0
	}
	return i
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// client is who asks: what affinity knows it by, and the hash of that.
type client struct {
	key   [16]byte
	hash  uint64
	valid bool
}

// newClient reads an address; where net is set, all of its /24 or /56 are one.
func newClient(addr netip.Addr, net bool) client {
	c := client{key: addr.As16(), valid: addr.IsValid()}
	if net {
		if addr.Is4() || addr.Is4In6() {
			c.key[15] = 0
		} else {
			clear(c.key[7:])
		}
	}
	c.hash = mix(binary.BigEndian.Uint64(c.key[:8])*0x9e3779b97f4a7c15 + mix(binary.BigEndian.Uint64(c.key[8:])+0x9e3779b97f4a7c15))
	return c
}

// rendezvous is the weight of one of several choices for a client: the largest
// wins (Thaler and Ravishankar, 1998; the weighted form by Schindelhauer and
// Schomaker, 2005).
func rendezvous(client, choice uint64, weight int) float64 {
	u := (float64(mix(client^choice)>>11) + 0.5) / (1 << 53)
	return -float64(weight) / math.Log(u)
}

// hashName is a stable hash of a name.
func hashName(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return mix(h.Sum64())
}
