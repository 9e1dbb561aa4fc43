package connector

import (
	"context"
	"errors"
	"net"
	"testing"
)

func TestKernelReach(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := gone.LocalAddr().(*net.UDPAddr).AddrPort()
	_ = gone.Close()

	var reach kernelReach
	open := silent.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := reach.Route(open); err != nil {
		t.Errorf("Route to the loopback: %v", err)
	}
	if err := reach.Probe(t.Context(), open); err != nil {
		t.Errorf("Probe of an edge that is silent: %v", err)
	}
	if err := reach.Probe(t.Context(), closed); !errors.Is(err, errPortClosed) {
		t.Errorf("Probe of a closed port: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := reach.Probe(ctx, open); err != nil {
		t.Errorf("Probe that was cancelled: %v", err)
	}
}
