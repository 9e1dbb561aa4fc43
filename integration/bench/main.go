// Command bench measures Warren against other ways from a client to a private
// origin, all of them in one run and on one topology:
//
//	go run ./integration/bench                      # everything: hours
//	go run ./integration/bench -list                # what there is
//	go run ./integration/bench -cases 'bulk-*-1,rr-1' -contenders warren,naive,direct
//
// Three hosts in network namespaces (client, edge, data centre) are made anew
// for each measurement; contenders take turns, and figures are medians over
// the rounds. It needs root, or user namespaces for everybody, and iproute2.
//
// Contenders are Warren; naive, what a proxy over userspace WireGuard is when
// it is written in an afternoon, and the 1 of every ratio; direct, the kernel's
// route; HAProxy where it is installed; and the products whose programs lie in
// -peers. Whoever has no start in peers.go takes part by two programs there,
// recipes/NAME.edge and recipes/NAME.connector; see recipes.
//
// The program must never touch the machine's own network, never leave
// anything behind, and never measure two things at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/warrenmesh/warren/integration/bench/impair"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
)

func main() {
	if role := os.Getenv(envRole); role != "" && role != roleMain {
		os.Exit(play(role, os.Args[1:]))
	}
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if o.list {
		list(os.Stdout, o)
		return
	}
	dieWithGo()
	inside := func() int { return netns.Main(func() int { return runInside(o) }) }
	if len(o.warrens) > 0 {
		os.Exit(inside())
	}
	root, err := moduleRoot()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(daemon.Build(root, inside))
}

// options are what the command line asks for.
type options struct {
	path            path
	cases           []*benchCase
	contenders      []string // globs
	peers           string   // a directory of binaries
	warrens         []named  // binaries; none: built from this repository
	rounds          int
	duration        time.Duration
	connectDuration time.Duration
	warmup          time.Duration
	rest            time.Duration
	rrRate          float64
	connectRate     float64
	idle, networks  int
	json, list      bool
	profile         string
	log             io.Writer
}

// named is a binary with the name of its contender.
type named struct{ name, path string }

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{log: stderr}
	var impairText, cases, contenders string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.path.mtu, "mtu", 1500, "the MTU of both cables")
	flags.StringVar(&impairText, "impair", "", "impair the cable to the data centre: delay=20ms,loss=0.1%,reorder=1% (the delay is a round trip's)")
	flags.StringVar(&o.path.congestion, "congestion", "cubic", "the TCP congestion control of the three kernels")
	flags.StringVar(&cases, "cases", "*", "the cases to measure: globs, with commas between")
	flags.StringVar(&contenders, "contenders", "*", "who takes part: globs, with commas between")
	flags.StringVar(&o.peers, "peers", "", "a `directory` with the programs of other products")
	flags.Func("warren", "a warren binary to measure instead of this repository's: `[NAME=]PATH`; may be repeated", func(text string) error {
		name, file, found := strings.Cut(text, "=")
		if !found {
			name, file = "", text
		}
		if name = nameWarren + "-" + name; !found {
			name = nameWarren
		}
		o.warrens = append(o.warrens, named{name, file})
		return nil
	})
	flags.IntVar(&o.rounds, "rounds", 3, "how often each contender is measured in each case")
	flags.DurationVar(&o.duration, "duration", 5*time.Second, "how long one measurement counts")
	flags.DurationVar(&o.connectDuration, "connect-duration", 2*time.Minute, "how long connections are opened, closed loop")
	flags.DurationVar(&o.warmup, "warmup", time.Second, "how long a load runs before it counts")
	flags.DurationVar(&o.rest, "rest", 3*time.Second, "how long a contender is left alone before it is weighed")
	flags.Float64Var(&o.rrRate, "rr-rate", 2000, "requests a second of rr-open")
	flags.Float64Var(&o.connectRate, "connect-rate", 400, "connections a second of connect-open")
	flags.IntVar(&o.idle, "idle", 5000, "connections of idle-memory")
	flags.IntVar(&o.networks, "networks", 1000, "networks of networks-memory")
	flags.BoolVar(&o.json, "json", false, "print an object a line on standard output; the table goes to standard error")
	flags.BoolVar(&o.list, "list", false, "list cases and contenders")
	flags.StringVar(&o.profile, "profile", "", "write CPU profiles of Warren's edge and connector into `DIR`")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	check(flags.NArg() == 0, "reading the command line: %q is not a flag", flags.Args())
	check(o.path.mtu >= 1280 && o.path.mtu <= 65535, "-mtu %d: want 1280 to 65535", o.path.mtu)
	check(o.rounds >= 1, "-rounds %d: want 1 at least", o.rounds)
	check(o.duration > 0 && o.connectDuration > 0, "-duration, -connect-duration: want more than nothing")
	check(o.warmup >= 0 && o.rest >= 0, "-warmup, -rest: want 0s at least")
	check(o.rrRate > 0 && o.connectRate > 0, "-rr-rate, -connect-rate: want more than nothing")
	check(o.idle > 0 && o.networks > 0, "-idle, -networks: want 1 at least")
	var err error
	if o.path.impair, err = impair.Parse(impairText); err != nil {
		problems = append(problems, err)
	}
	if o.cases, err = chooseCases(cases); err != nil {
		problems = append(problems, err)
	}
	if o.contenders, err = globs(contenders); err != nil {
		problems = append(problems, err)
	}
	return o, errors.Join(problems...)
}

// globs splits and checks a list of patterns.
func globs(text string) (patterns []string, err error) {
	for pattern := range strings.SplitSeq(text, ",") {
		if _, err := filepath.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("reading the pattern %q: %w", pattern, err)
		}
		patterns = append(patterns, pattern)
	}
	return patterns, nil
}

// matches reports whether one of the patterns, which globs has checked,
// matches name.
func matches(patterns []string, name string) bool {
	for _, pattern := range patterns {
		if ok, _ := filepath.Match(pattern, name); ok {
			return true
		}
	}
	return false
}

// chooseCases returns the cases that patterns name. A pattern that names none
// is a typing error.
func chooseCases(text string) (chosen []*benchCase, err error) {
	patterns, err := globs(text)
	if err != nil {
		return nil, err
	}
	all := allCases()
	for _, pattern := range patterns {
		found := false
		for _, c := range all {
			found = found || matches([]string{pattern}, c.name)
		}
		if !found {
			return nil, fmt.Errorf("there is no case %q: -list shows all", pattern)
		}
	}
	for _, c := range all {
		if matches(patterns, c.name) {
			chosen = append(chosen, c)
		}
	}
	return chosen, nil
}

// runInside is the run, in namespaces of its own.
func runInside(o *options) int {
	if ok, why := netns.Available(); !ok {
		fmt.Fprintln(os.Stderr, "bench: making hosts in network namespaces: this machine lets only root do that, or nobody:", why)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := settle(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	r, err := run(ctx, o)
	if r != nil {
		r.print(os.Stdout, os.Stderr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("asking go for the module's root: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if filepath.Base(file) != "go.mod" {
		return "", errors.New("looking for cmd/warren: run this in Warren's repository, or name a binary with -warren")
	}
	return filepath.Dir(file), nil
}
