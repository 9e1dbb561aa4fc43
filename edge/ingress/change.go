package ingress

import (
	"errors"
	"fmt"
	"net"
)

// Change is a new set of listeners that is open and does not serve yet. End
// it with Commit or with Rollback, one of them, once.
type Change struct {
	s      *Server
	next   map[key]Spec
	held   map[key]listener // taken over from before
	opened map[key]listener
}

// Prepare opens the listeners of specs that the server does not have yet. It
// touches nothing that serves. On failure it has closed what it had opened,
// and its error joins one for each listener that could not be had.
//
// A Change must be committed or rolled back before the next Prepare.
func (s *Server) Prepare(specs []Spec) (*Change, error) {
	s.mu.Lock()
	switch {
	case s.stopped:
		s.mu.Unlock()
		return nil, fmt.Errorf("preparing listeners: %w", ErrStopped)
	case s.changing:
		s.mu.Unlock()
		return nil, errors.New("preparing listeners: another change is under way")
	}
	s.changing = true
	c := &Change{s: s, next: map[key]Spec{}, held: map[key]listener{}, opened: map[key]listener{}}
	var problems []error
	for _, spec := range specs {
		if err := c.addLocked(spec.withDefaults()); err != nil {
			problems = append(problems, err)
		}
	}
	s.mu.Unlock()
	if problems != nil {
		c.Rollback()
		return nil, errors.Join(problems...)
	}
	return c, nil
}

// addLocked takes a listener over or opens it.
func (c *Change) addLocked(spec Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	k := spec.key()
	if other, twice := c.next[k]; twice {
		return fmt.Errorf("listening on %q (%s, app %q): app %q listens there too; give one of them another port or address",
			spec.Addr, spec.Network, spec.App, other.App)
	}
	if l, ok := c.s.listeners[k]; ok {
		l.hold()
		c.next[k], c.held[k] = spec, l
		return nil
	}
	l, err := c.s.open(k, spec)
	if err != nil {
		return c.explainLocked(spec, err)
	}
	c.next[k], c.opened[k] = spec, l
	return nil
}

// open opens the socket of spec; it does not accept yet.
func (s *Server) open(k key, spec Spec) (listener, error) {
	address := unmapped(spec.Addr).String()
	if spec.Network == "tcp" {
		ln, err := s.Sockets.Listen(s.ctx, spec.family(), address)
		if err != nil {
			return nil, err
		}
		return &tcpListener{s: s, key: k, ln: ln, stop: make(chan struct{}), done: make(chan struct{}), census: newCensus()}, nil
	}
	pc, err := s.Sockets.ListenPacket(s.ctx, spec.family(), address)
	if err != nil {
		return nil, err
	}
	l, err := newUDPListener(s, k, pc, spec)
	if err != nil {
		_ = pc.Close()
		return nil, err
	}
	return l, nil
}

// Commit makes the change: new listeners begin to accept, those that stay go
// on under their new spec, those that are in the set no more retire. After
// StopAccepting it does what Rollback does.
func (c *Change) Commit() {
	c.s.mu.Lock()
	c.s.changing = false
	if c.s.stopped {
		c.s.mu.Unlock()
		c.undo()
		return
	}
	var gone []listener
	for k, l := range c.s.listeners {
		if _, stays := c.next[k]; !stays && !l.retired() {
			gone = append(gone, l)
		}
	}
	for k, l := range c.held {
		l.serve(c.next[k])
	}
	for k, l := range c.opened {
		c.s.listeners[k] = l
		l.serve(c.next[k])
	}
	c.s.mu.Unlock()

	for _, l := range c.held {
		l.release()
	}
	for _, l := range gone {
		c.s.log.Info("listener closed", attributes(l)...)
		l.retire()
	}
	for _, l := range c.opened {
		c.s.log.Info("listening", attributes(l)...)
	}
}

// Rollback gives the change up: what it opened is closed, and what served
// before serves as before.
func (c *Change) Rollback() {
	c.s.mu.Lock()
	c.s.changing = false
	c.s.mu.Unlock()
	c.undo()
}

func (c *Change) undo() {
	for _, l := range c.opened {
		l.cut()
	}
	for _, l := range c.held {
		l.release()
	}
}

func attributes(l listener) []any {
	spec := l.current()
	list := []any{"app", spec.App, "network", spec.Network, "address", l.local().String()}
	if spec.Advertise != spec.Addr {
		list = append(list, "advertise", spec.Advertise.String())
	}
	return list
}

// isClosed reports whether err is what a socket returns after its Close.
func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
