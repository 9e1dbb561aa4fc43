package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Defaults of the forwarders.
const (
	// DefaultPending is how many flows to one destination may wait for an
	// answer. One blackholed origin then cannot starve the others.
	DefaultPending = 256
	// DefaultPendingTotal is how many may wait in all.
	DefaultPendingTotal = 8192

	// acceptTimeout bounds the handshake once Accept was called. The edge
	// gives up a dial after 7 s and then answers our SYN-ACK with a RST.
	acceptTimeout = 10 * time.Second

	forwardWindow = tcpReceiveDefault
)

// Why a forwarder dropped or refused.
const (
	whyNoForwarder = "no_forwarder"
	whyPending     = "pending_destination" // too many flows to one destination wait
	whyPendingAll  = "pending_total"       // too many flows wait in all
	whyGone        = "nic_gone"            // it came through a NIC that is going
)

// ForwardTCPConfig says what becomes of connections that arrive.
type ForwardTCPConfig struct {
	// Handler is called for each SYN, on a goroutine of its own, and owns the
	// request. Accept and Reject answer the SYN; a handler that returns
	// without either has rejected it as unreachable. It may go on after Accept
	// (the Stack's Close waits for it) but must end soon after the request's
	// Context does.
	Handler func(*TCPRequest)

	Pending      int // per destination; default DefaultPending
	PendingTotal int // default DefaultPendingTotal
}

// tcpForwarder hands SYNs to the handler. gVisor's own forwarder offers only
// to complete the handshake or to reset; it is kept for that, and this one
// counts, keeps what an ICMP answer must quote, and sends it.
type tcpForwarder struct {
	stack *Stack
	inner *tcp.Forwarder

	mu      sync.Mutex // guards what follows
	cfg     ForwardTCPConfig
	pending map[flowKey]*TCPRequest
	perDest map[netip.AddrPort]int
}

func (f *tcpForwarder) init(s *Stack) {
	f.stack = s
	f.pending = make(map[flowKey]*TCPRequest)
	f.perDest = make(map[netip.AddrPort]int)
	if s.cfg.Promiscuous {
		f.inner = tcp.NewForwarder(s.gv, forwardWindow, math.MaxInt, f.run)
		s.gv.SetTransportProtocolHandler(tcp.ProtocolNumber, f.handlePacket)
	}
}

// ForwardTCP sets what becomes of TCP connections that arrive at a
// promiscuous stack; until then they are refused. It may be called again: the
// new handler takes the connections that follow.
func (s *Stack) ForwardTCP(cfg ForwardTCPConfig) error {
	if !s.cfg.Promiscuous || cfg.Handler == nil {
		return errors.New("forwarding TCP: a promiscuous stack and a handler are required")
	}
	if cfg.Pending <= 0 {
		cfg.Pending = DefaultPending
	}
	if cfg.PendingTotal <= 0 {
		cfg.PendingTotal = DefaultPendingTotal
	}
	s.tcp.mu.Lock()
	defer s.tcp.mu.Unlock()
	s.tcp.cfg = cfg
	return nil
}

// handlePacket gets every TCP packet that belongs to no endpoint. It runs
// inside delivery and must not block.
func (f *tcpForwarder) handlePacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst|header.TCPFlagFin) != header.TCPFlagSyn {
		return false // gVisor answers with a RST, or not at all
	}
	key := keyOf(protoTCP, id)
	nic := f.stack.nic(pkt.NICID)
	if nic == nil {
		f.stack.drops.Add(whyGone, 1)
		return true
	}
	r := &TCPRequest{key: key, nic: nic, forwarder: f, quoted: quote(pkt)}
	if why, refuse := f.admit(r); why != "" {
		f.stack.drops.Add(why, 1)
		if refuse {
			nic.writeUnreachable(r.quoted, netx.ErrUnreachable)
		}
		return true
	} else if r.handler == nil {
		return true // a duplicate of a SYN that waits
	}
	if !f.stack.enter() {
		f.done(r)
		return true
	}
	if !f.inner.HandlePacket(id, pkt) { // starts run, unless the checksum is wrong
		f.stack.wg.Done()
		f.done(r)
		return false
	}
	return true
}

// admit enters r among those that wait. r.handler stays nil, without a why,
// when its SYN is a duplicate.
func (f *tcpForwarder) admit(r *TCPRequest) (why string, refuse bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, duplicate := f.pending[r.key]; duplicate {
		return "", false
	}
	switch {
	case f.cfg.Handler == nil:
		return whyNoForwarder, true
	case len(f.pending) >= f.cfg.PendingTotal: // as a full backlog: the SYN comes again in a second
		return whyPendingAll, false
	case f.perDest[r.key.local] >= f.cfg.Pending:
		return whyPending, false
	}
	r.handler = f.cfg.Handler
	f.pending[r.key] = r
	f.perDest[r.key.local]++
	return "", false
}

// done takes r out of those that wait.
func (f *tcpForwarder) done(r *TCPRequest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending[r.key] != r {
		return
	}
	delete(f.pending, r.key)
	if f.perDest[r.key.local]--; f.perDest[r.key.local] == 0 {
		delete(f.perDest, r.key.local)
	}
}

