//go:build !linux

package ping

import (
	"net/netip"
	"syscall"
)

// openUnprivileged is for Linux alone: what such a socket gives differs.
func openUnprivileged(netip.Addr) (socket, error) { return nil, errUnsupported }

func hearErrors(syscall.Conn, netip.Addr) {}
