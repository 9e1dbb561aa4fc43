package edge

import (
	"net"
	"net/netip"
	"sync"
)

// detour carries datagrams between one connector and the edge until it is
// closed: a path that can be cut without anybody being told.
type detour struct {
	at    netip.AddrPort // what the connector calls instead of the edge
	conns [2]*net.UDPConn
	done  sync.WaitGroup
	once  sync.Once
}

func (w *world) detour() *detour {
	w.t.Helper()
	loopback := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	inside, err := net.ListenUDP("udp4", loopback)
	if err != nil {
		w.t.Fatal(err)
	}
	outside, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: loopback.IP, Port: w.Edge.tunnel.ListenPort()})
	if err != nil {
		w.t.Fatal(err)
	}
	d := &detour{at: inside.LocalAddr().(*net.UDPAddr).AddrPort(), conns: [2]*net.UDPConn{inside, outside}}
	var mu sync.Mutex
	var connector netip.AddrPort
	d.done.Go(func() { // connector → edge
		buf := make([]byte, 65536)
		for {
			n, from, err := inside.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			mu.Lock()
			connector = from
			mu.Unlock()
			_, _ = outside.Write(buf[:n])
		}
	})
	d.done.Go(func() { // edge → connector
		buf := make([]byte, 65536)
		for {
			n, err := outside.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			to := connector
			mu.Unlock()
			_, _ = inside.WriteToUDPAddrPort(buf[:n], to)
		}
	})
	w.t.Cleanup(d.close)
	return d
}

func (d *detour) close() {
	d.once.Do(func() {
		for _, c := range d.conns {
			_ = c.Close()
		}
		d.done.Wait()
	})
}
