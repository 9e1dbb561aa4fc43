// Package netstack is the TCP/IP of one virtual network, in user space: a
// gVisor stack, its NICs (one for each connector behind the network, or the
// one towards an edge), and flows that are ordinary net.Conns.
//
// The edge makes one Stack for each network and one NIC for each connector.
// Whoever dials through a NIC stays on it: the endpoint is bound to the NIC
// before it is bound to an address, so no other connector can answer in its
// place. A connector makes one promiscuous Stack for each edge and takes what
// arrives with ForwardTCP, ForwardUDP and ForwardPing.
//
//	s, _ := netstack.New(netstack.Config{})
//	nic, _ := s.AddNIC(netstack.NICConfig{Link: link, Sources: sources})
//	conn, err := nic.DialContext(ctx, "tcp", netip.MustParseAddrPort("10.0.0.10:5432"))
//
// What it must never do: let a packet of one NIC reach a flow of another, let
// gVisor see an ICMP message or a fragment (both are handled at the NIC that
// they came from), block the goroutine that delivers packets, or drop anything
// without counting it.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/warrenmesh/warren/netstack/drops"
)

// ErrAborted is what a flow's conn reports once its NIC has gone, or
// AbortFlows has ended it. A conn that was closed or aborted by its owner
// reports net.ErrClosed instead.
var ErrAborted = errors.New("flow aborted: the path to it was withdrawn")

// errStackClosed is the cause of everything that ends with the Stack.
var errStackClosed = errors.New("netstack closed")

// Config of a Stack. The zero value is the edge's side.
type Config struct {
	// Promiscuous is the connector's side: every destination is taken for our
	// own and handed to the forwarders. Such a stack holds one NIC at a time,
	// because two edges may use the same source addresses.
	Promiscuous bool

	// Small is for control traffic: buffers and the backlog of listeners are
	// a small part of what flows have, so that many hostile peers hold little.
	Small bool

	// Shared holds what all stacks of a process can have in common; it makes
	// a stack less than half as large. Nil: the stack makes its own.
	Shared *Shared
}

// Stack is the TCP/IP of one network. Make it with New; all methods may be
// called concurrently.
type Stack struct {
	cfg    Config
	shared *Shared
	gv     *stack.Stack
	drops  drops.Counter

	ctx    context.Context // ends with Close; parent of every NIC's
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // forwarders' handlers and the stack's other goroutines

	mu     sync.RWMutex // guards what follows
	closed bool
	nics   map[tcpip.NICID]*NIC

	tcp tcpForwarder
	udp udpForwarder

	ping pingForwarder
}

// New makes a Stack without a NIC.
func New(cfg Config) (*Stack, error) {
	shared := cfg.Shared
	if shared == nil {
		shared = NewShared()
	}
	s := &Stack{cfg: cfg, shared: shared, nics: make(map[tcpip.NICID]*NIC)}
	s.gv = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			shared.ipv4,
			// No router solicitation, no address detection, no MLD: the link is
			// a tunnel with nobody on it to ask.
			ipv6.NewProtocolWithOptions(ipv6.Options{}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol}, // UDP goes past gVisor
		Stats:              shared.stats,
		RandSource:         randSource{},
		IPTables:           shared.tables,
		// With HandleLocal a promiscuous stack would take every address for
		// its own and answer its own dials.
		HandleLocal: false,
	})
	if err := tune(s.gv, cfg); err != nil {
		s.gv.Destroy()
		return nil, fmt.Errorf("making a netstack: %w", err)
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.tcp.init(s)
	s.udp.init(s)
	s.ping.init(s)
	return s, nil
}

// Close aborts every flow, removes the NICs (and closes their links), cancels
// the forwarders' handlers and waits for them. It is safe to call twice.
func (s *Stack) Close() {
	s.mu.Lock()
	already := s.closed
	s.closed = true
	nics := make([]*NIC, 0, len(s.nics))
	for _, n := range s.nics {
		nics = append(nics, n)
	}
	s.mu.Unlock()
	if already {
		s.wg.Wait()
		return
	}
	s.cancel(errStackClosed)
	var removing sync.WaitGroup
	for _, n := range nics { // at once: a stuck link takes a second
		removing.Go(n.Remove)
	}
	removing.Wait()
	s.gv.Close()
	s.wg.Wait()
	s.gv.Wait()
}

// spawn runs f on a goroutine that Close waits for. It reports false, and
// does not run f, once the Stack is closing.
func (s *Stack) spawn(f func()) bool {
	if !s.enter() {
		return false
	}
	go func() {
		defer s.wg.Done()
		f()
	}()
	return true
}

// enter adds one to the goroutines that Close waits for; the caller must call
// wg.Done, unless enter reports that the Stack is closing.
func (s *Stack) enter() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

// nic returns the NIC with that id, or nil.
func (s *Stack) nic(id tcpip.NICID) *NIC {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.nics[id]
}

// Drops calls yield with what this stack has thrown away, by reason. What
// gVisor itself dropped is counted for all stacks together, in Shared.
func (s *Stack) Drops(yield func(where, why string, n uint64)) {
	s.drops.Each(func(why string, n uint64) { yield("netstack", why, n) })
}
