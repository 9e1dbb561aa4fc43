package netstack

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// removePatience is how long Remove lets RSTs leave before it closes the link
// under them, and under senders that wait for room in it. drainInterval is how
// often it looks.
const (
	removePatience = time.Second
	drainInterval  = time.Millisecond
)

// NICConfig of one NIC.
type NICConfig struct {
	Name string // for errors and logs

	// Link carries bare IP packets; required. The NIC owns it: Remove closes
	// it. WritePackets may block for room, except for packets that the stack
	// makes while it is delivered one (RST, ICMP): those it must rather drop.
	// If it has a method Len() int, Remove gives what it holds time to leave;
	// if it has link.Endpoint's Place, a TCP conn asks that before each write.
	Link stack.LinkEndpoint

	// Sources are our own addresses on the link, IPv4 and IPv6: dialled flows
	// come from them. Each adds 49,152 ports towards one destination; few are
	// needed. NICs of one stack should have different ones, so that what a
	// private host logs tells which connector a flow came through.
	Sources []netip.Addr

	// MaxFlowsPerHost bounds the flows that a Listener may have with one
	// remote address, those included that were closed but whose last bytes
	// the host does not take: a further one is reset. 0: no bound.
	MaxFlowsPerHost int
}

// NIC is one way out of a Stack. All methods may be called concurrently.
type NIC struct {
	name  string
	stack *Stack
	id    tcpip.NICID
	link  stack.LinkEndpoint
	index flowIndex
	acks  ackList
	pings pingTable

	fragments reassembler
	lowering  atomic.Bool // a "packet too big" is being heeded

	// IP ids of UDP: datagrams that we cut have their own, which small ones
	// would go through in a second.
	wholeIDs, fragmentIDs atomic.Uint32
	unread                atomic.Int64 // bytes that datagram conns hold

	ctx    context.Context // ends with Remove
	cancel context.CancelCauseFunc

	removing sync.Once
	removed  chan struct{}

	mu        sync.Mutex // guards what follows
	assigned  map[netip.Addr]struct{}
	lent      map[netip.Addr]int // addresses of flows that DialFrom opened, and how many of these
	listeners map[closer]struct{}
	sockets   map[netip.AddrPort]*PacketConn // by local address; nil where there is none
}

// closer is a listener that a NIC ends when it goes.
type closer interface{ Close() error }

// AddNIC attaches a link. It may be called while traffic flows.
func (s *Stack) AddNIC(cfg NICConfig) (*NIC, error) {
	if cfg.Link == nil {
		return nil, errors.New("adding a NIC: a link is required")
	}
	n := &NIC{
		name:      cfg.Name,
		stack:     s,
		link:      cfg.Link,
		removed:   make(chan struct{}),
		assigned:  make(map[netip.Addr]struct{}),
		lent:      make(map[netip.Addr]int),
		listeners: make(map[closer]struct{}),
	}
	sources := make([]netip.Addr, 0, len(cfg.Sources))
	for _, a := range cfg.Sources {
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return nil, fmt.Errorf("adding NIC %q: source address %q cannot be one", cfg.Name, a)
		}
		sources = append(sources, a.Unmap())
	}
	n.acks.nic = n
	n.index.init(sources, cfg.MaxFlowsPerHost)
	n.index.drops = &s.drops
	n.pings.init(&s.drops)
	n.fragments.drops = &s.drops
	n.wholeIDs.Store(rand.Uint32())
	n.fragmentIDs.Store(rand.Uint32())
	n.ctx, n.cancel = context.WithCancelCause(s.ctx)
	if err := s.attach(n); err != nil {
		n.cancel(err)
		return nil, fmt.Errorf("adding NIC %q: %w", cfg.Name, err)
	}
	return n, nil
}

// attach makes n known to gVisor and to s.
func (s *Stack) attach(n *NIC) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errStackClosed
	}
	if s.cfg.Promiscuous && len(s.nics) > 0 {
		return errors.New("a promiscuous stack holds one NIC: two edges may use the same source addresses")
	}
	n.id = s.gv.NextNICID()
	if err := s.gv.CreateNICWithOptions(n.id, &linkGuard{LinkEndpoint: n.link, nic: n}, stack.NICOptions{}); err != nil {
		return errors.New(err.String())
	}
	// Spoofing lets an endpoint use any source address; promiscuous takes any
	// destination for ours, which only the connector wants.
	s.gv.SetSpoofing(n.id, true)
	s.gv.SetPromiscuousMode(n.id, s.cfg.Promiscuous)
	s.gv.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: n.id})
	s.gv.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: n.id})
	s.nics[n.id] = n
	return nil
}

