package netstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warrenmesh/warren/netstack/netx"
)

// pendingBytes bounds what is kept of a flow's datagrams until its handler
// has answered: four of the largest.
const pendingBytes = 256 << 10

// whyPendingBytes: too many datagrams of a flow came before its handler
// answered.
const whyPendingBytes = "udp_pending_bytes"

// ForwardUDPConfig says what becomes of datagrams that belong to no flow.
type ForwardUDPConfig struct {
	// Handler is called for the first datagram of each flow, under the terms
	// of ForwardTCPConfig.Handler. Datagrams that follow before it answers are
	// kept with the first.
	Handler func(*UDPRequest)

	Pending      int // per destination; default DefaultPending
	PendingTotal int // default DefaultPendingTotal
}

type udpForwarder struct {
	stack *Stack

	mu      sync.Mutex // guards what follows, and each request's datagrams
	cfg     ForwardUDPConfig
	pending map[flowKey]*UDPRequest
	perDest map[netip.AddrPort]int
}

func (f *udpForwarder) init(s *Stack) {
	f.stack = s
	f.pending = make(map[flowKey]*UDPRequest)
	f.perDest = make(map[netip.AddrPort]int)
}

// ForwardUDP sets what becomes of UDP flows that arrive at a promiscuous
// stack; until then they are unreachable. It may be called again.
func (s *Stack) ForwardUDP(cfg ForwardUDPConfig) error {
	if !s.cfg.Promiscuous || cfg.Handler == nil {
		return errors.New("forwarding UDP: a promiscuous stack and a handler are required")
	}
	if cfg.Pending <= 0 {
		cfg.Pending = DefaultPending
	}
	if cfg.PendingTotal <= 0 {
		cfg.PendingTotal = DefaultPendingTotal
	}
	s.udp.mu.Lock()
	defer s.udp.mu.Unlock()
	s.udp.cfg = cfg
	return nil
}

// handle gets every datagram that belongs to no flow that the caller knows. It
// runs inside delivery and must not block.
func (f *udpForwarder) handle(nic *NIC, d *datagram, pkt *stack.PacketBuffer) {
	r, why := f.admit(nic, d, pkt)
	if why != "" {
		f.stack.drops.Add(why, 1)
		if why != whyPendingBytes && why != whyInboxFull && why != whyUnreadFull {
			nic.writeUnreachable(d.quote(), netx.ErrUnreachable)
		}
		return
	}
	if r != nil && !f.stack.spawn(func() { f.run(r) }) {
		f.release(r)
	}
}

// admit keeps the datagram: in the flow that it belongs to by now, with the
// request that waits, or in a new request, which it returns.
func (f *udpForwarder) admit(nic *NIC, d *datagram, pkt *stack.PacketBuffer) (*UDPRequest, string) {
	key := flowKey{proto: protoUDP, local: d.dst, remote: d.src}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.pending[key]; r != nil {
		if r.bytes >= pendingBytes {
			return nil, whyPendingBytes
		}
		r.keep(d, pkt)
		return nil, ""
	}
	// The flow may have been accepted after the caller looked for it: a request
	// leaves pending only once its conn is in the index.
	if c, ok := nic.index.find(key).(*UDPConn); ok {
		if why, err := c.in.put(d, pkt); err == nil {
			return nil, why
		}
	}
	switch {
	case f.cfg.Handler == nil:
		return nil, whyNoForwarder
	case len(f.pending) >= f.cfg.PendingTotal:
		return nil, whyPendingAll
	case f.perDest[key.local] >= f.cfg.Pending:
		return nil, whyPending
	}
	r := &UDPRequest{key: key, nic: nic, forwarder: f, handler: f.cfg.Handler, quoted: d.quote()}
	r.keep(d, pkt)
	f.pending[key] = r
	f.perDest[key.local]++
	return r, ""
}

func (f *udpForwarder) run(r *UDPRequest) {
	r.handler(r)
	r.Reject(netx.ErrUnreachable)
}

