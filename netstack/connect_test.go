package netstack

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// cpuTime is the processor time of this process.
func cpuTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// connects is a load of short connections to one address and port: each is
// dialled, says one message, gets it back, and ends. A connection has a
// goroutine of its own at each end and another to read, as a relay's has.
type connects struct {
	*lab
	originFirst bool // the far end closes first
}

func newConnects(t testing.TB, originFirst bool) *connects {
	l := &connects{lab: newLab(t), originFirst: originFirst}
	err := l.connector.ForwardTCP(ForwardTCPConfig{Pending: 4096, Handler: func(r *TCPRequest) {
		c, err := r.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 64)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		other := make(chan struct{})
		go func() {
			defer close(other)
			c.Write(b)
			if originFirst {
				c.CloseWrite()
			}
		}()
		<-other
		io.Copy(io.Discard, c)
	}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// one is one connection.
func (l *connects) one() error {
	c, err := l.nic.DialContext(l.ctx, "tcp", service4)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 64)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		wrote <- err
	}()
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if !l.originFirst {
		if err := c.(*TCPConn).CloseWrite(); err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, c)
	return errors.Join(err, <-wrote)
}

// run makes n connections, each on a new goroutine, workers at a time, and
// returns how long the slowest took.
func (l *connects) run(t testing.TB, n, workers int) time.Duration {
	var wg sync.WaitGroup
	var slowest atomic.Int64
	places := make(chan struct{}, workers)
	for range n {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			began := time.Now()
			if err := l.one(); err != nil {
				t.Errorf("connecting: %v", err)
			}
			for took := int64(time.Since(began)); ; {
				if was := slowest.Load(); took <= was || slowest.CompareAndSwap(was, took) {
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Duration(slowest.Load())
}

// Trap 15: with TIME_WAIT at the connector the SYN that comes to a port in it
// vanishes and is sent again after a second. Whoever closes first has the
// TIME_WAIT. Ports are few, so that they come round many times; at the edge
// each is taken for a second after the client closed first.
func TestConnectStorm(t *testing.T) {
	for _, tt := range []struct {
		name        string
		originFirst bool
		ports       uint32
		dials       int
	}{
		{"origin closes first", true, 512, 12_000},
		{"client closes first", false, 16_384, 40_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dials := tt.dials
			switch {
			case os.Getenv("WARREN_TEST_FULL") != "":
				dials = 100_000
			case raceEnabled || testing.Short():
				dials /= 10
			}
			l := newConnects(t, tt.originFirst)
			l.nic.index.ports = tt.ports
			syns := &synCounter{first: make(map[string]int)}
			l.edgeEnd.setFilter(syns.filter)
			slowest := l.run(t, dials, 16)
			syns.mu.Lock()
			defer syns.mu.Unlock()
			t.Logf("%d connections, the slowest took %v; %d SYNs were sent again", len(syns.first), slowest, syns.again)
			if len(syns.first) != dials {
				t.Errorf("%d connections were begun, want %d", len(syns.first), dials)
			}
			// A machine that stands still for a second sends some again, too.
			if syns.again > dials/100 {
				t.Errorf("%d of %d SYNs were sent again: the connector swallowed them", syns.again, dials)
			}
		})
	}
}

// A port is found without allocation, among as many flows as there may be.
func TestClaimDoesNotAllocate(t *testing.T) {
	var x flowIndex
	x.init([]netip.Addr{source4, netip.MustParseAddr("100.127.0.2")}, 0)
	c, key := new(TCPConn), flowKey{}
	for range lastPort - firstPort { // one short of the first source's
		if err := x.claim(protoTCP, service4, c, &key); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(1000, func() {
		if err := x.claim(protoTCP, service4, c, &key); err != nil {
			t.Fatal(err)
		}
		x.remove(key, c)
	}); n > 0 {
		t.Errorf("claiming a port allocates %v times", n)
	}
}

// BenchmarkClaim takes and gives back ports while most are taken for good.
func BenchmarkClaim(b *testing.B) {
	var x flowIndex
	x.init([]netip.Addr{source4}, 0)
	c, key := new(TCPConn), flowKey{}
	for range 48_000 {
		if err := x.claim(protoTCP, service4, c, &key); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if err := x.claim(protoTCP, service4, c, &key); err != nil {
			b.Fatal(err)
		}
		x.remove(key, c)
	}
}

// BenchmarkConnect is the price of a short connection, both ends together.
func BenchmarkConnect(b *testing.B) {
	for _, originFirst := range []bool{false, true} {
		first := map[bool]string{false: "client", true: "origin"}[originFirst]
		b.Run(fmt.Sprintf("%s closes first", first), func(b *testing.B) {
			l := newConnects(b, originFirst)
			l.run(b, 100, 16)
			b.ReportAllocs()
			b.ResetTimer()
			before := cpuTime()
			slowest := l.run(b, b.N, 16)
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(slowest.Milliseconds()), "slowest-ms")
		})
	}
}
