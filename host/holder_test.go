package host

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const procHeader = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

// line is a row of /proc/net/tcp or udp.
func line(local, state, inode string) string {
	return fmt.Sprintf("   0: %s 00000000:0000 %s 00000000:00000000 00:00000000 00000000   101        0 %s 1 0 100 0\n", local, state, inode)
}

func TestFindHolder(t *testing.T) {
	root := t.TempDir()
	tables := map[string]string{
		"net/tcp": procHeader +
			line("0A7100CB:1538", "01", "11") + // a connection, no listener
			line("0A7100CB:1538", "0A", "12") +
			line("00000000:0050", "0A", "13"),
		"net/tcp6": procHeader + line("00000000000000000000000000000000:01BB", "0A", "14") +
			line("B80D0120000000000000000001000000:0019", "0A", "15"),
		"net/udp":     procHeader + line("3500007F:0035", "07", "16"),
		"400/comm":    "nginx\n",
		"401/comm":    "systemd-resolve\n",
		"not-a-pid/x": "",
	}
	for name, text := range tables {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for pid, inodes := range map[string][]string{"400": {"12", "13", "14", "15"}, "401": {"16"}} {
		dir := filepath.Join(root, pid, "fd")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for i, inode := range inodes {
			if err := os.Symlink("socket:["+inode+"]", filepath.Join(dir, fmt.Sprint(i+3))); err != nil {
				t.Fatal(err)
			}
		}
	}
	cases := []struct {
		name, network, addr string
		pid                 int
		holder              string
	}{
		{"the same address", "tcp", "203.0.113.10:5432", 400, "nginx"},
		{"mapped", "tcp", "[::ffff:203.0.113.10]:5432", 400, "nginx"},
		{"another address", "tcp", "203.0.113.11:5432", 0, ""},
		{"another port", "tcp", "203.0.113.10:5433", 0, ""},
		{"another protocol", "udp", "203.0.113.10:5432", 0, ""},
		{"held by a wildcard", "tcp", "203.0.113.10:80", 400, "nginx"},
		{"held by a wildcard of IPv6", "tcp", "203.0.113.10:443", 400, "nginx"},
		{"IPv6", "tcp", "[2001:db8::1]:25", 400, "nginx"},
		{"a wildcard against an address", "tcp", "0.0.0.0:5432", 400, "nginx"},
		{"a UDP socket", "udp", "127.0.0.53:53", 401, "systemd-resolve"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			pid, name, ok := findHolder(root, c.network, netip.MustParseAddrPort(c.addr))
			if pid != c.pid || name != c.holder || ok != (c.pid != 0) {
				t.Errorf("found %q (pid %d), %v; want %q (pid %d)", name, pid, ok, c.holder, c.pid)
			}
		})
	}
}

func FuzzFindSocket(f *testing.F) {
	f.Add(procHeader + line("0100007F:1538", "0A", "12"))
	f.Add(line("00000000000000000000000001000000:01BB", "0A", "14"))
	f.Add("0: 1 2 0A 4 5 6 7 8 9")
	f.Add(":::::::::: : : : : : : : : :")
	f.Fuzz(func(t *testing.T, table string) {
		for _, network := range []string{"tcp", "udp"} {
			inode := findSocket(strings.NewReader(table), network, netip.MustParseAddrPort("127.0.0.1:5432"))
			if inode != "" && !strings.Contains(table, inode) {
				t.Errorf("found an inode %q that is not there", inode)
			}
		}
	})
}
