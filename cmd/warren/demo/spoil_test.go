package demo

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The check proves itself: whatever is spoilt, the stage that shows it fails,
// by name, and no other.

// spoiler spoils one thing. Before its stage do is called, and what it opens
// is closed when the test ends.
type spoiler struct {
	name    string
	before  string
	do      func(*testing.T, *world)
	failed  []string
	skipped []string
	says    string // in the error
}

var spoilers = []spoiler{
	{
		name: "a config that is refused", before: "edge",
		do:      func(_ *testing.T, w *world) { w.plan.Zone = "not a name" },
		failed:  []string{"edge"},
		skipped: []string{"tunnel", "dns", "tcp", "overlap", "udp", "pool", "failover", "recovery", "bytes"},
		says:    "edge.toml",
	},
	{
		name: "the tunnel is cut from the start", before: "tunnel",
		do: func(t *testing.T, w *world) {
			w.plan.site("tokyo").EdgePort = silence(t)
			rewrite(t, w)
		},
		failed:  []string{"tunnel"},
		skipped: []string{"tcp", "overlap", "udp", "pool", "failover", "recovery", "bytes"},
		says:    `connector "tokyo-1" is down`,
	},
	{
		name: "the tunnel is cut while it serves", before: "tcp",
		do:      func(_ *testing.T, w *world) { w.connectors[1].end() },
		failed:  []string{"tcp", "udp"},
		skipped: []string{"overlap", "bytes"},
		says:    "tcp: calling http://tokyo.warren.test",
	},
	{
		name: "dnsd stops", before: "dns",
		do: func(t *testing.T, w *world) {
			var elsewhere held
			port, err := elsewhere.choose([]string{"tcp", "udp"})
			elsewhere.release()
			if err != nil {
				t.Error(err)
			}
			w.plan.DNS = port
			rewrite(t, w)
			reload(t, w)
		},
		failed:  []string{"dns"},
		skipped: []string{"tcp", "overlap", "udp", "pool", "failover", "recovery", "bytes"},
		says:    `dns: resolving "berlin.warren.test" at 127.0.0.1:`,
	},
	{
		name: "a name leads elsewhere", before: "dns",
		do: func(t *testing.T, w *world) {
			edit(t, w, `advertise = ["127.0.0.1"]`, `advertise = ["192.0.2.1"]`+"\n"+`bind = ["127.0.0.1"]`)
			reload(t, w)
		},
		failed:  []string{"dns"},
		skipped: []string{"tcp", "overlap", "udp", "pool", "failover", "recovery", "bytes"},
		says:    "want 127.0.0.1, got 192.0.2.1",
	},
	{
		name: "both networks have one origin", before: "tunnel",
		do: func(t *testing.T, w *world) {
			w.plan.site("tokyo").Aliases[0].To = w.berlin.at
			rewrite(t, w)
		},
		failed:  []string{"overlap"},
		skipped: []string{"bytes"},
		says:    "the networks are mixed up",
	},
	{
		name: "both apps lead to one network", before: "overlap",
		do: func(t *testing.T, w *world) {
			edit(t, w, `"tokyo/10.0.0.10:80"`, `"berlin/10.0.0.10:80"`)
			reload(t, w)
		},
		failed:  []string{"overlap"},
		skipped: []string{"bytes"},
		says:    `leads to "berlin/10.0.0.10:80"`,
	},
	{
		name: "the UDP origin is gone", before: "udp",
		do:     func(_ *testing.T, w *world) { w.echo.stop() },
		failed: []string{"udp"},
		says:   "asking udp echo.warren.test",
	},
	{
		name: "the pool has one endpoint", before: "pool",
		do: func(t *testing.T, w *world) {
			w.plan.Pool = w.plan.Pool[:1]
			rewrite(t, w)
			reload(t, w)
		},
		failed:  []string{"pool"},
		skipped: []string{"failover", "recovery"},
		says:    "has no endpoint 10.0.0.21:80",
	},
	{
		name: "there is no failover", before: "failover",
		do: func(t *testing.T, w *world) {
			w.plan.Pool = w.plan.Pool[:1]
			rewrite(t, w)
			reload(t, w)
		},
		failed:  []string{"failover"},
		skipped: []string{"recovery"},
		says:    "10.0.0.20 in berlin stopped: calling http://shop.warren.test",
	},
	{
		name: "the monitor is asleep", before: "failover",
		do: func(t *testing.T, w *world) {
			edit(t, w, `"500ms"`, `"1h"`)
			reload(t, w)
		},
		failed:  []string{"failover"},
		skipped: []string{"recovery"},
		says:    "10.0.0.20 in berlin is up instead of down",
	},
	{
		name: "the endpoint does not stop", before: "failover",
		do: func(t *testing.T, w *world) {
			t.Cleanup(w.shop[0].stop)
			stand, err := newWeb("10.0.0.20", "berlin", &served{})
			if err != nil {
				t.Error(err)
			}
			w.shop[0] = stand
		},
		failed:  []string{"failover"},
		skipped: []string{"recovery"},
		says:    "10.0.0.20 in berlin stopped and still answers",
	},
	{
		name: "the endpoint does not start again", before: "recovery",
		do: func(t *testing.T, w *world) {
			ln, err := net.Listen("tcp", w.shop[0].at)
			if err != nil {
				t.Error(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
		},
		failed: []string{"recovery"},
		says:   "starting the origin 10.0.0.20 in berlin",
	},
	{
		name: "nobody notices that it is back", before: "recovery",
		do: func(t *testing.T, w *world) {
			edit(t, w, `"500ms"`, `"500ms"`+"\nrise = 100")
			reload(t, w)
		},
		failed: []string{"recovery"},
		says:   "10.0.0.20 in berlin is down instead of up",
	},
	{
		name: "bytes go around the tunnel", before: "bytes",
		do: func(_ *testing.T, w *world) {
			w.visitor.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				to := w.berlin.at
				if strings.HasPrefix(address, hostname("tokyo")) {
					to = w.tokyo.at
				}
				return new(net.Dialer).DialContext(ctx, network, to)
			}
		},
		failed: []string{"bytes"},
		says:   "some took another way",
	},
	{
		name: "bytes of one network go through the other", before: "bytes",
		do: func(t *testing.T, w *world) {
			edit(t, w, `"tokyo/10.0.0.10:80"`, `"berlin/10.0.0.10:80"`)
			reload(t, w)
			w.served["tokyo"], w.served["berlin"] = w.served["berlin"], w.served["tokyo"]
		},
		failed: []string{"bytes"},
		says:   "with connector \"tokyo-1\"",
	},
}

// atOnce is how many spoilt demos run side by side. They wait more than they
// work, so that it is more than the processors that t.Parallel goes by.
const atOnce = 8

func TestSpoilt(t *testing.T) {
	turn := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	defer all.Wait()
	for _, tt := range spoilers {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			t.Run(tt.name, tt.test)
		})
	}
}

