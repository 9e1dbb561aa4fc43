package host

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLockDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	release, err := LockDir(dir, "edge")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v, %v; want mode 0700", info.Mode(), err)
	}
	_, err = LockDir(dir, "edge")
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another edge runs") {
		t.Errorf("a second lock: %v", err)
	}
	release()
	again, err := LockDir(dir, "edge")
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	again()
}

func TestHolder(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "[::]:0")
	if err != nil {
		t.Skip("this machine has no IPv6")
	}
	defer udp.Close()
	us := fmt.Sprintf("pid %d", os.Getpid())
	port := netip.MustParseAddrPort(udp.LocalAddr().String()).Port()
	for _, tc := range []struct {
		name, network string
		addr          netip.AddrPort
		want          string
	}{
		{"its own address", "tcp", netip.MustParseAddrPort(tcp.Addr().String()), us},
		{"IPv6 wildcard", "udp", netip.AddrPortFrom(netip.IPv6Unspecified(), port), us},
		{"an address under the wildcard", "udp", netip.AddrPortFrom(netip.MustParseAddr("::1"), port), us},
		{"a port that is free", "tcp", netip.MustParseAddrPort("127.0.0.1:1"), "another process"},
	} {
		if got := Holder(tc.network, tc.addr); !strings.Contains(got, tc.want) {
			t.Errorf("%s: Holder = %q, want %q in it", tc.name, got, tc.want)
		}
	}
}
