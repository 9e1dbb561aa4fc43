package host

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Holder says which process has the TCP listener (network "tcp") or the UDP
// socket ("udp") at addr, as far as this machine tells: "nginx (pid 123)".
// It reads /proc, and sees into other users' processes only as root.
func Holder(network string, addr netip.AddrPort) string {
	pid, name, ok := findHolder("/proc", network, addr)
	switch {
	case !ok:
		return "another process (run as root to see which)"
	case pid == os.Getpid():
		return fmt.Sprintf("this process (%s, pid %d)", name, pid)
	}
	return fmt.Sprintf("%s (pid %d)", name, pid)
}

// findHolder finds the process whose socket occupies addr, in the proc file
// system at root (proc_net(5), proc_pid_fd(5)).
func findHolder(root, network string, addr netip.AddrPort) (pid int, name string, ok bool) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	for _, table := range []string{network, network + "6"} {
		f, err := os.Open(filepath.Join(root, "net", table))
		if err != nil {
			continue // no IPv6 here
		}
		inode := findSocket(f, network, addr)
		_ = f.Close()
		if inode == "" {
			continue
		}
		if pid, name, ok = findProcess(root, inode); ok {
			return pid, name, true
		}
	}
	return 0, "", false
}

// findSocket returns the inode of the socket in a table of /proc/net that
// keeps others from binding addr, "" where there is none.
func findSocket(table io.Reader, network string, addr netip.AddrPort) string {
	const listening = "0A" // TCP_LISTEN; a UDP socket holds its port in any state
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode
		field := strings.Fields(lines.Text())
		if len(field) < 10 || network == "tcp" && field[3] != listening {
			continue
		}
		local, ok := parseSocketAddress(field[1])
		if !ok || local.Port() != addr.Port() {
			continue
		}
		a, b := local.Addr(), addr.Addr()
		// A wildcard of IPv6 may hold the port for IPv4 too.
		if a == b || a.IsUnspecified() && (a.Is6() || b.Is4()) || b.IsUnspecified() && a.Is4() == b.Is4() {
			return field[9]
		}
	}
	return ""
}

// parseSocketAddress reads "0100007F:1538": the address in words of the
// machine's byte order, the port as a number.
func parseSocketAddress(s string) (netip.AddrPort, bool) {
	word, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	raw, err := hex.DecodeString(word)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		slices.Reverse(raw[i : i+4]) // little-endian machines
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), true
}

// findProcess returns the process that has the socket with this inode open.
func findProcess(root, inode string) (pid int, name string, ok bool) {
	want := "socket:[" + inode + "]"
	processes, err := os.ReadDir(root)
	if err != nil {
		return 0, "", false
	}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(root, p.Name(), "fd")
		open, err := os.ReadDir(dir)
		if err != nil {
			continue // another user's, or gone
		}
		for _, fd := range open {
			if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && target == want {
				return pid, processName(root, p.Name()), true
			}
		}
	}
	return 0, "", false
}

func processName(root, pid string) string {
	comm, err := os.ReadFile(filepath.Join(root, pid, "comm"))
	if err != nil {
		return "a process"
	}
	return strings.TrimSpace(string(comm))
}
