package public

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/warrenmesh/warren/host/ping"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/relay"
)

// Dialer dials public origins. It is immutable but for the dials under way, and
// safe for concurrent use.
type Dialer struct {
	spec  Spec
	own   map[netip.Addr]struct{}
	share int // dials to one endpoint
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	ping  func(ctx context.Context, addr netip.Addr) (time.Duration, error)

	mu    sync.Mutex
	all   int                    // dials under way
	under map[netip.AddrPort]int // the same, by endpoint
}

var _ netx.Dialer = (*Dialer)(nil)

// New makes a Dialer of a valid spec.
func New(spec Spec) *Dialer {
	spec = spec.withDefaults()
	d := &Dialer{
		spec:  spec,
		own:   make(map[netip.Addr]struct{}, len(spec.Own)),
		share: (spec.MaxDials + endpointShare - 1) / endpointShare,
		dial:  (&net.Dialer{KeepAlive: spec.KeepAlive}).DialContext,
		ping:  ping.Send,
		under: make(map[netip.AddrPort]int),
	}
	for _, a := range spec.Own {
		d.own[a.Unmap().WithZone("")] = struct{}{}
	}
	return d
}

// withDefaults fills what was left out.
func (s Spec) withDefaults() Spec {
	if s.Timeout == 0 {
		s.Timeout = DefaultTimeout
	}
	if s.KeepAlive == 0 {
		s.KeepAlive = DefaultKeepAlive
	}
	if s.MaxDials == 0 {
		s.MaxDials = DefaultMaxDials
	}
	return s
}

// udpReadBuffer is what the kernel may hold of an origin's datagrams, as a
// connector asks for: the usual 208 KiB is 92 of them.
const udpReadBuffer = 1 << 20

// DialContext opens a flow to addr, which Check must pass; network is "tcp" or
// "udp". The conn is the kernel's own, *net.TCPConn or a connected
// *net.UDPConn, as relay wants it; the caller closes it.
//
// It ends after the Spec's timeout. An error wraps netx.ErrRefused,
// ErrUnreachable or ErrTimedOut; only an end of ctx is none of them. Where
// MaxDials wait already, or a quarter of them for addr, it fails at once with
// ErrBusy.
func (d *Dialer) DialContext(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	what := fmt.Sprintf("dialling \"%s/%s\"", network, addr)
	if network != "tcp" && network != "udp" {
		return nil, &netx.DialError{What: what, Class: netx.ErrUnreachable, Err: errors.New("want tcp or udp")}
	}
	if addr.Port() == 0 {
		return nil, &netx.DialError{What: what, Class: netx.ErrUnreachable, Err: errors.New("want a port from 1 to 65535")}
	}
	if err := d.Check(addr.Addr()); err != nil {
		return nil, &netx.DialError{What: what, Class: netx.ErrUnreachable, Err: err}
	}
	if err := d.enter(addr); err != nil {
		return nil, &netx.DialError{What: what, Class: netx.ErrUnreachable, Err: err}
	}
	defer d.leave(addr)
	ctx, cancel := context.WithTimeout(ctx, d.spec.Timeout)
	defer cancel()
	conn, err := d.dial(ctx, network, addr.String())
	if err != nil {
		return nil, &netx.DialError{What: what, Class: netx.ClassifyDial(ctx, err), Err: reason(err)}
	}
	if u, ok := conn.(*net.UDPConn); ok {
		relay.GrowBuffers(u, udpReadBuffer, 0) // as much of it as the machine allows
	}
	return conn, nil
}

// enter takes a place for a dial to addr; leave gives it back.
func (d *Dialer) enter(addr netip.AddrPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.all >= d.spec.MaxDials:
		return fmt.Errorf("%w: %d are waiting; raise [public] max_dials, or look why they wait", ErrBusy, d.all)
	case d.under[addr] >= d.share:
		return fmt.Errorf("%w: %d are waiting for this endpoint; raise [public] max_dials, of which it has a quarter, or look why they wait", ErrBusy, d.share)
	}
	d.all++
	d.under[addr]++
	return nil
}

func (d *Dialer) leave(addr netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	if d.under[addr]--; d.under[addr] == 0 {
		delete(d.under, addr)
	}
}

// reason is the cause as a netx.DialError has it, which says of a want of
// descriptors whose it is.
func reason(err error) error {
	err = netx.WithoutAddresses(err)
	if netx.NoDescriptor(err) {
		return fmt.Errorf("%w: %w", ErrDescriptors, err)
	}
	return err
}
