package connector

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/netx"
)

const (
	// postDial bounds the dial of an edge's port, and postWithin its answer,
	// which for a sync comes up to wire.HoldSync later. A tunnel that lives
	// carries a packet within 3 s, or is given up.
	postDial   = 10 * time.Second
	postWithin = 10 * time.Second
	// controlSlow is how often an edge that speaks no control is asked again
	// after controlTries, in which one that has just started begins to.
	controlSlow  = 5 * time.Minute
	controlTries = 6
	// urgentEvery is how often a sync that the edge holds may be ended early
	// for news of ours.
	urgentEvery = 2 * time.Second
	// syncEvery and syncBurst bound the syncs with an edge that answers each at
	// once.
	syncEvery = 250 * time.Millisecond
	syncBurst = 8
)

// Why a session ends without a failure.
var (
	errNews    = errors.New("there is news for the edge")
	errRekeyed = errors.New("the connector's key was changed")
)

// control is the long poll by which an edge hears of this connector and says
// what it wants of it.
//
//	dial ──→ sync with revision 0 ──→ apply ──→ sync, held by the edge ──┐
//	 ↑ back-off    │                    ↑            │ news of ours      │
//	 └─────────────┴────────────────────┴────────────┴───────────────────┘
type control struct {
	urgent chan struct{} // capacity 1: the edge should hear from us soon

	mu     sync.Mutex
	hangUp context.CancelCauseFunc // ends the sync that the edge holds; nil: none
	up     bool                    // the last sync was answered
	offset time.Duration           // how far the edge's clock is ahead of ours
	timed  bool                    // offset was measured

	// Of control's goroutine alone.
	said      bool          // the log says why there is no control
	clockSaid time.Duration // the offset that the log told; 0: that they agree
}

// status returns whether there is control, and the clocks' offset where it was
// measured.
func (c *control) status() (up bool, offset time.Duration, timed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up, c.offset, c.timed
}

// set notes whether there is control.
func (c *control) set(up bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up = up
}

// hold notes how to end the sync that the edge holds; nil: none is held.
func (c *control) hold(hangUp context.CancelCauseFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hangUp = hangUp
}

// hurry ends the sync that the edge holds. Where none is held, the next one's
// report has the news.
func (c *control) hurry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hangUp != nil {
		c.hangUp(errNews)
	}
}

// tell asks for a sync soon.
func (c *control) tell() {
	select {
	case c.urgent <- struct{}{}:
	default:
	}
}

// control syncs with the edge, which is alive, until ctx ends. It returns an
// error only where the edge refuses this connector for good.
func (e *edge) control(ctx context.Context) error {
	var retry backoff
	defer e.duty.follow(ctx, e, false)
	for ctx.Err() == nil {
		err := e.session(ctx, &retry)
		e.ctl.set(false)
		switch {
		case ctx.Err() != nil, errors.Is(err, errNews), errors.Is(err, errRekeyed):
			continue
		case over(err):
			return fmt.Errorf("%w: %w%s", ErrRefused, err, e.afterRevocation(err))
		}
		e.complain(err)
		delay := retry.next()
		if errors.Is(err, errNoControl) && retry.failures > controlTries {
			delay = jittered(controlSlow)
		}
		sleep(ctx, delay)
	}
	return nil
}

// over tells whether the edge has refused this connector for good. CodeUnknown
// may pass: the edge has just forgotten a key, or is about to know it.
func over(err error) bool {
	var refusal *wire.Refusal
	return errors.As(err, &refusal) && refusal.Final() && refusal.Code != wire.CodeUnknown && !errors.Is(err, errNoControl)
}

// complain says why there is no control, once in a row of failures.
func (e *edge) complain(err error) {
	switch {
	case e.ctl.said:
		e.log.Debug("no control", "err", err)
	case errors.Is(err, errNoControl):
		e.log.Info("no control", "err", err, "hint", "flows are served; a later release of the edge shows and manages this connector")
	default:
		e.log.Warn("no control", "err", err, "hint", "flows are served; trying again")
	}
	e.ctl.said = true
}

// session opens a connection to the edge's control port and syncs on it until
// something fails; it returns what. Revision 0 comes first, so that whatever
// happened between two sessions is told.
func (e *edge) session(ctx context.Context, retry *backoff) error {
	generation := e.c.rotation.generation()
	line, err := e.dialPort(ctx, wire.ControlPort)
	if err != nil {
		return err
	}
	defer line.close()
	pace := rate.NewLimiter(rate.Every(syncEvery), syncBurst)
	revision := uint64(0)
	for {
		if err := pace.Wait(ctx); err != nil {
			return err
		}
		g, err := e.sync(ctx, line, revision)
		switch {
		case err == nil:
		case e.c.rotation.generation() != generation && !errors.Is(err, ErrRefused):
			return errRekeyed // which ends what the old key's address has open
		default:
			return err
		}
		revision = g.revision
		retry.reset()
		e.duty.follow(ctx, e, g.work && !g.drain)
		if g.rotate {
			e.c.rotation.ask(generation)
		}
	}
}

// sync sends one report, awaits the grant that follows revision, and applies
// it.
func (e *edge) sync(ctx context.Context, line *poster, revision uint64) (grant, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if revision != 0 {
		e.ctl.hold(cancel)
		defer e.ctl.hold(nil)
	}
	var answer wire.SyncAnswer
	request := wire.SyncRequest{Revision: revision, Report: e.report()}
	if err := line.post(ctx, wire.PathSync, wire.HoldSync+postWithin, request, &answer); err != nil {
		return grant{}, err
	}
	g, err := readGrant(answer, e.spec.PublicKey)
	if err != nil {
		return grant{}, err
	}
	if e.ctl.said {
		e.log.Info("control is back")
		e.ctl.said = false
	}
	e.ctl.set(true)
	e.compareClocks(answer.Time)
	e.confirm()
	e.apply(g)
	return g, nil
}

// dialPort opens a connection to a port of the edge's overlay address.
func (e *edge) dialPort(ctx context.Context, port uint16) (*poster, error) {
	e.mu.Lock()
	peer := e.peer
	e.mu.Unlock()
	if peer == nil { // a change of the key may ask for an edge that is being left
		return nil, errors.New("dialling the edge: it is served no more")
	}
	ctx, cancel := context.WithTimeout(ctx, postDial)
	defer cancel()
	conn, err := e.c.device().Dial(ctx, netip.AddrPortFrom(peer.Overlay(), port))
	switch {
	case errors.Is(netx.Classify(err), netx.ErrRefused):
		return nil, fmt.Errorf("%w: nothing listens at port %d of its overlay address", errNoControl, port)
	case err != nil:
		return nil, fmt.Errorf("dialling port %d of the edge's overlay address: %w", port, err)
	}
	return newPoster(conn), nil
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
