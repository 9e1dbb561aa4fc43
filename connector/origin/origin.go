// Package origin dials the private side: the services that an edge publishes
// through this connector. It knows the aliases, bounds each dial in time, and
// says of a failure which of netx's errors it is, so that the connector can
// answer the edge with the truth.
//
// Use New with a Spec, then DialContext for each flow; the Dialer is a
// netx.Dialer. Ping finds out whether a host is there. DialContext asks the
// Dialer's Guard about every address that an alias leads to and never dials one
// that the Guard denies. Neither asks about the destination that the edge
// wanted: that is the caller's duty, before it calls.
package origin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/netstack/netx"
	"github.com/warrenmesh/warren/netstack/relay"
)

// Guard decides about the address that an alias led to; *guard.Guard is one.
// named tells that the alias itself names the address, so that no resolver
// had a say in it.
type Guard interface {
	AllowTarget(proto string, dst netip.AddrPort, named bool) (guard.Verdict, string)
}

// Resolver turns an alias's name into addresses, in the order to try them;
// *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// NetDialer opens kernel sockets; *net.Dialer is one.
type NetDialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Deps are what a Dialer stands on. The zero value of each field but Guard is
// the machine's own.
type Deps struct {
	// Guard is required.
	Guard Guard
	// Resolver defaults to net.DefaultResolver.
	Resolver Resolver
	// Net defaults to a net.Dialer with the Spec's keep-alive.
	Net NetDialer
	// Pinger defaults to the kernel's ICMP sockets.
	Pinger Pinger
}

// Causes of a failed dial beyond netx's, for counting. An error that wraps
// one of them wraps netx.ErrUnreachable or netx.ErrTimedOut too.
var (
	// ErrDenied: the guard denied the address that an alias led to.
	ErrDenied = errors.New("denied by the connector's guard")
	// ErrResolve: an alias's name gave no address.
	ErrResolve = errors.New("resolving the alias failed")
	// ErrDescriptors: no socket could be opened to dial with. It is no fault
	// of the origin's.
	ErrDescriptors = errors.New("the connector has no file descriptor left: raise its limit (LimitNOFILE= of the systemd unit, or ulimit -n; fs.file-max where the whole machine has none)")
)

// Dialer dials origins, and pings them. Its settings are immutable, and it is
// safe for concurrent use.
type Dialer struct {
	timeout  time.Duration
	aliases  map[Service]Target
	guard    Guard
	resolver Resolver
	net      NetDialer
	kernel   bool // net is the machine's own
	pinger   Pinger

	pings atomic.Int32 // under way
}

// New makes a Dialer of a valid spec.
func New(spec Spec, deps Deps) *Dialer {
	spec = spec.withDefaults()
	d := &Dialer{
		timeout:  spec.Timeout,
		aliases:  make(map[Service]Target, len(spec.Aliases)),
		guard:    deps.Guard,
		resolver: deps.Resolver,
		net:      deps.Net,
		pinger:   deps.Pinger,
	}
	for _, a := range spec.Aliases {
		d.aliases[a.From] = a.To
	}
	if d.resolver == nil {
		d.resolver = net.DefaultResolver
	}
	if d.net == nil {
		d.net, d.kernel = &net.Dialer{KeepAlive: spec.KeepAlive}, true
	}
	if d.pinger == nil {
		d.pinger = kernelPinger{}
	}
	return d
}

var _ netx.Dialer = (*Dialer)(nil)

// DialContext opens a flow to the origin that serves dst: dst itself, or what
// its alias names. proto is "tcp" or "udp"; a UDP conn is a connected socket,
// so that the kernel reports a closed port.
//
// The dial, with the resolution of a name, ends after the Spec's timeout. An
// error names both addresses and wraps netx.ErrRefused, ErrUnreachable or
// ErrTimedOut; only an end of ctx is none of them. The caller closes the conn.
func (d *Dialer) DialContext(ctx context.Context, proto string, dst netip.AddrPort) (net.Conn, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	to, ok := d.aliases[Service{Proto: proto, Addr: dst}]
	if !ok && d.kernel {
		ctx = until{ctx, time.Now().Add(d.timeout)}
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.timeout)
		defer cancel()
	}
	if !ok {
		conn, err := d.dial(ctx, proto, dst)
		if err != nil {
			return nil, &netx.DialError{What: fmt.Sprintf("dialling \"%s/%s\"", proto, dst), Class: netx.ClassifyDial(ctx, err), Err: reason(err)}
		}
		return conn, nil
	}
	conn, err := d.dialAlias(ctx, proto, to)
	if err != nil {
		return nil, &netx.DialError{What: fmt.Sprintf("dialling \"%s/%s\" as %q", proto, dst, to), Class: netx.ClassifyDial(ctx, err), Err: reason(err)}
	}
	return conn, nil
}

