package netstack

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warrenmesh/warren/netstack/netx"
)

// Trap 16: what a rejected SYN is answered with, byte by byte.
func TestRejectPackets(t *testing.T) {
	for _, tt := range []struct {
		name      string
		to        netip.AddrPort
		cause     error
		typ, code byte
	}{
		{"v4 unreachable", service4, netx.ErrUnreachable, 3, 1},
		{"v4 timed out", service4, netx.ErrTimedOut, 3, 0},
		{"v6 unreachable", service6, netx.ErrUnreachable, 1, 3},
		{"v6 timed out", service6, netx.ErrTimedOut, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			syn, answer := &capture{}, &capture{}
			l.edgeEnd.setFilter(syn.filter)
			l.connectorEnd.setFilter(answer.filter)
			l.connector.ForwardTCP(ForwardTCPConfig{Handler: func(r *TCPRequest) { r.Reject(tt.cause) }})
			if _, err := l.nic.DialContext(l.ctx, "tcp", tt.to); !errors.Is(err, tt.cause) {
				t.Fatalf("the dial ended with %v", err)
			}
			checkUnreachable(t, answer.last(), syn.pkts[0], tt.typ, tt.code)
		})
	}
}

// checkUnreachable checks an ICMP error with gVisor's own validation.
func checkUnreachable(t *testing.T, got, quoted []byte, typ, code byte) {
	t.Helper()
	n := quoteLen(quoted)
	var msg []byte
	if got[0]>>4 == 4 {
		ip := header.IPv4(got)
		if !ip.IsValid(len(got)) || !ip.IsChecksumValid() {
			t.Errorf("the IP header %x is not valid", got[:20])
		}
		msg = ip.Payload()
		if checksum.Checksum(msg, 0) != 0xffff {
			t.Errorf("the ICMP checksum is wrong")
		}
		if ip.SourceAddress() != header.IPv4(quoted).DestinationAddress() || ip.DestinationAddress() != header.IPv4(quoted).SourceAddress() {
			t.Errorf("it goes from %v to %v", ip.SourceAddress(), ip.DestinationAddress())
		}
	} else {
		ip := header.IPv6(got)
		if !ip.IsValid(len(got)) {
			t.Errorf("the IP header %x is not valid", got[:40])
		}
		msg = ip.Payload()
		icmp := header.ICMPv6(msg)
		want := header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
			Header: icmp, Src: ip.SourceAddress(), Dst: ip.DestinationAddress(),
		})
		if icmp.Checksum() != want {
			t.Errorf("the ICMP checksum is %x, want %x", icmp.Checksum(), want)
		}
		if ip.SourceAddress() != header.IPv6(quoted).DestinationAddress() || ip.DestinationAddress() != header.IPv6(quoted).SourceAddress() {
			t.Errorf("it goes from %v to %v", ip.SourceAddress(), ip.DestinationAddress())
		}
	}
	if msg[0] != typ || msg[1] != code {
		t.Errorf("type %d code %d, want %d and %d", msg[0], msg[1], typ, code)
	}
	if string(msg[8:]) != string(quoted[:n]) {
		t.Errorf("it quotes %x, want %x", msg[8:], quoted[:n])
	}
}

