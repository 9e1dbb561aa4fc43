package dnsd

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// socket is a line of /proc/net/udp and its like: a bound socket.
type socket struct {
	local netip.AddrPort
	inode string
	state string // hex; "0A" is a listening TCP socket
}

// unwrapErrno finds the system's own error in what the net package returned.
func unwrapErrno(err error) (syscall.Errno, bool) {
	var errno syscall.Errno
	ok := errors.As(err, &errno)
	return errno, ok
}

// inUseHint says who has the address, as far as proc (normally "/proc") tells,
// and what to do.
func inUseHint(proc, network string, addr netip.AddrPort) string {
	who := holders(proc, network, addr)
	if len(who) == 0 {
		return "another process has it, or an outgoing connection uses the port: stop that, or name another address in [dns] listen"
	}
	hint := strings.Join(who, ", ") + ": stop that, or name another address in [dns] listen"
	if addr.Addr().IsUnspecified() {
		hint = strings.Join(who, ", ") + ", which takes the port from the wildcard address: list the public addresses in [dns] listen"
	}
	return hint
}

// holders describes the sockets that keep network and addr from being bound,
// such as `systemd-resolve (pid 812) has 127.0.0.53:53`.
func holders(proc, network string, addr netip.AddrPort) []string {
	var found []string
	for _, file := range []string{network, network + "6"} {
		for _, s := range readSockets(filepath.Join(proc, "net", file)) {
			if network == "tcp" && s.state != "0A" || !collide(s.local, addr) {
				continue
			}
			line := fmt.Sprintf("%s has %s", process(proc, s.inode), s.local)
			if !slices.Contains(found, line) {
				found = append(found, line)
			}
		}
	}
	return found
}

// collide reports whether a socket on a keeps another from binding b. A
// wildcard of either family is taken to hold both: /proc does not tell
// whether an IPv6 socket takes IPv4 too.
func collide(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && (a.Addr().Unmap() == b.Addr().Unmap() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified())
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
		if pid == strconv.Itoa(os.Getpid()) {
			return "this process"
		}
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			return "process " + pid
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return "a process of another user"
}

func readSockets(path string) []socket {
	f, err := os.Open(path)
	if err != nil {
		return nil
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

// parseSocket reads a line of /proc/net/{udp,udp6,tcp,tcp6} (proc(5)):
// "sl local remote state queues timer retransmits uid timeout inode …".
func parseSocket(line string) (socket, bool) {
	f := strings.Fields(line)
	if len(f) < 10 {
		return socket{}, false
	}
	host, port, ok := strings.Cut(f[1], ":")
	if !ok {
		return socket{}, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return socket{}, false
	}
	// Each 32-bit word is in the machine's order, little-endian here.
	for i := 0; i < len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	addr, _ := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return socket{}, false
	}
	return socket{netip.AddrPortFrom(addr, uint16(n)), f[9], f[3]}, true
}
