// Package demo is `warren demo`: the product in one command, with nothing
// installed and no right needed.
//
//	demo.Run(ctx, demo.Options{Out: os.Stdout, Check: true})
//
// In one process, over real sockets of 127.0.0.1 and from real config files,
// it runs an edge with DNS and two networks that are both 10.0.0.0/24, each
// with a connector and origins. Then it walks through stages (stages.go): each
// shows one thing that Warren does, by doing what a client or an operator
// would do, and fails where the answer is not the right one. Without Check it
// stays up after them, and says what to try.
//
//	plan.go      what the config files say, out of edge.toml.tmpl and connector.toml.tmpl
//	origin.go    the private services
//	world.go     all that runs: the daemons, the origins, their directory
//	visitor.go   the client: resolves through dnsd, then connects
//	stages.go    what is shown and checked
//
// The package must never write outside its temporary directory, which it
// removes, never dial or listen beyond 127.0.0.1, and never call a stage good
// that it has not seen.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Options of Run.
type Options struct {
	// Out gets the story. Required.
	Out io.Writer
	// Check ends the demo after its stages.
	Check bool
	// ShowConfig prints the config files.
	ShowConfig bool
	// Log gets what the daemons log, besides the file that they log to.
	// Optional.
	Log io.Writer
	// Version of the program, for `warren status`.
	Version string

	before func(stage string, w *world) // tests spoil things here
	dir    string                       // where the demo's directory is made; default os.TempDir
}

// Command is `warren demo`.
func Command() *cobra.Command {
	var opts Options
	var verbose bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show the product: two networks with the same addresses behind one edge",
		Long: `Show the product in one process, over sockets of 127.0.0.1: an edge with DNS,
two networks that are both 10.0.0.0/24, a connector in each, and services
behind them. It shows and checks what Warren does, stage by stage, and then
stays up for you to try, until Ctrl-C.

Nothing is installed and no right is needed; the files go when it ends.`,
		Args: cobra.NoArgs,
	}
	c.Flags().BoolVar(&opts.Check, "check", false, "end after the checks: exit code 0, or a list of what failed")
	c.Flags().BoolVar(&opts.ShowConfig, "show-config", false, "print the config files of the edge and the connectors")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "write what the daemons log to standard error")
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop) // a second signal ends the process at once
		opts.Out, opts.Version = c.OutOrStdout(), c.Root().Version
		if verbose {
			opts.Log = c.ErrOrStderr()
		}
		return Run(ctx, opts)
	}
	return c
}

// Run runs the demo until ctx ends, or with Check until its stages are done.
// Its error lists the stages that failed. Nothing of it runs any more when it
// returns, and its directory is gone.
func Run(ctx context.Context, opts Options) (err error) {
	began := time.Now()
	w, err := newWorld(opts)
	if err != nil {
		return fmt.Errorf("preparing the demo: %w", err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	w.introduce()
	failed, err := w.walk(ctx)
	switch {
	case err != nil && !opts.Check && ctx.Err() != nil:
		return nil // whoever watched has seen enough
	case err != nil:
		return err
	case len(failed.stages) > 0:
		w.printLog()
		return failed
	}
	w.say.line("All %d stages passed, %.1f s after the start.", len(stages), time.Since(began).Seconds())
	if opts.Check {
		return nil
	}
	w.suggest()
	return w.stay(ctx)
}

// failure is the error of stages that failed.
type failure struct {
	stages  []string // that failed
	skipped []string // that could not be tried
	errs    []error  // of stages, one each
}

func (f *failure) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "checking the demo: %d of %d stages failed", len(f.stages), len(stages))
	for i, name := range f.stages {
		fmt.Fprintf(&b, "\n  %s: %v", name, f.errs[i])
	}
	if len(f.skipped) > 0 {
		fmt.Fprintf(&b, "\n  not tried, as they need what failed: %s", strings.Join(f.skipped, ", "))
	}
	return b.String()
}
