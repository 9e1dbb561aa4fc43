package enroll

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// sync answers a connector's long poll: at once if it does not have the grant
// of now, else when that changes, or after wire.HoldSync. It ends with ctx,
// whose cause is a *wire.Refusal where there is somebody left to be told.
func (r *Registry) sync(ctx context.Context, key wgtypes.Key, req wire.SyncRequest) (wire.SyncAnswer, *wire.Refusal) {
	if refusal := r.arrive(key, req); refusal != nil {
		return wire.SyncAnswer{}, refusal
	}
	p := &syncPoll{r, key, req.Revision}
	answer, refusal := await(ctx, p, p.holdFor())
	grant, _ := answer.(wire.SyncAnswer)
	return grant, refusal
}

// syncPoll is the poll of a sync.
type syncPoll struct {
	r        *Registry
	key      wgtypes.Key
	revision uint64 // of the grant that the connector has
}

func (p *syncPoll) look(mine *hold, wake func(), overdue bool) (any, *hold, *wire.Refusal) {
	r := p.r
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.byKey[p.key]
	switch {
	case mine != nil && mine.superseded:
		return nil, nil, errSuperseded
	case c == nil:
		return nil, nil, r.strangerLocked(p.key)
	case overdue || p.revision != c.revision:
		c.syncs.leaveLocked(mine)
		r.metrics.syncs.Add(1)
		return wire.SyncAnswer{Revision: c.revision, Grant: c.grant, Time: r.now().UTC()}, nil, nil
	}
	return c.syncs.sitLocked(mine, wake)
}

func (p *syncPoll) giveUp(mine *hold) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if c := p.r.byKey[p.key]; c != nil {
		c.syncs.leaveLocked(mine)
	}
}

func (p *syncPoll) held() *atomic.Int64 { return &p.r.metrics.held }

func (p *syncPoll) hurried() bool { return false }

func (p *syncPoll) holdFor() time.Duration { return wire.HoldSync }

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
	c.syncs.supersedeLocked()
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
