package tunnel

import (
	"math/rand/v2"
	"time"
)

// Timing of liveness. A peer that falls silent right after a packet is probed
// echoEvery later, found silent firstMiss after that, asked again every
// missEvery, and dead after deadAfter misses: 1 + 0.4 + 7 × 0.2 = 2.8 s. A
// path that loses 5 % of its packets each way fails eight echoes in a row once
// in some 2·10⁸ seconds.
const (
	echoEvery = time.Second
	firstMiss = 400 * time.Millisecond
	missEvery = 200 * time.Millisecond
	deadAfter = 8

	// abandonAfter is how long a peer may be dead before its flows are
	// aborted. A link that is down for half a minute keeps its flows, but at an
	// edge those that another connector would have: they end at once.
	abandonAfter = 30 * time.Second
)

// life is what liveness believes of a peer.
//
//	      a packet came
//	dead ──────────────→ alive
//	 ↑                     │ deadAfter misses, or the peer says that it leaves
//	 └─────────────────────┘
//
// A peer starts dead. Only authenticated packets count, of any kind.
type life struct {
	alive    bool
	since    time.Time // of the last change; zero before the first packet
	probing  bool      // an echo was sent and nothing has come since
	probedAt time.Time // when the first such echo was sent
	misses   int
	next     time.Time // when there is something to do again
	attempt  int       // handshakes tried since the peer died (initiators only)

	abandoned bool // flows were aborted since the peer died
}

// deed is what the tunnel must do after a step.
type deed struct {
	echo      bool // send an echo
	handshake bool // begin a new handshake before that echo
	up, down  bool // the peer came or went
	abandon   bool // abort the peer's flows
}

// step advances a peer's life to now. heard is when the last authenticated
// packet came; left reports that the peer said it leaves; initiate whether it
// is ours to begin handshakes. It is pure but for the jitter.
func (l *life) step(now, heard time.Time, left, initiate bool) deed {
	if !l.alive {
		return l.stepDead(now, heard, left, initiate)
	}
	if left {
		return l.die(now)
	}
	if l.probing && heard.After(l.probedAt) {
		l.probing, l.misses = false, 0
		l.next = l.probedAt.Add(echoEvery)
		if l.probedAt.Equal(l.since) {
			// Peers that came up together, as after a restart, need not be
			// asked together for ever.
			l.next = l.probedAt.Add(rand.N(echoEvery))
		}
	}
	if now.Before(l.next) {
		return deed{}
	}
	if !l.probing {
		l.probing, l.misses, l.probedAt = true, 0, now
		l.next = now.Add(firstMiss)
		return deed{echo: true}
	}
	l.misses++
	if l.misses >= deadAfter {
		return l.die(now)
	}
	l.next = now.Add(missEvery)
	return deed{echo: true}
}

func (l *life) die(now time.Time) deed {
	*l = life{since: now, next: now}
	return deed{down: true}
}

func (l *life) stepDead(now, heard time.Time, left, initiate bool) deed {
	if !left && !heard.IsZero() && heard.After(l.since) {
		*l = life{alive: true, since: now, probing: true, probedAt: now, next: now.Add(firstMiss)}
		return deed{up: true, echo: true}
	}
	var d deed
	if !l.since.IsZero() && !l.abandoned && now.Sub(l.since) >= abandonAfter {
		l.abandoned = true
		d.abandon = true
	}
	if initiate && !now.Before(l.next) {
		d.echo, d.handshake = true, true
		l.next = now.Add(attemptGap(l.attempt))
		l.attempt++
	}
	return d
}

// Reconnecting. A restarted edge knows no endpoint, so the connector must
// call, and often enough to be back soon after: once a second, and each fourth
// time a pause of three, for paths whose handshake takes longer than a second
// (a new attempt forgets the one under way). After a minute of that, back-off
// up to half a minute.
const (
	eagerAttempts = 40 // about a minute
	attemptBase   = time.Second
	attemptPause  = 3 * time.Second
	attemptMax    = 30 * time.Second
)

// attemptGap returns how long to wait after attempt number n (from 0), with
// 20 % of jitter so that a thousand connectors do not call at once.
func attemptGap(n int) time.Duration {
	gap := attemptBase
	switch {
	case n >= eagerAttempts:
		shift := min((n-eagerAttempts)/2, 4)
		gap = min(attemptPause<<shift, attemptMax)
	case n%4 == 3:
		gap = attemptPause
	}
	return time.Duration(float64(gap) * (0.8 + 0.4*rand.Float64()))
}