// tell passes an ICMP error on to the flow that waits for its handler's answer,
// or was accepted since the caller looked for it. It reports false where there
// is none: a UDP flow that is over here.
func (f *udpForwarder) tell(nic *NIC, key flowKey, err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.pending[key]; r != nil {
		r.told = err
		return true
	}
	ep := nic.index.find(key)
	if ep != nil {
		ep.unreachable(err)
	}
	return ep != nil
}

// release takes r out of those that wait and drops what it kept.
func (f *udpForwarder) release(r *UDPRequest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.releaseLocked(r)
}

func (f *udpForwarder) releaseLocked(r *UDPRequest) {
	if f.pending[r.key] != r {
		return
	}
	for i := range r.datagrams {
		r.datagrams[i].pkt.DecRef()
	}
	r.datagrams = nil
	delete(f.pending, r.key)
	if f.perDest[r.key.local]--; f.perDest[r.key.local] == 0 {
		delete(f.perDest, r.key.local)
	}
}

// UDPRequest is a new UDP flow that waits for an answer. One goroutine at a
// time may use it.
type UDPRequest struct {
	key       flowKey // local is the destination
	nic       *NIC
	forwarder *udpForwarder
	handler   func(*UDPRequest)
	quoted    []byte
	answered  bool

	told      error  // guarded by forwarder.mu; what an ICMP error said meanwhile
	bytes     int    // guarded by forwarder.mu
	datagrams []kept // guarded by forwarder.mu
}

// kept is a datagram with a reference to the packet that it lies in.
type kept struct {
	datagram
	pkt *stack.PacketBuffer
}

// keep adds a datagram to those that wait; forwarder.mu is held, or nobody else
// knows r yet.
func (r *UDPRequest) keep(d *datagram, pkt *stack.PacketBuffer) {
	r.bytes += len(d.payload) + udpHeaderLen
	r.datagrams = append(r.datagrams, kept{*d, pkt.IncRef()})
}

// Source is who sent the datagram.
func (r *UDPRequest) Source() netip.AddrPort { return r.key.remote }

// Destination is whom it was sent to.
func (r *UDPRequest) Destination() netip.AddrPort { return r.key.local }

// NIC is the NIC that it came through.
func (r *UDPRequest) NIC() *NIC { return r.nic }

// Context ends when the NIC is removed or the Stack closed.
func (r *UDPRequest) Context() context.Context { return r.nic.ctx }

// Accept makes the flow's conn. The datagrams that came so far are its first.
func (r *UDPRequest) Accept() (*UDPConn, error) {
	if r.answered {
		return nil, errors.New("accepting a UDP flow: the request was answered already")
	}
	r.answered = true
	defer r.forwarder.release(r)
	c, err := r.accept()
	if err != nil {
		return nil, fmt.Errorf("accepting a UDP flow from %q to %q: %w", r.key.remote, r.key.local, err)
	}
	return c, nil
}

func (r *UDPRequest) accept() (*UDPConn, error) {
	if r.nic.ctx.Err() != nil {
		return nil, ErrAborted
	}
	f := r.forwarder
	f.mu.Lock()
	defer f.mu.Unlock()
	// Under the lock nothing more is kept, and what was comes before whatever
	// finds the conn in the index.
	c := newUDPConn(r.nic)
	c.key, c.in.told = r.key, r.told
	for i := range r.datagrams {
		if why, _ := c.in.put(&r.datagrams[i].datagram, r.datagrams[i].pkt); why != "" {
			f.stack.drops.Add(why, 1)
		}
	}
	if !r.nic.index.add(c.key, c) {
		c.Abort()
		return nil, ErrAborted
	}
	f.releaseLocked(r)
	return c, nil
}

// Reject answers with an ICMP error that quotes the first datagram: port
// unreachable for netx.ErrRefused, net unreachable for ErrTimedOut, host
// unreachable for everything else. After an answer was given it does nothing.
func (r *UDPRequest) Reject(cause error) {
	if r.answered {
		return
	}
	r.answered = true
	r.forwarder.release(r) // first: what the peer sends on hearing the answer begins another flow
	r.nic.writeUnreachable(r.quoted, netx.Classify(cause))
}
