package bind

import (
	"encoding/binary"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Tuning of the flood guard. WireGuard spends some 80 µs of processor on the
// first message of a handshake before it knows who sends it (X25519), and a
// multiple on one that it answers: at tens of thousands a second, which one
// machine sends with ease, nothing else gets done. Its own limiter acts on those
// alone who have answered a cookie, keys on the whole IPv6 address, of which a
// site has 2^64, and has no bound.
//
// One address may stand for many connectors, behind a NAT or on one host. After
// a restart of the edge each of them calls once a second: a thousand of them
// keep the rate, four thousand at once are the burst. A stranger at that rate
// costs a twelfth of a core, and a datagram that is refused here 0.4 µs.
const (
	floodInterval = time.Millisecond     // one message, in the long run
	floodBurst    = 4000 * floodInterval // saved up while a source is silent
	floodSources  = 4096                 // in each of two generations
)

// floodGuard limits the handshake messages of each source: an IPv4 address, an
// IPv6 /64. It belongs to one receive function and has no lock. A source that
// the bounded table has forgotten begins anew: forged sources are for
// WireGuard's cookies, and must not lock anyone out here.
type floodGuard struct {
	// young and old say until when a source has used up its share; what is in
	// the past is as good as absent. When young is full it takes old's place.
	young, old map[source]time.Duration
	start      time.Time
}

// source is who a share belongs to.
type source struct {
	net uint64
	is6 bool
}

func newFloodGuard() *floodGuard {
	return &floodGuard{young: map[source]time.Duration{}, old: map[source]time.Duration{}}
}

// source returns whose share a datagram from the endpoint uses.
func (e *Endpoint) source() source {
	if a := e.dst.Addr(); a.Is6() {
		b := a.As16()
		return source{binary.BigEndian.Uint64(b[:8]), true}
	} else {
		b := a.As4()
		return source{uint64(binary.BigEndian.Uint32(b[:])), false}
	}
}

// allow reports whether a message from s is within its share at now, which
// never goes back.
func (f *floodGuard) allow(s source, now time.Time) bool {
	if f.start.IsZero() {
		f.start = now
	}
	at := now.Sub(f.start)
	used, there := f.young[s]
	if !there {
		used = f.old[s]
		if len(f.young) >= floodSources {
			f.young, f.old = f.old, f.young
			clear(f.young)
		}
	}
	used = max(used, at)
	allowed := used-at < floodBurst
	if allowed {
		used += floodInterval
	}
	f.young[s] = used
	return allowed
}

// isHandshake reports whether a datagram is a message of a handshake
// (wireguard.com/protocol), by its size first: the rest of the data need not be
// touched.
func isHandshake(b []byte) bool {
	switch len(b) {
	case device.MessageInitiationSize, device.MessageResponseSize, device.MessageCookieReplySize:
		return binary.LittleEndian.Uint32(b) < device.MessageTransportType
	}
	return false
}
