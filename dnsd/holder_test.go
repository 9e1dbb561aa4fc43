package dnsd

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// fakeProc writes a /proc with a stub resolver on 127.0.0.53, a name server
// on [::]:53 and a client's socket.
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
	line := "  %d: %s %s %s 00000000:00000000 00:00000000 00000000   101        0 %d 2 0000000000000000 0\n"
	write("net/udp", header+fmt.Sprintf(line, 0, "3500007F:0035", "00000000:0000", "07", 1001)+
		fmt.Sprintf(line, 1, "0100007F:A000", "00000000:0000", "07", 1002))
	write("net/tcp", header+fmt.Sprintf(line, 0, "3500007F:0035", "00000000:0000", "0A", 1003)+
		fmt.Sprintf(line, 1, "0A7100CB:0035", "010200C0:9999", "01", 1004))
	write("net/udp6", header+fmt.Sprintf(line, 0, "B80D0120000000000000000010000000:0037", "0:0", "07", 1005))
	write("812/comm", "systemd-resolve\n")
	write("901/comm", "named\n")
	for _, fd := range []struct{ path, target string }{
		{"812/fd/12", "socket:[1001]"}, {"812/fd/13", "socket:[1003]"}, {"901/fd/3", "socket:[1005]"}, {"901/fd/0", "/dev/null"},
	} {
		path := filepath.Join(proc, fd.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(fd.target, path); err != nil {
			t.Fatal(err)
		}
	}
	return proc
}

func TestHolders(t *testing.T) {
	proc := fakeProc(t)
	cases := []struct {
		name, network, addr string
		want                []string
	}{
		{"the same address", "udp", "127.0.0.53:53", []string{"systemd-resolve (pid 812) has 127.0.0.53:53"}},
		{"the wildcard over a stub resolver", "udp", "0.0.0.0:53", []string{"systemd-resolve (pid 812) has 127.0.0.53:53"}},
		{"TCP listeners only", "tcp", "0.0.0.0:53", []string{"systemd-resolve (pid 812) has 127.0.0.53:53"}},
		{"a connection holds nothing", "tcp", "203.0.113.10:53", nil},
		{"another address", "udp", "203.0.113.10:53", nil},
		{"another port", "udp", "127.0.0.53:54", nil},
		{"a process that cannot be seen", "udp", "127.0.0.1:40960", []string{"a process of another user has 127.0.0.1:40960"}},
		{"IPv6", "udp", "[2001:db8::10]:55", []string{"named (pid 901) has [2001:db8::10]:55"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := holders(proc, c.network, netip.MustParseAddrPort(c.addr)); !slices.Equal(got, c.want) {
				t.Errorf("holders = %q, want %q", got, c.want)
			}
		})
	}
}

func TestInUseHint(t *testing.T) {
	proc := fakeProc(t)
	for addr, want := range map[string]string{
		"0.0.0.0:53":      "systemd-resolve (pid 812) has 127.0.0.53:53, which takes the port from the wildcard address: list the public addresses in [dns] listen",
		"127.0.0.53:53":   "systemd-resolve (pid 812) has 127.0.0.53:53: stop that, or name another address in [dns] listen",
		"203.0.113.10:53": "another process has it, or an outgoing connection uses the port: stop that, or name another address in [dns] listen",
	} {
		if got := inUseHint(proc, "udp", netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("hint for %s = %q, want %q", addr, got, want)
		}
	}
}

// FuzzParseSocket: the kernel's lines are trusted to be its own, but a line of
// another kernel must not panic, and what parses has a port and an inode.
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
