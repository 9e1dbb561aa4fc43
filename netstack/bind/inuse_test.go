package bind

import (
	"fmt"
	"net/netip"
	"os"
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
	for _, listen := range []string{fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("0.0.0.0:%d", port)} {
		_, _, err = New(Config{Listen: netip.MustParseAddrPort(listen)}).Open(0)
		for _, part := range []string{
			fmt.Sprintf("listening on udp %s: address already in use, by this process (pid %d)", listen, os.Getpid()),
			"stop it or choose another port",
		} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("got %v, want %q in it", err, part)
			}
		}
	}
}
