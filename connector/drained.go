package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

// errDrained: the edge's operator has drained this connector, and it has left.
var errDrained = errors.New("drained by the edge")

// lookInEvery is about how often an edge that drained this connector is asked
// whether it still wants that.
const lookInEvery = time.Minute

// lookIn joins an edge that was left every now and then, for one sync. It
// returns nil when the drain has ended, with the edge joined; errDrained when
// ctx ended first; and another error where the edge refuses this connector for
// good. What does not change is not logged again.
func (e *edge) lookIn(ctx context.Context) error {
	e.quiet.Store(true)
	defer e.quiet.Store(false)
	for {
		sleep(ctx, jittered(lookInEvery))
		if ctx.Err() != nil {
			return errDrained
		}
		drained, err := e.stillDrained(ctx)
		switch {
		case over(err):
			e.quiet.Store(false)
			return fmt.Errorf("%w: %w%s", ErrRefused, err, e.afterRevocation(err))
		case err == nil && !drained:
			e.mu.Lock()
			e.gone = nil
			e.mu.Unlock()
			return nil
		}
		e.part(errDrained)
	}
}

// stillDrained joins the edge and asks. An error says why there is no answer.
func (e *edge) stillDrained(ctx context.Context) (bool, error) {
	_, came, err := e.attempt(ctx)
	if err != nil {
		return false, err
	}
	if !came {
		return false, errors.New("it does not answer")
	}
	line, err := e.dialPort(ctx, wire.ControlPort)
	if err != nil {
		return false, err
	}
	defer line.close()
	defer e.ctl.set(false)
	g, err := e.sync(ctx, line, 0)
	return g.drain, err
}

// away notes that an edge is served no more, for now or for good, and tells
// whether others are. Where none is, there is nothing left to run for.
func (c *Connector) away() (others bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serving--
	if c.serving == 0 {
		c.alone()
	}
	return c.serving > 0
}

// back notes that an edge is served again.
func (c *Connector) back() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serving++
}

// hush is a handler that makes debug lines of all lines while quiet is set.
type hush struct {
	slog.Handler
	quiet *atomic.Bool
}

func (h hush) level(l slog.Level) slog.Level {
	if h.quiet.Load() {
		return min(l, slog.LevelDebug)
	}
	return l
}

// Enabled implements slog.Handler.
func (h hush) Enabled(ctx context.Context, l slog.Level) bool {
	return h.Handler.Enabled(ctx, h.level(l))
}

// Handle implements slog.Handler.
func (h hush) Handle(ctx context.Context, r slog.Record) error {
	r.Level = h.level(r.Level)
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h hush) WithAttrs(attrs []slog.Attr) slog.Handler {
	return hush{h.Handler.WithAttrs(attrs), h.quiet}
}

// WithGroup implements slog.Handler.
func (h hush) WithGroup(name string) slog.Handler {
	return hush{h.Handler.WithGroup(name), h.quiet}
}
