package ingress

import (
	"fmt"
	"net/netip"
	"time"
)

// Spec is one listener of one app.
type Spec struct {
	App     string
	Network string // "tcp" or "udp"

	// Addr is what the socket binds. 0.0.0.0 means every IPv4 address and
	// [::] every IPv6 address of the machine: neither includes the other.
	// Port 0 picks a free port.
	Addr netip.AddrPort
	// Advertise is what the world dials, where it differs: for logs.
	Advertise netip.AddrPort

	// UDPIdle is how long a UDP session lives without a datagram. The handler
	// sees to it; ingress frees a session when its handler returns. Default
	// DefaultUDPIdle.
	UDPIdle time.Duration
	// MaxFlows bounds the flows of this listener, TCP connections or UDP
	// sessions. A client beyond it gets a RST, or with UDP no answer; those
	// that have a flow keep it. Default DefaultMaxFlows.
	MaxFlows int
	// MaxFlowsPerSource bounds those of one source: an IPv4 address, an IPv6
	// /64. Default a quarter of MaxFlows.
	MaxFlowsPerSource int
}

// Defaults of Spec.
const (
	DefaultUDPIdle  = 210 * time.Second
	DefaultMaxFlows = 65536
)

// withDefaults returns s with the defaults where it says nothing.
func (s Spec) withDefaults() Spec {
	if s.UDPIdle == 0 {
		s.UDPIdle = DefaultUDPIdle
	}
	if s.MaxFlows == 0 {
		s.MaxFlows = DefaultMaxFlows
	}
	if s.MaxFlowsPerSource == 0 {
		s.MaxFlowsPerSource = max(s.MaxFlows/4, 1)
	}
	if !s.Advertise.IsValid() {
		s.Advertise = s.Addr
	}
	return s
}

// Validate returns what is wrong with s, or nil.
func (s Spec) Validate() error {
	switch {
	case s.Network != "tcp" && s.Network != "udp":
		return fmt.Errorf("listening for app %q: network %q is neither tcp nor udp", s.App, s.Network)
	case !s.Addr.IsValid():
		return fmt.Errorf("listening for app %q (%s): no address", s.App, s.Network)
	case s.UDPIdle < 0:
		return fmt.Errorf("listening on %q (%s, app %q): idle timeout %v is negative", s.Addr, s.Network, s.App, s.UDPIdle)
	case s.MaxFlows < 0 || s.MaxFlowsPerSource < 0:
		return fmt.Errorf("listening on %q (%s, app %q): a negative number of flows", s.Addr, s.Network, s.App)
	}
	return nil
}

// family returns the network name that fixes the IP version, as package net
// spells it: "tcp4", "udp6". It also keeps [::] from taking IPv4.
func (s Spec) family() string {
	if s.Addr.Addr().Unmap().Is4() {
		return s.Network + "4"
	}
	return s.Network + "6"
}

// key is what makes two specs the same socket. A port that is picked belongs
// to the app it was picked for.
type key struct {
	network string
	addr    netip.AddrPort
	app     string // only where the port is 0
}

func (s Spec) key() key {
	k := key{network: s.Network, addr: unmapped(s.Addr)}
	if k.addr.Port() == 0 {
		k.app = s.App
	}
	return k
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
