package tunnel

import (
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/warrenmesh/warren/netstack"
	"github.com/warrenmesh/warren/netstack/netx"
)

// TestRebindingUnderLoad: rebinding holds the device's lock while it waits for
// the receivers, who wait for Write, which must therefore wait for nobody. Both
// ends rebind again and again while flows push data both ways, dials are
// refused (RSTs) and declared unreachable (ICMP errors), so that each kind of
// answer is made inside Write with the queues full.
func TestRebindingUnderLoad(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	c, _ := join(t, e, n, "b1", handlers{tcp: func(r *netstack.TCPRequest) {
		switch r.Destination().Port() {
		case 7:
			echoTCP(r)
		case 1:
			r.Reject(netx.ErrRefused)
		default:
			r.Reject(netx.ErrUnreachable)
		}
	}}, "10.0.0.0/8")

	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		conn, _ := dialTCP(t, n, "10.0.0.10:7")
		load.Go(func() { _, _ = io.Copy(io.Discard, conn) })
		load.Go(func() {
			defer conn.Close()
			b := make([]byte, 64<<10)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := conn.Write(b); err != nil {
					return
				}
			}
		})
	}
	for _, port := range []uint16{1, 2} {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, _, _ = n.Dial(t.Context(), "tcp", netip.AddrPortFrom(netip.MustParseAddr("10.0.0.10"), port))
			}
		})
	}

	rebound := make(chan error, 1)
	go func() {
		for range 25 {
			for _, end := range []*Tunnel{e.Tunnel, c.Tunnel} {
				if err := end.device.BindUpdate(); err != nil {
					rebound <- err
					return
				}
			}
		}
		rebound <- nil
	}()
	select {
	case err := <-rebound:
		if err != nil {
			t.Errorf("rebinding: %v", err)
		}
	case <-time.After(2 * patience):
		t.Fatal("rebinding under load never ended: a deadlock")
	}
	close(stop)
	load.Wait()

	conn, _ := dialTCP(t, n, "10.0.0.10:7")
	if _, err := conn.Write([]byte("alive")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		t.Errorf("a flow after all that: %v", err)
	}
}

// TestPeersComeAndGoUnderLoad: connectors are added and removed while their
// neighbours carry traffic.
func TestPeersComeAndGoUnderLoad(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	join(t, e, n, "b1", handlers{tcp: echoTCP}, "10.0.0.0/8")
	conn, _ := dialTCP(t, n, "10.0.0.10:7")
	const total = 16 << 20
	var load sync.WaitGroup
	load.Go(func() {
		b := make([]byte, 64<<10)
		for sent := 0; sent < total; sent += len(b) {
			if _, err := conn.Write(b); err != nil {
				t.Error(err)
				return
			}
		}
		_ = conn.(netx.HalfCloser).CloseWrite()
	})
	var changes sync.WaitGroup
	changes.Go(func() {
		for range 5 {
			c, p := join(t, e, n, "guest", handlers{tcp: echoTCP}, "10.8.0.0/16")
			guest, _ := dialTCP(t, n, "10.8.0.1:7")
			_, _ = guest.Write(make([]byte, 1000))
			p.Remove()
			if _, err := io.Copy(io.Discard, guest); err == nil {
				t.Error("a flow of a connector that was removed ended in order")
			}
			c.Close()
		}
	})
	if got, err := io.Copy(io.Discard, conn); err != nil || got != total {
		t.Errorf("%d of %d bytes came back beside the changes: %v", got, total, err)
	}
	load.Wait()
	changes.Wait()
}
