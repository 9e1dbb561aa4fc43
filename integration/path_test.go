package integration

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

// streamApps lead to a streamOrigin in each data centre.
const streamApps = `
[[app]]
name = "berlin-stream"
hostnames = ["berlin.example.com"]
listen = ["tcp/9003"]
origin = "berlin/10.0.0.10:9003"
[[app]]
name = "tokyo-stream"
hostnames = ["tokyo.example.com"]
listen = ["tcp/9004"]
origin = "tokyo/10.0.0.10:9004"
[[app]]
name = "chunks"
hostnames = ["chunks.example.com"]
listen = ["tcp/9005"]
origin = "berlin/10.0.0.10:9005"
`

// TestIntegrity moves random data over many connections at once, both ways in
// writes of random sizes, half-closed at the end, to two networks.
func TestIntegrity(t *testing.T) {
	d := deploy(t, streamApps)
	connections, size := 64, int64(16<<20)
	switch {
	case full():
		size = 64 << 20
	case daemon.Race:
		size = 1 << 20
	case testing.Short():
		size = 4 << 20
	}
	var berlin, tokyo streamOrigin
	listen(t, d.berlin, "10.0.0.10:9003", berlin.serve)
	listen(t, d.tokyo, "10.0.0.10:9004", tokyo.serve)
	plans := func(first, count int, size int64) (plans []plan) {
		for i := range count {
			plans = append(plans, plan{Seed: uint64(first + i), Up: size, Down: size, MaxWrite: 1 << (8 + i%12)})
		}
		return plans
	}
	t.Run("many", func(t *testing.T) {
		started := time.Now()
		moveStreams(t, 8*time.Minute, &berlin, d.client, at(9003).String(), plans(1, connections, size))
		moved := 2 * int64(connections) * size
		t.Logf("%d connections × %d MiB each way in %v: %.0f Mbit/s", connections, size>>20,
			time.Since(started).Round(time.Millisecond), float64(moved)*8/1e6/time.Since(started).Seconds())
	})
	// Ends that come at once: nothing, one byte, one way alone.
	t.Run("edges", func(t *testing.T) {
		var few []plan
		for i, sizes := range [][2]int64{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {0, 1 << 20}, {1 << 20, 0}, {1 << 16, 1}, {1, 1 << 16}} {
			few = append(few, plan{Seed: uint64(1000 + i), Up: sizes[0], Down: sizes[1], MaxWrite: 4096})
		}
		moveStreams(t, time.Minute, &tokyo, d.client, at(9004).String(), few)
	})
	t.Run("boundary writes", d.testBoundaryWrites)
}

// testBoundaryWrites sends messages whose sizes lie around multiples of 8192
// to an origin that reads as fast as it can and acknowledges each message: a
// proxy that waits for a full buffer, or forgets one that is exactly full,
// stalls.
func (d *deployment) testBoundaryWrites(t *testing.T) {
	listen(t, d.berlin, "10.0.0.10:9005", func(conn net.Conn) {
		var head [4]byte
		for {
			if _, err := io.ReadFull(conn, head[:]); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(head[:]))-4); err != nil {
				return
			}
			if _, err := conn.Write(head[:]); err != nil {
				return
			}
		}
	})
	conn, err := d.client.Dial(t.Context(), "tcp", at(9005).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	message, answer := make([]byte, 64*8192+1), make([]byte, 4)
	for _, blocks := range []int{1, 2, 3, 4, 8, 16, 64} {
		for _, off := range []int{-1, 0, 1} {
			size := blocks*8192 + off
			binary.BigEndian.PutUint32(message, uint32(size))
			for round := range 20 {
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := conn.Write(message[:size]); err != nil {
					t.Fatalf("message %d of %d bytes: %v", round, size, err)
				}
				if _, err := io.ReadFull(conn, answer); err != nil {
					t.Fatalf("message %d of %d bytes has not been acknowledged: %v", round, size, err)
				}
			}
		}
	}
}

// TestPathMTU moves 10 MB each way over a path that carries less than the
// cables at its ends, and whose routers say nothing about it.
func TestPathMTU(t *testing.T) {
	d := deploy(t, streamApps)
	var tokyo streamOrigin
	listen(t, d.tokyo, "10.0.0.10:9004", tokyo.serve)
	// The provider's filter is to see the datagrams, not what they are cut from.
	d.trunk.Frames()
	d.tokyo1Cable.Frames()
	const silent = `chain %s {
		type filter hook %[1]s priority 0
		icmp type destination-unreachable drop
		icmpv6 type packet-too-big drop
	}
	`
	for _, router := range []*netns.Host{d.internet, d.isp} {
		router.Filter("silent", fmt.Sprintf(silent, "output")+fmt.Sprintf(silent, "forward"))
	}
	for i, test := range []struct {
		name          string
		narrow, widen func()
	}{
		// What may be fragmented is, what may not is lost.
		{"the trunk carries 1280 bytes", func() { d.trunk.SetMTU(1280) }, func() { d.trunk.SetMTU(1500) }},
		// No fragments: what is too long is lost, whatever its flags.
		{"more than 1400 bytes vanish", func() {
			d.isp.Filter("narrow", "chain forward {\ntype filter hook forward priority 0\nip length > 1400 drop\n}")
		}, func() { d.isp.Filter("narrow", "") }},
		{"the trunk is wide again", func() {}, func() {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.narrow()
			defer test.widen()
			started := time.Now()
			moveStreams(t, time.Minute, &tokyo, d.client, at(9004).String(),
				[]plan{{Seed: uint64(i + 1), Up: 10e6, Down: 10e6, MaxWrite: 32 << 10}})
			t.Logf("10 MB each way in %v", time.Since(started).Round(time.Millisecond))
		})
	}
}
