package enroll

import (
	"context"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// hold is a sync that waits for news of its connector.
type hold struct {
	wake       func() // called once, with Registry.mu held, when there is something to look at
	superseded bool   // by a newer sync of the connector; guarded by Registry.mu
}

// sync answers a connector's long poll: at once if it does not have the grant
// of now, else when that changes, or after wire.HoldSync. It ends with ctx,
// whose cause is a *wire.Refusal where there is somebody left to be told.
func (r *Registry) sync(ctx context.Context, key wgtypes.Key, req wire.SyncRequest) (wire.SyncAnswer, *wire.Refusal) {
	if refusal := r.arrive(key, req); refusal != nil {
		return wire.SyncAnswer{}, refusal
	}
	timer := time.NewTimer(wire.HoldSync)
	defer timer.Stop()
	overdue := false
	woken := make(chan struct{}, 1)
	wake := func() {
		select {
		case woken <- struct{}{}:
		default:
		}
	}
	var mine *hold
	for {
		answer, next, refusal := r.look(key, mine, wake, req.Revision, overdue)
		if refusal != nil || next == nil {
			return answer, refusal
		}
		mine = next
		r.metrics.held.Add(1)
		select {
		case <-woken:
		case <-timer.C:
			overdue = true
		case <-ctx.Done():
		}
		r.metrics.held.Add(-1)
		if ctx.Err() != nil {
			r.giveUp(key, mine)
			return wire.SyncAnswer{}, refusalOf(ctx)
		}
	}
}

// refusalOf is what whoever ended ctx wants to be told.
func refusalOf(ctx context.Context) *wire.Refusal {
	if refusal, ok := context.Cause(ctx).(*wire.Refusal); ok {
		return refusal
	}
	return wire.Refuse(wire.CodeUnavailable, "the request was given up")
}

// arrive takes in what a sync says.
func (r *Registry) arrive(key wgtypes.Key, req wire.SyncRequest) *wire.Refusal {
	if refusal := r.welcome(key); refusal != nil {
		return refusal
	}
	return r.note(key, req.Report)
}

// welcome takes the first call of a key: it confirms a registration, or ends a
// change of key. Who has neither passes.
func (r *Registry) welcome(key wgtypes.Key) *wire.Refusal {
	r.mu.Lock()
	c := r.byKey[key]
	pending := c != nil && c.rec.Pending
	promoted := c != nil && c.rec.Next.Key == key
	r.mu.Unlock()
	switch {
	case pending:
		return r.confirm(key)
	case promoted:
		return r.promote(key)
	}
	return nil
}

// note keeps what the connector with that key reports.
func (r *Registry) note(key wgtypes.Key, report wire.Report) *wire.Refusal {
	now := r.now()
	report = cleanReport(report)
	offset, clock := clockOffset(report.Time, now)
	r.mu.Lock()
	c := r.byKey[key]
	if c == nil {
		r.mu.Unlock()
		return r.stranger(key)
	}
	was := c.clock
	c.lastSync, c.report, c.offset, c.clock = now, report, offset, clock
	name, network := c.rec.Name, c.rec.Network
	if c.hold != nil {
		c.hold.superseded = true
		c.wakeLocked()
	}
	r.mu.Unlock()
	switch {
	case clock == was:
	case clock == clockRight:
		r.log.Info("connector's clock is right again", "connector", name, "network", network, "offset", offset)
	default:
		r.log.Warn("connector's clock is off: set it, or let NTP do that; the tunnel needs it to go forward",
			"connector", name, "network", network, "offset", offset)
	}
	return nil
}

// look answers a sync that is due for an answer; else it gives the hold to wait
// for, which calls wake. mine is the hold that the sync has waited for, nil at
// first.
func (r *Registry) look(key wgtypes.Key, mine *hold, wake func(), revision uint64, overdue bool) (wire.SyncAnswer, *hold, *wire.Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.byKey[key]
	if mine != nil && mine.superseded {
		return wire.SyncAnswer{}, nil, wire.Refuse(wire.CodeBusy, "a newer sync of the same key took the place of this one")
	}
	if c == nil {
		return wire.SyncAnswer{}, nil, r.strangerLocked(key)
	}
	if overdue || revision != c.revision {
		if c.hold == mine {
			c.hold = nil
		}
		r.metrics.syncs.Add(1)
		return wire.SyncAnswer{Revision: c.revision, Grant: c.grant, Time: r.now().UTC()}, nil, nil
	}
	if c.hold != nil && c.hold != mine { // it came between note and here
		return wire.SyncAnswer{}, nil, wire.Refuse(wire.CodeBusy, "a newer sync of the same key took the place of this one")
	}
	if c.hold == nil {
		c.hold = &hold{wake: wake}
	}
	return wire.SyncAnswer{}, c.hold, nil
}

// giveUp forgets a hold that nobody waits for any more.
func (r *Registry) giveUp(key wgtypes.Key, mine *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.byKey[key]; c != nil && c.hold == mine {
		c.hold = nil
	}
}

// stranger is what a caller is told whose key is no connector's.
func (r *Registry) stranger(key wgtypes.Key) *wire.Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.strangerLocked(key)
}

