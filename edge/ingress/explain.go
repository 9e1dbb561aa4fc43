package ingress

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/warrenmesh/warren/host"
)

// bindError is a listener that could not be had: one sentence that says what
// to do, and the errno for errors.Is.
type bindError struct {
	sentence string
	err      error
}

func (e *bindError) Error() string { return e.sentence }
func (e *bindError) Unwrap() error { return e.err }

// explainLocked turns a failure to bind spec's address into what an operator
// can act on.
func (c *Change) explainLocked(spec Spec, err error) error {
	what := fmt.Sprintf("listening on %q (%s, app %q)", spec.Addr, spec.Network, spec.App)
	say := func(format string, args ...any) error {
		return &bindError{sentence: what + ": " + fmt.Sprintf(format, args...), err: err}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		if own, ok := c.ownLocked(spec); ok {
			return say("app %q of this edge has %q; a wildcard and an address of one port cannot stand side by side, nor change places in a reload: restart the edge", own.App, own.Addr)
		}
		return say("address already in use by %s; stop that, or give the app another port or address", host.Holder(spec.Network, spec.Addr))
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return say("this machine does not have the address; if it is behind NAT, set bind of that [[address]] to the machine's own address")
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return say("permission denied: ports below 1024 need root or CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)")
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return say("out of file descriptors; raise the limit (systemd: LimitNOFILE=) or listen on fewer ports")
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return say("this machine has no %s; leave the address out", ipVersion(spec.Addr.Addr()))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// ownLocked returns the listener of this server that stands in spec's way.
func (c *Change) ownLocked(spec Spec) (Spec, bool) {
	inTheWay := func(k key) bool {
		same := k.network == spec.Network && k.addr.Port() == spec.Addr.Port() &&
			k.addr.Addr().Is4() == spec.Addr.Addr().Unmap().Is4()
		return same && (k.addr.Addr().IsUnspecified() || spec.Addr.Addr().IsUnspecified())
	}
	for k, l := range c.s.listeners {
		if inTheWay(k) {
			return l.current(), true
		}
	}
	for k := range c.opened {
		if inTheWay(k) {
			return c.next[k], true
		}
	}
	return Spec{}, false
}

func ipVersion(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "IPv4"
	}
	return "IPv6"
}
