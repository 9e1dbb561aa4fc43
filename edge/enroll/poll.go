package enroll

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

// poll is a request of a connector that may be held until there is news for it.
// Its methods take Registry.mu.
type poll interface {
	// look answers the poll if it is due; else it gives the hold to wait for,
	// which calls wake. mine is the hold that the poll has waited for, nil at
	// first.
	look(mine *hold, wake func(), overdue bool) (answer any, next *hold, refusal *wire.Refusal)
	// giveUp forgets a hold that nobody waits for any more.
	giveUp(mine *hold)
	// held counts the polls of this kind that are held.
	held() *atomic.Int64
	// hurried tells whether the next request on the connection, which has
	// begun to come, makes the poll overdue.
	hurried() bool
	// holdFor is how long it is held, on a connection that is parked.
	holdFor() time.Duration
}

// hold is a poll that waits for news of its connector.
type hold struct {
	wake       func() // called once, with Registry.mu held, when there is something to look at
	superseded bool   // by a newer poll of the connector; guarded by Registry.mu
}

// seat is where a connector's polls of one kind wait, one at a time. It is
// guarded by Registry.mu.
type seat struct {
	hold *hold // the latest that waits, or has given up
}

// errSuperseded is what a poll is told that another has come for.
var errSuperseded = wire.Refuse(wire.CodeBusy, "a newer request of the same key took the place of this one")

// wakeLocked lets the held poll, if there is one, look again.
func (s *seat) wakeLocked() {
	if s.hold != nil {
		wake := s.hold.wake
		s.hold = nil
		wake()
	}
}

// supersedeLocked ends the held poll, for a newer one.
func (s *seat) supersedeLocked() {
	if s.hold != nil {
		s.hold.superseded = true
		s.wakeLocked()
	}
}

func (s *seat) leaveLocked(mine *hold) {
	if s.hold == mine {
		s.hold = nil
	}
}

// sitLocked lets a poll wait, or go on waiting with mine.
func (s *seat) sitLocked(mine *hold, wake func()) (any, *hold, *wire.Refusal) {
	if s.hold != nil && s.hold != mine { // it came after this one, and was faster
		return nil, nil, errSuperseded
	}
	if s.hold == nil {
		s.hold = &hold{wake: wake}
	}
	return nil, s.hold, nil
}

// await holds a poll for at most d, on the caller's goroutine. It ends with
// ctx, whose cause is a *wire.Refusal where there is somebody left to be told.
func await(ctx context.Context, p poll, d time.Duration) (any, *wire.Refusal) {
	timer := time.NewTimer(d)
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
		answer, next, refusal := p.look(mine, wake, overdue)
		if refusal != nil || next == nil {
			return answer, refusal
		}
		mine = next
		p.held().Add(1)
		select {
		case <-woken:
		case <-timer.C:
			overdue = true
		case <-ctx.Done():
		}
		p.held().Add(-1)
		if ctx.Err() != nil {
			p.giveUp(mine)
			return nil, refusalOf(ctx)
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