func (r *Registry) strangerLocked(key wgtypes.Key) *wire.Refusal {
	if d := r.denials[key]; d != nil {
		return wire.Refuse(wire.CodeRevoked, "connector %q was revoked on %s: enrol it anew, with a new key and a new token", d.rec.Name, date(d.rec.When))
	}
	if r.bootstraps[key] != nil {
		return wire.Refuse(wire.CodeNotAllowed, "a token's key is for enrolment alone")
	}
	return wire.Refuse(wire.CodeUnknown, "this edge knows no connector with the key %s: enrol it with a new token", abbreviate(key))
}

// clockState is how a connector's clock stands to this edge's.
type clockState int8

const (
	clockRight clockState = iota
	clockBehind
	clockAhead
)

// maxClockOffset is how far off a clock may be before the log warns: more than
// round trips, and less than what hurts.
const maxClockOffset = 30 * time.Second

// clockOffset compares a connector's time, of when it sent its sync, with now.
// A round trip's half is in it, which nobody can take out here.
func clockOffset(theirs, now time.Time) (time.Duration, clockState) {
	if theirs.IsZero() {
		return 0, clockRight
	}
	offset := theirs.Sub(now)
	switch {
	case offset > maxClockOffset:
		return offset, clockAhead
	case offset < -maxClockOffset:
		return offset, clockBehind
	}
	return offset, clockRight
}

// cleanReport bounds what a connector says of itself, and makes it fit to be
// shown.
func cleanReport(r wire.Report) wire.Report {
	r.Version, r.Hostname = clean(r.Version, wire.MaxName), clean(r.Hostname, wire.MaxName)
	r.Time, r.Started = cleanTime(r.Time), cleanTime(r.Started)
	r.Load.TCPFlows, r.Load.UDPFlows = max(0, r.Load.TCPFlows), max(0, r.Load.UDPFlows)
	r.Load.CPUs, r.Load.Load1 = max(0, r.Load.CPUs), max(0, r.Load.Load1)
	r.Errors = slices.Clone(r.Errors[:min(len(r.Errors), wire.MaxOriginErrors)])
	for i := range r.Errors {
		e := &r.Errors[i]
		e.Destination, e.Result, e.Error = clean(e.Destination, wire.MaxText), clean(e.Result, wire.MaxName), clean(e.Error, wire.MaxText)
		e.Last = cleanTime(e.Last)
	}
	return r
}

// cleanTime drops a time that JSON could not carry on, as of the year 10000.
func cleanTime(t time.Time) time.Time {
	t = t.UTC()
	if t.Year() < 1970 || t.Year() > 9998 {
		return time.Time{}
	}
	return t
}
