//go:build !linux

package public

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Ping fails with ErrPingUnsupported.
func (d *Dialer) Ping(_ context.Context, addr netip.Addr) error {
	return &Error{What: fmt.Sprintf("pinging %q", addr), Class: netx.ErrUnreachable, Err: ErrPingUnsupported}
}
