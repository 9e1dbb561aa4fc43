package netns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// Link is a cable between two hosts: a veth pair.
type Link struct {
	lab   *Lab
	a, b  *Host
	nameA string
	nameB string
}

// Link joins two hosts with a cable of MTU 1500, up at both ends. nameA and
// nameB are the interfaces' names (at most 15 bytes).
func (l *Lab) Link(a *Host, nameA string, b *Host, nameB string) *Link {
	l.tb.Helper()
	link, err := l.newLink(a, nameA, b, nameB, 1500)
	if err != nil {
		l.tb.Fatalf("joining hosts %q and %q: %v", a.name, b.name, err)
	}
	return link
}

func (l *Lab) newLink(a *Host, nameA string, b *Host, nameB string, mtu int) (*Link, error) {
	err := a.Do(func() error {
		// The far end is born in its own namespace: no name of ours is ever
		// seen anywhere else.
		path, ok := require.Find("ip")
		if !ok {
			return fmt.Errorf(`no program "ip" (Debian package iproute2)`)
		}
		cmd := exec.Command(path, "link", "add", nameA, "mtu", fmt.Sprint(mtu), "type", "veth",
			"peer", "name", nameB, "mtu", fmt.Sprint(mtu), "netns", "/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{b.ns}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
		}
		return ip("link set " + nameA + " up")
	})
	if err != nil {
		return nil, err
	}
	if err := b.Do(func() error { return ip("link set " + nameB + " up") }); err != nil {
		return nil, err
	}
	return &Link{lab: l, a: a, b: b, nameA: nameA, nameB: nameB}, nil
}

// Down pulls the plug at end b: both ends lose the carrier, and end a keeps
// its addresses and routes, as a host does whose cable is pulled.
func (l *Link) Down() {
	l.lab.tb.Helper()
	l.b.Sysctl("net/ipv6/conf/"+l.nameB+"/keep_addr_on_down", "1")
	l.b.IP("link set " + l.nameB + " down")
}

// Up puts the plug back.
func (l *Link) Up() {
	l.lab.tb.Helper()
	l.b.IP("link set " + l.nameB + " up")
}

// SetMTU sets the MTU of both ends.
func (l *Link) SetMTU(mtu int) {
	l.lab.tb.Helper()
	l.a.IP(fmt.Sprintf("link set %s mtu %d", l.nameA, mtu))
	l.b.IP(fmt.Sprintf("link set %s mtu %d", l.nameB, mtu))
}

// SetMTUAtB sets the MTU of end b alone, so that the host at end a does not
// know of it.
func (l *Link) SetMTUAtB(mtu int) {
	l.lab.tb.Helper()
	l.b.IP(fmt.Sprintf("link set %s mtu %d", l.nameB, mtu))
}

// Frames makes both ends send frames that the MTU allows, as on a wire. Without
// it what a kernel has yet to cut up (TCP's segments, runs of datagrams by
// UDP_SEGMENT) goes over the cable in one piece, and a filter on the way sees
// one packet of up to 64 KiB where a router would see many: call it where a
// rule looks at sizes or counts.
func (l *Link) Frames() {
	l.lab.tb.Helper()
	l.a.IP("link set " + l.nameA + " gso_max_segs 1")
	l.b.IP("link set " + l.nameB + " gso_max_segs 1")
}

// Filter installs an nftables ruleset on the host, in a table of the given
// name, in the place of an earlier one of that name. chains is the inside of
// "table inet NAME { … }"; empty removes the table.
func (h *Host) Filter(table, chains string) {
	h.lab.tb.Helper()
	nft := require.Tool(h.lab.tb, "nft", "nftables")
	rules := fmt.Sprintf("table inet %s\ndelete table inet %s\n", table, table)
	if chains != "" {
		rules += fmt.Sprintf("table inet %s {\n%s\n}\n", table, chains)
	}
	_, err := proc.Run(context.WithoutCancel(h.lab.tb.Context()), h,
		proc.Spec{Path: nft, Args: []string{"-f", "-"}, Stdin: rules})
	if err != nil {
		require.Missing(h.lab.tb, "nftables in a network namespace: %v", err)
	}
}

// Counter reads how many packets and bytes the counter of that name, in a
// table that Filter installed, has seen.
func (h *Host) Counter(table, name string) (packets, bytes uint64) {
	h.lab.tb.Helper()
	nft := require.Tool(h.lab.tb, "nft", "nftables")
	out := proc.Must(h.lab.tb, h, proc.Spec{Path: nft, Args: []string{"list", "counter", "inet", table, name}})
	_, after, found := strings.Cut(out, "packets ")
	if _, err := fmt.Sscanf(after, "%d bytes %d", &packets, &bytes); !found || err != nil {
		h.lab.tb.Fatalf("reading counter %q on host %q: %v in %q", name, h.name, err, out)
	}
	return packets, bytes
}
