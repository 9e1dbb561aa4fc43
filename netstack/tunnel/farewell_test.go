package tunnel

import (
	"net/netip"
	"testing"
	"time"
)

// TestFarewellOfTheDead: a peer whose first word is that it leaves is given no
// flow: its link does not stay open for somebody who is not there.
func TestFarewellOfTheDead(t *testing.T) {
	e := newEdge(t, newKey(t), "127.0.0.1:0")
	n := e.network(t, "berlin")
	p, err := n.AddConnector(ConnectorConfig{Name: "b1", PublicKey: newKey(t).PublicKey(), Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	e.admit(appendEcho(nil, p.Overlay(), e.Overlay(), echo{id: echoIDLiveness, flags: flagLeaving, boot: 1}, 0), time.Now())
	e.await(t, "the link is closed again", func() bool { return !p.open.Load() })
	if p.Alive() || n.Pick(netip.MustParseAddr("10.0.0.10")) != nil {
		t.Error("a peer that left gets flows")
	}
}
