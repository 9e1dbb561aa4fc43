package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/host"
)

// daemonFlags are those of the commands that run or check a daemon.
type daemonFlags struct {
	configs   []string
	logFormat string
}

// configFlag adds -c. kind is "edge" or "connector".
func (f *daemonFlags) configFlag(c *cobra.Command, kind string) {
	c.Flags().StringArrayVarP(&f.configs, "config", "c", nil,
		fmt.Sprintf("config `file`, or a directory of *.toml files; may be repeated (default: %s)", defaultConfig(kind)))
}

func (f *daemonFlags) logFlag(c *cobra.Command) {
	c.Flags().StringVar(&f.logFormat, "log-format", "", "`format` of the lines on standard error: text or json (default: $WARREN_LOG_FORMAT, else text)")
}

func defaultConfig(kind string) string { return "/etc/warren/" + kind + ".toml" }

// paths returns the config files that are meant, or says where it looked.
func (f *daemonFlags) paths(c *cobra.Command, kind string) ([]string, error) {
	paths := f.given(kind)
	if paths == nil {
		return nil, wrongUsage(c, "looking for a config: none is given with -c, and there is no %s: write one with `warren %s init`, or name yours with -c", defaultConfig(kind), kind)
	}
	return paths, nil
}

// given returns the config files that are meant, nil where there are none.
func (f *daemonFlags) given(kind string) []string {
	if len(f.configs) > 0 {
		return f.configs
	}
	path := defaultConfig(kind)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return []string{path}
}

// newLog makes the daemon's own log: text for people, or JSON lines.
func (f *daemonFlags) newLog(c *cobra.Command, p *program, level slog.Level) (*slog.Logger, error) {
	format := f.logFormat
	if format == "" {
		format = p.env("WARREN_LOG_FORMAT")
	}
	opts := &slog.HandlerOptions{Level: level}
	switch strings.ToLower(format) {
	case "", "text":
		return slog.New(slog.NewTextHandler(p.stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(p.stderr, opts)), nil
	}
	return nil, wrongUsage(c, "choosing the log's format: %q is neither text nor json", format)
}

// collectAt is the garbage collector's target (GOGC) of a daemon. What grows in
// bursts is WireGuard's buffers of 64 KiB, which it lets go of only when the
// collector runs: with 50 instead of 100 an edge grew by 53 MiB under a flood of
// guests instead of 95 to 109.
const collectAt = 50

// runs makes c the command that runs a daemon until a signal ends it; reloads
// tells whether SIGHUP means something to it.
func runs(c *cobra.Command, reloads bool, daemon func(context.Context, *signals) error) {
	c.RunE = func(c *cobra.Command, _ []string) error {
		s := catchSignals(c.Context(), reloads)
		defer s.stop()
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(collectAt)
		}
		ctx, cancel := context.WithCancel(c.Context())
		var pacing sync.WaitGroup
		pacing.Go(func() { host.Processors(ctx) })
		defer pacing.Wait()
		defer cancel()
		return daemon(s.ctx, s)
	}
}
