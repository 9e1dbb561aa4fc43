package relay

import (
	"context"
	"reflect"
	"sync"
)

// crowds are the streams of one Poller, by the context that ends them. Many
// flows share a context: so one look-out for each context serves where
// context.AfterFunc would cost each stream several hundred bytes.
type crowds struct {
	mu sync.Mutex
	of map[context.Context]*crowd
}

// crowd is the streams of one context. crowds.mu guards it, and its streams'
// crowd, prev and next.
type crowd struct {
	ctx   context.Context
	first *Stream // of the list; nil: none
	stop  func() bool
}

// enter has ctx end s, which then owes a call of leave. It returns false where
// ctx is no key of a map.
func (po *Poller) enter(ctx context.Context, s *Stream) bool {
	if !reflect.TypeOf(ctx).Comparable() {
		return false
	}
	cs := &po.crowds
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.of[ctx]
	if c == nil {
		if cs.of == nil {
			cs.of = make(map[context.Context]*crowd)
		}
		c = &crowd{ctx: ctx}
		cs.of[ctx] = c
		c.stop = context.AfterFunc(ctx, func() { cs.cut(c) })
	}
	s.crowd, s.next = c, c.first
	if s.next != nil {
		s.next.prev = s
	}
	c.first = s
	return true
}

// leave takes s out.
func (po *Poller) leave(s *Stream) {
	cs := &po.crowds
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := s.crowd
	if s.next != nil {
		s.next.prev = s.prev
	}
	if s.prev != nil {
		s.prev.next = s.next
	} else if c.first == s {
		c.first = s.next
	}
	s.crowd, s.prev, s.next = nil, nil, nil
	if c.first == nil && cs.of[c.ctx] == c {
		delete(cs.of, c.ctx)
		c.stop()
	}
}

// cut ends the streams of c, whose context has ended. Those that enter later
// make a crowd of their own.
func (cs *crowds) cut(c *crowd) {
	cs.mu.Lock()
	if cs.of[c.ctx] == c {
		delete(cs.of, c.ctx)
	}
	var all []*Stream
	for s := c.first; s != nil; s = s.next {
		all = append(all, s)
	}
	cs.mu.Unlock()
	for _, s := range all {
		s.Cut(context.Cause(c.ctx))
	}
}
