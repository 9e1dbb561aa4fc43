package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warrenmesh/warren/netstack/netx"
)

func TestDialErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		reject error
		want   error
	}{
		{"refused", netx.ErrRefused, netx.ErrRefused},
		{"refused by the kernel", syscall.ECONNREFUSED, netx.ErrRefused},
		{"unreachable", netx.ErrUnreachable, netx.ErrUnreachable},
		{"timed out", netx.ErrTimedOut, netx.ErrTimedOut},
		{"timed out by a deadline", context.DeadlineExceeded, netx.ErrTimedOut},
		{"anything else", errors.New("denied"), netx.ErrUnreachable},
		{"no answer given", nil, netx.ErrUnreachable},
	} {
		for _, to := range []netip.AddrPort{service4, service6} {
			t.Run(tt.name+" "+to.String(), func(t *testing.T) {
				l := newLab(t)
				err := l.connector.ForwardTCP(ForwardTCPConfig{Handler: func(r *TCPRequest) {
					if r.Destination() != to || r.Source().Addr() != l.source(to) || r.NIC() != l.cnic {
						t.Errorf("request from %v to %v", r.Source(), r.Destination())
					}
					if tt.reject != nil {
						r.Reject(tt.reject)
					}
				}})
				if err != nil {
					t.Fatal(err)
				}
				c, err := l.nic.DialContext(l.ctx, "tcp", to)
				if err == nil {
					c.Close()
					t.Fatal("the dial succeeded")
				}
				if got := netx.Classify(err); got != tt.want {
					t.Errorf("the dial failed with %v (%v), want %v", err, got, tt.want)
				}
				if n := l.nic.Flows(); n != 0 {
					t.Errorf("%d flows are left", n)
				}
			})
		}
	}
}

// source is the address that dials to that one come from.
func (l *lab) source(to netip.AddrPort) netip.Addr {
	if to.Addr().Is4() {
		return source4
	}
	return source6
}

func TestDialWithoutAnswer(t *testing.T) {
	l := newLab(t)
	release := make(chan struct{})
	defer close(release)
	err := l.connector.ForwardTCP(ForwardTCPConfig{Handler: func(*TCPRequest) { <-release }})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(l.ctx, 20*time.Millisecond)
		defer cancel()
		_, err := l.nic.DialContext(ctx, "tcp", service4)
		if !errors.Is(err, netx.ErrTimedOut) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a timeout", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(l.ctx)
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err := l.nic.DialContext(ctx, "tcp", service4)
		if !errors.Is(err, context.Canceled) || errors.Is(err, netx.ErrTimedOut) {
			t.Errorf("got %v, want a cancellation", err)
		}
	})
	t.Run("already over", func(t *testing.T) {
		ctx, cancel := context.WithCancel(l.ctx)
		cancel()
		if _, err := l.nic.DialContext(ctx, "tcp", service4); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want a cancellation", err)
		}
	})
	if n := l.nic.Flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

func TestDialRefusesNonsense(t *testing.T) {
	l := newLab(t)
	for _, tt := range []struct{ network, to string }{
		{"tcp", "0.0.0.0:80"},
		{"tcp", "224.0.0.1:80"},
		{"tcp", "10.0.0.1:0"},
		{"unix", "10.0.0.1:80"},
		{"tcp", "[fe80::1%eth0]:80"},
	} {
		if c, err := l.nic.DialContext(l.ctx, tt.network, netip.MustParseAddrPort(tt.to)); err == nil {
			c.Close()
			t.Errorf("dialling %s %s succeeded", tt.network, tt.to)
		}
	}
}

// synCounter counts SYNs by 4-tuple, in a wire's filter.
type synCounter struct {
	mu    sync.Mutex
	first map[string]int
	again int
}

func (s *synCounter) filter(b []byte) int {
	if len(b) < 40 || b[0] != 0x45 || b[9] != protoTCP {
		return 1
	}
	if tcp := header.TCP(b[20:]); tcp.Flags() == header.TCPFlagSyn {
		s.mu.Lock()
		defer s.mu.Unlock()
		key := string(b[12:24]) + string(b[24:28]) // addresses, ports, sequence number
		if s.first[key]++; s.first[key] > 1 {
			s.again++
		}
	}
	return 1
}

func TestPortsSpreadOverSources(t *testing.T) {
	var x flowIndex
	second := netip.MustParseAddr("100.127.0.2")
	x.init([]netip.Addr{source4, source6, second}, 0)
	const ports = lastPort - firstPort + 1
	seen := make(map[netip.Addr]int)
	for i := range 2 * ports {
		var key flowKey
		if err := x.claim(protoTCP, service4, &TCPConn{}, &key); err != nil {
			t.Fatalf("claim %d: %v", i, err)
		}
		seen[key.local.Addr()]++
	}
	if seen[source4] != ports || seen[second] != ports {
		t.Errorf("ports taken: %v, want %d of each", seen, ports)
	}
	var key flowKey
	if err := x.claim(protoTCP, service4, &TCPConn{}, &key); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("with every port taken: %v", err)
	}
	other := netip.AddrPortFrom(service4.Addr(), 1)
	if err := x.claim(protoTCP, other, &TCPConn{}, &key); err != nil {
		t.Errorf("towards another port of the same host: %v", err)
	}
	if err := x.claim(protoUDP, service4, &UDPConn{}, &key); err != nil {
		t.Errorf("with another protocol: %v", err)
	}
}

// Many flows may share a local port, towards different services.
func TestPortSharedBetweenDestinations(t *testing.T) {
	l := newLab(t)
	conns := l.acceptTCP(t)
	for _, network := range []string{"tcp", "udp"} {
		var first netip.AddrPort
		for i := range 4 {
			l.nic.index.mu.Lock()
			l.nic.index.next[0] = 1000
			l.nic.index.mu.Unlock()
			to := netip.AddrPortFrom(service4.Addr(), uint16(100+i))
			c := l.dial(t, network, to)
			local := netip.MustParseAddrPort(c.LocalAddr().String())
			if i == 0 {
				first = local
			}
			if local != first {
				t.Errorf("%s flow %d is from %v, want %v", network, i, local, first)
			}
			if network == "tcp" {
				s := <-conns
				if got := s.LocalAddr().String(); got != to.String() {
					t.Errorf("accepted one to %v, want %v", got, to)
				}
				s.Close()
			}
		}
	}
}

// Trap 4 applies to segments too: without DF they carry an IP id.
func TestPacketsMayBeFragmented(t *testing.T) {
	l := newLab(t)
	var bad atomic.Int64
	check := func(b []byte) int {
		if b[0]>>4 == 4 && binary.BigEndian.Uint16(b[6:])&0x4000 != 0 && len(b) > 80 {
			bad.Add(1)
		}
		return 1
	}
	l.edgeEnd.setFilter(check)
	l.connectorEnd.setFilter(check)
	a, b := l.pair(t, service4)
	exchange(t, a, b, 64<<10)
	if n := bad.Load(); n > 0 {
		t.Errorf("%d packets with data forbid fragments", n)
	}
}
