package connector

import (
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/edge/wire"
)

// An edge learns those addresses that a flow of it could reach.
func TestNamesTellNoMoreThanFlowsReach(t *testing.T) {
	employed(t, func(t *testing.T, b *bench, c *fakeControl, _ *fakeOrigins, n *fakeNames) {
		deny := must(guard.ParseRule("tcp/10.66.0.0/16"))
		also := deny
		also.Proto = "udp"
		b.spec.Guard = guard.Spec{Deny: []guard.Rule{deny, also, must(guard.ParseRule("tcp/10.0.0.7:22"))}}
		n.set("some", fakeAnswer{addrs: addrs("10.0.0.7", "10.66.0.1", "192.168.0.1", "127.0.0.1", "169.254.169.254"), ttl: time.Hour})
		n.set("guarded", fakeAnswer{addrs: addrs("10.66.0.1"), ttl: time.Hour})
		n.set("elsewhere", fakeAnswer{addrs: addrs("192.168.0.1"), ttl: time.Hour})
		n.set("here", fakeAnswer{addrs: addrs("127.0.0.1", "::1"), ttl: 0})
		b.start()
		b.join()
		c.employ(wire.Work{Names: []wire.Name{{Host: "some"}, {Host: "guarded"}, {Host: "elsewhere"}, {Host: "here"}}})
		after(10 * time.Second)
		latest := map[string]wire.Found{}
		hear := func() {
			_, told, _ := c.told()
			for _, f := range told {
				latest[f.Host] = f
			}
		}
		hear()
		if f := latest["some"]; len(f.Addrs) != 1 || f.Addrs[0] != addrs("10.0.0.7")[0] || f.Error != "" {
			t.Errorf("told %+v", f)
		}
		for _, host := range []string{"guarded", "elsewhere", "here"} {
			if f := latest[host]; f.Addrs != nil || f.NotFound || !strings.Contains(f.Error, "outside") || strings.ContainsAny(f.Error, "0123456789") {
				t.Errorf("%s: told %+v", host, f)
			}
		}
		if n.count("here") > 3 {
			t.Errorf("asked for %d times in 10 s", n.count("here"))
		}
		c.change(func(g *wire.Grant) { g.Routes = prefixes("10.0.0.0/8", "192.168.0.0/16") })
		after(absentMost + time.Second)
		if hear(); len(latest["elsewhere"].Addrs) != 1 || latest["guarded"].Addrs != nil {
			t.Errorf("told %+v", latest)
		}
		if err := b.finish(); err != nil {
			t.Error(err)
		}
	})
}
