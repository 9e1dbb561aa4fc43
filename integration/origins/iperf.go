package origins

import (
	"fmt"
	"net/netip"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// Iperf3 starts an iperf3 server and returns once it accepts.
func Iperf3(tb require.TB, host Host, addr netip.AddrPort) *proc.Process {
	tb.Helper()
	path := require.Tool(tb, "iperf3", "iperf3")
	attr, _, _ := netns.Ordinary()
	server := proc.Start(tb, host, proc.Spec{Path: path, Attr: attr, Dir: "/",
		Args: []string{"-s", "-B", addr.Addr().String(), "-p", fmt.Sprint(addr.Port()), "--forceflush"}})
	await(tb, server, "iperf3", connects(host, addr))
	return server
}
