package tunnel

import "time"

// A WireGuard peer is renewed, removed and added again, to forget the date of
// its last handshake: WireGuard refuses those that are dated before. The
// session goes with it, so no recorded handshake can be played back against a
// session that is live.
const (
	// renewEvery is how often the tunnel looks for whom to renew.
	renewEvery = time.Second
	// guestSilence is after how long without a packet a guest is renewed:
	// the next machine with its key may have an older clock.
	guestSilence = 5 * time.Second
	// renewsAtOnce bounds the renewals of one look. Each takes some 0.1 ms,
	// in which liveness waits.
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

// renewSilent renews the guests that have fallen silent.
func (t *Tunnel) renewSilent(now time.Time) {
	left := renewsAtOnce
	for _, g := range t.allGuests() {
		if g.session.quiet.look(now, g.session.state().rx) < guestSilence {
			continue
		}
		if left--; left < 0 {
			return
		}
		if err := g.Renew(); err != nil {
			t.cfg.Log.Debug("renewing failed", "err", err) // it was removed, or the tunnel closes
		}
	}
}
