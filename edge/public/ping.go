package public

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Ping sends one echo to addr, which Check must pass, and waits for the reply,
// for the Spec's timeout at most. Where this machine does not let the process
// do that, the error wraps ErrPingUnsupported. Errors are as DialContext's, but
// that none is a refusal: a ping has no port.
func (d *Dialer) Ping(ctx context.Context, addr netip.Addr) error {
	addr = addr.Unmap()
	what := fmt.Sprintf("pinging %q", addr)
	if err := d.Check(addr); err != nil {
		return &netx.DialError{What: what, Class: netx.ErrUnreachable, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, d.spec.Timeout)
	defer cancel()
	if _, err := d.ping(ctx, addr); err != nil {
		class := netx.ClassifyDial(ctx, err)
		if class == netx.ErrRefused {
			class = netx.ErrUnreachable
		}
		return &netx.DialError{What: what, Class: class, Err: reason(err)}
	}
	return nil
}
