package connector

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

const (
	// workEvery is the least time between two requests for work that have
	// something to tell.
	workEvery = 100 * time.Millisecond
	// workAhead is how many requests may be without an answer: the one that
	// the edge holds, and one that makes it answer that.
	workAhead = 2
)

// duty is the work that an edge has for this connector besides flows, while
// its grant says that there is some. It is of control's goroutine.
type duty struct {
	stop func() // and wait; nil: there is none
}

// follow begins or ends the work, where it is not as wanted already.
func (d *duty) follow(ctx context.Context, e *edge, wanted bool) {
	switch {
	case wanted && d.stop == nil:
		ctx, cancel := context.WithCancel(ctx)
		over := make(chan struct{})
		go func() {
			defer close(over)
			e.work(ctx)
		}()
		d.stop = func() {
			cancel()
			<-over
		}
	case !wanted && d.stop != nil:
		d.stop()
		d.stop = nil
	}
}

// work asks the edge what there is to do, does it, and tells what came of it,
// until ctx ends. What can go wrong of it is no reason to leave the edge.
//
//	dial ──→ ask with revision 0 ──→ apply ──→ ask, held by the edge ──┐
//	 ↑ back-off   │                    ↑          │ results: ask again │
//	 └────────────┴────────────────────┴──────────┴────────────────────┘
func (e *edge) work(ctx context.Context) {
	w := newWorker(e)
	var running sync.WaitGroup
	running.Go(func() { w.checks.run(ctx) })
	running.Go(func() { w.names.run(ctx) })
	defer running.Wait()
	e.working(w)
	defer e.working(nil)
	var retry backoff
	said := false
	for {
		generation := e.c.rotation.generation()
		err := w.session(ctx, &retry)
		w.mu.Lock()
		w.out.close()
		w.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		var refusal *wire.Refusal
		if errors.As(err, &refusal) && refusal.Final() {
			w.apply(wire.Work{})
		}
		if retry.failures == 0 {
			said = false
		}
		if e.c.rotation.generation() != generation {
			continue // which ends what the old key's address has open
		}
		if !said && (refusal == nil || refusal.Code != wire.CodeNotAllowed) {
			e.log.Warn("no work can be had", "err", err, "hint", "flows are served; trying again")
			said = true
		}
		sleep(ctx, retry.next())
	}
}

// working notes who does the edge's work; nil: nobody.
func (e *edge) working(w *worker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.worker = w
}

// workload returns how much there is to do for the edge besides flows.
func (e *edge) workload() (checks, names int) {
	e.mu.Lock()
	w := e.worker
	e.mu.Unlock()
	if w == nil {
		return 0, 0
	}
	return w.counts()
}

// workAnswer is an answer to a request for work, or why there will be none.
type workAnswer struct {
	wire.WorkAnswer
	err error
}

// workLine is one connection on which work is asked for. It is of the session's
// goroutine; another one reads the answers.
type workLine struct {
	*poster
	w        *worker
	answers  chan workAnswer
	revision uint64 // of the work that is done; 0: none was received on this line
	open     int    // requests without an answer
	last     time.Time
}

// session asks for work on one connection until something fails; it returns
// what. Revision 0 comes first, and whatever is known of the checks and the
// names once that is answered: the edge may have forgotten it.
func (w *worker) session(ctx context.Context, retry *backoff) error {
	conn, err := w.e.dialPort(ctx, wire.ControlPort)
	if err != nil {
		return err
	}
	return w.talk(ctx, conn, retry)
}

// talk is a session on a connection that is open; it closes it.
func (w *worker) talk(ctx context.Context, conn *poster, retry *backoff) error {
	l := &workLine{poster: conn, w: w, answers: make(chan workAnswer)}
	over := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() { l.read(over) })
	defer reading.Wait()
	defer close(over)
	defer l.close()
	defer context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) })()

	due := time.NewTimer(0)
	defer due.Stop()
	patience := time.NewTimer(wire.HoldWork + postWithin)
	defer patience.Stop()
	for {
		at, some := l.next()
		due.Stop()
		if some {
			due.Reset(max(0, time.Until(at)))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.out.earlier:
		case <-due.C:
			if err := l.ask(); err != nil {
				return err
			}
		case a := <-l.answers:
			if err := l.take(a); err != nil {
				return err
			}
			retry.reset()
			patience.Reset(wire.HoldWork + postWithin)
		case <-patience.C:
			return fmt.Errorf("asking for work: no answer within %v", wire.HoldWork+postWithin)
		}
	}
}

// read passes the answers on, until one is none.
func (l *workLine) read(over <-chan struct{}) {
	for {
		var a workAnswer
		a.err = l.receive(wire.MaxWorkBody, func(body io.Reader) error { return wire.DecodeWork(body, &a.WorkAnswer) })
		select {
		case l.answers <- a:
		case <-over:
			return
		}
		if a.err != nil {
			return
		}
	}
}

// next tells when the next request is to be sent, if one is to be.
func (l *workLine) next() (at time.Time, some bool) {
	l.w.mu.Lock()
	due := l.w.out.due
	l.w.mu.Unlock()
	if least := l.last.Add(workEvery); !due.IsZero() && due.Before(least) {
		due = least
	}
	switch {
	case l.open >= workAhead:
		return time.Time{}, false
	case l.open > 0:
		return due, !due.IsZero()
	}
	if at = l.last.Add(syncEvery); !due.IsZero() && due.Before(at) {
		at = due
	}
	return at, true
}

// ask sends a request, with what there is to tell.
func (l *workLine) ask() error {
	req := wire.WorkRequest{Revision: l.revision}
	l.w.mu.Lock()
	req.Results, req.Names = l.w.out.take()
	l.w.mu.Unlock()
	req.Clean()
	if err := l.conn.SetWriteDeadline(time.Now().Add(postWithin)); err != nil {
		return fmt.Errorf("asking for work: %w", err)
	}
	if err := l.send(wire.PathWork, req); err != nil {
		return fmt.Errorf("asking for work: %w", err)
	}
	l.open++
	l.last = time.Now()
	return nil
}

// take does as an answer says.
func (l *workLine) take(a workAnswer) error {
	switch {
	case a.err != nil:
		return a.err
	case l.open == 0 || a.Revision == 0:
		return errors.New("asking for work: the edge answers what makes no sense")
	}
	l.open--
	if a.Revision == l.revision {
		return nil
	}
	a.Clean()
	l.w.apply(a.Work)
	l.w.e.log.Debug("work", "revision", a.Revision, "checks", len(a.Checks), "names", len(a.Names))
	if l.revision == 0 {
		l.w.listen()
	}
	l.revision = a.Revision
	return nil
}
