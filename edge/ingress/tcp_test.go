package ingress_test

import (
	"context"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/warrenmesh/warren/edge/ingress"
)

// sockets is a Sockets made of function fields.
type sockets struct {
	listen       func(network, address string) (net.Listener, error)
	listenPacket func(network, address string) (net.PacketConn, error)
}

func (f sockets) Listen(_ context.Context, network, address string) (net.Listener, error) {
	return f.listen(network, address)
}

func (f sockets) ListenPacket(_ context.Context, network, address string) (net.PacketConn, error) {
	return f.listenPacket(network, address)
}

// moody is a listener whose Accept returns what it is told, in turn, and then
// waits for Close.
type moody struct {
	answers chan any // error or net.Conn
	closed  chan struct{}
}

func (m *moody) Accept() (net.Conn, error) {
	select {
	case a := <-m.answers:
		if err, ok := a.(error); ok {
			return nil, err
		}
		return a.(net.Conn), nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *moody) Close() error   { close(m.closed); return nil }
func (m *moody) Addr() net.Addr { return net.TCPAddrFromAddrPort(loopback) }

// Out of descriptors is no end: the loop counts, waits and goes on.
func TestAcceptSurvivesFailures(t *testing.T) {
	failure := func(errno syscall.Errno) error {
		return &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", errno)}
	}
	synctest.Test(t, func(t *testing.T) {
		m := &moody{answers: make(chan any, 100), closed: make(chan struct{})}
		for range 20 { // far more than the back-off's steps
			m.answers <- failure(syscall.EMFILE)
		}
		m.answers <- failure(syscall.ENFILE)
		m.answers <- failure(syscall.ENOBUFS)
		m.answers <- failure(syscall.ECONNABORTED)
		m.answers <- failure(syscall.EPROTO)
		near, far := net.Pipe()
		m.answers <- near

		served := make(chan struct{})
		s := newServer(t, func(context.Context, ingress.Accepted) { close(served) })
		s.Sockets = sockets{listen: func(string, string) (net.Listener, error) { return m, nil }}
		listen(t, s, ingress.Spec{App: "db", Network: "tcp", Addr: loopback})
		<-served
		far.Close()
		got := drops(s)
		if got["ingress/accept_no_descriptor"] != 21 || got["ingress/accept_no_memory"] != 1 || got["ingress/accept_failed"] != 2 {
			t.Errorf("drops %v", got)
		}

		// The end does not wait for a back-off.
		m.answers <- failure(syscall.EMFILE)
		synctest.Wait()
		s.StopAccepting()
	})
}

func TestSocketsAreOfOneFamily(t *testing.T) {
	cases := []struct{ network, addr, want string }{
		{"tcp", "203.0.113.10:80", "tcp4 203.0.113.10:80"},
		{"tcp", "[2001:db8::1]:80", "tcp6 [2001:db8::1]:80"},
		{"udp", "0.0.0.0:53", "udp4 0.0.0.0:53"},
		{"udp", "[::]:53", "udp6 [::]:53"},
		{"tcp", "[::ffff:203.0.113.10]:80", "tcp4 203.0.113.10:80"},
	}
	for _, c := range cases {
		t.Run(c.want, func(t *testing.T) {
			var got string
			s := newServer(t, echo)
			s.Sockets = sockets{
				listen:       func(n, a string) (net.Listener, error) { got = n + " " + a; return nil, syscall.EINVAL },
				listenPacket: func(n, a string) (net.PacketConn, error) { got = n + " " + a; return nil, syscall.EINVAL },
			}
			if _, err := s.Prepare([]ingress.Spec{{App: "x", Network: c.network, Addr: mustAddrPort(c.addr)}}); err == nil {
				t.Fatal("no error")
			}
			if got != c.want {
				t.Errorf("opened %q, want %q", got, c.want)
			}
		})
	}
}
