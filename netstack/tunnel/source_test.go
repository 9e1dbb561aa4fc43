package tunnel

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/warrenmesh/warren/netstack"
)

// sightings are the sources that a connector has seen.
type sightings struct {
	mu   sync.Mutex
	last netip.AddrPort
}

func (s *sightings) handle(r *netstack.TCPRequest) {
	s.mu.Lock()
	s.last = r.Source()
	s.mu.Unlock()
	echoTCP(r)
}

func TestFlowsComeFromTheirClients(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	var seen sightings
	_, p := join(t, e, n, "b1", handlers{tcp: seen.handle}, "10.0.0.0/8", "2001:db8:10::/48")
	e.await(t, "the connector introduces itself", func() bool { return p.boot.Load() != 0 })
	const to4, to6 = "10.0.0.10:7", "[2001:db8:10::10]:7"
	none := netip.Prefix{}
	for _, tt := range []struct {
		name, client, to string
		setup            func()
		within           netip.Prefix // the block that it comes from instead
	}{
		{"a client", "198.51.100.7:40000", to4, nil, none},
		{"a client, IPv6", "[2001:db8:99::7]:40000", to6, nil, none},
		{"an IPv4-mapped client", "[::ffff:198.51.100.8]:40000", to4, nil, none},
		{"another family", "[2001:db8:99::7]:40000", to4, nil, DefaultInnerSources},
		{"another family, IPv6", "198.51.100.7:40000", to6, nil, InnerSources6},
		{"within the routes", "10.9.0.7:40000", to4, nil, DefaultInnerSources},
		{"an inner source", "100.127.0.99:40000", to4, nil, DefaultInnerSources},
		{"an overlay address", "[fd77:6172:7265::1]:40000", to6, nil, InnerSources6},
		{"loopback", "127.0.0.1:40000", to4, nil, DefaultInnerSources},
		{"link-local", "[fe80::1]:40000", to6, nil, InnerSources6},
		{"multicast", "224.0.0.7:40000", to4, nil, DefaultInnerSources},
		{"nobody", "0.0.0.0:40000", to4, nil, DefaultInnerSources},
		{"switched off", "198.51.100.9:40000", to4, func() { n.SetClientSources(false) }, DefaultInnerSources},
		{"switched on again", "198.51.100.10:40000", to4, func() { n.SetClientSources(true) }, none},
		{"a router of another make", "198.51.100.11:40000", to4, func() { p.boot.Store(0) }, DefaultInnerSources},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.setup != nil {
				tt.setup()
			}
			client := netip.MustParseAddrPort(tt.client)
			conn, _, err := n.DialFor(t.Context(), "tcp", client, netip.MustParseAddrPort(tt.to))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			b := make([]byte, 5)
			if _, err := conn.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(b); err != nil || string(b) != "hello" {
				t.Fatalf("read %q, %v", b, err)
			}
			seen.mu.Lock()
			defer seen.mu.Unlock()
			if tt.within.IsValid() {
				if !tt.within.Contains(seen.last.Addr()) {
					t.Errorf("the connector sees %v, want one of %v", seen.last, tt.within)
				}
			} else if want := netip.AddrPortFrom(client.Addr().Unmap(), client.Port()); seen.last != want {
				t.Errorf("the connector sees %v, want %v", seen.last, want)
			}
		})
	}
}