// Trap 10: one blackholed destination must not starve the others.
func TestPendingIsBoundedByDestination(t *testing.T) {
	const pending = 8
	l := newLab(t)
	release := make(chan struct{})
	black := netip.MustParseAddrPort("10.0.0.66:80")
	var waiting, handled sync.WaitGroup
	waiting.Add(pending)
	handled.Add(pending + 1)
	var began atomic.Int64
	err := l.connector.ForwardTCP(ForwardTCPConfig{Pending: pending, Handler: func(r *TCPRequest) {
		if r.Destination() == black {
			if began.Add(1) <= pending {
				waiting.Done()
			}
			<-release
			r.Reject(netx.ErrTimedOut)
			handled.Done()
			return
		}
		if c, err := r.Accept(); err == nil {
			defer c.Close()
			c.Read(make([]byte, 1))
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	var dials sync.WaitGroup
	for range pending {
		dials.Go(func() {
			if _, err := l.nic.DialContext(l.ctx, "tcp", black); !errors.Is(err, netx.ErrTimedOut) {
				t.Errorf("a dial that was waiting ended with %v", err)
			}
		})
	}
	waiting.Wait()
	dials.Go(func() { // one too many waits, as before a full backlog, until its SYN comes again
		if _, err := l.nic.DialContext(l.ctx, "tcp", black); !errors.Is(err, netx.ErrTimedOut) {
			t.Errorf("one too many ended with %v", err)
		}
	})
	for l.connector.drops.Count(whyPending) == 0 && l.ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if n := began.Load(); n != pending {
		t.Errorf("%d requests wait, want %d", n, pending)
	}
	l.dial(t, "tcp", service4) // another destination is served meanwhile
	close(release)
	dials.Wait()
	handled.Wait()
	for left := 1; left > 0 && l.ctx.Err() == nil; time.Sleep(time.Millisecond) {
		l.connector.tcp.mu.Lock()
		left = len(l.connector.tcp.pending) + len(l.connector.tcp.perDest)
		l.connector.tcp.mu.Unlock()
	}
	if l.ctx.Err() != nil {
		t.Error("requests are left")
	}
}

// A SYN that is sent again while the first waits starts no second request.
func TestDuplicateSYN(t *testing.T) {
	l := newLab(t)
	l.edgeEnd.setFilter(func(b []byte) int {
		if header.TCP(b[20:]).Flags() == header.TCPFlagSyn {
			return 3
		}
		return 1
	})
	var requests atomic.Int64
	l.connector.ForwardTCP(ForwardTCPConfig{Handler: func(r *TCPRequest) {
		requests.Add(1)
		l.drain() // the copies arrive before the answer
		c, err := r.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := r.Accept(); err == nil {
			t.Error("a second Accept worked")
		}
		r.Reject(netx.ErrRefused) // too late: must do nothing
		defer c.Close()
		c.Write([]byte("x"))
	}})
	c := l.dial(t, "tcp", service4)
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// The SYN is answered only upon Accept: a dial that has ended meanwhile makes
// Accept fail, so that the caller closes its origin.
func TestAcceptAfterDialEnded(t *testing.T) {
	l := newLab(t)
	arrived, gone := make(chan struct{}), make(chan struct{})
	accepted := make(chan error, 1)
	l.connector.ForwardTCP(ForwardTCPConfig{Handler: func(r *TCPRequest) {
		close(arrived)
		<-gone
		_, err := r.Accept()
		accepted <- err
	}})
	ctx, cancel := contextUntil(l.ctx, arrived)
	defer cancel()
	if _, err := l.nic.DialContext(ctx, "tcp", service4); err == nil {
		t.Fatal("the SYN was answered before Accept")
	}
	close(gone)
	if err := <-accepted; err == nil {
		t.Error("Accept worked for a dial that had ended")
	}
	if n := l.cnic.Flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

// Removing the NIC ends what waits for an answer, also inside Accept.
func TestRemoveEndsRequests(t *testing.T) {
	l := newLab(t)
	l.connectorEnd.setFilter(func([]byte) int { return 0 }) // the SYN-ACK is lost
	waiting := make(chan struct{}, 2)
	ended := make(chan error, 2)
	l.connector.ForwardTCP(ForwardTCPConfig{Handler: func(r *TCPRequest) {
		waiting <- struct{}{}
		if r.Destination().Port() == 1 {
			<-r.Context().Done()
			ended <- r.Context().Err()
			return
		}
		_, err := r.Accept()
		ended <- err
	}})
	for _, port := range []uint16{1, 2} {
		go l.nic.DialContext(l.ctx, "tcp", netip.AddrPortFrom(service4.Addr(), port))
	}
	<-waiting
	<-waiting
	l.cnic.Remove()
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("a request succeeded after Remove")
		}
	}
	l.nic.Remove()
}

func TestForwardNeedsPromiscuous(t *testing.T) {
	s := newStack(t, Config{})
	if err := s.ForwardTCP(ForwardTCPConfig{Handler: func(*TCPRequest) {}}); err == nil {
		t.Error("ForwardTCP on an edge's stack worked")
	}
	if err := s.ForwardUDP(ForwardUDPConfig{Handler: func(*UDPRequest) {}}); err == nil {
		t.Error("ForwardUDP on an edge's stack worked")
	}
	p := newStack(t, Config{Promiscuous: true})
	if err := p.ForwardTCP(ForwardTCPConfig{}); err == nil {
		t.Error("ForwardTCP without a handler worked")
	}
	if err := p.ForwardUDP(ForwardUDPConfig{}); err == nil {
		t.Error("ForwardUDP without a handler worked")
	}
}

// Until there is a handler, what arrives is answered, not swallowed.
func TestWithoutHandlerUnreachable(t *testing.T) {
	l := newLab(t)
	for _, to := range []netip.AddrPort{service4, service6} {
		if _, err := l.nic.DialContext(l.ctx, "tcp", to); !errors.Is(err, netx.ErrUnreachable) {
			t.Errorf("dialling %v ended with %v", to, err)
		}
	}
}
