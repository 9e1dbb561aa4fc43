package connector

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// rota does jobs again and again, each at its time, and so many of them at one
// time at most. It is one goroutine, and one for each job that is being done.
// Where all places are taken, jobs wait in the order of their times.
type rota struct {
	places  chan struct{} // those that are taken
	changed chan struct{} // capacity 1: another job may be the next

	mu   sync.Mutex
	jobs jobHeap // those that wait
}

// job is something to do again and again. Its fields, but do, are the rota's.
type job struct {
	// do does it once, and tells how long to wait until the next time. It must
	// return soon after ctx ends, which it does where the job is removed.
	do func(ctx context.Context) time.Duration

	due    time.Time
	place  int                // in the heap
	gone   bool               // removed
	cancel context.CancelFunc // of what is being done; nil: it waits
}

func newRota(places int) *rota {
	return &rota{places: make(chan struct{}, places), changed: make(chan struct{}, 1)}
}

// add enters a job, to be done for the first time after d.
func (r *rota) add(j *job, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waitLocked(j, d)
}

// waitLocked lets a job wait for d.
func (r *rota) waitLocked(j *job, d time.Duration) {
	j.due = time.Now().Add(d)
	heap.Push(&r.jobs, j)
	if j.place == 0 {
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}
}

// remove takes a job out, which was added. It does not wait for one that is
// being done.
func (r *rota) remove(j *job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if j.gone {
		return
	}
	j.gone = true
	if j.cancel != nil {
		j.cancel()
		return
	}
	heap.Remove(&r.jobs, j.place)
}

// run does the jobs until ctx ends, and returns once none is being done.
func (r *rota) run(ctx context.Context) {
	var doing sync.WaitGroup
	defer doing.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, some := r.next()
		var due <-chan time.Time
		if some {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
			continue
		case <-due:
		}
		select {
		case <-ctx.Done():
			return
		case r.places <- struct{}{}:
		}
		j, doable := r.take(ctx)
		if j == nil { // it was removed meanwhile
			<-r.places
			continue
		}
		doing.Go(func() {
			r.again(j, j.do(doable))
			<-r.places
		})
	}
}

// next tells how long it is until there is a job to do, if there is one.
func (r *rota) next() (wait time.Duration, some bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.jobs) == 0 {
		return 0, false
	}
	return max(0, time.Until(r.jobs[0].due)), true
}

// take takes the next job to do it, nil where none is due.
func (r *rota) take(ctx context.Context) (*job, context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.jobs) == 0 || time.Until(r.jobs[0].due) > 0 {
		return nil, nil
	}
	j := heap.Pop(&r.jobs).(*job)
	ctx, j.cancel = context.WithCancel(ctx)
	return j, ctx
}

// again lets a job that was done wait, unless it was removed.
func (r *rota) again(j *job, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	j.cancel()
	j.cancel = nil
	if !j.gone {
		r.waitLocked(j, pause)
	}
}

// jobHeap is a heap.Interface: the job that is due first is the first.
type jobHeap []*job

func (h jobHeap) Len() int           { return len(h) }
func (h jobHeap) Less(i, k int) bool { return h[i].due.Before(h[k].due) }

func (h jobHeap) Swap(i, k int) {
	h[i], h[k] = h[k], h[i]
	h[i].place, h[k].place = i, k
}

// Push implements heap.Interface.
func (h *jobHeap) Push(x any) {
	j := x.(*job)
	j.place = len(*h)
	*h = append(*h, j)
}

// Pop implements heap.Interface.
func (h *jobHeap) Pop() any {
	last := len(*h) - 1
	j := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return j
}
