package bind

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPortInUseNamesAddressPortAndProcess(t *testing.T) {
	if _, err := os.Stat("/proc/thread-self/net/udp"); err != nil {
		lacking(t, "/proc/thread-self/net/udp")
	}
	held := New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	_, port, err := held.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, listen := range []string{fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("0.0.0.0:%d", port)} {
		_, _, err = New(Config{Listen: netip.MustParseAddrPort(listen)}).Open(0)
		want := fmt.Sprintf("listening on udp %s: address already in use, by process %q (pid %d): stop it or choose another port",
			listen, strings.TrimSpace(string(comm)), os.Getpid())
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestAddressOfAnotherMachine(t *testing.T) {
	_, _, err := New(Config{Listen: netip.MustParseAddrPort("192.0.2.200:0")}).Open(0)
	want := "listening on udp 192.0.2.200:0: cannot assign requested address: no interface of this machine has the address"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// Lines as a little-endian kernel prints them.
const udpTable = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 111 2 0000000000000000 0
  101: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 222 2 0000000000000000 0
  102: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 333 2 0000000000000000 0
`

const udp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  103: 00000000000000000000000001000000:0045 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 444 2 0000000000000000 0
  104: 00000000000000000000000000000000:0046 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 555 2 0000000000000000 0
`

func TestHolder(t *testing.T) {
	if at, _, ok := socketLine(strings.Split(udpTable, "\n")[1]); !ok || at != netip.MustParseAddrPort("127.0.0.1:53") {
		t.Skip("the sample is of a little-endian machine")
	}
	proc := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(proc, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("thread-self/net/udp", udpTable)
	write("thread-self/net/udp6", udp6Table)
	for pid, p := range map[string]struct{ comm, inode string }{"7": {"systemd-resolve", "111"}, "8": {"wg", "222"}, "9": {"dnsmasq", "444"}, "10": {"avahi", "555"}} {
		write(pid+"/comm", p.comm+"\n")
		if err := os.MkdirAll(filepath.Join(proc, pid, "fd"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("socket:["+p.inode+"]", filepath.Join(proc, pid, "fd", "3")); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ at, want string }{
		{"127.0.0.1:53", `process "systemd-resolve" (pid 7)`},
		{"0.0.0.0:53", `process "systemd-resolve" (pid 7)`},
		{"127.0.0.2:53", "a process that this machine does not name"},
		{"[::]:53", "a process that this machine does not name"},
		{"10.1.2.3:51820", `process "wg" (pid 8)`},
		{"0.0.0.0:68", "a process that only root may see, or the kernel"},
		{"[::1]:69", `process "dnsmasq" (pid 9)`},
		{"0.0.0.0:70", `process "avahi" (pid 10)`}, // a dual-stack socket
		{"0.0.0.0:71", "a process that this machine does not name"},
	} {
		if got := holder(proc, netip.MustParseAddrPort(tt.at)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.at, got, tt.want)
		}
	}
	if got := holder(filepath.Join(proc, "none"), netip.MustParseAddrPort("0.0.0.0:53")); got != "a process that this machine does not name" {
		t.Errorf("without /proc: %q", got)
	}
}

func FuzzSocketLine(f *testing.F) {
	for _, line := range strings.Split(udpTable+udp6Table, "\n") {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		at, inode, ok := socketLine(line)
		if ok && (!at.IsValid() || inode == "" || !strings.Contains(line, inode)) {
			t.Errorf("%v %q from %q", at, inode, line)
		}
	})
}
