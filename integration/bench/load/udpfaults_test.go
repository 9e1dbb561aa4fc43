package load

import (
	"bytes"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// startUDPProxy relays datagrams to a target; answer says what becomes of the
// n-th answer (from 0, of all flows). It ends with the test.
func startUDPProxy(t *testing.T, target netip.AddrPort, answer func(n int, datagram []byte, send func([]byte))) netip.AddrPort {
	t.Helper()
	public, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		n        int
		sessions = map[netip.AddrPort]*net.UDPConn{}
	)
	back := func(client netip.AddrPort, session *net.UDPConn) {
		buf := make([]byte, maxDatagram+1)
		for {
			size, err := session.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			answer(n, buf[:size], func(datagram []byte) { public.WriteToUDPAddrPort(datagram, client) })
			n++
			mu.Unlock()
		}
	}
	wg.Go(func() {
		defer func() {
			for _, session := range sessions {
				session.Close()
			}
		}()
		buf := make([]byte, maxDatagram+1)
		for {
			size, client, err := public.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			session := sessions[client]
			if session == nil {
				if session, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(target)); err != nil {
					t.Error(err)
					return
				}
				sessions[client] = session
				wg.Go(func() { back(client, session) })
			}
			session.Write(buf[:size])
		}
	})
	t.Cleanup(func() { public.Close(); wg.Wait() })
	return public.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestUDPFindsFaults: what is lost, repeated, late or wrong is counted as
// that, in a closed and in an open loop.
func TestUDPFindsFaults(t *testing.T) {
	host := startOrigin(t)
	const one = 10 // in so many answers
	for name, test := range map[string]struct {
		fault func(datagram []byte, send func([]byte))
		check func(r Report) bool
	}{
		"lost":     {func([]byte, func([]byte)) {}, func(r Report) bool { return r.Lost > 0 && r.Failures == 0 && r.Duplicates == 0 }},
		"repeated": {func(b []byte, send func([]byte)) { send(b); send(b) }, func(r Report) bool { return r.Duplicates > 0 && r.Failures == 0 }},
		"flipped":  {func(b []byte, send func([]byte)) { b[len(b)-1] ^= 1; send(b) }, func(r Report) bool { return r.Corrupt > 0 && r.Lost > 0 }},
		"header":   {func(b []byte, send func([]byte)) { b[9] ^= 1; send(b) }, func(r Report) bool { return r.Corrupt > 0 && r.Lost > 0 }},
		"short":    {func(b []byte, send func([]byte)) { send(b[:len(b)-1]) }, func(r Report) bool { return r.Corrupt > 0 && r.Lost > 0 }},
		"long":     {func(b []byte, send func([]byte)) { send(append(bytes.Clone(b), 0)) }, func(r Report) bool { return r.Corrupt > 0 && r.Lost > 0 }},
	} {
		for _, rate := range []float64{0, 4000} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := short(KindUDP, host, PortUDP)
				s.Rate, s.Streams, s.Size, s.Timeout = rate, 2, 200, 20*time.Millisecond
				s.Target = startUDPProxy(t, s.Target, func(n int, datagram []byte, send func([]byte)) {
					if n%one == one-1 {
						test.fault(datagram, send)
					} else {
						send(datagram)
					}
				})
				r := run(t, s, func(r Report) bool { return r.Ops > 0 && test.check(r) })
				if r.Lost > r.Sent || r.Corrupt != r.Failures || r.LossRatio() >= 1 {
					t.Errorf("at rate %v: %+v", rate, r)
				}
			})
		}
	}
}

// TestUDPCrossedFlows: an answer that reaches another client is corrupt there
// and lost where it belongs.
func TestUDPCrossedFlows(t *testing.T) {
	host := startOrigin(t)
	s := short(KindUDP, host, PortUDP)
	s.Streams, s.Timeout = 2, 20*time.Millisecond
	var held []byte
	s.Target = startUDPProxy(t, s.Target, func(n int, datagram []byte, send func([]byte)) {
		switch {
		case n%50 == 48:
			held = bytes.Clone(datagram)
		case held != nil && !bytes.Equal(held[:8], datagram[:8]):
			send(held) // to the other
			held = nil
			send(datagram)
		default:
			send(datagram)
		}
	})
	r := run(t, s, func(r Report) bool { return r.Corrupt > 0 && r.Lost > 0 })
	if r.Ops == 0 {
		t.Errorf("%+v", r)
	}
}

// TestUDPLate: an answer after the timeout is late and not lost, and the
// window goes on without it.
func TestUDPLate(t *testing.T) {
	host := startOrigin(t)
	s := short(KindUDP, host, PortUDP)
	s.Timeout = 10 * time.Millisecond
	var held [][]byte
	known := map[string]bool{}
	s.Target = startUDPProxy(t, s.Target, func(_ int, datagram []byte, send func([]byte)) {
		if flow := string(datagram[:8]); !known[flow] {
			known[flow] = true
			held = nil
			send(datagram) // the probe
			return
		}
		if held = append(held, bytes.Clone(datagram)); len(held) > outstanding {
			send(held[0])
			held = held[1:]
		}
	})
	r := run(t, s, func(r Report) bool { return r.Late > 0 })
	if r.Ops == 0 || r.Failures != 0 {
		t.Errorf("%+v", r)
	}
}
