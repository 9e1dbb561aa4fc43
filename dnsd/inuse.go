package dnsd

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/warrenmesh/warren/host"
)

// unwrapErrno finds the system's own error in what the net package returned.
func unwrapErrno(err error) (syscall.Errno, bool) {
	var errno syscall.Errno
	ok := errors.As(err, &errno)
	return errno, ok
}

// inUseHint says who has the address, and what to do.
func inUseHint(network string, addr netip.AddrPort) string {
	hint := host.Holder(network, addr) + " has it: stop that, or name another address in [dns] listen"
	if addr.Addr().IsUnspecified() {
		hint = host.Holder(network, addr) + " takes the port from the wildcard address: list the public addresses in [dns] listen"
	}
	return hint
}
