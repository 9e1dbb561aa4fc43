// Package observe is what an operator sees of the flows: the flow log, the
// metrics, the table of open flows, and the HTTP pages for them.
//
// An Observer ties them together. The path of a flow calls Begin when a flow
// has been accepted, lets the relay add to the flow's byte counters, and calls
// Entry.End when the flow's record is complete:
//
//	entry := observer.Begin(f, cancel)
//	defer entry.End()
//
// Nothing here may hold up the data path. Counters are atomic, and log lines
// go through a bounded queue: when the disk is slow or full they are dropped
// and counted. A label's values come from the configuration or from a fixed
// list, never from what a client sends.
package observe

import (
	"context"
	"sync"
	"time"

	"github.com/warrenmesh/warren/edge/flow"
)

// Observer accounts for flows. Table and Metrics are required; without a Log
// there is no flow log.
type Observer struct {
	Table   *Table
	Metrics *Metrics
	Log     *FlowLog // may be nil
}

// Entry is one open flow in the books. Its methods may be called from any
// goroutine.
type Entry struct {
	observer *Observer
	flow     *flow.Flow
	app      *appCounters
	cancel   context.CancelCauseFunc
	once     sync.Once

	in, out uint64 // bytes that the app's counters have; guarded by Metrics.mu
}

// Begin opens the books for f: it is counted, and listed until End. cancel
// ends the flow, with the cause that Table.Kill was given; it must be safe to
// call at any time, also after the flow has ended, and return at once. nil
// means that the flow cannot be killed.
func (o *Observer) Begin(f *flow.Flow, cancel context.CancelCauseFunc) *Entry {
	r := f.Snapshot()
	e := &Entry{observer: o, flow: f, cancel: cancel}
	o.Metrics.begin(e, r.App)
	o.Table.add(r.ID, e)
	return e
}

// Connected notes how long the endpoint took to accept.
func (e *Entry) Connected(took time.Duration) { e.app.connect.Observe(took.Seconds()) }

// accountLocked adds to the app's counters what the flow has moved since it was
// last asked. Metrics.mu is held.
func (e *Entry) accountLocked() {
	in, out := e.flow.BytesIn.Load(), e.flow.BytesOut.Load()
	e.app.in.Add(float64(in - e.in))
	e.app.out.Add(float64(out - e.out))
	e.in, e.out = in, out
}

// End closes the books and writes the flow's line. The owner of the flow has
// called its Done; a flow without an end is an internal failure, and is
// written down as that. Only the first call counts.
func (e *Entry) End() {
	e.once.Do(func() {
		e.flow.Done(time.Now(), flow.StatusInternal, "the flow ended without a verdict")
		r := e.flow.Snapshot()
		e.observer.Table.remove(r.ID)
		e.observer.Metrics.end(e, r.Status)
		e.observer.Log.Log(r)
	})
}
