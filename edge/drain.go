package edge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// errForced is the cause that ends flows when a drain is cut short.
var errForced = errors.New("the edge was told to stop at once")

// errGraceOver is the cause that ends flows when the grace period is over.
var errGraceOver = errors.New("the edge stopped before the flow had ended")

// drainAndEnd is the end in two beats: no new flows, then, when those that run
// have ended, the grace period is over or the operator insists, everything.
func (e *Edge) drainAndEnd() error {
	e.stopping.Store(true)
	e.ingress.StopAccepting()
	e.log.Info("draining", "flows", e.observer.Table.Len(), "grace", e.opts.Grace)

	ctx, cancel := context.WithTimeoutCause(context.Background(), e.opts.Grace, errGraceOver)
	defer cancel()
	ctx, force := context.WithCancelCause(ctx)
	defer force(nil)
	go func() { // ends with ctx
		select {
		case <-e.opts.Force:
			force(errForced)
		case <-ctx.Done():
		}
	}()
	cut := e.end(ctx)
	if cut != nil {
		e.log.Warn("stopped", "cut", cut)
		return fmt.Errorf("stopping: flows were cut: %w", cut)
	}
	e.log.Info("stopped")
	return nil
}

// end closes the rooms in the order in which flows pass them. Flows may run
// until ctx is done; it returns why they had to be cut, if they had to.
func (e *Edge) end(ctx context.Context) error {
	e.stopping.Store(true)
	cut := e.ingress.Close(ctx)
	e.monitor.Stop()
	e.dns.StopAccepting()
	// A query takes no time; who still sends one is not waited for.
	soon, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = e.dns.Close(soon)
	e.tunnel.Close()
	if err := e.observer.Log.Close(soon); err != nil {
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