// until is a context for a net.Dialer that has no name to resolve: it tells of a
// deadline, which the Dialer itself sets on its socket, but does not end then.
// context.WithTimeout would arm a timer more for each dial.
type until struct {
	context.Context
	at time.Time
}

// Deadline implements context.Context.
func (u until) Deadline() (time.Time, bool) {
	if at, ok := u.Context.Deadline(); ok && at.Before(u.at) {
		return at, true
	}
	return u.at, true
}

// dialAlias tries the target's addresses in turn, each with its share of the
// time that is left. The error is that of the first address.
func (d *Dialer) dialAlias(ctx context.Context, proto string, to Target) (net.Conn, error) {
	addrs, named, err := d.lookup(ctx, to)
	if err != nil {
		return nil, err
	}
	var first error
	for i, a := range addrs {
		conn, err := d.dialTarget(ctx, proto, netip.AddrPortFrom(a, to.Port), named(a), len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// dialTarget asks the guard, then dials; left is how many addresses share the
// time, this one included.
func (d *Dialer) dialTarget(ctx context.Context, proto string, dst netip.AddrPort, named bool, left int) (net.Conn, error) {
	if v, why := d.guard.AllowTarget(proto, dst, named); v != guard.Allow {
		return nil, fmt.Errorf("%w: %s is %s", ErrDenied, dst.Addr(), why)
	}
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	return d.dial(ctx, proto, dst)
}

// udpReadBuffer is what the kernel may hold of an origin's datagrams while the
// tunnel is busy. The usual 208 KiB is 92 datagrams of 1,200 bytes; what comes
// beyond is lost, and nobody counts it.
const udpReadBuffer = 1 << 20

func (d *Dialer) dial(ctx context.Context, proto string, dst netip.AddrPort) (net.Conn, error) {
	conn, err := d.net.DialContext(ctx, proto, dst.String())
	if u, ok := conn.(*net.UDPConn); ok && err == nil {
		relay.GrowBuffers(u, udpReadBuffer, 0) // as much of it as the machine allows
	}
	return conn, err
}

// Denied resolves the alias's target and returns the addresses that the guard
// denies, each with the reason: none is good. It dials nothing.
func (d *Dialer) Denied(ctx context.Context, proto string, to Target) ([]string, error) {
	addrs, named, err := d.lookup(ctx, to)
	if err != nil {
		return nil, err
	}
	var denied []string
	for _, a := range addrs {
		if v, why := d.guard.AllowTarget(proto, netip.AddrPortFrom(a, to.Port), named(a)); v != guard.Allow {
			denied = append(denied, fmt.Sprintf("%s is %s", a, why))
		}
	}
	return denied, nil
}

// lookup returns the target's addresses, and whether the alias itself names
// one of them: it is that address, or a loopback of "localhost", which is
// never anything else (RFC 6761 section 6.3).
func (d *Dialer) lookup(ctx context.Context, to Target) ([]netip.Addr, func(netip.Addr) bool, error) {
	if a, ok := to.Addr(); ok {
		return []netip.Addr{a.Addr()}, func(netip.Addr) bool { return true }, nil
	}
	addrs, err := d.resolver.LookupNetIP(ctx, "ip", to.Host)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrResolve, err)
	}
	if len(addrs) == 0 {
		return nil, nil, fmt.Errorf("%w: %q has no address", ErrResolve, to.Host)
	}
	out := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		out[i] = a.Unmap()
	}
	local := strings.EqualFold(strings.TrimSuffix(to.Host, "."), "localhost")
	return out, func(a netip.Addr) bool { return local && a.IsLoopback() }, nil
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
