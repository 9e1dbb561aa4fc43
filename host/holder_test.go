package host

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// fakeProc writes a /proc with listeners, connections and their owners.
func fakeProc(t *testing.T) string {
	t.Helper()
	proc := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(proc, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	header := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"
	line := func(local, state string, inode int) string {
		return fmt.Sprintf("   0: %s 00000000:0000 %s 00000000:00000000 00:00000000 00000000   101        0 %d 2 0000000000000000 0\n", local, state, inode)
	}
	write("thread-self/net/udp", header+line("3500007F:0035", "07", 16)+line("0100007F:A000", "07", 99))
	write("thread-self/net/tcp", header+line("0A7100CB:1538", "01", 11)+line("0A7100CB:1538", "0A", 12)+line("00000000:0050", "0A", 13))
	write("thread-self/net/tcp6", header+line("00000000000000000000000000000000:01BB", "0A", 14)+
		line("B80D0120000000000000000001000000:0019", "0A", 15))
	write("400/comm", "nginx\n")
	write("401/comm", "systemd-resolve\n")
	for pid, inodes := range map[string][]int{"400": {12, 13, 14, 15}, "401": {16}} {
		for i, inode := range inodes {
			path := filepath.Join(proc, pid, "fd", fmt.Sprint(i+3))
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(fmt.Sprintf("socket:[%d]", inode), path); err != nil {
				t.Fatal(err)
			}
		}
	}
	return proc
}

func TestHolderInTables(t *testing.T) {
	proc := fakeProc(t)
	const nobody = "another process, or an outgoing connection"
	for _, c := range []struct{ name, network, addr, want string }{
		{"the same address", "tcp", "203.0.113.10:5432", "nginx (pid 400)"},
		{"mapped", "tcp", "[::ffff:203.0.113.10]:5432", "nginx (pid 400) on 203.0.113.10:5432"},
		{"another address", "tcp", "203.0.113.11:5432", nobody},
		{"another port", "tcp", "203.0.113.10:5433", nobody},
		{"another protocol", "udp", "203.0.113.10:5432", nobody},
		{"held by a wildcard", "tcp", "203.0.113.10:80", "nginx (pid 400) on 0.0.0.0:80"},
		{"held by a wildcard of IPv6", "tcp", "203.0.113.10:443", "nginx (pid 400) on [::]:443"},
		{"IPv6", "tcp", "[2001:db8::1]:25", "nginx (pid 400)"},
		{"the wildcard over a stub resolver", "udp", "0.0.0.0:53", "systemd-resolve (pid 401) on 127.0.0.53:53"},
		{"a process that cannot be seen", "udp", "127.0.0.1:40960", "a process that only root may see"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := holder(proc, c.network, netip.MustParseAddrPort(c.addr)); got != c.want {
				t.Errorf("holder = %q, want %q", got, c.want)
			}
		})
	}
}

// FuzzParseSocket: the kernel's lines are trusted to be its own, but a line of
// another kernel must not panic, and what parses has an address and an inode.
func FuzzParseSocket(f *testing.F) {
	f.Add("   0: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 1001 2 0 0")
	f.Add("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode")
	f.Add("0: :  a b c d e f 1 2")
	f.Fuzz(func(t *testing.T, line string) {
		if s, ok := parseSocket(line); ok && (!s.local.IsValid() || s.inode == "") {
			t.Errorf("%q = %+v", line, s)
		}
	})
}
