//go:build !linux

package origin

import (
	"net/netip"
	"syscall"
)

// openUnprivileged is for Linux alone: what such a socket gives differs.
func openUnprivileged(netip.Addr) (pingSocket, error) { return nil, errUnsupported }

func hearErrors(syscall.Conn, netip.Addr) {}
