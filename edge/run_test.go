package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/configs/strict/mutate"
	"github.com/warrenmesh/warren/edge/config"
)

// TestRunFails: whatever keeps an edge from starting is said in one sentence,
// and nothing of it stays behind: it starts once the cause is gone.
func TestRunFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", taken.Addr().String())
	if err != nil {
		t.Skipf("the port of %s is taken for UDP", taken.Addr())
	}
	const anywhere = `listen = "127.0.0.1:0"`
	at := taken.Addr().String()
	_, port, _ := net.SplitHostPort(at)
	app := func(listen string) string {
		return network("berlin") + fmt.Sprintf("[[app]]\nname = \"web\"\nlisten = [%q]\norigin = \"berlin/10.0.0.10:7\"\n", listen)
	}
	tests := []struct {
		name          string
		from, to      string // in the head of the config
		tables, error string
	}{
		{"the tunnel's port", "[wireguard]\n" + anywhere, "[wireguard]\nlisten = \"" + at + "\"", "", at},
		{"an app's TCP port", "", "", app("tcp/" + port), "in use by"},
		{"an app's UDP port", "", "", app("udp/" + port), "in use by"},
		{"the DNS port", `listen = ["127.0.0.1:0"]`, `listen = ["` + at + `"]`, "[[zone]]\nname = \"example.com\"\nnameservers = [\"ns1.example.com\"]\n", "listening for DNS"},
		{"the metrics' port", "[metrics]\n" + anywhere, "[metrics]\nlisten = \"" + at + "\"", "", "for metrics: address already in use by"},
		{"an address of another machine", `advertise = ["127.0.0.1"]`, `advertise = ["203.0.113.77"]`, app("tcp/0"), "this machine does not have the address"},
		{"the flow log", `flows = "flows.jsonl"`, `flows = "nowhere/flows.jsonl"`, "", "opening the flow log"},
		{"the key", `"edge.key"`, `"nothing.key"`, "", "nothing.key"},
		{"a config with problems", "", "", app("tcp/http"), "app[0].listen[0]"},
	}
	var worlds []*world
	for _, tc := range tests {
		w := newWorld(t, tc.tables)
		worlds = append(worlds, w)
		text := head
		if tc.from != "" {
			if text = strings.Replace(head, tc.from, tc.to, 1); text == head {
				t.Fatalf("%s: %q is not in the config", tc.name, tc.from)
			}
		}
		err := w.runText(text+tc.tables, func(*Edge) { t.Errorf("%s: it started", tc.name) })
		if err == nil || !strings.Contains(err.Error(), tc.error) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.error)
		}
	}
	_, _ = taken.Close(), udp.Close()
	for i, tc := range tests[:5] {
		started := false
		text := head
		if tc.from != "" {
			text = strings.Replace(head, tc.from, tc.to, 1)
		}
		if err := worlds[i].runText(text+tc.tables, func(*Edge) { started = true }); err != nil || !started {
			t.Errorf("%s: with the port free: %v", tc.name, err)
		}
	}
}

// runText runs an edge with a config and ends it as soon as it serves.
func (w *world) runText(text string, ready func(*Edge)) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	return Run(ctx, Options{
		Load: func() (*config.Config, error) {
			return config.Parse(noEnv, strict.Source{Name: filepath.Join(w.dir, "edge.toml"), Text: []byte(text)})
		},
		Log: slog.New(w.log),
		Ready: func(e *Edge) {
			ready(e)
			stop()
		},
	})
}

// TestOneEdgeAStateDirectory: a second one is refused, and disturbs nothing.
func TestOneEdgeAStateDirectory(t *testing.T) {
	w := served(t, 0)
	err := w.runText(head, func(*Edge) { t.Error("a second edge started") })
	if err == nil || !strings.Contains(err.Error(), "another edge runs with it") {
		t.Errorf("a second edge: %v", err)
	}
	if got, err := w.converse("web", "x"); got != "berlin\nx" || err != nil {
		t.Errorf("the first one: %q, %v", got, err)
	}
}

// TestReloadChannel: a value on Options.Reload is a reload, whose failure ends
// nothing.
func TestReloadChannel(t *testing.T) {
	w := newWorld(t, network("berlin"))
	reload := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, Options{Load: w.load, Log: slog.New(w.log), Reload: reload}) }()
	w.write(network("berlin", "tokyo"))
	reload <- struct{}{}
	await(t, "the reload", func() bool { return w.log.has("reloaded revision=2") })
	w.write(network("berlin", "berlin"))
	reload <- struct{}{}
	await(t, "the refusal", func() bool { return w.log.has("reload refused") })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestMutantsStart: whatever mutant of a config is accepted, an edge starts
// with it. What a machine may lack (a port below 1024, an address) is no
// fault of the config.
func TestMutantsStart(t *testing.T) {
	t.Parallel()
	const base = 21000 // below the ports that the kernel hands out
	dir := t.TempDir()
	var mutants []mutate.Mutant
	for _, text := range []string{mutate.Edge(base, filepath.Join(dir, "state")), mutate.Director(base, filepath.Join(dir, "state"))} {
		more, err := mutate.All(text)
		if err != nil {
			t.Fatal(err)
		}
		mutants = append(mutants, more...)
	}
	env := func(key string) string {
		if key == "HOME" {
			return dir
		}
		return ""
	}
	accepted, step := 0, 5 // some 300 starts
	if raceEnabled || testing.Short() {
		step = 30
	}
	for i := 0; i < len(mutants); i += step {
		m := mutants[i]
		cfg, err := config.Parse(env, strict.Source{Name: filepath.Join(dir, "edge.toml"), Text: []byte(anyPort(m.Text, base))})
		if err != nil {
			continue
		}
		accepted++
		ctx, stop := context.WithCancel(t.Context())
		err = Run(ctx, Options{
			Load:  func() (*config.Config, error) { return cfg, nil },
			Log:   slog.New(slog.DiscardHandler),
			Ready: func(*Edge) { stop() },
		})
		stop()
		var problems strict.Problems
		if err != nil && !errors.As(config.CheckHost(cfg), &problems) {
			t.Errorf("%s: accepted, and the machine is well, and still: %v\n%s", m, err, m.Text)
		}
	}
	if tried := len(mutants) / step; accepted < tried/50 {
		t.Errorf("%d of %d mutants are accepted: the test proves nothing", accepted, tried)
	}
}

// anyPort lets the kernel choose the ports of the machine-bound sockets, so
// that this test needs none of its own.
func anyPort(text string, base int) string {
	for p := base; p < base+3; p++ {
		text = strings.ReplaceAll(text, fmt.Sprintf(":%d\"", p), ":0\"")
	}
	return text
}
