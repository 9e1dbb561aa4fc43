package tunnel

import (
	"math/rand/v2"
	"time"
)

// Sizes on the way. WireGuard adds 32 bytes to a packet, below it stand UDP
// (8) and the outer IP header; above it stands the shim.
const (
	wireguardOverhead = 32
	outerOverhead4    = 20 + 8 + wireguardOverhead // 60
	outerOverhead6    = 40 + 8 + wireguardOverhead // 80

	// maxPathMTU caps what a path is credited with: what networks of jumbo
	// frames carry. Beyond 1500 the socket forbids fragments (package bind), so
	// that a probe that comes back came whole.
	maxPathMTU = 9000

	// commonMTU is the largest inner packet on a path of 1500, what the
	// internet carries: where a search begins.
	commonMTU = 1500 - outerOverhead4 - shimLen

	// minInnerMTU is the floor inside the tunnel: an IPv6 link carries 1280
	// bytes (RFC 8200 section 5), and the stack refuses a NIC below it. Where
	// the path is smaller still, the outer packet is fragmented, which the
	// socket permits.
	minInnerMTU = 1280
)

// Timing of path MTU probes.
const (
	mtuProbeEvery  = time.Second      // between two probes of a size in question
	mtuProbeTries  = 3                // unanswered probes before a size is given up
	mtuVerifyEvery = 5 * time.Second  // how often a size that works is tried again, on average
	mtuClimbEvery  = 10 * time.Minute // how often a larger size is tried
)

// mtuLadder holds the inner sizes that are tried below a path's ceiling: what
// remains of an odd jumbo frame, of 1500 over IPv4 and IPv6, of PPPoE, of
// common tunnels, and the floor.
var mtuLadder = [...]int{8000, 4000, commonMTU, 1380, 1372, 1352, 1320, minInnerMTU}

// pathMTU finds the largest inner packet that a path carries both ways, with
// echoes padded to the size in question: the reply is as large as the request
// (the idea is RFC 8899's). It is pure but for the jitter; its owner sends and reports. Sizes are
// of inner packets, bytes.
type pathMTU struct {
	ceiling int // what the local route promises
	working int // the largest size whose echo came back
	trying  int // the size that probes have now; 0: none
	tries   int
	next    time.Time
	climb   time.Time
}

// restart begins a new search below ceiling, after the peer came up or moved.
// Until a larger size is proved the floor is used. What the internet carries is
// tried first, whatever the local route promises: a host with jumbo frames
// mostly speaks to others beyond its own network.
func (m *pathMTU) restart(now time.Time, ceiling int) {
	ceiling = max(ceiling, minInnerMTU)
	*m = pathMTU{ceiling: ceiling, working: minInnerMTU, next: now, climb: now.Add(mtuClimbEvery)}
	if ceiling > minInnerMTU {
		m.trying = min(ceiling, commonMTU)
	}
	if ceiling > commonMTU {
		m.climb = now
	}
}

// step returns the inner size to probe now, or 0.
func (m *pathMTU) step(now time.Time) (probe int) {
	if m.working == 0 || now.Before(m.next) {
		return 0
	}
	if m.trying == 0 {
		m.trying, m.tries = m.working, 0
		if !now.Before(m.climb) {
			m.trying, m.climb = m.ceiling, now.Add(mtuClimbEvery)
		}
	}
	if m.tries >= mtuProbeTries {
		m.giveUp()
	}
	m.tries++
	m.next = now.Add(mtuProbeEvery)
	return m.trying
}

// giveUp goes on to the next smaller size. When a size that worked is lost,
// the floor serves until a smaller one is proved.
func (m *pathMTU) giveUp() {
	lost := m.trying
	if lost <= m.working {
		m.working = minInnerMTU
	}
	m.tries = 0
	m.trying = minInnerMTU
	for _, size := range mtuLadder {
		if size < lost && size <= m.ceiling {
			m.trying = size
			break
		}
	}
}

// answered reports that an echo of an inner size came back.
func (m *pathMTU) answered(now time.Time, size int) {
	if m.trying == 0 || size != m.trying {
		return
	}
	m.working = max(m.working, size)
	m.trying, m.tries = 0, 0
	m.next = now.Add(mtuVerifyEvery/2 + rand.N(mtuVerifyEvery))
	if !now.Before(m.climb) && m.working < m.ceiling {
		m.next = now
	}
}
