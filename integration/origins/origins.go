// Package origins starts real servers for integration tests: nginx,
// PostgreSQL, OpenSSH, NSD and iperf3, each from Debian's package, with its
// files in a directory of its own, as an ordinary person, on a host in a
// namespace or on the loopback.
//
// A function here returns once a real exchange with the server has succeeded,
// and the server ends with the test. A server that the machine lacks skips the
// test and says which package has it.
//
// The package must never use or change the machine's own servers: their
// configuration, their data and their ports.
package origins

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// startLimit is how long a server may take until it answers. It is generous:
// two busy cores run initdb in two seconds, a loaded build machine in twenty.
const startLimit = 60 * time.Second

// Host is where a server runs and where its readiness is asked for. A
// *netns.Host is one, and so is Loopback.
type Host interface {
	proc.Place
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// Loopback is this machine, or the namespace that the test binary is in.
type Loopback struct {
	proc.Here
	net.Dialer
}

// Dial dials as net.Dialer does.
func (l Loopback) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return l.Dialer.DialContext(ctx, network, address)
}

// FreePort is a TCP address of the loopback that nobody listens on now. A
// server that takes no port 0 is given one; another program could take it
// first, so hosts in a namespace are to be preferred.
func FreePort(tb require.TB) netip.AddrPort {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("looking for a free port: %v", err)
		return netip.AddrPort{}
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// write writes a file of a server's directory.
func write(tb require.TB, mode os.FileMode, text string, path ...string) string {
	tb.Helper()
	name := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		tb.Fatalf("%v", err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		tb.Fatalf("%v", err)
	}
	return name
}

// await polls until exchange succeeds, and fails the test when the server ends
// or startLimit passes first.
func await(tb require.TB, server *proc.Process, what string, exchange func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), startLimit)
	defer cancel()
	err := proc.Poll(ctx, func() error {
		select {
		case <-server.Done():
			return proc.Fatal(fmt.Errorf("it ended with exit code %d", server.ExitCode()))
		default:
		}
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return exchange(attempt)
	})
	if err != nil {
		tb.Fatalf("waiting for %s: %v", what, err)
	}
}

// connects is an exchange that is no more than a connection.
func connects(host Host, addr netip.AddrPort) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := host.Dial(ctx, "tcp", addr.String())
		if err != nil {
			return err
		}
		return conn.Close()
	}
}
