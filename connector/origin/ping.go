package origin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/warrenmesh/warren/host/ping"
	"github.com/warrenmesh/warren/netstack/netx"
)

// Pinger sends an ICMP echo request to dst and waits for the reply, until ctx
// ends. It returns the round trip.
type Pinger interface {
	Ping(ctx context.Context, dst netip.Addr) (time.Duration, error)
}

// MaxPings is how many pings a Dialer has under way at most: each holds a
// socket.
const MaxPings = 2048

var (
	// ErrPingForbidden: this machine does not let the connector ping.
	ErrPingForbidden = ping.ErrForbidden
	// ErrTooManyPings: MaxPings are under way.
	ErrTooManyPings = fmt.Errorf("%d pings are under way already", MaxPings)
)

// Ping sends an ICMP echo request to dst, a host of the private side, and
// returns how long the reply took. Aliases do not matter: they serve ports, not
// hosts. As with DialContext it is the caller's duty to ask the Guard first,
// with AllowPing.
//
// It needs no privilege where sysctl net.ipv4.ping_group_range has one of the
// process's groups; else CAP_NET_RAW, or the error is ErrPingForbidden. The
// ping ends after the Spec's timeout. An error names dst and wraps
// netx.ErrTimedOut for silence, and else netx.ErrUnreachable, with the cause;
// only an end of ctx is neither.
func (d *Dialer) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	dst = dst.Unmap()
	rtt, err := d.ping(ctx, dst)
	if err == nil {
		return rtt, nil
	}
	class := netx.ClassifyDial(ctx, err)
	if class == netx.ErrRefused {
		class = netx.ErrUnreachable // a ping has no port that could be refused
	}
	return 0, &netx.DialError{What: fmt.Sprintf("pinging %q", dst), Class: class, Err: reason(err)}
}

func (d *Dialer) ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	if !dst.IsValid() || dst.Zone() != "" || dst.IsUnspecified() || dst.IsMulticast() {
		return 0, errors.New("the address of one host is required")
	}
	if d.pings.Add(1) > MaxPings {
		d.pings.Add(-1)
		return 0, ErrTooManyPings
	}
	defer d.pings.Add(-1)
	return d.pinger.Ping(ctx, dst)
}

// kernelPinger pings with the kernel's sockets.
type kernelPinger struct{}

// Ping implements Pinger.
func (kernelPinger) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	return ping.Send(ctx, dst)
}
