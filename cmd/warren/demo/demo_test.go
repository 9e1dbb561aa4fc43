package demo

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place returns a directory for demos, and fails the test if one leaves
// something there. It is not t.TempDir, whose path is too long for a socket.
func place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// output is what a demo writes. found is closed once it has written marker.
type output struct {
	mu     sync.Mutex
	text   bytes.Buffer
	marker string
	found  chan struct{}
}

func newOutput(marker string) *output { return &output{marker: marker, found: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	had := o.marker == "" || strings.Contains(o.text.String(), o.marker)
	o.text.Write(b)
	if !had && strings.Contains(o.text.String(), o.marker) {
		close(o.found)
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// TestCheck runs two demos at once: neither may be in the other's way.
func TestCheck(t *testing.T) {
	t.Parallel()
	dir := place(t)
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			out, logged := newOutput(""), newOutput("")
			err := Run(t.Context(), Options{Out: out, Check: true, ShowConfig: true, Log: logged, dir: dir})
			if err != nil {
				t.Errorf("%v\n%s\n%s", err, out, logged)
			}
			want := []string{"All 10 stages passed", "--- edge.toml", "--- berlin-1.toml", "--- tokyo-1.toml", "[[pool.endpoints]]", "[[alias]]"}
			for _, s := range stages {
				want = append(want, "] "+s.name+": "+s.title)
			}
			for _, w := range want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("the output lacks %q:\n%s", w, out)
				}
			}
			if !strings.Contains(logged.String(), "edge ready") {
				t.Errorf("the daemons' log was not passed on:\n%s", logged)
			}
		})
	}
	both.Wait()
}

// TestStays keeps the demo up as a person would have it, and ends it.
func TestStays(t *testing.T) {
	t.Parallel()
	var w *world
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := newOutput("It stays up")
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Out: out, dir: place(t), before: func(_ string, running *world) { w = running }})
	}()
	select {
	case <-out.found:
	case err := <-done:
		t.Fatalf("it ended: %v\n%s", err, out)
	}
	answer, err := w.visitor.get(t.Context(), "tokyo", w.plan.Tokyo)
	if err != nil || answer != "hello from 10.0.0.10 in tokyo" {
		t.Errorf("after the stages it answers %q, %v", answer, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	if !strings.Contains(out.String(), "status --socket") {
		t.Errorf("it suggests nothing:\n%s", out)
	}
}

// TestDies wants the demo to end when a daemon does.
func TestDies(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		of   func(*world) *daemon
		want string
	}{
		{"edge", func(w *world) *daemon { return w.edge }, "the edge ended by itself"},
		{"first connector", func(w *world) *daemon { return w.connectors[0].daemon }, `connector "berlin-1" ended by itself`},
		{"second connector", func(w *world) *daemon { return w.connectors[1].daemon }, `connector "tokyo-1" ended by itself`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newTestWorld(t)
			if err := w.startEdge(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, s := range w.plan.Sites {
				if err := w.startConnector(s); err != nil {
					t.Fatal(err)
				}
			}
			tt.of(w).cancel()
			if err := w.stay(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "%!") {
				t.Errorf("want %q, got %v", tt.want, err)
			}
		})
	}
}

// newTestWorld returns a world without daemons, which ends with the test.
func newTestWorld(t *testing.T) *world {
	t.Helper()
	w, err := newWorld(Options{Out: newOutput(""), dir: place(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// TestInterrupted ends the demo within its stages.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, in string
		check    bool
		fails    bool
	}{
		{"check", "tunnel", true, true},
		{"check at the edge", "edge", true, true},
		{"story", "tunnel", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := Run(ctx, Options{Out: newOutput(""), Check: tt.check, dir: place(t), before: func(stage string, _ *world) {
				if stage == tt.in {
					cancel()
				}
			}})
			if tt.fails != errors.Is(err, context.Canceled) || tt.fails != (err != nil) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestPortsTaken lets another be quicker to take a port, each kind once.
func TestPortsTaken(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, network string
		port          func(*plan) int
	}{
		{"wireguard", "udp", func(p *plan) int { return p.WireGuard }},
		{"dns over tcp", "tcp", func(p *plan) int { return p.DNS }},
		{"dns over udp", "udp", func(p *plan) int { return p.DNS }},
		{"metrics", "tcp", func(p *plan) int { return p.Metrics }},
		{"tcp app", "tcp", func(p *plan) int { return p.Shop }},
		{"udp app", "udp", func(p *plan) int { return p.Echo }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newTestWorld(t)
			var others held
			defer others.release()
			tries := 0
			w.ports = func(p *plan) error {
				tries++
				if err := p.choosePorts(); err != nil || tries > 1 {
					return err
				}
				_, err := others.open(tt.network, tt.port(p))
				return err
			}
			if err := w.startEdge(t.Context()); err != nil {
				t.Fatal(err)
			}
			if tries != 2 {
				t.Errorf("%d tries", tries)
			}
		})
	}
}

func TestPortsDiffer(t *testing.T) {
	p, err := newPlan()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.choosePorts(); err != nil {
		t.Fatal(err)
	}
	tcp := []int{p.DNS, p.Metrics, p.Berlin, p.Tokyo, p.Shop}
	udp := []int{p.DNS, p.WireGuard, p.Echo}
	for _, ports := range [][]int{tcp, udp} {
		slices.Sort(ports)
		if ports[0] == 0 || len(slices.Compact(ports)) != len(ports) {
			t.Errorf("ports %v", ports)
		}
	}
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Shop)))
	if err != nil {
		t.Fatalf("a chosen port is still held: %v", err)
	}
	_ = ln.Close()
}

func TestProgramName(t *testing.T) {
	for _, tt := range []struct{ arg0, want string }{
		{"warren", "warren"},
		{"./bin/warren", "./bin/warren"},
		{"/tmp/go-build123/b001/exe/warren", "go run ./cmd/warren"},
	} {
		if got := programName(tt.arg0); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.arg0, got, tt.want)
		}
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name, arg string
		wants     func(error) bool
		shows     string
	}{
		{"check", "--check", func(err error) bool { return errors.Is(err, context.Canceled) }, "[1/10] edge"},
		{"help", "--help", func(err error) bool { return err == nil }, "--show-config"},
		{"an argument", "tokyo", func(err error) bool { return err != nil }, ""},
		{"an unknown flag", "--cheque", func(err error) bool { return err != nil }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := newOutput("")
			c := Command()
			c.SilenceUsage, c.SilenceErrors = true, true
			c.SetOut(out)
			c.SetErr(out)
			c.SetArgs([]string{tt.arg})
			if err := c.ExecuteContext(ended); !tt.wants(err) {
				t.Errorf("got %v", err)
			}
			if !strings.Contains(out.String(), tt.shows) {
				t.Errorf("the output lacks %q:\n%s", tt.shows, out)
			}
		})
	}
}
