package origins

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// NSD starts the authoritative name server on addr, UDP and TCP, with one zone
// given in master file format, and returns once it has answered over UDP.
func NSD(tb require.TB, host Host, addr netip.AddrPort, zone, records string) *proc.Process {
	tb.Helper()
	path := require.Tool(tb, "nsd", "nsd")
	dir := netns.Directory(tb, "nsd")
	write(tb, 0o644, records, dir, "zone")
	conf := write(tb, 0o644, fmt.Sprintf(`
server:
	ip-address: %[2]s@%[3]d
	server-count: 1
	username: ""
	chroot: ""
	zonesdir: "%[1]s"
	pidfile: ""
	xfrdfile: "%[1]s/xfrd.state"
	zonelistfile: "%[1]s/zone.list"
	xfrdir: "%[1]s"
	database: ""
	verbosity: 1
remote-control:
	control-enable: no
zone:
	name: "%[4]s"
	zonefile: "zone"
`, dir, addr.Addr(), addr.Port(), zone), dir, "nsd.conf")
	netns.Give(tb, dir)
	attr, _, _ := netns.Ordinary()
	server := proc.Start(tb, host, proc.Spec{Path: path, Args: []string{"-d", "-c", conf}, Attr: attr})
	await(tb, server, "nsd", func(ctx context.Context) error {
		conn, err := host.Dial(ctx, "udp", addr.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		conn.SetDeadline(deadline)
		// RFC 1035 section 4.1: id 1, one question, the root's SOA, class IN.
		if _, err := conn.Write([]byte{0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1}); err != nil {
			return err
		}
		answer := make([]byte, 512)
		n, err := conn.Read(answer)
		if err == nil && (n < 12 || answer[1] != 1) {
			err = errors.New("the answer is none")
		}
		return err
	})
	return server
}

// ExampleZone is a small zone example.test in master file format, whose name
// www has the given IPv4 address.
func ExampleZone(www string) string {
	return `$ORIGIN example.test.
$TTL 60
@	SOA	ns hostmaster 1 3600 600 86400 60
	NS	ns
ns	A	10.0.0.10
www	A	` + www + `
big	TXT	"` + strings.Repeat("x", 250) + `" "` + strings.Repeat("y", 250) + `" "` + strings.Repeat("z", 250) + `"
`
}
