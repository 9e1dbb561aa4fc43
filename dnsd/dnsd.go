// Package dnsd is Warren's authoritative DNS server: it answers for the
// operator's zones over UDP and TCP, and for nothing else. It runs inside the
// edge by default.
//
//	var zones dnsd.Current
//	zones.Publish(snapshot)
//	server := dnsd.New(dnsd.Spec{Listen: listen}, &zones, log)
//	err := server.Start()
//	…
//	server.StopAccepting()
//	server.Close(ctx)
//
// What it answers is decided in dnsd/zone; this package is the protocol around
// it: sockets, messages, EDNS, limits. A question costs one lookup in the
// snapshot that is current at that moment; whoever has the zones publishes
// them whole.
//
// It must never recurse, never answer a response, never send more over UDP
// than the client has room for, and never listen on an address that it was
// not given.
package dnsd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/warrenmesh/warren/dnsd/zone"
)

// Feed is where the zones come from: whole snapshots, never a change to one.
// Zones is called for every question, from many goroutines, and must not
// block. It returns nil until there is a first snapshot, which makes the server
// answer SERVFAIL; after that it keeps the last known good one, however long
// its own source is away.
type Feed interface {
	Zones() *zone.Snapshot
}

// Current is a Feed that holds what was published last. The zero value is
// ready and holds nothing.
type Current struct {
	snapshot atomic.Pointer[zone.Snapshot]
}

// Zones returns the snapshot that was published last, or nil.
func (c *Current) Zones() *zone.Snapshot { return c.snapshot.Load() }

// Publish makes snapshot the current one. Every question that is read after
// Publish returned is answered from it.
func (c *Current) Publish(snapshot *zone.Snapshot) { c.snapshot.Store(snapshot) }

// Server serves a Feed. The zero value does not work: use New.
//
//	New → Start (or Prepare, Commit) ⇄ Prepare, Commit → StopAccepting → Close
//
// Its methods may be called at the same time, except that a Change must be
// committed or rolled back before the next one is prepared.
type Server struct {
	log     *slog.Logger
	first   Spec
	answers responder
	conns   connTable
	buffers sync.Pool // of *tcpBuffers
	drops   dropCounts
	limits  atomic.Pointer[Spec] // normal
	workers int                  // UDP readers of each address

	mu        sync.Mutex
	stopping  bool
	endpoints map[netip.AddrPort]*endpoint // by the address in the Spec

	tasks sync.WaitGroup // everything that serves
}

// New makes a server that listens nowhere yet.
func New(spec Spec, feed Feed, log *slog.Logger) *Server {
	s := &Server{
		log:       log,
		first:     spec,
		answers:   responder{feed: feed},
		workers:   udpWorkers(),
		buffers:   sync.Pool{New: func() any { return new(tcpBuffers) }},
		endpoints: make(map[netip.AddrPort]*endpoint),
	}
	limits := spec.normal()
	s.limits.Store(&limits)
	return s
}

// Start opens the addresses of New's Spec and serves them. It opens all of
// them or none; the error names each that failed and why.
func (s *Server) Start() error {
	change, err := s.Prepare(s.first)
	if err != nil {
		return err
	}
	return change.Commit()
}

// Addrs returns the addresses that are served, with the ports that the
// machine chose where the Spec says 0, sorted.
func (s *Server) Addrs() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []netip.AddrPort
	for _, e := range s.endpoints {
		list = append(list, e.bound)
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return list
}

// StopAccepting is the first beat of the end: the sockets close, queries that
// were read are still answered, TCP connections end after the query they are
// in. Nothing can be prepared any more.
func (s *Server) StopAccepting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	for addr, e := range s.endpoints {
		e.retire()
		delete(s.endpoints, addr)
	}
	s.conns.drain()
}

// Close is the second beat: it waits for what is still being answered until
// ctx is done, then cuts it. When it returns nothing of the server runs.
func (s *Server) Close(ctx context.Context) error {
	s.StopAccepting()
	done := make(chan struct{})
	go func() {
		s.tasks.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	n := s.conns.cut()
	<-done
	if n == 0 {
		return nil
	}
	return fmt.Errorf("closing the DNS server: %d connections were cut: %w", n, ctx.Err())
}

// Change is a new set of addresses, opened but not served yet. Exactly one of
// Commit and Rollback ends it; the other is then without effect.
type Change struct {
	server *Server
	spec   Spec // normal
	opened map[netip.AddrPort]*endpoint
	ended  bool
}

// Prepare opens the addresses of spec that are not open yet and touches
// nothing that serves. On error nothing stays open. After StopAccepting the
// error wraps net.ErrClosed.
func (s *Server) Prepare(spec Spec) (*Change, error) {
	if err := spec.Validate(); err != nil {
		return nil, fmt.Errorf("preparing the DNS server: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, fmt.Errorf("preparing the DNS server: %w", net.ErrClosed)
	}
	c := &Change{server: s, spec: spec.normal(), opened: make(map[netip.AddrPort]*endpoint)}
	var errs []error
	for _, addr := range c.spec.Listen {
		if s.endpoints[addr] != nil {
			continue
		}
		e, err := open(addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.opened[addr] = e
	}
	if len(errs) > 0 {
		c.Rollback()
		return nil, errors.Join(errs...)
	}
	return c, nil
}

// Commit serves the new addresses, takes over the new limits, and closes the
// addresses that the Spec no longer has: their sockets are free when it
// returns, their TCP connections go on. An address that both have keeps its
// sockets. If the server stopped in the meantime, the change is rolled back
// and the error wraps net.ErrClosed.
func (c *Change) Commit() error {
	if c.ended {
		return nil
	}
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		c.Rollback()
		return fmt.Errorf("committing the DNS server's addresses: %w", net.ErrClosed)
	}
	c.ended = true
	s.limits.Store(&c.spec)
	kept := make(map[netip.AddrPort]bool)
	for _, addr := range c.spec.Listen {
		kept[addr] = true
	}
	for addr, e := range s.endpoints {
		if !kept[addr] {
			e.retire()
			<-e.closed
			delete(s.endpoints, addr)
			s.log.Info("dns closed", "address", e.bound)
		}
	}
	for addr, e := range c.opened {
		s.endpoints[addr] = e
		s.serve(e)
		s.log.Info("dns serving", "address", e.bound)
	}
	return nil
}

// Rollback closes what Prepare opened.
func (c *Change) Rollback() {
	if c.ended {
		return
	}
	c.ended = true
	for _, e := range c.opened {
		e.abandon()
	}
}
