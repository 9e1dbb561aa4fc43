package edge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// ErrForced is what Run returns where Options.Force cut a drain short while
// flows were open.
var ErrForced = errors.New("the edge was told to stop at once")

// errGraceOver is the cause that ends flows when the grace period is over.
var errGraceOver = errors.New("the edge stopped before the flow had ended")

// lastWords is how long each room has that must end after the last flow: DNS
// for the queries that it is answering, the flow log for its last lines.
const lastWords = time.Second

// drainAndEnd is the end in two beats: no new flows, then, when those that run
// have ended, the grace period is over or the operator insists, everything.
func (e *Edge) drainAndEnd() error {
	e.stopping.Store(true)
	e.ingress.StopAccepting()
	e.log.Info("draining", "flows", e.observer.Table.Len(), "grace", e.opts.Grace)

	ctx, cancel := context.WithTimeoutCause(context.Background(), e.opts.Grace, errGraceOver)
	defer cancel()
	var watch sync.WaitGroup
	defer watch.Wait()
	ctx, force := context.WithCancelCause(ctx)
	defer force(nil)
	open := 0 // flows at the moment of force
	watch.Go(func() {
		select {
		case <-e.opts.Force:
			open = e.observer.Table.Len()
			force(ErrForced)
		case <-ctx.Done():
		}
	})
	cut := e.end(ctx)
	switch {
	case errors.Is(cut, ErrForced) && open > 0:
		return fmt.Errorf("stopping: %d flows were cut: %w", open, cut)
	case errors.Is(cut, errGraceOver):
		e.log.Warn("flows were cut: the grace period is over", "grace", e.opts.Grace)
	}
	e.log.Info("stopped")
	return nil
}

// end closes the rooms in the order in which flows pass them. Flows may run
// until ctx is done; it returns why they had to be cut, if they had to.
func (e *Edge) end(ctx context.Context) error {
	e.stopping.Store(true)
	cut := e.ingress.Close(ctx)
	e.poller.Close()
	e.stopDirector()
	e.dns.StopAccepting()
	closing, cancel := context.WithTimeout(context.Background(), lastWords)
	_ = e.dns.Close(closing) // who still sends a query is not waited for
	cancel()
	if e.stopRegistry != nil {
		e.stopRegistry()
	}
	e.tunnel.Close()
	if err := e.store.Close(); err != nil {
		e.log.Error("closing the state failed", "err", err)
	}
	closing, cancel = context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	if err := e.observer.Log.Close(closing); err != nil {
		e.log.Error("the flow log's last lines are lost", "err", err)
	}
	return cut
}

// setDraining begins or ends a drain that an operator asked for: the public
// sockets close, or open again. Flows go on.
func (e *Edge) setDraining(on bool) error {
	e.reloading.Lock()
	defer e.reloading.Unlock()
	if e.stopping.Load() {
		return &client.Error{Code: client.CodeRefused, Message: "changing the drain: the edge is stopping"}
	}
	before := e.draining.Swap(on)
	change, err := e.ingress.Prepare(e.listenersOf(e.current.Load().cfg))
	if err != nil {
		e.draining.Store(before)
		return err
	}
	change.Commit()
	return nil
}
