package bind

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// holder says in words which process holds the UDP port of at, going by the
// proc file system at proc. It asks for the network namespace of its thread,
// which need not be that of the process.
func holder(proc string, at netip.AddrPort) string {
	inodes := map[string]bool{}
	for _, table := range []string{"udp", "udp6"} {
		f, err := os.Open(filepath.Join(proc, "thread-self", "net", table))
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if local, inode, ok := socketLine(lines.Text()); ok && conflicts(local, at) {
				inodes["socket:["+inode+"]"] = true
			}
		}
		f.Close()
	}
	if len(inodes) == 0 {
		return "a process that this machine does not name"
	}
	links, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !inodes[target] {
			continue
		}
		dir := filepath.Dir(filepath.Dir(link))
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		return fmt.Sprintf("process %q (pid %s)", strings.TrimSpace(string(name)), filepath.Base(dir))
	}
	return "a process that only root may see, or the kernel"
}

// socketLine reads the local address and the inode of a line of
// /proc/net/udp or udp6 (proc_net_udp(5)).
func socketLine(line string) (local netip.AddrPort, inode string, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 10 {
		return netip.AddrPort{}, "", false
	}
	address, portHex, ok := strings.Cut(fields[1], ":")
	if !ok {
		return netip.AddrPort{}, "", false
	}
	raw, err := hex.DecodeString(address)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, "", false
	}
	// The kernel prints each word of 32 bits as it lies in memory.
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	port, err := strconv.ParseUint(portHex, 16, 16)
	if err != nil {
		return netip.AddrPort{}, "", false
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(port)), fields[9], true
}

// conflicts reports whether a socket at held keeps another from being opened
// at want.
func conflicts(held, want netip.AddrPort) bool {
	if held.Port() != want.Port() {
		return false
	}
	h, w := held.Addr(), want.Addr()
	switch {
	case h == netip.IPv6Unspecified(): // it may have taken IPv4 too
		return true
	case h.Is4() != w.Is4():
		return false
	}
	return h == w || h.IsUnspecified() || w.IsUnspecified()
}