// Name is the name that the NIC was added with.
func (n *NIC) Name() string { return n.name }

// Stack is the stack that the NIC belongs to.
func (n *NIC) Stack() *Stack { return n.stack }

// Remove ends the NIC: no new flow begins, every flow is aborted both ways
// (its reads and writes return ErrAborted, its peer is sent a RST as long as
// the link takes it), and the link is detached and closed. It returns when
// all that is done, also to callers beside the first. It must not be called
// from the goroutine that delivers to or reads from the link.
func (n *NIC) Remove() {
	n.removing.Do(func() {
		defer close(n.removed)
		n.remove()
	})
	<-n.removed
}

func (n *NIC) remove() {
	n.cancel(ErrAborted)
	for _, l := range n.takeListeners() {
		_ = l.Close()
	}
	// A sender that waits for room in the link holds its endpoint's lock, and
	// abort needs it. Closing the link wakes such senders.
	patience, cancel := context.WithTimeout(context.Background(), removePatience)
	defer cancel()
	stop := context.AfterFunc(patience, n.link.Close)
	for _, ep := range n.index.close() {
		ep.abort(ErrAborted)
	}
	n.drain(patience)
	stop()
	n.stack.gv.RemoveNIC(n.id)
	n.fragments.close()
	n.acks.close()
	n.stack.mu.Lock()
	delete(n.stack.nics, n.id)
	n.stack.mu.Unlock()
}

// drain waits until the link has sent what it holds, where it can tell.
func (n *NIC) drain(ctx context.Context) {
	link, ok := n.link.(interface{ Len() int })
	if !ok || link.Len() == 0 {
		return
	}
	tick := time.NewTicker(drainInterval)
	defer tick.Stop()
	for link.Len() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *NIC) takeListeners() []closer {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []closer
	for l := range n.listeners {
		all = append(all, l)
	}
	n.listeners = nil
	return all
}

// addListener registers l to be closed with the NIC; false once it is going.
func (n *NIC) addListener(l closer) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		return false
	}
	n.listeners[l] = struct{}{}
	return true
}

func (n *NIC) removeListener(l closer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.listeners, l)
}

// AbortFlows ends every flow that match says yes to, both ways, and returns
// how many. It is how a lost route or a revocation takes its flows along, and
// the pings under way (local has the identifier for its port, remote the
// sequence number), which are not counted.
func (n *NIC) AbortFlows(match func(local, remote netip.AddrPort) bool) int {
	found := n.index.matching(match)
	for _, ep := range found {
		ep.abort(ErrAborted)
	}
	n.pings.abort(match)
	return len(found)
}

// Flows returns how many flows the NIC has, those included that were closed
// but whose last bytes are still on their way.
func (n *NIC) Flows() int { return n.index.len() }

// MTUChanged tells live TCP flows that the link's MTU has become smaller, so
// that they cut their segments to it instead of having each one fragmented.
// It may wait for senders, so it must not be called from the goroutine that
// delivers to or reads from the link. A larger MTU serves new flows only.
func (n *NIC) MTUChanged() {
	mtu := int(n.link.MTU())
	for _, ep := range n.index.matching(nil) {
		ep.pathMTU(mtu)
	}
}

// assign makes addr one of the NIC's own, so that packets to it are answered
// whether or not a flow uses it. It costs some hundred bytes, so it is done
// for a source when it is first used.
func (n *NIC) assign(addr netip.Addr) {
	if n.stack.cfg.Promiscuous {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, done := n.assigned[addr]; done {
		return
	}
	n.assigned[addr] = struct{}{}
	n.addAddress(addr)
}

// tcpAddress converts to gVisor's form; addr is never an IPv4-mapped one.
func tcpAddress(addr netip.Addr) tcpip.Address {
	if !addr.IsValid() {
		return tcpip.Address{}
	}
	return tcpip.AddrFromSlice(addr.AsSlice())
}

// fullAddress converts to gVisor's form, on this NIC.
func (n *NIC) fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: n.id, Addr: tcpAddress(a.Addr()), Port: a.Port()}
}

// addrPort converts from gVisor's form.
func addrPort(addr tcpip.Address, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(addr.AsSlice())
	return netip.AddrPortFrom(a, port)
}
