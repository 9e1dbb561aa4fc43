package netstack

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/warrenmesh/warren/netstack/netx"
)

// patient bounds how long a test waits for what c is to hear.
func patient(c *UDPConn) *UDPConn {
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	return c
}

// What the edge closes, the connector learns at once, after the datagrams that
// came before; the next flow is a new one.
func TestUDPCloseEndsThePeersSide(t *testing.T) {
	for _, to := range []netip.AddrPort{service4, service6} {
		t.Run(to.String(), func(t *testing.T) {
			l := newLab(t)
			conns := l.acceptUDP(t)
			buf := make([]byte, 16)
			for range 2 {
				a := l.dial(t, "udp", to)
				a.Write([]byte("first"))
				a.Write([]byte("last"))
				b := patient(<-conns)
				a.Close()
				for _, want := range []string{"first", "last"} {
					if n, err := b.Read(buf); string(buf[:n]) != want || err != nil {
						t.Fatalf("read %q, %v, want %q", buf[:n], err, want)
					}
				}
				if err := b.WaitReadable(); err != nil {
					t.Fatal(err)
				}
				if _, err := b.Read(buf); !errors.Is(err, netx.ErrRefused) {
					t.Errorf("read %v, want refused", err)
				}
				b.Close()
			}
			if a, b := l.nic.Flows(), l.cnic.Flows(); a != 0 || b != 0 {
				t.Errorf("%d and %d flows are left", a, b)
			}
		})
	}
}

// A flow that sent nothing has no peer to tell, and one that was accepted
// tells nobody: the edge's session goes on, its next datagram is a new flow.
func TestUDPCloseInSilence(t *testing.T) {
	l := newLab(t)
	conns := l.acceptUDP(t)
	unused := l.dial(t, "udp", service4)
	sent, answers := &capture{}, &capture{}
	l.edgeEnd.setFilter(sent.filter)
	l.connectorEnd.setFilter(answers.filter)
	unused.Close()
	if n := len(sent.pkts); n != 0 {
		t.Errorf("%d packets for a flow that sent nothing", n)
	}
	a := l.dial(t, "udp", service4)
	for range 2 {
		a.Write([]byte("hello"))
		(<-conns).Close()
	}
	if n := len(answers.pkts); n != 0 {
		t.Errorf("%d packets from the end of accepted flows", n)
	}
	// The edge's farewell comes to a flow that is over already.
	a.Close()
	l.nic.drain(l.ctx)
	if n := l.connector.drops.Count(whyICMPUnknown); n != 0 || len(sent.pkts) != 3 {
		t.Errorf("%d packets were sent, and %d of them counted as dropped", len(sent.pkts), n)
	}
}

// The edge may be quicker than the handler: the flow is over once accepted.
func TestUDPCloseBeforeAccept(t *testing.T) {
	l := newLab(t)
	asked, release, conns := make(chan struct{}), make(chan struct{}), make(chan *UDPConn, 1)
	l.connector.ForwardUDP(ForwardUDPConfig{Handler: func(r *UDPRequest) {
		close(asked)
		<-release
		c, err := r.Accept()
		if err != nil {
			t.Error(err)
		}
		conns <- c
	}})
	a := l.dial(t, "udp", service4)
	a.Write([]byte("first"))
	<-asked
	a.Close()
	l.nic.drain(l.ctx)
	close(release)
	b := patient(<-conns)
	buf := make([]byte, 16)
	if n, err := b.Read(buf); string(buf[:n]) != "first" || err != nil {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	if _, err := b.Read(buf); !errors.Is(err, netx.ErrRefused) {
		t.Errorf("read %v, want refused", err)
	}
}

// Flows that are ended with their route, or with the NIC, are told too.
func TestUDPAbortEndsThePeersSide(t *testing.T) {
	for name, abort := range map[string]func(*NIC){
		"flows": func(n *NIC) { n.AbortFlows(nil) },
		"NIC":   func(n *NIC) { n.Remove() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			conns := l.acceptUDP(t)
			l.dial(t, "udp", service4).Write([]byte("x"))
			b := patient(<-conns)
			abort(l.nic)
			buf := make([]byte, 4)
			if n, err := b.Read(buf); n != 1 || err != nil {
				t.Fatalf("read %q, %v", buf[:n], err)
			}
			if _, err := b.Read(buf); !errors.Is(err, netx.ErrRefused) {
				t.Errorf("read %v, want refused", err)
			}
			b.Close()
		})
	}
}