// run is called by gVisor's forwarder on a new goroutine.
func (f *tcpForwarder) run(fr *tcp.ForwarderRequest) {
	defer f.stack.wg.Done()
	deepen()
	key := keyOf(protoTCP, fr.ID())
	f.mu.Lock()
	r := f.pending[key]
	f.mu.Unlock()
	r.inner = fr
	r.handler(r)
	r.Reject(netx.ErrUnreachable)
}

// TCPRequest is a SYN that waits for an answer. One goroutine at a time may
// use it.
type TCPRequest struct {
	key       flowKey // local is the destination
	nic       *NIC
	forwarder *tcpForwarder
	handler   func(*TCPRequest)
	inner     *tcp.ForwarderRequest
	quoted    []byte
	answered  bool
}

// Source is who sent the SYN.
func (r *TCPRequest) Source() netip.AddrPort { return r.key.remote }

// Destination is whom it wants.
func (r *TCPRequest) Destination() netip.AddrPort { return r.key.local }

// NIC is the NIC that it came through.
func (r *TCPRequest) NIC() *NIC { return r.nic }

// Context ends when the NIC is removed or the Stack closed.
func (r *TCPRequest) Context() context.Context { return r.nic.ctx }

// Accept answers the SYN and waits for the handshake's end. After an error
// there is no connection, and the caller must close its origin.
func (r *TCPRequest) Accept() (*TCPConn, error) {
	if r.answered {
		return nil, errors.New("accepting a connection: the request was answered already")
	}
	r.answered = true
	wq := new(waiter.Queue)
	established := make(chan struct{})
	abort := func() { r.abortHandshake(established) }
	stop, late := context.AfterFunc(r.nic.ctx, abort), time.AfterFunc(acceptTimeout, abort)
	ep, terr := r.inner.CreateEndpoint(wq)
	close(established)
	stop()
	late.Stop()
	// First gVisor forgets the request, then we do: between the two a
	// duplicate SYN still finds one of them.
	r.inner.Complete(false)
	r.forwarder.done(r)
	if terr != nil {
		return nil, fmt.Errorf("accepting a connection from %q to %q: %w", r.key.remote, r.key.local, errnoOf(terr))
	}
	c := newTCPConn(r.nic, ep, wq)
	c.key = r.key
	c.delayACKs(r.firstSequence() + 1)
	if !c.adopt() {
		return nil, fmt.Errorf("accepting a connection from %q to %q: %w", r.key.remote, r.key.local, ErrAborted)
	}
	return c, nil
}

// firstSequence is the sequence number of the SYN.
func (r *TCPRequest) firstSequence() uint32 {
	return binary.BigEndian.Uint32(r.quoted[len(r.quoted)-quotedPorts+header.TCPSeqNumOffset:])
}

// abortHandshake ends a handshake that gVisor would go on with for minutes.
// The endpoint may not be registered yet when the NIC goes, hence the tries.
func (r *TCPRequest) abortHandshake(established <-chan struct{}) {
	id := stack.TransportEndpointID{
		LocalAddress: tcpAddress(r.key.local.Addr()), LocalPort: r.key.local.Port(),
		RemoteAddress: tcpAddress(r.key.remote.Addr()), RemotePort: r.key.remote.Port(),
	}
	for {
		ep := r.nic.stack.gv.FindTransportEndpoint(networkProtocol(r.key.local.Addr().Is4()), tcp.ProtocolNumber, id, r.nic.id)
		if ep != nil {
			ep.Abort()
			return
		}
		select {
		case <-established:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Reject answers the SYN with what cause amounts to: a RST for
// netx.ErrRefused, ICMP net unreachable (IPv6: no route) for ErrTimedOut,
// ICMP host unreachable (IPv6: address unreachable) for everything else.
// After an answer was given it does nothing.
func (r *TCPRequest) Reject(cause error) {
	if r.answered {
		return
	}
	r.answered = true
	refused := netx.Classify(cause) == netx.ErrRefused
	if !refused {
		r.nic.writeUnreachable(r.quoted, netx.Classify(cause))
	}
	r.inner.Complete(refused)
	r.forwarder.done(r)
}

// keyOf names the flow of a packet that arrived.
func keyOf(proto uint8, id stack.TransportEndpointID) flowKey {
	return flowKey{
		proto:  proto,
		local:  addrPort(id.LocalAddress, id.LocalPort),
		remote: addrPort(id.RemoteAddress, id.RemotePort),
	}
}

// quote copies what an ICMP error must hold of a packet that arrived: its IP
// header (without IPv6 extension headers) and 8 bytes more.
func quote(pkt *stack.PacketBuffer) []byte {
	ip, transport := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
	hlen := ip6HeaderLen
	if ip[0]>>4 == 4 {
		hlen = int(ip[0]&0x0f) * 4
	}
	b := make([]byte, 0, hlen+quotedPorts)
	b = append(append(b, ip[:hlen]...), transport[:quotedPorts]...)
	if hlen == ip6HeaderLen && ip[0]>>4 == 6 {
		b[6] = byte(pkt.TransportProtocolNumber) // not that of an extension header that was left out
	}
	return b
}
