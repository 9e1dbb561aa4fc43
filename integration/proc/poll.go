package proc

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollEvery is the pause between two attempts of Poll: short against what a
// person notices, long against what an attempt costs.
const pollEvery = 20 * time.Millisecond

// fatal marks an error after which trying again is of no use.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// Fatal marks err so that Poll gives up at once.
func Fatal(err error) error { return fatal{err} }

// Poll calls attempt until it returns nil. It gives up when ctx is done or
// attempt returns an error marked with Fatal, and returns the last error.
func Poll(ctx context.Context, attempt func() error) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		err := attempt()
		if err == nil {
			return nil
		}
		if f := (fatal{}); errors.As(err, &f) {
			return f.error
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up: %w)", err, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}
