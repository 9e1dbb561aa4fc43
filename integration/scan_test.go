package integration

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
)

// TestSilentWithoutKey sends the WireGuard ports of an edge and a connector
// everything that somebody without a key can send: not one packet comes back.
func TestSilentWithoutKey(t *testing.T) {
	d := deploy(t, "")
	const counting = `
		counter scanner { }
		counter peers { }
		chain output {
			type filter hook output priority 0
			ip daddr 198.51.100.10 udp sport %[1]d counter name scanner
			ip daddr != 198.51.100.10 udp sport %[1]d counter name peers
		}`
	for _, target := range []struct {
		host *netns.Host
		addr string
		port uint16
		key  string
	}{
		{d.edge, "203.0.113.10", 51820, d.edgeKey.Public},
		{d.tokyo1, "192.0.2.10", udpPort(t, d.tokyo1), d.tokyo1Key.Public},
	} {
		t.Run(target.host.Name(), func(t *testing.T) {
			target.host.Filter("scan", fmt.Sprintf(counting, target.port))
			conn, err := d.client.Dial(t.Context(), "udp", fmt.Sprintf("%s:%d", target.addr, target.port))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			scan(t, conn)
			scanKnowing(t, conn, target.key)
			// The same port goes on serving those who have a key: the test
			// sees the packets that there are.
			err = pollFor(t, 10*time.Second, func() error {
				if packets, _ := target.host.Counter("scan", "peers"); packets < 3 {
					return fmt.Errorf("the port sent %d packets to its peers", packets)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if packets, bytes := target.host.Counter("scan", "scanner"); packets != 0 {
				t.Errorf("the port answered the scanner with %d packets, %d bytes", packets, bytes)
			}
			conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if n, err := conn.Read(make([]byte, 2048)); err == nil {
				t.Errorf("the scanner read %d bytes", n)
			}
		})
	}
	t.Run("a key that nobody knows", d.testStrangerIsIgnored)
}

// scan sends each message type of WireGuard, and none of it, in its right
// size and others, with a random body.
func scan(t *testing.T, conn net.Conn) {
	t.Helper()
	body := make([]byte, 1400)
	plan{Seed: 77}.bytesOf(0).Read(body)
	for kind := range uint32(6) {
		for _, size := range []int{0, 1, 3, 4, 16, 31, 32, 48, 63, 64, 65, 91, 92, 93, 147, 148, 149, 512, 1280, 1400} {
			packet := append([]byte(nil), body[:size]...)
			if size >= 4 {
				binary.LittleEndian.PutUint32(packet, kind) // type, and three reserved zeros
			}
			if _, err := conn.Write(packet); err != nil {
				t.Fatalf("%d bytes of type %d: %v", size, kind, err)
			}
		}
	}
	// A DNS question and an HTTP request, as scanners send.
	conn.Write([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07version\x04bind\x00\x00\x10\x00\x03"))
	conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
}

// scanKnowing sends what somebody can who knows the public key of whom they
// scan, as the holder of any token does: messages with a right mac1, which is
// all that WireGuard looks at before it computes (whitepaper, section 5.4.4).
func scanKnowing(t *testing.T, conn net.Conn, public string) {
	t.Helper()
	key, err := wgtypes.ParseKey(public)
	if err != nil {
		t.Fatal(err)
	}
	label := blake2s.Sum256(append([]byte("mac1----"), key[:]...))
	const macs = 32 // mac1 and mac2 at the end
	for kind, size := range map[uint32]int{1: 148, 2: 92, 3: 64, 4: 96} {
		for seed := range uint64(20) {
			packet := make([]byte, size)
			plan{Seed: 100 + seed}.bytesOf(0).Read(packet)
			binary.LittleEndian.PutUint32(packet, kind)
			mac, err := blake2s.New128(label[:])
			if err != nil {
				t.Fatal(err)
			}
			mac.Write(packet[:size-macs])
			mac.Sum(packet[:size-macs])
			clear(packet[size-macs/2:])
			if _, err := conn.Write(packet); err != nil {
				t.Fatalf("%d bytes of type %d: %v", size, kind, err)
			}
		}
	}
}

// testStrangerIsIgnored shakes hands in due form with a key that the edge does
// not have: the real client of the protocol gets no answer either.
func (d *deployment) testStrangerIsIgnored(t *testing.T) {
	before, _ := d.edge.Counter("scan", "scanner")
	stranger := d.connector(t, d.client, "stranger", d.warren.GenKey(t))
	waitFor(t, 3*time.Second)
	if strings.Contains(stranger.Output(), "ready") {
		t.Errorf("a connector that nobody knows became ready:\n%s", stranger.Output())
	}
	if after, _ := d.edge.Counter("scan", "scanner"); after != before {
		t.Errorf("the edge answered a stranger with %d packets", after-before)
	}
}

// udpPort is the first UDP port that is open on a host: a connector's host has
// one, which serves both families.
func udpPort(t *testing.T, host *netns.Host) uint16 {
	t.Helper()
	var line string
	err := pollFor(t, 5*time.Second, func() error {
		return host.Do(func() error {
			for _, file := range []string{"udp6", "udp"} {
				table, err := os.ReadFile("/proc/thread-self/net/" + file)
				if err != nil {
					return err
				}
				if lines := strings.Split(string(table), "\n"); len(lines) > 2 {
					line = lines[1]
					return nil
				}
			}
			return proc.Fatal(fmt.Errorf("no UDP port is open on host %q", host.Name()))
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	var (
		slot, addr string
		port       uint16
	)
	if _, err := fmt.Sscanf(strings.Replace(line, ":", " ", 2), "%s %s %04X", &slot, &addr, &port); err != nil {
		t.Fatalf("reading %q: %v", line, err)
	}
	return port
}
