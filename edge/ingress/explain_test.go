package ingress_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/warrenmesh/warren/edge/ingress"
)

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// Each failure to bind is one sentence that names the address, the port and
// the app, and says what to do.
func TestBindErrors(t *testing.T) {
	cases := []struct {
		name  string
		errno syscall.Errno
		want  []string
	}{
		{"in use", syscall.EADDRINUSE, []string{"already in use by", "another port"}},
		{"not here", syscall.EADDRNOTAVAIL, []string{"this machine does not have the address", "set bind"}},
		{"no right", syscall.EACCES, []string{"permission denied", "1024", "CAP_NET_BIND_SERVICE"}},
		{"no descriptors", syscall.EMFILE, []string{"file descriptors", "LimitNOFILE"}},
		{"no such family", syscall.EAFNOSUPPORT, []string{"no IPv4"}},
		{"of another kind", syscall.EINVAL, []string{"invalid argument"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, echo)
			fail := &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", c.errno)}
			s.Sockets = sockets{listen: func(string, string) (net.Listener, error) { return nil, fail }}
			_, err := s.Prepare([]ingress.Spec{{App: "db", Network: "tcp", Addr: mustAddrPort("203.0.113.10:1")}})
			if !errors.Is(err, c.errno) {
				t.Fatalf("got %v, want one that wraps %v", err, c.errno)
			}
			for _, part := range append(c.want, `listening on "203.0.113.10:1" (tcp, app "db")`) {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than a sentence", err)
			}
		})
	}
}

func TestPortInUseNamesTheHolder(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	s := newServer(t, echo)
	_, err = s.Prepare([]ingress.Spec{
		{App: "a", Network: "tcp", Addr: mustAddrPort(ln.Addr().String())},
		{App: "b", Network: "udp", Addr: mustAddrPort(pc.LocalAddr().String())},
	})
	if err == nil {
		t.Fatal("no error")
	}
	if n := strings.Count(err.Error(), fmt.Sprintf("pid %d", os.Getpid())); n != 2 {
		t.Errorf("%q names the holder %d times, want twice", err, n)
	}
}

// A wildcard and an address cannot change places: the kernel has no room for
// both, and the message must not send the operator after a stranger.
func TestOwnListenerInTheWay(t *testing.T) {
	s := newServer(t, echo)
	at := freePort(t, "tcp")
	listen(t, s, ingress.Spec{App: "here", Network: "tcp", Addr: at})
	_, err := s.Prepare([]ingress.Spec{{App: "all", Network: "tcp", Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())}})
	if err == nil || !strings.Contains(err.Error(), `app "here" of this edge has`) {
		t.Errorf("got %v", err)
	}
}
