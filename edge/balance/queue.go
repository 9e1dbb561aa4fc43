package balance

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// queue holds the flows that wait for an endpoint of one pool, in the order in
// which they came. While it holds one, no flow that comes later gets an
// endpoint of the pool: see app.ask.
type queue struct {
	waiting atomic.Int64

	mu    sync.Mutex
	flows list.List // of *waiter
}

// waiter is one flow that waits.
type waiter struct {
	pool *pool
	hash uint64
	skip []Endpoint // what it has tried
	got  chan grant // has room for the one that it gets
	at   *list.Element
}

// grant is what a waiter gets: a reservation, or the advice to ask again.
type grant struct {
	pool *pool
	slot *slot // nil: ask again
}

// join puts w in the queue, unless there are most already.
func (q *queue) join(w *waiter, most int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.flows.Len() >= most {
		return false
	}
	w.at = q.flows.PushBack(w)
	q.waiting.Add(1)
	return true
}

// leave takes w out, and reports whether it was still waiting. If not, its
// grant is in w.got.
func (q *queue) leave(w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.removeLocked(w)
}

func (q *queue) removeLocked(w *waiter) bool {
	if w.at == nil {
		return false
	}
	q.flows.Remove(w.at)
	w.at = nil
	q.waiting.Add(-1)
	return true
}

// disperse tells every waiter to ask again.
func (q *queue) disperse() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.flows.Len() > 0 {
		w := q.flows.Front().Value.(*waiter)
		q.removeLocked(w)
		w.got <- grant{}
	}
}

// pump gives what is free to the flows that wait, the first one first. It is
// called after each change that can free something; a waiter calls it after it
// has joined, so that what became free between is not lost.
func (s *shared) pump() {
	q := &s.queue
	now := s.root.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for at := q.flows.Front(); at != nil; {
		w := at.Value.(*waiter)
		at = at.Next()
		p := s.active.Load()
		if p == nil {
			p = w.pool
		}
		v := p.views[ordinary].Load() // as it is: renewing it would pump
		if v == nil || !v.serving {
			return
		}
		i := v.choose(p, w.hash, now, w.tried)
		if i >= 0 {
			q.removeLocked(w)
			w.got <- grant{p, &v.slots[i]}
		} else if len(w.skip) == 0 {
			return // nothing is free at all
		}
	}
}

func (w *waiter) tried(e Endpoint) bool { return slices.Contains(w.skip, e) }

// Acquire is Pick for a flow that may wait: where all usable endpoints are at
// MaxConnections it waits in the queue of the first such pool that has one,
// behind those that came before, until an endpoint is free, the queue's
// Timeout is over, or ctx is done.
func (d *Director) Acquire(ctx context.Context, r Request) (Pick, string, bool) {
	pick, why, full, ok := d.pick(r)
	if ok || full == nil {
		return pick, why, ok
	}
	return d.wait(ctx, r, full)
}

// wait is the slow part of Acquire.
func (d *Director) wait(ctx context.Context, r Request, p *pool) (Pick, string, bool) {
	terms := p.spec.Queue
	q := &p.shared.queue
	began := time.Now()
	most := terms.Timeout // the first pool's is for all
	over := time.NewTimer(most)
	defer over.Stop()
	a := d.apps[r.App]
	c := newClient(r.Client, a.byNet())
	for {
		w := &waiter{pool: p, hash: c.hash, got: make(chan grant, 1)}
		for _, e := range p.members {
			if r.Tried != nil && r.Tried(e.id) {
				w.skip = append(w.skip, e.id)
			}
		}
		if !q.join(w, terms.Length) {
			return Pick{}, fmt.Sprintf("pool %q is full, and %d flows wait", p.spec.Name, terms.Length), false
		}
		p.shared.pump()
		g, err := p.await(ctx, w, over.C)
		switch {
		case g.slot != nil && ctx.Err() != nil:
			g.slot.ep.release()
			return Pick{}, fmt.Sprintf("pool %q: %v while waiting for an endpoint", p.spec.Name, context.Cause(ctx)), false
		case g.slot != nil:
			pick := g.pool.reserved(g.slot)
			a.claim(&pick, c, d.root.now())
			return pick, fmt.Sprintf("pool %q by %s, after %s in its queue", p.spec.Name, g.pool.policy, time.Since(began).Round(time.Millisecond)), true
		case errors.Is(err, errWaited):
			return Pick{}, fmt.Sprintf("pool %q: %s passed while waiting for an endpoint", p.spec.Name, most), false
		case err != nil:
			return Pick{}, fmt.Sprintf("pool %q: %v while waiting for an endpoint", p.spec.Name, err), false
		}
		pick, why, full, ok := d.pick(r)
		if ok || full == nil {
			return pick, why, ok
		}
		if full != p {
			p, terms, q = full, full.spec.Queue, &full.shared.queue
		}
	}
}

// errWaited ends a wait that has lasted for as long as it may.
var errWaited = errors.New("the wait is over")

// await blocks until w gets something, or its time is over. What changes with
// time alone is looked at as often as the view asks for.
func (p *pool) await(ctx context.Context, w *waiter, over <-chan time.Time) (grant, error) {
	q := &p.shared.queue
	look := time.NewTimer(p.patience())
	defer look.Stop()
	var err error
	for err == nil {
		select {
		case g := <-w.got:
			return g, nil
		case <-look.C:
			now := p.shared.root.now()
			if active := p.shared.active.Load(); active != nil {
				active.view(ordinary, now)
			}
			p.view(ordinary, now)
			p.shared.pump()
			look.Reset(p.patience())
		case <-over:
			err = errWaited
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if !q.leave(w) {
		return <-w.got, err
	}
	return grant{}, err
}

// patience is how long the present view holds, within bounds.
func (p *pool) patience() time.Duration {
	if v := p.views[ordinary].Load(); v != nil {
		return min(max(time.Duration(v.until.Load()-p.shared.root.now()), 10*time.Millisecond), recheck)
	}
	return recheck
}
