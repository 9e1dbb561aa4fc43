package edge

import (
	"testing"

	"github.com/warrenmesh/warren/edge/admin/client"
	"github.com/warrenmesh/warren/netstack"
)

// TestProbeNamesTheReplicaThatItWentThrough: with two connectors for one
// route, whose turns alternate.
func TestProbeNamesTheReplicaThatItWentThrough(t *testing.T) {
	keys := map[string][32]byte{}
	tables := network("berlin")
	for _, name := range []string{"berlin-1", "berlin-2"} {
		key := newKey(t)
		keys[name] = key
		tables += connector(name, "berlin", key, "10.0.0.0/24")
	}
	w := startWorld(t, tables)
	sites := map[string]*site{}
	for name, key := range keys {
		sites[name] = w.startSite(name, key, map[string]func(*netstack.TCPRequest){"10.0.0.10:7": echo(name)})
	}
	for range 4 {
		before := map[string]int{}
		for name, s := range sites {
			before[name] = s.asked("10.0.0.10:7")
		}
		r, err := w.admin.Probe(t.Context(), client.ProbeRequest{Network: "berlin", Address: "10.0.0.10:7"})
		if err != nil || !r.OriginOK {
			t.Fatalf("%+v, %v", r, err)
		}
		if s := sites[r.Connector]; s == nil || s.asked("10.0.0.10:7") != before[r.Connector]+1 {
			t.Errorf("the probe names %q, which was not asked", r.Connector)
		}
	}
}
