package host

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Holder says in words which process keeps the TCP listener (network "tcp") or
// the UDP socket ("udp") at addr from being opened, as far as this machine
// tells: "nginx (pid 123)". Several are parted by commas. It reads /proc, and
// sees into other users' processes only as root.
func Holder(network string, addr netip.AddrPort) string { return holder("/proc", network, addr) }

func holder(proc, network string, addr netip.AddrPort) string {
	var names []string
	seen := make(map[string]bool)
	for _, h := range holders(proc, network, addr) {
		if seen[h.process] { // once, though it may hold both families
			continue
		}
		seen[h.process] = true
		name := h.process
		if h.at != addr {
			name += " on " + h.at.String()
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return "another process, or an outgoing connection"
	}
	return strings.Join(names, ", ")
}

// held is a socket that stands in the way of another.
type held struct {
	process string         // "nginx (pid 123)"
	at      netip.AddrPort // what it is bound to
}

// holders returns the sockets that keep addr from being bound.
func holders(proc, network string, addr netip.AddrPort) []held {
	var found []held
	for _, table := range []string{network, network + "6"} {
		// Of the thread, whose network namespace need not be the process's.
		for _, s := range readSockets(filepath.Join(proc, "thread-self", "net", table)) {
			if network == "tcp" && s.state != listening || !conflicts(s.local, addr) {
				continue
			}
			h := held{process: process(proc, s.inode), at: s.local}
			if !slices.Contains(found, h) {
				found = append(found, h)
			}
		}
	}
	return found
}

// listening is TCP_LISTEN in the tables. A UDP socket holds its port in any
// state.
const listening = "0A"

// conflicts reports whether a socket at held keeps another from being opened
// at want.
func conflicts(held, want netip.AddrPort) bool {
	if held.Port() != want.Port() {
		return false
	}
	h, w := held.Addr(), want.Addr().Unmap()
	switch {
	case h == netip.IPv6Unspecified(): // it may have taken IPv4 too
		return true
	case h.Is4() != w.Is4():
		return false
	}
	return h == w || h.IsUnspecified() || w.IsUnspecified()
}

// process names the owner of a socket.
func process(proc, inode string) string {
	want := "socket:[" + inode + "]"
	fds, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || link != want {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		pid := filepath.Base(dir)
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		switch {
		case pid == strconv.Itoa(os.Getpid()):
			return fmt.Sprintf("this process (pid %s)", pid)
		case err != nil:
			return "process " + pid
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return "a process that only root may see"
}

// socket is a line of /proc/net/udp and its like: a bound socket.
type socket struct {
	local netip.AddrPort
	inode string
	state string // hexadecimal
}

func readSockets(path string) []socket {
	f, err := os.Open(path)
	if err != nil {
		return nil // no IPv6 here
	}
	defer f.Close()
	var list []socket
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if s, ok := parseSocket(lines.Text()); ok {
			list = append(list, s)
		}
	}
	return list
}

// parseSocket reads a line of /proc/net/{udp,udp6,tcp,tcp6} (proc_pid_net(5)):
// "sl local remote state queues timer retransmits uid timeout inode …".
func parseSocket(line string) (socket, bool) {
	f := strings.Fields(line)
	if len(f) < 10 {
		return socket{}, false
	}
	word, port, ok := strings.Cut(f[1], ":")
	if !ok {
		return socket{}, false
	}
	raw, err := hex.DecodeString(word)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return socket{}, false
	}
	// The kernel prints each word of 32 bits as it lies in memory.
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return socket{}, false
	}
	return socket{netip.AddrPortFrom(addr.Unmap(), uint16(n)), f[9], f[3]}, true
}
