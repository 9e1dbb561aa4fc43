package connector

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/warrenmesh/warren/connector/guard"
)

// servePing finds out whether a private host is there, whom an edge pings from
// src. The edge's echo request is answered where it returns nil; else the edge
// is told what the error is among netx's. In a drain nobody is there, as for new
// flows. ctx ends with the edge's NIC.
func (c *Connector) servePing(ctx context.Context, e *edge, src, dst netip.Addr) error {
	err := errDraining
	if !e.flows.isDraining() && !c.flows.isDraining() {
		err = c.ping(ctx, e, dst)
	}
	result := resultOf(err)
	c.count.dialed("icmp", result)
	if err == nil {
		return nil
	}
	if tellsOfOrigin(result) && e.failures.note("icmp/"+dst.String(), result, err, c.deps.Wall()) {
		e.ctl.tell()
	}
	if result != resultCanceled {
		c.fails.write(result, err, slog.String("edge", e.name()), slog.String("proto", "icmp"),
			slog.Any("source", src), slog.Any("destination", dst))
	}
	return err
}

// ping asks the guard and the grant, then the host; in a drain too, since checks
// for the edge go on. It ends when the edge's flows are cut.
func (c *Connector) ping(ctx context.Context, e *edge, dst netip.Addr) error {
	if v, why := c.guard.AllowPing(dst); v != guard.Allow {
		return fmt.Errorf("%w: \"icmp/%s\": %s", errDenied, dst, why)
	}
	if err := e.flows.mayPing(dst); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.flows.ctx, func() { cancel(context.Canceled) })()
	_, err := c.origin.Ping(ctx, dst)
	return err
}

// mayPing says why dst may not be pinged: no flow may go there. A ping takes no
// place, since the forwarder bounds them, and nor does a check for the edge.
func (f *flows) mayPing(dst netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.routes.hold(dst) {
		return fmt.Errorf("%w: %s is outside the edge's routes: %s", errNotGranted, dst, f.routes)
	}
	return nil
}