func (tt spoiler) test(t *testing.T) {
	out := newOutput("")
	err := Run(t.Context(), Options{Out: out, Check: true, dir: place(t), before: func(stage string, w *world) {
		if stage == tt.before {
			tt.do(t, w)
		}
		w.patience = defaultPatience
		if stage == tt.failed[0] {
			w.patience = 1500 * time.Millisecond // it may wait in vain
		}
		if w.visitor != nil {
			w.visitor.limit = callLimit
			if stage == "udp" && slices.Contains(tt.failed, stage) {
				w.visitor.limit = time.Second // as may this
			}
		}
	}})
	var f *failure
	if !errors.As(err, &f) {
		t.Fatalf("got %v\n%s", err, out)
	}
	if diff := cmp.Diff(tt.failed, f.stages); diff != "" {
		t.Errorf("failed: %s\n%v\n%s", diff, err, out)
	}
	if diff := cmp.Diff(tt.skipped, f.skipped); diff != "" {
		t.Errorf("not tried: %s", diff)
	}
	for _, want := range append([]string{tt.says}, tt.failed...) {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if !strings.Contains(out.String(), "FAILED: ") || strings.Contains(out.String(), "stages passed") {
		t.Errorf("the output hides it:\n%s", out)
	}
}

// silence returns the UDP port of a socket that never answers.
func silence(t *testing.T) int {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return 0
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.LocalAddr().(*net.UDPAddr).Port
}

// rewrite writes the config files from the plan.
func rewrite(t *testing.T, w *world) {
	if err := w.plan.write(w.dir); err != nil {
		t.Error(err)
	}
}

// edit changes edge.toml.
func edit(t *testing.T, w *world, old, by string) {
	text, err := os.ReadFile(w.path("edge.toml"))
	if err != nil || !strings.Contains(string(text), old) {
		t.Errorf("edge.toml lacks %q: %v", old, err)
	}
	if err := os.WriteFile(w.path("edge.toml"), []byte(strings.ReplaceAll(string(text), old, by)), 0o600); err != nil {
		t.Error(err)
	}
}

// reload makes the edge read edge.toml again.
func reload(t *testing.T, w *world) {
	if _, err := w.admin.Reload(t.Context()); err != nil {
		t.Error(err)
	}
}
