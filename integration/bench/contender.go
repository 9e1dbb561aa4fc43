package main

import (
	"context"
	"net/netip"

	"github.com/warrenmesh/warren/integration/bench/load"
	"github.com/warrenmesh/warren/integration/proc"
)

// The origin's ports, which every contender shows to the client on one
// address.
var (
	tcpPorts = []uint16{load.PortBulk, load.PortEcho, load.PortConnect, load.PortGreet, load.PortIdle}
	udpPorts = []uint16{load.PortUDP}
)

// contender is one way from the client to the origin.
type contender struct {
	name string
	// missing says why the contender cannot take part on this machine; empty
	// where it can.
	missing string
	udp     bool   // it carries datagrams too
	binary  string // of Warren
	start   func(s *scope, w *world) *running
}

// running is a contender that serves a world. What it started belongs to the
// scope it was started in.
type running struct {
	target netip.Addr // where the client connects
	// The contender's processes at the two ends; empty where it has none.
	edge, connector []*proc.Process
	// inspect reaches into the contender's own runtime; nil where it has no
	// door. The key is "edge" or "connector".
	inspect map[string]inspector
}

// inspector is what a Go program can say about itself.
type inspector interface {
	// memory collects garbage and returns HeapInuse + StackInuse in bytes.
	memory(ctx context.Context) (int64, error)
	// profile records a CPU profile for so many seconds.
	profile(ctx context.Context, seconds int) ([]byte, error)
}

// nameDirect is the contender that is none.
const nameDirect = "direct"

// direct is the client going to the origin over the kernel's routers: what the
// machine itself can do.
func direct() contender {
	return contender{name: nameDirect, udp: true, start: func(*scope, *world) *running {
		return &running{target: originAddr}
	}}
}
