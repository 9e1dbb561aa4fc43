package demo

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// story writes what a person reads. A reader that has gone stops nothing.
type story struct{ out io.Writer }

// line is a paragraph of its own.
func (s story) line(format string, args ...any) {
	fmt.Fprintf(s.out, "\n"+format+"\n", args...)
}

// stage opens a stage; detail, passed, failed and skipped belong to it.
func (s story) stage(n, of int, name, title string) {
	fmt.Fprintf(s.out, "\n[%d/%d] %s: %s\n", n, of, name, title)
}

func (s story) detail(format string, args ...any) {
	fmt.Fprintf(s.out, "    "+format+"\n", args...)
}

func (s story) passed(took time.Duration) {
	s.detail("ok, %s", took.Round(time.Millisecond))
}

func (s story) failed(err error) {
	s.detail("FAILED: %s", strings.ReplaceAll(err.Error(), "\n", "\n    "))
}

func (s story) skipped(missing string) { s.detail("not tried: it needs %q", missing) }

// config prints a config file.
func (s story) config(f configFile) {
	s.line("--- %s\n%s---", f.name, f.text)
}

func (w *world) introduce() {
	w.say.line(`Warren publishes services of private networks through one public machine, the
edge. Here both networks are %s, and everything runs in this process:

                        ┌──────┐  ┌── connector berlin-1 ── 10.0.0.10  10.0.0.20  10.0.0.21
    you ── TCP, UDP ────│ edge │══╡
           and DNS      └──────┘  └── connector tokyo-1 ─── 10.0.0.10
                               WireGuard

Its files are in %s, and go when it ends.`, prefix, w.dir)
}

// suggest says what to try while the demo stays up.
func (w *world) suggest() {
	p := w.plan
	warren := programName(os.Args[0])
	socket := "--socket " + w.path("edge.sock")
	w.say.line("It stays up until Ctrl-C. In another terminal, try:")
	for _, group := range []struct {
		title    string
		commands []string
	}{
		{"The same private address, 10.0.0.10, in berlin and in tokyo", []string{
			fmt.Sprintf("curl http://127.0.0.1:%d/", p.Berlin),
			fmt.Sprintf("curl http://127.0.0.1:%d/", p.Tokyo),
		}},
		{"By name: the edge is the DNS server of " + zone, []string{
			fmt.Sprintf("dig +short @127.0.0.1 -p %d %s", p.DNS, hostname("berlin")),
			fmt.Sprintf("curl --resolve %[1]s:%[2]d:127.0.0.1 http://%[1]s:%[2]d/", hostname("berlin"), p.Berlin),
		}},
		{"A pool of two: repeat it", []string{fmt.Sprintf("curl http://127.0.0.1:%d/", p.Shop)}},
		{"UDP", []string{fmt.Sprintf("echo hi | nc -u -w 1 127.0.0.1 %d", p.Echo)}},
		{"What the operator sees", []string{
			warren + " status " + socket,
			warren + " connector list " + socket,
			warren + " pool list " + socket,
			fmt.Sprintf("curl -s http://127.0.0.1:%d/metrics | grep warren_", p.Metrics),
			"tail -f " + w.path("flows.log"),
		}},
		{"Is it the tunnel, or the origin? The second is denied by tokyo's own [guard]", []string{
			warren + " probe berlin 10.0.0.10:80 " + socket,
			warren + " probe tokyo 10.0.0.20:80 " + socket,
		}},
		{"Change the config while it serves", []string{
			"vi " + w.path("edge.toml"),
			warren + " edge reload " + socket,
		}},
	} {
		w.say.line("  %s:", group.title)
		for _, c := range group.commands {
			w.say.detail("%s", c)
		}
	}
}

// programName is how the reader calls this program: as they did now.
func programName(arg0 string) string {
	if strings.Contains(filepath.ToSlash(arg0), "/go-build") {
		return "go run ./cmd/warren"
	}
	return arg0
}

// printLog shows the last lines of the daemons' log, where something failed.
func (w *world) printLog() {
	const last = 25
	text, err := os.ReadFile(w.path(logName))
	if err != nil || w.opts.Log != nil {
		return // it has been shown as it came
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	w.say.line("The daemons' last words:")
	for _, l := range lines[max(0, len(lines)-last):] {
		w.say.detail("%s", l)
	}
}
