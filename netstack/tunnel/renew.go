package tunnel

import "time"

// A WireGuard peer is renewed, removed and added again, to forget the date of
// its last handshake: WireGuard refuses those that are dated before, and so
// every handshake of a machine whose clock went back. The session goes with
// the date: a handshake that was recorded and is played back never meets a
// session that is live, and what it changes, the endpoint, the next handshake
// of the peer itself puts right.
const (
	// renewEvery is how often the tunnel looks for whom to renew.
	renewEvery = time.Second
	// guestSilence is after how long without a packet a guest is renewed:
	// the next machine with its key may have an older clock.
	guestSilence = 5 * time.Second
	// deadSilence is after how long a connector that is dead is renewed, and
	// deadAgain how soon it may be so again.
	deadSilence = 10 * time.Second
	deadAgain   = 30 * time.Second
	// renewsAtOnce bounds the renewals of one look. Each takes 0.15 ms, in
	// which liveness waits; 1,000 connectors that died together are done in
	// five looks.
	renewsAtOnce = 200
)

// quiet is since when WireGuard has taken nothing of a session; watch's own.
type quiet struct {
	rx    uint64 // WireGuard's count then; 0: it knows of no handshake either
	since time.Time
}

// look compares with WireGuard's count now, and returns how long nothing has
// come; 0 where nothing ever came, and there is nothing to forget. Refused
// handshakes do not count, those that were taken do.
func (q *quiet) look(now time.Time, rx uint64) time.Duration {
	if rx != q.rx {
		q.rx, q.since = rx, now
	}
	if q.rx == 0 {
		return 0
	}
	return now.Sub(q.since)
}

// renewSilent renews the guests that have fallen silent and the connectors
// that are dead. A thousand who stay away are renewed once; from then on they
// cost the look, 2 ms.
func (t *Tunnel) renewSilent(now time.Time) {
	left := renewsAtOnce
	var err error
	for _, g := range t.allGuests() {
		if g.session.quiet.look(now, g.session.state().rx) < guestSilence {
			continue
		}
		if left--; left < 0 {
			return
		}
		err = g.Renew()
	}
	for _, p := range t.allPeers() {
		if p.initiate {
			continue // whoever is called has no dates to forget
		}
		for _, s := range p.silentSessions(now) {
			if left--; left < 0 {
				return
			}
			err = s.renew(func() {})
		}
	}
	if err != nil {
		t.cfg.Log.Debug("renewing failed", "err", err) // it was removed, or the tunnel closes
	}
}

// silentSessions returns those that are due to be renewed: the one in use once
// the connector is dead, and the next one, which may have been called by a
// clock that was ahead.
func (p *Peer) silentSessions(now time.Time) []*session {
	due := []*session{p.otherKeys().next}
	if !p.Alive() {
		due = append(due, p.session())
	}
	n := 0
	for _, s := range due {
		if s != nil && s.quiet.look(now, s.state().rx) >= deadSilence && now.Sub(s.renewedAt()) >= deadAgain {
			due[n] = s
			n++
		}
	}
	return due[:n]
}

// renewedAt is when the session was last renewed; zero: never.
func (s *session) renewedAt() time.Time {
	s.tunnel.deviceMu.Lock()
	defer s.tunnel.deviceMu.Unlock()
	return s.renewed
}
